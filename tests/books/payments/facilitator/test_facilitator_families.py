"""Facilitators of several families as one: each payment goes to its own, and to nobody else's."""

import pytest
from eth_account.signers.local import LocalAccount

from fixtures.solana import NETWORK
from fixtures.solana_desk import AMOUNT, Desk
from tollbook.books.payments.facilitator.families import FamilyFacilitator
from tollbook.books.payments.facilitator.faults import ERR_INVALID_NETWORK
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.core import local_chain
from tollbook.core.local_chain import LocalChain

pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")


async def test_a_payment_goes_to_the_facilitator_of_its_family(desk: Desk) -> None:
    both = FamilyFacilitator({"solana": desk.open()})
    payment = await desk.sign()
    assert (await both.verify(payment, desk.requirements())).is_valid
    assert (await both.settle(payment, desk.requirements())).success
    assert desk.earned() == AMOUNT
    await both.aclose()


async def test_a_family_that_nobody_serves_is_refused(desk: Desk) -> None:
    both = FamilyFacilitator({"solana": desk.open()})
    payment, elsewhere = await desk.sign(), desk.requirements(network="eip155:8453")
    assert (await both.verify(payment, elsewhere)).invalid_reason == ERR_INVALID_NETWORK
    answer = await both.settle(payment, elsewhere)
    assert (answer.success, answer.error_reason, answer.transaction) == (False, ERR_INVALID_NETWORK, "")
    await both.aclose()


async def test_what_is_supported_is_what_all_of_them_serve(
    desk: Desk, chain: LocalChain, operator: LocalAccount
) -> None:
    evm = InProcessFacilitator({local_chain.NETWORK: chain.url}, "0x" + operator.key.hex(), desk.database_url)
    both = FamilyFacilitator({"eip155": evm, "solana": desk.open()})
    supported = await both.supported()
    assert {kind.network for kind in supported.kinds} == {local_chain.NETWORK, NETWORK}
    assert supported.signers["solana:*"] == [str(desk.operator.pubkey())]
    assert supported.signers["eip155:*"] == [operator.address]
    await both.aclose()
