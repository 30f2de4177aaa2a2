"""Deposits of channels at our facilitator: each moves once, and what the chain has is never called failed."""

from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from x402.mechanisms.evm.batch_settlement.encoding import build_erc3009_deposit_nonce
from x402.mechanisms.evm.constants import ERR_NONCE_ALREADY_USED
from x402.schemas import PaymentPayload, PaymentRequired, PaymentRequirements

from clients.bare_sdk import PRICE, BareFacilitator, make_buyer
from clients.pay import require
from fixtures.authorizations import authorize
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator, SettlementUnknown
from tollbook.books.payments.schemes.batch import find_channel_fault, find_kinds
from tollbook.core.local_chain import NETWORK, TOKEN_ADDRESS, LocalChain

DEPOSIT = 5 * PRICE  # the client's


async def require_deposit(
    facilitator: InProcessFacilitator, seller: LocalAccount, transfer: str
) -> PaymentRequirements:
    """What a seller asks whose channels this facilitator settles."""
    terms = require(TOKEN_ADDRESS, seller.address, PRICE, scheme="batch-settlement")
    extra = find_kinds((await facilitator.supported()).kinds)[NETWORK].extra or {}
    terms.extra |= extra | {"withdrawDelay": 900, "assetTransferMethod": transfer}
    return terms


async def sign(account: LocalAccount, terms: PaymentRequirements) -> PaymentPayload:
    payment = await make_buyer(account).create_payment_payload(PaymentRequired(accepts=[terms]))
    assert isinstance(payment, PaymentPayload)
    return payment


def spell(payment: PaymentPayload, **deposit: Any) -> PaymentPayload:
    """The same deposit in other words."""
    copy = payment.model_copy(deep=True)
    copy.payload["deposit"] |= deposit
    return copy


async def test_a_deposit_that_somebody_else_settled_is_found_and_its_channel_goes_on(
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    terms = await require_deposit(in_process, seller, "eip3009")
    payment = await sign(payer, terms)
    theirs = await BareFacilitator(schemes_chain, operator).settle(payment, terms)
    assert theirs.success, theirs
    ours = await in_process.settle(payment, terms)
    assert (ours.success, ours.transaction, ours.amount) == (True, theirs.transaction, str(DEPOSIT))
    assert ours.extra is not None
    assert ours.extra["channelState"]["balance"] == str(DEPOSIT)


async def test_a_deposit_whose_permit_is_used_is_not_called_failed(
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    operator: LocalAccount,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    terms = await require_deposit(in_process, seller, "permit2")
    payment = await sign(permit2_payer, terms)
    assert (await BareFacilitator(schemes_chain, operator).settle(payment, terms)).success
    with pytest.raises(SettlementUnknown) as unknown:
        await in_process.settle(payment, terms)
    assert unknown.value.error_reason == ERR_NONCE_ALREADY_USED


@pytest.mark.parametrize("transfer", ["eip3009", "permit2"])
async def test_a_deposit_in_other_words_is_the_same_deposit_and_is_sent_once(
    transfer: str,
    in_process: InProcessFacilitator,
    operator: LocalAccount,
    schemes_chain: LocalChain,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    terms = await require_deposit(in_process, seller, transfer)
    payment = await sign(permit2_payer, terms)
    purse = schemes_chain.read_balance(permit2_payer.address)
    first = await in_process.settle(payment, terms)
    again = await in_process.settle(spell(payment, note="another", amount=f"0{DEPOSIT}"), terms)
    assert (first.success, again.success) == (True, True)
    assert first.transaction == again.transaction
    assert schemes_chain.read_balance(permit2_payer.address) == purse - DEPOSIT


async def test_a_deposit_that_its_payer_cancelled_has_surely_failed(
    schemes_chain: LocalChain, in_process: InProcessFacilitator, payer: LocalAccount, seller: LocalAccount
) -> None:
    terms = await require_deposit(in_process, seller, "eip3009")
    payment = await sign(payer, terms)
    salt = payment.payload["deposit"]["authorization"]["erc3009Authorization"]["salt"]
    nonce = build_erc3009_deposit_nonce(payment.payload["voucher"]["channelId"], salt)
    authorize(payer, seller.address, nonce=nonce).cancel(schemes_chain)
    failed = await in_process.settle(payment, terms)
    assert (failed.success, failed.error_reason) == (False, ERR_NONCE_ALREADY_USED)


async def test_a_deposit_that_its_payer_cannot_cover_has_surely_failed(
    schemes_chain: LocalChain, in_process: InProcessFacilitator, seller: LocalAccount
) -> None:
    terms = await require_deposit(in_process, seller, "eip3009")
    failed = await in_process.settle(await sign(schemes_chain.make_account(amount=1), terms), terms)
    assert not failed.success


async def test_a_deposit_that_is_signed_in_two_ways_is_refused_and_moves_nothing(
    in_process: InProcessFacilitator,
    schemes_chain: LocalChain,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    terms, permit = [await require_deposit(in_process, seller, way) for way in ("eip3009", "permit2")]
    payment, other = await sign(permit2_payer, terms), await sign(permit2_payer, permit)
    payment.payload["deposit"]["authorization"] |= other.payload["deposit"]["authorization"]
    purse = schemes_chain.read_balance(permit2_payer.address)
    assert find_channel_fault(payment, terms) is not None
    assert not (await in_process.settle(payment, terms)).success
    assert schemes_chain.read_balance(permit2_payer.address) == purse
