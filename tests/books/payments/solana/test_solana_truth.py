"""What Solana says of settlements in the ledger: settled by which message, never, or still open."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from solders.keypair import Keypair
from x402.schemas import PaymentPayload

from fixtures.solana import MINT, NETWORK
from fixtures.solana_desk import AMOUNT, EXPIRY_BLOCKS, Desk
from tollbook.books.payments.facilitator.in_process import SettlementUnknown
from tollbook.books.payments.ledger import Settlement, Verdict
from tollbook.books.payments.solana import payment as solana_payment
from tollbook.books.payments.solana.facilitator import SolanaFacilitator
from tollbook.books.payments.solana.node import ERR_EXPIRED, SolanaNode
from tollbook.books.payments.solana.truth import LANDED_WITH_AN_ERROR, SolanaTruth
from tollbook.books.payments.truth import ChainTruth
from tollbook.core import clock
from tollbook.core.chains import ChainUnreachable
from tollbook.core.database import Database

pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")


def entry(desk: Desk, payment: PaymentPayload, **changes: Any) -> Settlement:
    """The payment as the ledger has it while nobody knows what became of it."""
    now = clock.now()
    fields: dict[str, Any] = {
        "settlement_id": 1,
        "network": NETWORK,
        "scheme": "exact",
        "asset": MINT,
        "payer": str(desk.payer.pubkey()),
        "pay_to": str(desk.seller.pubkey()),
        "nonce": solana_payment.read_payment(payment).message_hash,
        "amount": AMOUNT,
        "amount_moved": None,
        "status": "unknown",
        "facilitator": "one",
        "tx_hash": None,
        "block_number": None,
        "reason": "settlement_pending",
        "answer": None,
        "asks": 1,
        "holder": 1,
        "asked_at": now,
        "held_until": now,
        "valid_before": now + timedelta(minutes=2),
        "settled_at": None,
        "confirmed_at": None,
    }
    return Settlement(**(fields | changes))


@pytest.fixture
async def facilitator(desk: Desk) -> AsyncIterator[SolanaFacilitator]:
    async with desk.open(seconds=0.1) as facilitator:
        yield facilitator


@pytest.fixture
async def truth(desk: Desk, database: Database) -> AsyncIterator[ChainTruth]:
    """As the paywall and the reconciler have it: Solana's judge behind the one of all chains."""
    async with SolanaNode(NETWORK, desk.chain.url) as node:
        yield ChainTruth({}, elsewhere={"solana": SolanaTruth(database, {NETWORK: node})})


def forget_what_was_signed(desk: Desk) -> None:
    with psycopg.connect(desk.database_url) as connection:
        connection.execute("TRUNCATE payments.x402_solana_settlements")


async def test_a_settlement_is_settled_once_the_cluster_has_voted_for_it(
    desk: Desk, facilitator: SolanaFacilitator, truth: ChainTruth
) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.held = True
    with pytest.raises(SettlementUnknown) as caught:
        await facilitator.settle(payment, desk.requirements())
    assert await truth.find(entry(desk, payment)) == Verdict("open")
    desk.chain.confirm()
    verdict = await truth.find(entry(desk, payment))
    assert verdict is not None
    assert (verdict.outcome, verdict.tx_hash, verdict.amount_moved) == (
        "settled",
        caught.value.transaction,
        AMOUNT,
    )


@pytest.mark.parametrize("told", ["the signature", "nothing", "another signature", "no signature"])
async def test_a_message_that_another_facilitator_settled_is_found(
    desk: Desk, facilitator: SolanaFacilitator, truth: ChainTruth, told: str
) -> None:
    payment, other = await desk.sign(), await desk.sign()
    desk.chain.behaviour.held = False
    answers = []
    async with desk.open(seconds=5) as patient:
        for each in (payment, other):
            answers.append(await patient.settle(each, desk.requirements()))
    forget_what_was_signed(desk)
    desk.chain.advance(33)
    tx_hash = {
        "the signature": answers[0].transaction,
        "nothing": None,
        "another signature": answers[1].transaction,
        "no signature": "0x" + "ab" * 32,
    }
    verdict = await truth.find(entry(desk, payment, tx_hash=tx_hash[told]))
    assert verdict is not None
    assert (verdict.outcome, verdict.tx_hash) == ("settled", answers[0].transaction)


async def test_a_message_that_landed_with_an_error_is_not_settled(
    desk: Desk, facilitator: SolanaFacilitator, truth: ChainTruth
) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.before_landing.append(desk.drain)
    desk.chain.behaviour.held = True
    with pytest.raises(SettlementUnknown):
        await facilitator.settle(payment, desk.requirements())
    assert await truth.find(entry(desk, payment)) == Verdict("open")
    desk.chain.confirm()
    assert await truth.find(entry(desk, payment)) == Verdict("open")
    desk.chain.advance(33)
    assert await truth.find(entry(desk, payment)) == Verdict("not settled", reason=LANDED_WITH_AN_ERROR)


async def test_a_message_whose_time_is_over_is_not_settled_where_we_signed_it(
    desk: Desk, facilitator: SolanaFacilitator, truth: ChainTruth
) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.dropped = True
    with pytest.raises(SettlementUnknown):
        await facilitator.settle(payment, desk.requirements())
    assert await truth.find(entry(desk, payment)) == Verdict("open")
    desk.chain.advance(EXPIRY_BLOCKS)
    assert await truth.find(entry(desk, payment)) == Verdict("not settled", reason=ERR_EXPIRED)
    forget_what_was_signed(desk)
    assert await truth.find(entry(desk, payment)) == Verdict("open")


async def test_other_networks_are_not_judged(desk: Desk, truth: ChainTruth) -> None:
    payment = await desk.sign()
    assert await truth.find(entry(desk, payment, network="solana:elsewhere")) is None


async def test_a_node_that_does_not_answer_gives_no_verdict(
    desk: Desk, facilitator: SolanaFacilitator, truth: ChainTruth
) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.lost_answers.add("getGenesisHash")
    with pytest.raises(ChainUnreachable):
        await truth.find(entry(desk, payment))


async def test_a_strangers_payment_to_the_same_recipient_is_not_ours(
    desk: Desk, facilitator: SolanaFacilitator, truth: ChainTruth
) -> None:
    payment = await desk.sign()
    desk.payer = Keypair()
    desk.chain.give(desk.payer.pubkey(), MINT, AMOUNT)
    async with desk.open(seconds=5) as patient:
        assert (await patient.settle(await desk.sign(), desk.requirements())).success
    desk.chain.advance(33)
    assert await truth.find(entry(desk, payment)) == Verdict("open")
