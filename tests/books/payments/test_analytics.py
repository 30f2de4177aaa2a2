"""The hourly roll-up: equal to counting everything by force, whatever was committed late and run at once."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row

from fixtures.payments import ENDPOINT, buy, pay, refund
from tollbook.books.payments import analytics, payments
from tollbook.books.payments.tokens import hash_secret
from tollbook.books.payments.usage import Meter
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.embedded import Server

WRITERS = 3
PAYMENTS = 6
HOUR = timedelta(hours=1)

# What the roll-up must say, counted from every row there is.
BY_FORCE = """
WITH paid AS (
    SELECT date_trunc('hour', settled_at, 'UTC') AS hour_bucket, network, asset, endpoint,
           count(*) AS total_payments, count(*) FILTER (WHERE settlement = 'refunded') AS refunded_payments,
           count(DISTINCT from_address) AS unique_payers, sum(amount) AS total_amount
    FROM payments.x402_payments WHERE settled_at IS NOT NULL GROUP BY 1, 2, 3, 4
), answered AS (
    SELECT date_trunc('hour', u.created_at, 'UTC') AS hour_bucket, p.network, p.asset,
           coalesce(l.label, '(other)') AS endpoint, count(*) AS total_requests,
           count(*) FILTER (WHERE status_code BETWEEN 200 AND 299) AS success_count,
           count(*) FILTER (WHERE status_code >= 400) AS error_count,
           sum(response_time_ms) AS response_time_ms_total
    FROM payments.x402_usage u JOIN payments.x402_payments p USING (payment_id)
    LEFT JOIN core.labels l ON l.kind = 'payments.endpoint' AND l.label_id = endpoint_id
    GROUP BY 1, 2, 3, 4
)
SELECT hour_bucket, network, asset, endpoint, coalesce(total_payments, 0) AS total_payments,
       coalesce(refunded_payments, 0) AS refunded_payments, coalesce(unique_payers, 0) AS unique_payers,
       coalesce(total_amount, 0) AS total_amount, coalesce(total_requests, 0) AS total_requests,
       coalesce(success_count, 0) AS success_count, coalesce(error_count, 0) AS error_count,
       coalesce(response_time_ms_total, 0) AS response_time_ms_total
FROM paid FULL JOIN answered USING (hour_bucket, network, asset, endpoint)
ORDER BY 1, 2, 3, 4
"""
ROLLED_UP = """
SELECT hour_bucket, network, asset, endpoint, total_payments, refunded_payments, unique_payers, total_amount,
       total_requests, success_count, error_count, response_time_ms_total
FROM payments.x402_analytics WHERE watermark IS NULL ORDER BY 1, 2, 3, 4
"""
PAY = """
INSERT INTO payments.x402_payments (
    payment_id, created_at, updated_at, verified_at, settled_at, expires_at, settled_in, requests_allocated,
    decimals, amount, lifetime, status, settlement, network, chain, asset, scheme, from_address, to_address,
    endpoint, nonce)
VALUES (%(id)s, %(at)s, %(at)s, %(at)s, %(at)s, %(at)s + interval '9 days',
        pg_current_xact_id()::text::bigint, 1000, 6, %(id)s + 1, '9 days', 'verified', 'settled',
        'eip155:8453', 'base', '0x' || repeat('11', 20), 'exact', '0x' || repeat(%(payer)s, 20),
        '0x' || repeat('33', 20), 'GET /a', %(id)s::text)
"""
ANSWER = """
INSERT INTO payments.x402_usage (payment_id, created_at, response_time_ms, endpoint_id, status_code)
VALUES (%(id)s, %(at)s, %(ms)s, %(endpoint_id)s, %(status_code)s)
"""
REFUND = """
UPDATE payments.x402_payments
SET settlement = 'refunded', status = 'expired', refunded_at = now(), refund_asked = amount,
    refunded_amount = amount,
    settled_in = pg_current_xact_id()::text::bigint
WHERE payment_id = %(id)s AND settlement = 'settled'
"""


def read_both(connection: psycopg.Connection[Any]) -> tuple[list[Any], list[Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        rolled_up = cursor.execute(ROLLED_UP.encode()).fetchall()
        by_force = cursor.execute(BY_FORCE.encode()).fetchall()
    return rolled_up, by_force


@pytest.fixture
def connections(database_url: str) -> Iterator[list[psycopg.Connection[Any]]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(psycopg.connect(database_url, autocommit=True)) for _ in range(WRITERS + 1)
        ]


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["pay", "answer", "answer", "refund", "COMMIT", "ROLLBACK", "update", "update"]),
        st.integers(0, WRITERS - 1),
        st.integers(0, PAYMENTS - 1),  # the payment
        st.integers(0, 4),  # half hours from the start
        st.sampled_from([200, 204, 302, 404, 500]),
    ),
    max_size=40,
)


class Writers:
    """Connections that write at their own pace: each keeps its transaction open until it is told to end."""

    def __init__(self, connections: list[psycopg.Connection[Any]], start: datetime) -> None:
        self.connections = connections
        self.start = start
        self.made = PAYMENTS
        self.refunding = dict[int, int]()  # two writers of one row would wait for each other

    def pay(self, writer: int, nth: int, at: datetime) -> None:
        self.made += 1
        self._write(writer, PAY, {"id": self.made, "at": at, "payer": f"b{nth}"})

    def answer(self, writer: int, nth: int, at: datetime, status_code: int) -> None:
        values = {"id": nth, "at": at, "ms": at.minute + nth, "endpoint_id": nth % 3}
        self._write(writer, ANSWER, {**values, "status_code": status_code})

    def refund(self, writer: int, nth: int) -> None:
        if self.refunding.setdefault(nth, writer) == writer:
            self._write(writer, REFUND, {"id": nth})

    def end(self, writer: int, how: str) -> None:
        self.connections[writer].execute(how.encode())
        self.refunding = {nth: other for nth, other in self.refunding.items() if other != writer}

    def _write(self, writer: int, statement: str, values: dict[str, Any]) -> None:
        connection = self.connections[writer]
        if connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            connection.execute("BEGIN")
        connection.execute(statement.encode(), values)


def clear(reader: psycopg.Connection[Any], start: datetime) -> None:
    reader.execute("TRUNCATE payments.x402_usage, payments.x402_analytics")
    reader.execute("TRUNCATE payments.x402_payments CASCADE")
    reader.execute(
        """
        INSERT INTO core.labels VALUES ('payments.endpoint', 1, 'GET /a'), ('payments.endpoint', 2, 'GET /b')
        ON CONFLICT DO NOTHING
        """
    )
    for nth in range(PAYMENTS):
        reader.execute(PAY.encode(), {"id": nth, "at": start, "payer": f"a{nth % 3}"})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_any_interleaving_with_late_commits_gives_what_counting_by_force_gives(
    connections: list[psycopg.Connection[Any]], actions: list[tuple[str, int, int, int, int]]
) -> None:
    *writing, reader = connections
    start = datetime.now(UTC).replace(minute=10, second=0, microsecond=0)
    writers = Writers(writing, start)
    for writer in range(WRITERS):
        writers.end(writer, "ROLLBACK")  # what an example that failed left open
    clear(reader, start)
    for action, writer, nth, half_hours, status_code in actions:
        at = start + half_hours * HOUR / 2
        match action:
            case "pay":
                writers.pay(writer, nth, at)
            case "answer":
                writers.answer(writer, nth, at, status_code)
            case "refund":
                writers.refund(writer, nth)
            case "update":
                reader.execute("SELECT payments.update_x402_analytics()")
            case end:
                writers.end(writer, end)
    for writer in range(WRITERS):
        writers.end(writer, "COMMIT")
    reader.execute("SELECT payments.update_x402_analytics()")
    rolled_up, by_force = read_both(reader)
    assert rolled_up == by_force


async def test_used_and_expired_money_stays_counted_run_after_run(database: Database) -> None:
    used = await buy(database, amount=2_000_000, requests_allocated=1)
    await pay(database, amount=3_000_000, lifetime=timedelta(microseconds=1))
    refunded = await pay(database, amount=5_000_000)
    async with Meter(database.url) as meter:
        admission = await meter.admit(hash_secret(used.secret), ENDPOINT)
        await meter.record(admission, endpoint=ENDPOINT, status_code=200, response_time_ms=30)
    totals: list[tuple[int, Decimal, int]] = []
    for _ in range(3):
        async with database.write() as tx:
            await analytics.update(tx)
        async with database.write() as tx:
            await tx.value("SELECT payments.cleanup_expired_x402_payments()")
        async with database.read() as tx:
            now = clock.now()
            hours = await analytics.hours(tx, since=now - 2 * HOUR, until=now)
        totals.append(
            (
                sum(hour.total_payments for hour in hours),
                sum((hour.total_amount_usdc for hour in hours), Decimal(0)),
                sum(hour.total_requests for hour in hours),
            )
        )
    assert totals == [(3, Decimal(10), 1)] * 3
    async with database.write() as tx:
        await refund(tx, refunded.payment_id)
    async with database.write() as tx:
        await analytics.update(tx)
    async with database.read() as tx:
        hours = await analytics.hours(tx, since=clock.now() - 2 * HOUR, until=clock.now())
    assert sum(hour.refunded_payments for hour in hours) == 1
    assert sum(sum(hour.response_time_counts) for hour in hours) == 1
    assert max(hour.response_time_counts.index(max(hour.response_time_counts)) for hour in hours) == 2


async def test_updates_at_once_wait_for_each_other_and_agree(database: Database) -> None:
    grant = await buy(database, requests_allocated=200)

    async def update() -> None:
        async with database.write() as tx:
            await analytics.update(tx)

    async with Meter(database.url) as meter:

        async def use() -> None:
            admission = await meter.admit(hash_secret(grant.secret), ENDPOINT)
            await meter.record(admission, endpoint=ENDPOINT, status_code=200, response_time_ms=1)
            await update()

        await asyncio.gather(*(use() for _ in range(25)))
    with psycopg.connect(database.url) as connection:
        rolled_up, by_force = read_both(connection)
    assert rolled_up == by_force
    assert rolled_up[0]["total_requests"] + sum(row["total_requests"] for row in rolled_up[1:]) == 25


async def test_an_old_hours_requests_outlive_their_rows(database: Database) -> None:
    payment = await pay(database)
    async with database.write() as tx:
        await tx.execute(
            """
            INSERT INTO payments.x402_usage (payment_id, response_time_ms, endpoint_id, status_code)
            SELECT %(payment_id)s, 1, 1, 200 FROM generate_series(1, 9)
            """,
            {"payment_id": payment.payment_id},
        )
    async with database.write() as tx:
        await analytics.update(tx)
    async with database.write() as tx:  # retention drops partitions; this is as good
        await tx.execute("TRUNCATE payments.x402_usage")
        await refund(tx, payment.payment_id)
    async with database.write() as tx:
        assert await analytics.update(tx) == 1
        hours = await analytics.hours(tx, since=clock.now() - 2 * HOUR, until=clock.now())
    assert sum(hour.total_requests for hour in hours) == 9
    assert sum(hour.refunded_payments for hour in hours) == 1


async def test_a_copy_in_another_cluster_is_counted_anew(database: Database, postgres: Server) -> None:
    del postgres
    grant = await buy(database)
    async with Meter(database.url) as meter:
        admission = await meter.admit(hash_secret(grant.secret), ENDPOINT)
        await meter.record(admission, endpoint=ENDPOINT, status_code=200, response_time_ms=1)
    async with database.write() as tx:  # as a restored copy finds it: another's name, numbers far ahead
        await tx.execute(
            """
            INSERT INTO payments.x402_analytics (hour_bucket, network, asset, endpoint, watermark)
            VALUES ('-infinity', 'another cluster', '', '', 1000000000)
            """
        )
    async with database.write() as tx:
        assert await analytics.update(tx) >= 1
    with psycopg.connect(database.url) as connection:
        rolled_up, by_force = read_both(connection)
    assert rolled_up == by_force


async def test_endpoint_stats_count_payers_not_payments(database: Database) -> None:
    first = await buy(database)
    second = await buy(database, from_address=(await _payer(database, first.token.payment_id)))
    async with Meter(database.url) as meter:
        for grant, status_code in ((first, 200), (second, 404), (second, 200)):
            admission = await meter.admit(hash_secret(grant.secret), ENDPOINT)
            await meter.record(admission, endpoint=ENDPOINT, status_code=status_code, response_time_ms=10)
    async with database.read() as tx:
        (stats,) = await analytics.endpoints(tx)
    assert (stats.endpoint, stats.request_count, stats.unique_payers) == (ENDPOINT, 3, 1)
    assert (stats.success_count, stats.error_count, stats.avg_response_time_ms) == (2, 1, Decimal(10))


async def _payer(database: Database, payment_id: int) -> str:
    async with database.read() as tx:
        return (await payments.get(tx, payment_id)).from_address
