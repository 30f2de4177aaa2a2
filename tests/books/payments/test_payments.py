"""Payments: one identity counts once, states follow the table, and every fact is in the journal."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import psycopg
import pytest
from psycopg import errors as pg

from fixtures.payments import make_offer, pay, refund
from tollbook.books.payments import payments
from tollbook.books.payments.errors import AlreadyCounted, PaymentNotInState, PaymentUnknown
from tollbook.books.payments.payments import Offer, Payment
from tollbook.core import clock
from tollbook.core.database import Database

HASH = "0x" + "ab" * 32
PRESENTERS = 16


async def reserve(database: Database, offer: Offer) -> Payment:
    async with database.write() as tx:
        return await payments.reserve(tx, offer, now=clock.now())


async def read_kinds(database: Database, payment: Payment) -> list[str]:
    async with database.read() as tx:
        rows = await tx.dicts(
            "SELECT kind FROM core.journal WHERE subject = %(subject)s ORDER BY entry_id",
            {"subject": str(payment.payment_id)},
        )
    return [row["kind"] for row in rows]


async def test_a_settled_payment_buys_requests_for_its_lifetime(database: Database) -> None:
    payment = await pay(database, amount=1_500_000, requests_allocated=7)
    assert (payment.status, payment.settlement, payment.requests_used) == ("verified", "settled", 0)
    assert payment.amount == 1_500_000
    assert isinstance(payment.amount, int)
    assert payment.amount_usdc == Decimal("1.5")
    assert payment.expires_at == payment.verified_at + timedelta(hours=1)
    assert await read_kinds(database, payment) == ["payment.reserved", "payment.settled"]


@pytest.mark.parametrize(
    ("amount", "decimals", "whole"),
    [(1, 18, "0.000000000000000001"), (10**60 + 1, 18, f"{10**42}.000000000000000001"), (5, 0, "5")],
)
async def test_whole_units_are_exact_for_every_size(
    database: Database, amount: int, decimals: int, whole: str
) -> None:
    payment = await reserve(database, make_offer(amount=amount, decimals=decimals))
    assert payment.amount == amount
    assert payment.amount_usdc == Decimal(whole)


@pytest.mark.parametrize("identity", ["nonce", "tx_hash"])
async def test_one_identity_presented_at_once_counts_once(database: Database, identity: str) -> None:
    offer = make_offer(tx_hash=HASH, nonce=None) if identity == "tx_hash" else make_offer()
    other_spelling = replace(offer, from_address=offer.from_address.upper().replace("0X", "0x"))
    results = await asyncio.gather(
        *(reserve(database, [offer, other_spelling][nth % 2]) for nth in range(PRESENTERS)),
        return_exceptions=True,
    )
    made = [result for result in results if isinstance(result, Payment)]
    refused = [result for result in results if isinstance(result, AlreadyCounted)]
    assert len(made) == 1
    assert len(refused) == PRESENTERS - 1
    assert {refusal.payment_id for refusal in refused} == {made[0].payment_id}


async def test_a_failed_payment_may_be_presented_again_and_stays_failed(database: Database) -> None:
    offer = make_offer()
    first = await reserve(database, offer)
    async with database.write() as tx:
        await payments.fail(tx, first.payment_id, "insufficient funds", now=clock.now())
    second = await reserve(database, offer)
    async with database.write() as tx:
        assert (await payments.get(tx, first.payment_id)).status == "failed"
        with pytest.raises(PaymentNotInState):
            await payments.settle(
                tx, first.payment_id, tx_hash=None, block_number=None, confirmations=None, now=clock.now()
            )
    assert second.payment_id != first.payment_id
    assert await read_kinds(database, first) == ["payment.reserved", "payment.failed"]


async def test_a_suspected_payment_keeps_its_identity_until_it_is_decided(database: Database) -> None:
    offer = make_offer()
    payment = await reserve(database, offer)
    async with database.write() as tx:
        suspected = await payments.suspect(tx, payment.payment_id, "no answer", HASH, now=clock.now())
    assert (suspected.status, suspected.settlement) == ("pending", "unknown")
    with pytest.raises(AlreadyCounted):
        await reserve(database, offer)
    async with database.write() as tx:
        settled = await payments.settle(
            tx, payment.payment_id, tx_hash=HASH, block_number=5, confirmations=1, now=clock.now()
        )
    assert (settled.status, settled.tx_hash, settled.settlement_error) == ("verified", HASH, None)


async def test_a_transaction_that_settled_a_payers_payment_buys_him_no_other(database: Database) -> None:
    settled = await pay(database)
    assert settled.tx_hash is not None
    again = make_offer(
        nonce=None, tx_hash="0x" + settled.tx_hash[2:].upper(), from_address=settled.from_address
    )
    with pytest.raises(AlreadyCounted) as refusal:
        await reserve(database, again)
    assert refusal.value.payment_id == settled.payment_id


async def test_one_transaction_may_settle_several_authorizations(database: Database) -> None:
    """Facilitators may batch; each nonce is spent once on chain, whatever transaction carries it."""
    settled = await pay(database)
    waiting = await reserve(database, make_offer())
    async with database.write() as tx:
        other = await payments.settle(
            tx,
            waiting.payment_id,
            tx_hash=settled.tx_hash,
            block_number=1,
            confirmations=1,
            now=clock.now(),
        )
    assert other.tx_hash == settled.tx_hash
    assert other.status == "verified"


async def test_settling_twice_is_refused_and_changes_nothing(database: Database) -> None:
    payment = await pay(database)
    with pytest.raises(PaymentNotInState):
        async with database.write() as tx:
            await payments.settle(
                tx, payment.payment_id, tx_hash=None, block_number=9, confirmations=9, now=clock.now()
            )
    async with database.read() as tx:
        assert await payments.get(tx, payment.payment_id) == payment


async def test_a_refund_is_told_apart_and_goes_the_other_way_in_the_journal(database: Database) -> None:
    payment = await pay(database)
    async with database.write() as tx:
        refunded = await refund(tx, payment.payment_id)
    assert (refunded.status, refunded.settlement) == ("expired", "refunded")
    async with database.read() as tx:
        money = await tx.dicts(
            """
            SELECT kind, amount::bigint AS amount, from_party, to_party FROM core.journal
            WHERE kind IN ('payment.settled', 'payment.refunded') ORDER BY entry_id
            """
        )
    there, back = payment.from_address, payment.to_address
    assert money == [
        {"kind": "payment.settled", "amount": payment.amount, "from_party": there, "to_party": back},
        {"kind": "payment.refunded", "amount": payment.amount, "from_party": back, "to_party": there},
    ]
    async with database.write() as tx:
        with pytest.raises(PaymentNotInState):
            await refund(tx, payment.payment_id)


async def test_pages_follow_each_other_without_a_gap(database: Database) -> None:
    made = [await pay(database, requests_allocated=n) for n in range(1, 6)]
    seen: list[Payment] = []
    async with database.read() as tx:
        while rows := await payments.page(tx, after=seen[-1].payment_id if seen else None, limit=2):
            seen += rows
        assert {row.payment_id for row in seen} == {row.payment_id for row in made}
        assert [row.payment_id for row in seen] == sorted((row.payment_id for row in seen), reverse=True)
        payer = made[2].from_address
        assert [row.payment_id for row in await payments.page(tx, from_address=payer)] == [made[2].payment_id]
        assert await payments.page(tx, status="failed") == []
        assert len(await payments.page(tx, network="eip155:84532", status="verified")) == len(made)


async def test_a_payment_is_found_by_its_transaction_in_any_spelling(database: Database) -> None:
    payment = await pay(database)
    assert payment.tx_hash is not None
    async with database.read() as tx:
        assert await payments.find(tx, payment.network, payment.tx_hash.upper()) == payment
        assert await payments.find(tx, "eip155:1", payment.tx_hash) is None
        with pytest.raises(PaymentUnknown):
            await payments.get(tx, 5)


async def test_clean_up_expires_what_is_over_deletes_nothing_and_never_calls_money_failed(
    database: Database,
) -> None:
    now = clock.now()
    live = await pay(database)
    over = await pay(database, lifetime=timedelta(microseconds=1))
    unheard = await reserve(database, make_offer(valid_before=now - timedelta(seconds=1)))
    async with database.write() as tx:
        assert await tx.value("SELECT payments.cleanup_expired_x402_payments()") == 1
        assert await tx.value("SELECT payments.cleanup_expired_x402_payments()") == 0
    async with database.read() as tx:
        states = [
            ((row := await payments.get(tx, payment.payment_id)).status, row.settlement)
            for payment in (live, over, unheard)
        ]
    assert states == [("verified", "settled"), ("expired", "settled"), ("pending", "unknown")]
    assert (await read_kinds(database, over))[-1] == "payment.expired"
    assert (await read_kinds(database, unheard))[-1] == "payment.unknown"


async def test_two_clean_ups_at_once_expire_each_payment_once(database: Database) -> None:
    for _ in range(6):
        await pay(database, lifetime=timedelta(microseconds=1))
    async with database.write() as first, database.write() as second:
        # The first holds its rows; the second skips them instead of waiting.
        assert await first.value("SELECT payments.cleanup_expired_x402_payments()") == 6
        assert await second.value("SELECT payments.cleanup_expired_x402_payments()") == 0
    async with database.read() as tx:
        assert await tx.value("SELECT count(*) FROM core.journal WHERE kind = 'payment.expired'") == 6


@pytest.mark.parametrize(
    "change",
    [
        "status = 'bogus'",
        "amount = 0",
        "amount = -1",
        "requests_used = 11",
        "requests_used = -1",
        "status = 'used'",
        "requests_used = 10",
        "settlement = 'unknown'",
        "settlement = 'refunded'",
        "expires_at = NULL",
        "status = 'pending'",
        "asset = upper(asset)",
        "tx_hash = 'doge'",
        "network = 'doge'",
    ],
)
async def test_the_table_itself_refuses_what_cannot_be(database: Database, change: str) -> None:
    await pay(database)
    with psycopg.connect(database.url) as connection, pytest.raises(pg.CheckViolation):
        connection.execute(f"UPDATE payments.x402_payments SET {change}".encode())


async def test_the_last_day_counts_used_and_expired_payments_too(database: Database) -> None:
    used = await pay(database, amount=1_000_000)
    await pay(database, amount=2_000_000, lifetime=timedelta(microseconds=1))
    await pay(database, amount=3_000_000, from_address=used.from_address)
    async with database.write() as tx:
        await tx.execute(
            """
            UPDATE payments.x402_payments SET requests_used = requests_allocated, status = 'used'
            WHERE payment_id = %(payment_id)s
            """,
            {"payment_id": used.payment_id},
        )
        await tx.value("SELECT payments.cleanup_expired_x402_payments()")
        (day,) = await payments.stats(tx)
        spenders = await tx.dicts("SELECT from_address, total_spent_usdc FROM payments.v_x402_top_payers")
    assert (day.total_payments, day.total_amount_usdc, day.unique_payers) == (3, Decimal(6), 2)
    assert day.average_payment_usdc == Decimal(2)
    assert spenders[0] == {"from_address": used.from_address, "total_spent_usdc": Decimal(4)}
