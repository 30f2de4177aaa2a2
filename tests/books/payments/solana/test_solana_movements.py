"""Solana from the chain's side: what moved to our recipients, and the reconciler that reads it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from solders.keypair import Keypair

from fixtures.solana import MINT, NETWORK
from fixtures.solana_desk import AMOUNT, EXPIRY_BLOCKS, FINAL_BLOCKS, Desk
from tollbook.books.payments.facilitator.in_process import SettlementUnknown
from tollbook.books.payments.facilitator.ledgered import LedgeredFacilitator
from tollbook.books.payments.reconciler.reconcile import Reconciler, open_reconciler
from tollbook.books.payments.rules import Payee
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.books.payments.solana import payment as solana_payment
from tollbook.books.payments.solana.movements import SolanaWatcher
from tollbook.books.payments.solana.node import SolanaNode
from tollbook.core import clock
from tollbook.core.database import Database

pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")


@pytest.fixture
async def node(desk: Desk) -> AsyncIterator[SolanaNode]:
    async with SolanaNode(NETWORK, desk.chain.url) as node:
        yield node


@pytest.fixture
async def reconciler(desk: Desk, database: Database) -> AsyncIterator[Reconciler]:
    """As `tollbook payments reconcile` has it, but that nothing is too young to be looked at."""
    settings = PaymentsSettings(
        rpc_urls={NETWORK: desk.chain.url}, payees=[Payee(NETWORK, str(desk.seller.pubkey()))]
    )
    async with open_reconciler(database, settings) as reconciler:
        yield replace(reconciler, grace=timedelta(0))


async def read_kinds(reconciler: Reconciler, since: datetime | None = None) -> list[tuple[Any, ...]]:
    report = await reconciler.run(since)
    assert report.unreachable == {}
    return [(each.kind, each.amount_moved) for each in report.differences]


async def test_a_movement_is_seen_from_both_sides(desk: Desk, node: SolanaNode) -> None:
    payment = await desk.sign()
    async with desk.open() as facilitator:
        answer = await facilitator.settle(payment, desk.requirements())
    desk.chain.advance(FINAL_BLOCKS)
    watcher = SolanaWatcher({NETWORK: node})
    seller, final = str(desk.seller.pubkey()), await watcher.find_final(NETWORK)
    movements = await watcher.find_movements(NETWORK, [MINT], [seller], 0, final)
    assert [(each.payer, each.pay_to, each.tx_hash, each.amount) for each in movements] == [
        (str(desk.payer.pubkey()), seller, answer.transaction, AMOUNT)
    ]
    assert await watcher.read_transaction(NETWORK, answer.transaction) == movements
    assert await watcher.find_nonces(movements[0]) == [solana_payment.read_payment(payment).message_hash]
    slot = movements[0].block_number
    assert await watcher.find_movements(NETWORK, [MINT], [seller], slot + 1, final) == []
    assert await watcher.find_movements(NETWORK, [MINT], [seller], 0, slot - 1) == []
    assert await watcher.read_transaction(NETWORK, str(Keypair().sign_message(b"none"))) is None


async def test_what_landed_with_an_error_moved_nothing(desk: Desk, node: SolanaNode) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.before_landing.append(desk.drain)
    async with desk.open() as facilitator:
        answer = await facilitator.settle(payment, desk.requirements())
    desk.chain.advance(FINAL_BLOCKS)
    watcher = SolanaWatcher({NETWORK: node})
    assert await watcher.read_transaction(NETWORK, answer.transaction) is None
    final, seller = await watcher.find_final(NETWORK), str(desk.seller.pubkey())
    assert await watcher.find_movements(NETWORK, [MINT], [seller], 0, final) == []


async def test_a_transaction_that_the_node_lists_and_cannot_show_is_not_passed_over(
    desk: Desk, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.send(desk.transfer(AMOUNT))
    desk.chain.advance(FINAL_BLOCKS)
    answer, since = desk.chain.answer, clock.now() - timedelta(hours=1)
    with monkeypatch.context() as forgetful:
        forgetful.setattr(
            desk.chain, "answer", lambda how, asked: None if how == "getTransaction" else answer(how, asked)
        )
        assert list((await reconciler.run(since)).unreachable) == [NETWORK]
    assert [kind for kind, _ in await read_kinds(reconciler)] == ["foreign_transfer"]


async def test_a_node_of_another_network_is_not_read(
    desk: Desk, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fixtures.solana_rpc.GENESIS_HASH", "5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp")
    report = await reconciler.run(clock.now() - timedelta(hours=1))
    assert list(report.unreachable) == [NETWORK]


async def test_a_node_that_lags_behind_shows_no_history_with_holes_in_it(
    desk: Desk, reconciler: Reconciler
) -> None:
    """Behind one address there are often several nodes: what is passed over now is not looked at again."""
    desk.send(desk.transfer(AMOUNT))
    desk.chain.advance(FINAL_BLOCKS)
    desk.chain.behaviour.behind = 2 * FINAL_BLOCKS
    since = clock.now() - timedelta(hours=1)
    report = await reconciler.run(since)
    assert list(report.unreachable) == [NETWORK]
    desk.chain.behaviour.behind = 0
    assert [kind for kind, _ in await read_kinds(reconciler, since)] == ["foreign_transfer"]


async def test_positions_are_never_after_the_moment(desk: Desk, node: SolanaNode) -> None:
    watcher = SolanaWatcher({NETWORK: node})
    final = await watcher.find_final(NETWORK)
    hour = timedelta(hours=1)
    assert await watcher.find_position(NETWORK, clock.now() + hour) == final
    assert await watcher.find_position(NETWORK, clock.now() - timedelta(seconds=40)) < final - 100


async def test_books_that_equal_the_chain_have_no_differences(
    desk: Desk, reconciler: Reconciler, database: Database
) -> None:
    async with desk.open() as facilitator:
        ledgered = LedgeredFacilitator(database, {"own": facilitator}, reconciler.truth)
        assert (await ledgered.settle(await desk.sign(), desk.requirements())).success
    desk.chain.advance(33)
    assert await read_kinds(reconciler) == []
    confirmed = [row[0] for row in desk.query("SELECT confirmed_at FROM payments.x402_settlements")]
    assert confirmed != [None]


async def test_an_unknown_settlement_is_decided_by_the_chain(
    desk: Desk, reconciler: Reconciler, database: Database
) -> None:
    desk.chain.behaviour.held = True
    async with desk.open(seconds=0.1) as facilitator:
        ledgered = LedgeredFacilitator(database, {"own": facilitator}, reconciler.truth)
        with pytest.raises(SettlementUnknown):
            await ledgered.settle(await desk.sign(), desk.requirements())
    desk.chain.confirm()
    assert await read_kinds(reconciler) == [("unknown", AMOUNT)]
    assert desk.query("SELECT status, amount_moved FROM payments.x402_settlements") == [("settled", AMOUNT)]


async def test_a_settlement_that_never_landed_is_decided_once_its_time_is_over(
    desk: Desk, reconciler: Reconciler, database: Database
) -> None:
    desk.chain.behaviour.dropped = True
    async with desk.open(seconds=0.1) as facilitator:
        ledgered = LedgeredFacilitator(database, {"own": facilitator}, reconciler.truth)
        with pytest.raises(SettlementUnknown):
            await ledgered.settle(await desk.sign(), desk.requirements())
    assert await read_kinds(reconciler) == [("unknown", None)]
    assert desk.query("SELECT status FROM payments.x402_settlements") == [("unknown",)]
    desk.chain.advance(EXPIRY_BLOCKS)
    assert [kind for kind, _ in await read_kinds(reconciler)] == ["unknown"]
    assert desk.query("SELECT status FROM payments.x402_settlements") == [("failed",)]


async def test_money_that_no_row_names_is_a_foreign_transfer(desk: Desk, reconciler: Reconciler) -> None:
    async with desk.open() as facilitator:
        assert (await facilitator.settle(await desk.sign(), desk.requirements())).success
    desk.chain.advance(33)
    report = await reconciler.run(since=clock.now() - timedelta(hours=1))
    assert [(each.kind, each.amount_moved) for each in report.differences] == [("foreign_transfer", AMOUNT)]
