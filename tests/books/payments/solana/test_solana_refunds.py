"""Refunds on Solana: sent once, whatever happens on the way, and found again where they were forgotten."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from solders.keypair import Keypair

from fixtures.refunding import Copy
from fixtures.solana import GAS_LAMPORTS, MINT, NETWORK
from fixtures.solana_desk import AMOUNT, EXPIRY_BLOCKS, Desk
from fixtures.solana_rpc import Refused
from tollbook.books.payments import payments, refunds
from tollbook.books.payments.facilitator.errors import OperatorOutOfGas
from tollbook.books.payments.payments import Offer, Payment
from tollbook.books.payments.reconciler.reconcile import Reconciler
from tollbook.books.payments.refund_desk import RefundDesk, RefundReverted
from tollbook.books.payments.refund_purse import RefundPurseEmpty
from tollbook.books.payments.solana import payment as solana_payment
from tollbook.books.payments.solana.movements import SolanaWatcher
from tollbook.books.payments.solana.node import SolanaNode
from tollbook.books.payments.solana.refunds import RefundAccountClosed, SolanaPurse
from tollbook.books.payments.solana.truth import SolanaTruth
from tollbook.core import clock
from tollbook.core.database import Database

pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")

PURSE = 1_000_000
FINAL_BLOCKS = 33
COMMAND = "from tollbook.entrypoints.cli import main; main()"
NO_GRACE = timedelta(minutes=-5)


@pytest.fixture
async def paid(desk: Desk, database: Database) -> Payment:
    """A payment on Solana that is settled and final, and an operator who has tokens to send back."""
    async with desk.open() as facilitator:
        signed = await desk.sign()
        settled = await facilitator.settle(signed, desk.requirements())
    assert settled.success
    offer = Offer(
        network=NETWORK, chain="solana-devnet", asset=MINT, decimals=6, amount=AMOUNT,
        from_address=str(desk.payer.pubkey()), to_address=str(desk.seller.pubkey()),
        nonce=solana_payment.read_payment(signed).message_hash, tx_hash=None, scheme="exact",
        endpoint="GET /weather/*", requests_allocated=10, lifetime=timedelta(hours=1),
        valid_before=clock.now() + timedelta(minutes=1),
    )  # fmt: skip
    async with database.write() as tx:
        reserved = await payments.reserve(tx, offer, now=clock.now())
        payment = await payments.settle(
            tx, reserved.payment_id, tx_hash=settled.transaction, block_number=None, confirmations=None,
            now=clock.now(),
        )  # fmt: skip
    desk.chain.give(desk.operator.pubkey(), MINT, PURSE)
    desk.chain.advance(FINAL_BLOCKS)
    return payment


@asynccontextmanager
async def open_refunds(
    desk: Desk, database: Database, key: Keypair | None = None, seconds: float = 5.0
) -> AsyncGenerator[RefundDesk]:
    async with SolanaNode(NETWORK, desk.chain.url) as node:
        purse = SolanaPurse(database, {NETWORK: node}, key or desk.operator, seconds)
        yield RefundDesk(database, {NETWORK: purse}, {NETWORK: SolanaWatcher({NETWORK: node})})


@pytest.fixture
async def refunding(desk: Desk, database: Database) -> AsyncIterator[RefundDesk]:
    async with open_refunds(desk, database) as refunding:
        yield refunding


def balance(desk: Desk) -> int:
    return desk.chain.balance(desk.payer.pubkey(), MINT)


def list_attempts(desk: Desk) -> list[str]:
    rows = desk.query("SELECT status FROM payments.x402_solana_refunds ORDER BY signed_at")
    return [status for (status,) in rows]


async def reconcile(desk: Desk, database: Database) -> list[tuple[str, str]]:
    async with SolanaNode(NETWORK, desk.chain.url) as node:
        nodes = {NETWORK: node}
        ours = Reconciler(
            database, SolanaTruth(database, nodes), {NETWORK: SolanaWatcher(nodes)}, [], NO_GRACE
        )
        return [(each.kind, each.status) for each in (await ours.run()).differences]


async def test_a_refund_on_solana_pays_the_payer_with_its_mark(
    desk: Desk, refunding: RefundDesk, paid: Payment
) -> None:
    before = balance(desk)
    part = await refunding.refund(paid.payment_id, amount=4_000, reason="cold")
    assert (part.status, part.from_address) == ("done", str(desk.operator.pubkey()))
    rest = await refunding.refund(paid.payment_id, amount=None, reason=None)
    assert (rest.status, rest.amount) == ("done", AMOUNT - 4_000)
    assert balance(desk) == before + AMOUNT
    assert list_attempts(desk) == ["landed", "landed"]
    async with refunding.database.read() as tx:
        assert (await payments.get(tx, paid.payment_id)).settlement == "refunded"
    found = await refunding.purses[NETWORK].open_reader(NETWORK).read_marked(MINT, str(part.tx_hash))
    assert found is not None
    assert (found.refund_id, found.amount, found.to_address) == (part.refund_id, 4_000, paid.from_address)


async def test_a_refund_waits_until_the_payments_slot_is_final(
    desk: Desk, database: Database, refunding: RefundDesk, paid: Payment
) -> None:
    desk.chain.give(desk.payer.pubkey(), MINT, AMOUNT)
    async with desk.open() as facilitator:
        signed = await desk.sign()
        settled = await facilitator.settle(signed, desk.requirements())
    await _run(database, "UPDATE payments.x402_payments SET tx_hash = %(hash)s", hash=settled.transaction)
    asked = await refunding.refund(paid.payment_id, amount=None, reason=None)
    assert asked.status == "requested"
    desk.chain.advance(FINAL_BLOCKS)
    assert (await refunding.carry_out(asked.refund_id)).status == "done"


async def test_a_refund_carried_out_by_many_is_signed_once(
    desk: Desk, database: Database, refunding: RefundDesk, paid: Payment
) -> None:
    before = balance(desk)
    async with database.write() as tx:
        asked = await refunds.request(tx, paid.payment_id, amount=5, reason=None, now=clock.now())
    async with open_refunds(desk, database) as other:
        done = await asyncio.gather(*(at.carry_out(asked.refund_id) for at in (refunding, other) * 3))
    assert {refund.status for refund in done} == {"done"}
    assert (balance(desk), list_attempts(desk)) == (before + 5, ["landed"])


async def test_what_no_block_took_is_signed_anew_only_when_its_time_is_over(
    desk: Desk, database: Database, paid: Payment
) -> None:
    before = balance(desk)
    desk.chain.behaviour.dropped = True
    async with open_refunds(desk, database, seconds=0.5) as refunding:
        lost = await refunding.refund(paid.payment_id, amount=None, reason=None)
        assert lost.status == "sent"
        desk.chain.advance(100)
        assert (await refunding.carry_out(lost.refund_id)).status == "sent"
        assert list_attempts(desk) == ["signed"]
        desk.chain.behaviour.dropped = False
        desk.chain.advance(EXPIRY_BLOCKS)
        for _ in range(2):
            done = await refunding.carry_out(lost.refund_id)
    assert (done.status, list_attempts(desk)) == ("done", ["expired", "landed"])
    assert balance(desk) == before + AMOUNT


async def test_one_that_can_never_be_signed_anew_frees_its_sum(
    desk: Desk, database: Database, paid: Payment
) -> None:
    desk.chain.behaviour.dropped = True
    async with open_refunds(desk, database, seconds=0.1) as refunding:
        lost = await refunding.refund(paid.payment_id, amount=None, reason=None)
        desk.chain.advance(EXPIRY_BLOCKS)
        await refunding.carry_out(lost.refund_id)
        assert list_attempts(desk) == ["expired"]
        desk.chain.close_account(desk.payer.pubkey(), MINT)
        for status in ("sent", "failed"):
            with pytest.raises(RefundAccountClosed):
                await refunding.carry_out(lost.refund_id)
            async with database.read() as tx:
                assert (await refunds.get(tx, lost.refund_id)).status == status
            await _run(
                database,
                "UPDATE payments.x402_refunds SET sent_at = sent_at - %(age)s",
                age=timedelta(minutes=11),
            )
        desk.chain.behaviour.dropped = False
        desk.chain.give(desk.payer.pubkey(), MINT, 0)
        assert (await refunding.refund(paid.payment_id, amount=None, reason=None)).status == "done"


async def test_a_lost_answer_of_the_node_is_no_second_transfer(
    desk: Desk, database: Database, paid: Payment
) -> None:
    before = balance(desk)
    desk.chain.behaviour.lost_answers = {"sendTransaction", "getTransaction"}
    async with open_refunds(desk, database, seconds=0.1) as refunding:
        with pytest.raises(Exception, match="no usable answer"):
            await refunding.refund(paid.payment_id, amount=None, reason=None)
        desk.chain.behaviour.lost_answers = set()
        async with database.read() as tx:
            (waiting,) = await refunds.find_open(tx)
        if waiting.status == "requested":  # it broke off where the payment was looked up
            waiting = await refunding.carry_out(waiting.refund_id)
        done = await refunding.carry_out(waiting.refund_id)
    assert (done.status, list_attempts(desk)) == ("done", ["landed"])
    assert balance(desk) == before + AMOUNT


async def test_an_empty_purse_a_closed_account_and_no_money_for_the_fee_are_told_apart(
    desk: Desk, database: Database, paid: Payment
) -> None:
    async with open_refunds(desk, database) as refunding:
        desk.chain.give(desk.operator.pubkey(), MINT, AMOUNT - 1)
        with pytest.raises(RefundPurseEmpty):
            await refunding.refund(paid.payment_id, amount=None, reason=None)
        desk.chain.give(desk.operator.pubkey(), MINT, PURSE)
        desk.chain.fund(desk.operator.pubkey(), 0)
        with pytest.raises(OperatorOutOfGas):
            await refunding.refund(paid.payment_id, amount=None, reason=None)
        desk.chain.fund(desk.operator.pubkey(), GAS_LAMPORTS)
        async with database.read() as tx:
            (waiting,) = await refunds.find_open(tx)
        desk.chain.close_account(desk.payer.pubkey(), MINT)
        with pytest.raises(RefundAccountClosed):
            await refunding.carry_out(waiting.refund_id)
        desk.chain.give(desk.payer.pubkey(), MINT, 0)
        assert (await refunding.refund(paid.payment_id, amount=None, reason=None)).status == "done"
    assert (balance(desk), list_attempts(desk)) == (AMOUNT, ["landed"])


async def test_one_that_lands_with_an_error_moves_nothing_and_frees_its_sum(
    desk: Desk, database: Database, paid: Payment
) -> None:
    before = balance(desk)
    # The purse is emptied between the look at it and the block.
    desk.chain.behaviour.before_landing = [lambda: desk.chain.give(desk.operator.pubkey(), MINT, 1)]
    async with open_refunds(desk, database, seconds=0.1) as refunding:
        waiting = await refunding.refund(paid.payment_id, amount=None, reason=None)
        assert (waiting.status, list_attempts(desk)) == ("sent", ["signed"])
        desk.chain.advance(FINAL_BLOCKS)
        with pytest.raises(RefundReverted):
            await refunding.carry_out(waiting.refund_id)
        assert (balance(desk), list_attempts(desk)) == (before, ["failed"])
        desk.chain.give(desk.operator.pubkey(), MINT, PURSE)
        assert (await refunding.refund(paid.payment_id, amount=None, reason=None)).status == "done"
    assert balance(desk) == before + AMOUNT


async def test_a_forgotten_refund_on_solana_moves_money_once(
    desk: Desk, database: Database, paid: Payment, back_up: Copy
) -> None:
    before, url = balance(desk), back_up(database)
    async with open_refunds(desk, database) as refunding:
        sent = [await refunding.refund(paid.payment_id, amount=part, reason=None) for part in (3_000, 2_000)]
    async with Database(url) as restored, open_refunds(desk, restored) as refunding:
        for part in (3_000, 2_000):
            again = await refunding.refund(paid.payment_id, amount=part, reason=None)
            assert (again.status, again.tx_hash in {each.tx_hash for each in sent}) == ("done", True)
        assert balance(desk) == before + 5_000
        rest = await refunding.refund(paid.payment_id, amount=None, reason=None)
        assert (rest.status, rest.amount) == ("done", 5_000)
        assert balance(desk) == before + AMOUNT


async def test_the_reconciler_books_forgotten_refunds_on_solana(
    desk: Desk, database: Database, paid: Payment, back_up: Copy
) -> None:
    async with open_refunds(desk, database) as refunding:
        await refunding.refund(paid.payment_id, amount=1, reason=None)
    url = back_up(database)
    async with open_refunds(desk, database) as refunding:
        sent = await refunding.refund(paid.payment_id, amount=4_000, reason=None)
    async with Database(url) as restored:
        await reconcile(replace(desk, database_url=url), restored)
        async with restored.read() as tx:
            found = {each.refund_id: each for each in await refunds.page(tx, payment_id=paid.payment_id)}
            assert found[sent.refund_id].tx_hash == sent.tx_hash
            assert (await payments.get(tx, paid.payment_id)).refunded_amount == 4_001


def start_refund(desk: Desk, paid: Payment) -> subprocess.Popen[bytes]:
    environment = {
        "DATABASE_URL": desk.database_url,
        "TOLLBOOK_RPC_URLS": json.dumps({NETWORK: desk.chain.url}),
        "TOLLBOOK_SOLANA_KEY": str(desk.operator),
    }
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "payments", "refund", payments.show(paid.payment_id), "--json"],
        stdout=subprocess.PIPE,
        env=os.environ | environment,
    )


async def test_a_payment_on_solana_is_refunded_from_the_command_line(desk: Desk, paid: Payment) -> None:
    before = balance(desk)
    output, _ = await asyncio.to_thread(start_refund(desk, paid).communicate)
    told = json.loads(output)
    assert (told["status"], told["amount"], told["network"]) == ("done", str(AMOUNT), NETWORK)
    assert balance(desk) == before + AMOUNT


@pytest.mark.parametrize(
    ("method", "when"),
    [
        ("getLatestBlockhash", "before"),
        ("sendTransaction", "before"),
        ("sendTransaction", "after"),
        ("getTransaction", "after"),
    ],
)
async def test_a_refund_whose_process_is_killed_is_paid_once_by_the_next(
    desk: Desk, database: Database, paid: Payment, monkeypatch: pytest.MonkeyPatch, method: str, when: str
) -> None:
    before, answer, killed = balance(desk), desk.chain.answer, False
    running = start_refund(desk, paid)

    def kill(asked: str, params: list[Any]) -> Any:
        nonlocal killed
        due = asked == method and bool(list_refunds_sent(desk)) and not killed
        if due and when == "before":
            killed = True
            running.kill()
            raise Refused(-32005, "it was killed")
        told = answer(asked, params)
        if due:
            killed = True
            running.kill()
        return told

    monkeypatch.setattr(desk.chain, "answer", kill)
    await asyncio.to_thread(running.communicate)
    assert (running.returncode, killed) == (-signal.SIGKILL, True)
    async with open_refunds(desk, database) as refunding:
        async with database.read() as tx:
            (waiting,) = await refunds.find_open(tx)
        done = await refunding.carry_out(waiting.refund_id)
    assert (done.status, list_attempts(desk)) == ("done", ["landed"])
    assert balance(desk) == before + AMOUNT


def list_refunds_sent(desk: Desk) -> list[Any]:
    return desk.query("SELECT refund_id FROM payments.x402_refunds WHERE status = 'sent'")


async def _run(database: Database, sql: str, **params: object) -> None:
    async with database.write() as tx:
        assert await tx.execute(sql, params) >= 1  # pyright: ignore[reportArgumentType]
