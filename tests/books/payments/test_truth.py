"""What the chain says of a settlement: on a real chain, in every state that an authorization can be in."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_account.signers.local import LocalAccount
from eth_utils.abi import function_signature_to_4byte_selector
from x402.mechanisms.evm.constants import PERMIT2_ADDRESS

from fixtures.authorizations import authorize, transfer
from fixtures.schemes import send_as
from tollbook.books.payments.ledger import Settlement, Verdict
from tollbook.books.payments.truth import RAN_OUT, SPENT_ELSEWHERE, ChainTruth
from tollbook.core import chain_logs, clock
from tollbook.core.chains import Chain, ChainRefused, ChainUnreachable
from tollbook.core.local_chain import DEPLOYER, NETWORK, TOKEN_ADDRESS, LocalChain

AMOUNT = 10_000


@pytest.fixture
async def truth(chain: LocalChain, token: str) -> AsyncIterator[ChainTruth]:
    assert token
    async with Chain(NETWORK, chain.url) as node:
        yield ChainTruth({NETWORK: node})


async def test_a_spent_authorization_is_found_without_its_transaction(
    chain: LocalChain, truth: ChainTruth, payer: LocalAccount, seller: LocalAccount
) -> None:
    signed = authorize(payer, seller.address)
    sent = signed.send(chain)
    chain.call("anvil_mine", hex(40))
    found = await truth.find(signed.as_settlement())
    assert found is not None
    assert (found.outcome, found.tx_hash, found.amount_moved) == ("settled", sent, AMOUNT)
    for name in (sent, "operation 7"):
        assert await truth.find(signed.as_settlement(tx_hash=name)) == found


async def test_an_unused_authorization_is_open_until_a_block_is_past_its_end(
    chain: LocalChain, truth: ChainTruth, payer: LocalAccount, seller: LocalAccount
) -> None:
    signed = authorize(payer, seller.address)
    assert await truth.find(signed.as_settlement()) == Verdict("open")
    over = authorize(payer, seller.address, valid_before=clock.now() - timedelta(seconds=2))
    chain.call("evm_mine")
    assert await truth.find(over.as_settlement()) == Verdict("not settled", reason=RAN_OUT)


async def test_a_cancelled_authorization_will_never_settle(
    chain: LocalChain, truth: ChainTruth, payer: LocalAccount, seller: LocalAccount
) -> None:
    signed = authorize(payer, seller.address)
    cancelled = signed.cancel(chain)
    found = await truth.find(signed.as_settlement())
    assert found == Verdict("not settled", reason=f"{SPENT_ELSEWHERE} in {cancelled}")


async def test_an_authorization_that_paid_somebody_else_paid_us_nothing(
    chain: LocalChain, truth: ChainTruth, payer: LocalAccount, seller: LocalAccount
) -> None:
    elsewhere = authorize(payer, DEPLOYER)
    sent = elsewhere.send(chain)
    for tx_hash in (None, sent):
        found = await truth.find(elsewhere.as_settlement(pay_to=seller.address.lower(), tx_hash=tx_hash))
        assert found == Verdict("not settled", reason=f"{SPENT_ELSEWHERE} in {sent}")


async def test_another_payments_transaction_proves_nothing(
    chain: LocalChain, truth: ChainTruth, payer: LocalAccount, seller: LocalAccount
) -> None:
    """The books may name a wrong transaction, even one that moved the same amount between the same two."""
    other, plain = (
        authorize(payer, seller.address).send(chain),
        transfer(chain, payer, seller.address, AMOUNT),
    )
    open_one = authorize(payer, seller.address)
    for tx_hash in (other, plain, "0x" + "ab" * 32):
        assert await truth.find(open_one.as_settlement(tx_hash=tx_hash)) == Verdict("open")


async def test_what_really_moved_counts_not_what_was_written_down(
    chain: LocalChain, truth: ChainTruth, payer: LocalAccount, seller: LocalAccount
) -> None:
    signed = authorize(payer, seller.address, 123)
    signed.send(chain)
    found = await truth.find(signed.as_settlement(amount=AMOUNT))
    assert found is not None
    assert (found.outcome, found.amount_moved) == ("settled", 123)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "eip155:1"},
        {"scheme": "batch-settlement"},
        {"asset": "0x" + "11" * 20},
    ],
)
async def test_what_cannot_be_judged_is_not_judged(
    truth: ChainTruth, payer: LocalAccount, seller: LocalAccount, changes: dict[str, str]
) -> None:
    assert await truth.find(authorize(payer, seller.address).as_settlement(**changes)) is None


@pytest.mark.parametrize("knows_old_states", [True, False])
async def test_what_was_spent_before_we_were_asked_paid_for_nothing_here(
    chain: LocalChain,
    truth: ChainTruth,
    payer: LocalAccount,
    seller: LocalAccount,
    monkeypatch: pytest.MonkeyPatch,
    knows_old_states: bool,
) -> None:
    """However long before; if the node cannot tell, it is not called unsettled: it may have paid us."""
    signed = authorize(payer, seller.address)
    signed.send(chain)
    for _ in range(2):
        chain.call("evm_mine")
    late = signed.as_settlement(asked_at=clock.now() + timedelta(hours=3))
    asked: list[int] = []
    call = Chain.call

    async def forget(node: Chain, *args: Any, block: int) -> bytes:
        asked.append(block)
        if len(asked) > 1:  # the first was the newest
            raise ChainRefused(NETWORK, "eth_call", "missing trie node")
        return await call(node, *args, block=block)

    if not knows_old_states:
        monkeypatch.setattr(Chain, "call", forget)
    found = await truth.find(late)
    wanted = Verdict("not settled", reason=f"{SPENT_ELSEWHERE} before it was presented here")
    assert found == (wanted if knows_old_states else None)


async def test_other_families_are_judged_by_their_own(payer: LocalAccount, seller: LocalAccount) -> None:
    class Oracle:
        async def find(self, settlement: Settlement) -> Verdict:
            return Verdict("settled", tx_hash=settlement.nonce)

    truth = ChainTruth({}, {"solana": Oracle()})
    signed = authorize(payer, seller.address)
    assert await truth.find(signed.as_settlement(network="solana:x")) == Verdict("settled", signed.nonce)
    assert await truth.find(signed.as_settlement()) is None


async def test_a_silent_node_says_nothing(payer: LocalAccount, seller: LocalAccount) -> None:
    async with Chain(NETWORK, "http://127.0.0.1:9") as node:
        with pytest.raises(ChainUnreachable):
            await ChainTruth({NETWORK: node}).find(authorize(payer, seller.address).as_settlement())


async def test_events_are_found_where_the_node_answers_few_blocks_at_once(
    chain: LocalChain, token: str, payer: LocalAccount, seller: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_logs, "BLOCKS_AT_ONCE_MAX", 3)
    async with Chain(NETWORK, chain.url) as node:
        first = await node.get_block_number()
        sent = [transfer(chain, payer, seller.address, amount) for amount in (1, 2, 3, 4, 5)]
        topics = [None, chain_logs.pad(payer.address), chain_logs.pad(seller.address)]
        last = await node.get_block_number()
        found = await chain_logs.find_events(node, [token], topics, first, last)
        assert [event.transaction_hash for event in found] == sent
        newest = await node.get_block(last)
        assert newest is not None
        assert await chain_logs.find_block_before(node, newest.time - timedelta(days=1), last) in range(last)
        assert await chain_logs.find_block_before(node, newest.time, last) == last


async def test_a_cancelled_permit_is_not_paid_by_another_payments_transaction(
    schemes_chain: LocalChain, permit2_payer: LocalAccount, truth: ChainTruth, seller: LocalAccount
) -> None:
    """Its nonce may be a word that stands in many calls, and a payer writes what he likes behind a call."""
    paid = authorize(permit2_payer, seller.address)
    for nonce in (0, 7):
        word, bit = divmod(nonce, 256)
        cancel = function_signature_to_4byte_selector("invalidateUnorderedNonces(uint256,uint256)")
        cancel += encode(["uint256", "uint256"], [word, 1 << bit])
        send_as(schemes_chain, permit2_payer.address, PERMIT2_ADDRESS, cancel)
        call = function_signature_to_4byte_selector("transfer(address,uint256)")
        call += encode(["address", "uint256", "uint256"], [seller.address, AMOUNT, nonce])
        send_as(schemes_chain, permit2_payer.address, TOKEN_ADDRESS, call)
        found = await truth.find(paid.as_settlement(nonce=f"permit2:{nonce}"))
        assert found is None or found.outcome != "settled"
