"""The meter: a quota of N admits N on any number of processes, and a recorded request is on disk."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import psycopg
import pytest

from fixtures.database import migrate
from fixtures.payments import ENDPOINT, buy, make_offer, pay, refund
from tollbook.books.payments import payments, tokens, usage
from tollbook.books.payments.errors import (
    NotRecorded,
    TokenExpired,
    TokenForeign,
    TokenRevoked,
    TokenSpent,
    TokenUnknown,
    TooManyWaiting,
)
from tollbook.books.payments.tokens import Grant, hash_secret
from tollbook.books.payments.usage import Admission, Meter
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.errors import DatabaseUnreachable, Refusal
from tollbook.embedded import start, throwaway

METERS = 3


@pytest.fixture
async def meter(database_url: str) -> AsyncIterator[Meter]:
    async with Meter(database_url) as opened:
        yield opened


async def read_quota(database: Database, payment_id: int) -> tuple[str, int]:
    async with database.read() as tx:
        payment = await payments.get(tx, payment_id)
    return payment.status, payment.requests_used


async def use(meter: Meter, grant: Grant, *, status_code: int = 200) -> Admission:
    admission = await meter.admit(hash_secret(grant.secret), ENDPOINT)
    await meter.record(admission, endpoint=ENDPOINT, status_code=status_code, response_time_ms=3)
    return admission


async def test_a_spent_payment_buys_nothing_more(database: Database, meter: Meter) -> None:
    grant = await buy(database, requests_allocated=3)
    remaining = [(await use(meter, grant)).requests_remaining for _ in range(3)]
    assert remaining == [2, 1, 0]
    with pytest.raises(TokenSpent):
        await use(meter, grant)
    assert await read_quota(database, grant.token.payment_id) == ("used", 3)


async def test_a_quota_of_n_admits_n_over_many_clients_and_meters(database: Database) -> None:
    quotas = (1, 7, 40)
    grants = [await buy(database, requests_allocated=quota) for quota in quotas]
    async with AsyncExitStack() as stack:
        meters = [await stack.enter_async_context(Meter(database.url)) for _ in range(METERS)]
        for grant, quota in zip(grants, quotas, strict=True):
            results = await asyncio.gather(
                *(use(meters[nth % METERS], grant) for nth in range(quota + 30)), return_exceptions=True
            )
            admitted = [result for result in results if isinstance(result, Admission)]
            assert len(admitted) == quota
            assert {type(result) for result in results} == {Admission, TokenSpent}
            assert sorted(row.requests_remaining for row in admitted) == list(range(quota))
            assert await read_quota(database, grant.token.payment_id) == ("used", quota)
    with psycopg.connect(database.url) as connection:
        rows = connection.execute("SELECT count(*) FROM payments.x402_usage").fetchone()
    assert rows == (sum(quotas),)


async def test_two_tokens_of_one_payment_share_its_quota(database: Database, meter: Meter) -> None:
    payment = await pay(database, requests_allocated=5)
    async with database.write() as tx:
        grants = [await tokens.issue(tx, payment.payment_id, now=clock.now()) for _ in range(2)]
    results = await asyncio.gather(
        *(use(meter, grants[nth % 2]) for nth in range(12)),
        *(meter.admit_first(payment.payment_id) for _ in range(2)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Admission) for result in results) == 5
    assert await read_quota(database, payment.payment_id) == ("used", 5)


async def test_two_processes_share_a_quota(database: Database) -> None:
    grant = await buy(database, requests_allocated=50)
    program = f"""
import asyncio
from tollbook.books.payments.usage import Admission, Meter
async def main():
    async with Meter({database.url!r}) as meter:
        token_hash = bytes.fromhex({hash_secret(grant.secret).hex()!r})
        asked = (meter.admit(token_hash, {ENDPOINT!r}) for _ in range(40))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        print(sum(isinstance(answer, Admission) for answer in answers))
asyncio.run(main())
"""
    running = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    counts = [int((await process.communicate())[0]) for process in running]
    assert sum(counts) == 50
    assert await read_quota(database, grant.token.payment_id) == ("used", 50)


async def test_a_recorded_request_is_seen_by_others_when_record_returns(
    database: Database, meter: Meter
) -> None:
    grant = await buy(database)
    with psycopg.connect(database.url, autocommit=True) as other:
        for nth in range(1, 4):
            await use(meter, grant, status_code=404)
            row = other.execute(
                "SELECT count(*), min(status_code), min(l.label) FROM payments.x402_usage "
                "JOIN core.labels l ON l.kind = 'payments.endpoint' AND l.label_id = endpoint_id"
            ).fetchone()
            assert row == (nth, 404, ENDPOINT)


async def test_a_failed_request_gives_its_quota_back(database: Database, meter: Meter) -> None:
    grant = await buy(database, requests_allocated=1)
    await use(meter, grant, status_code=500)
    assert await read_quota(database, grant.token.payment_id) == ("verified", 0)
    await use(meter, grant, status_code=404)
    assert await read_quota(database, grant.token.payment_id) == ("used", 1)
    with pytest.raises(TokenSpent):
        await use(meter, grant)


async def test_an_expired_payment_takes_back_quota_but_buys_nothing(database: Database, meter: Meter) -> None:
    grant = await buy(database)
    admission = await meter.admit(hash_secret(grant.secret), ENDPOINT)
    async with database.write() as tx:
        for table in ("x402_payments", "x402_tokens"):
            over = f"UPDATE payments.{table} SET expires_at = statement_timestamp() RETURNING 1"
            await tx.connection.execute(over.encode())
    with pytest.raises(TokenExpired):
        await use(meter, grant)
    async with database.write() as tx:
        assert await tx.value("SELECT payments.cleanup_expired_x402_payments()") == 1
    await meter.record(admission, endpoint=ENDPOINT, status_code=503, response_time_ms=1)
    assert await read_quota(database, grant.token.payment_id) == ("expired", 0)
    with pytest.raises(TokenExpired):
        await meter.admit_first(grant.token.payment_id)


async def test_unknown_foreign_and_unsettled_are_refused(database: Database, meter: Meter) -> None:
    grant = await buy(database)
    with pytest.raises(TokenUnknown):
        await meter.admit(hash_secret("tbk_guessed"), ENDPOINT)
    with pytest.raises(TokenForeign):
        await meter.admit(hash_secret(grant.secret), "GET /dearer")
    async with database.write() as tx:
        pending = await payments.reserve(tx, make_offer(), now=clock.now())
    with pytest.raises(TokenUnknown):
        await meter.admit_first(pending.payment_id)
    assert await read_quota(database, grant.token.payment_id) == ("verified", 0)


async def test_a_revoked_token_is_refused_at_once_on_every_process(database: Database) -> None:
    grant = await buy(database)
    async with Meter(database.url) as one, Meter(database.url) as other:
        await use(one, grant)
        await use(other, grant)
        async with database.write() as tx:
            renewed = await tokens.rotate(tx, grant.token.payment_id, now=clock.now())
        for meter in (one, other):
            with pytest.raises(TokenRevoked):
                await use(meter, grant)
            await use(meter, renewed)


async def test_a_refunded_payment_buys_nothing(database: Database, meter: Meter) -> None:
    grant = await buy(database)
    async with database.write() as tx:
        await refund(tx, grant.token.payment_id)
    with pytest.raises(TokenExpired):
        await use(meter, grant)


async def test_who_goes_away_while_waiting_loses_nothing(database: Database, meter: Meter) -> None:
    grant = await buy(database, requests_allocated=100)
    secret_hash = hash_secret(grant.secret)
    for laps in range(12):  # cancelled in the queue, on the way, or with the answer in hand
        waiting = [asyncio.create_task(meter.admit(secret_hash, ENDPOINT)) for _ in range(5)]
        for _ in range(laps * 2):
            await asyncio.sleep(0.0003)
        for task in waiting:
            task.cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        for admission in done:
            if isinstance(admission, Admission):
                await meter.record(admission, endpoint=ENDPOINT, status_code=500, response_time_ms=1)
    await use(meter, grant)  # follows all that was given back
    assert await read_quota(database, grant.token.payment_id) == ("verified", 1)


async def test_too_many_waiting_are_turned_away(
    database: Database, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = await buy(database, requests_allocated=100)
    monkeypatch.setattr(usage, "WAITING_MAX", 10)
    results = await asyncio.gather(*(use(meter, grant) for _ in range(15)), return_exceptions=True)
    assert sum(isinstance(result, TooManyWaiting) for result in results) == 5
    assert await read_quota(database, grant.token.payment_id) == ("verified", 10)


async def test_a_lost_database_refuses_and_a_returned_one_serves_again(
    database: Database, meter: Meter
) -> None:
    grant = await buy(database)
    admission = await meter.admit(hash_secret(grant.secret), ENDPOINT)
    await use(meter, grant)
    async with database.read() as tx:
        await tx.value(
            """
            SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE application_name = 'tollbook-meter' AND datname = current_database()
            """
        )
    with pytest.raises(DatabaseUnreachable):
        await meter.admit(hash_secret(grant.secret), ENDPOINT)
    with pytest.raises(NotRecorded):
        await meter.record(admission, endpoint=ENDPOINT, status_code=200, response_time_ms=1)
    await use(meter, grant)


async def test_a_closed_meter_refuses_instead_of_letting_anyone_wait(database: Database) -> None:
    grant = await buy(database)
    async with Meter(database.url) as meter:
        admission = await use(meter, grant)
    with pytest.raises(DatabaseUnreachable):
        await use(meter, grant)
    with pytest.raises(DatabaseUnreachable):
        await meter.record(admission, endpoint=ENDPOINT, status_code=200, response_time_ms=1)


async def test_one_mad_record_harms_no_other(database: Database, meter: Meter) -> None:
    grant = await buy(database)
    admission = await meter.admit(hash_secret(grant.secret), ENDPOINT)
    mad, sane = await asyncio.gather(
        meter.record(admission, endpoint=ENDPOINT, status_code=70_000, response_time_ms=1),
        meter.record(admission, endpoint=ENDPOINT, status_code=200, response_time_ms=2**40),
        return_exceptions=True,
    )
    assert isinstance(mad, ValueError)
    assert sane is None
    with psycopg.connect(database.url) as connection:
        row = connection.execute("SELECT status_code, response_time_ms FROM payments.x402_usage").fetchone()
    assert row == (200, 2**31 - 1)


async def test_what_was_recorded_survives_a_server_killed_in_the_middle() -> None:
    with throwaway() as server:
        migrate(server.url())
        async with Database(server.url()) as database:
            grant = await buy(database, requests_allocated=100_000)
        recorded = 0
        busy = asyncio.Event()
        async with Meter(server.url()) as meter:

            async def client() -> None:
                nonlocal recorded
                with suppress(Refusal):
                    while True:
                        await use(meter, grant)
                        recorded += 1
                        if recorded == 300:
                            busy.set()

            clients = [asyncio.create_task(client()) for _ in range(20)]
            await busy.wait()
            cluster = server.data_dir / "postgresql"
            os.kill(int((cluster / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
            with suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await asyncio.gather(*clients)
        with start(server.data_dir) as again, psycopg.connect(again.url()) as connection:
            row = connection.execute(
                "SELECT (SELECT count(*) FROM payments.x402_usage), requests_used FROM payments.x402_payments"
            ).fetchone()
        assert row is not None
        rows, used = row
        # Every request that was answered is on disk, and whatever is on disk was taken from the quota.
        assert recorded <= rows <= used <= recorded + 20


@pytest.mark.parametrize(("meanwhile", "status_code"), [(-1, 200), (1, 500)])
async def test_a_change_while_the_lock_is_waited_for_is_counted_too(
    database: Database, meter: Meter, meanwhile: int, status_code: int
) -> None:
    """Another process gives (or takes) one while this one takes (or gives): neither may get lost."""
    grant = await buy(database, requests_allocated=10)
    admissions = [await use(meter, grant) for _ in range(5)]
    async with database.write() as tx:
        await tx.execute(
            """
            UPDATE payments.x402_payments SET requests_used = requests_used + %(meanwhile)s
            WHERE payment_id = %(payment_id)s
            """,
            {"meanwhile": meanwhile, "payment_id": grant.token.payment_id},
        )
        waiting = asyncio.create_task(
            use(meter, grant)
            if status_code < 500
            else meter.record(admissions[0], endpoint=ENDPOINT, status_code=status_code, response_time_ms=1)
        )
        blocked = 0
        while not blocked and not waiting.done():
            async with database.read() as other:  # each look a transaction: one sees the same all the time
                blocked = await other.value(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                )
        assert blocked, "the meter must wait for the row that is being changed"
    await waiting
    assert await read_quota(database, grant.token.payment_id) == ("verified", 5)


async def test_an_answer_that_two_make_again_at_the_same_time_is_one_row(
    database: Database, meter: Meter
) -> None:
    """Each of them saw that the request, which was taken once, had no row."""
    grant = await buy(database, requests_allocated=1)
    payment_id = grant.token.payment_id
    again = Admission(payment_id, 0, grant.token.expires_at)

    def record() -> asyncio.Task[None]:
        return asyncio.create_task(
            meter.record(again, endpoint=ENDPOINT, status_code=200, response_time_ms=3)
        )

    await meter.admit(hash_secret(grant.secret), ENDPOINT)
    async with await psycopg.AsyncConnection.connect(database.url) as first:
        await first.execute(
            "SELECT FROM payments.x402_payments WHERE payment_id = %s FOR NO KEY UPDATE", (payment_id,)
        )
        await first.execute(
            "INSERT INTO payments.x402_usage (payment_id, response_time_ms, endpoint_id, status_code) "
            "VALUES (%s, 3, 1, 200)",
            (payment_id,),
        )
        second = record()
        await asyncio.wait([second], timeout=0.2)  # it would be through by then, and is not
        await first.commit()
        await second
        await record()
        rows = await (await first.execute("SELECT count(*) FROM payments.x402_usage")).fetchone()
    assert rows == (1,)
