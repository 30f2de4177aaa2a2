"""The worker: every book's jobs at start-up, on the real books."""

import asyncio
from datetime import timedelta

from fixtures.payments import pay
from tollbook.core.database import Database
from tollbook.entrypoints.worker import JOBS, run_worker

TRIES_MAX = 1_200
PAUSE_SECONDS = 0.1


async def _all_done(database: Database) -> bool:
    async with database.read() as tx:
        return bool(
            await tx.value(
                """
                SELECT EXISTS (SELECT FROM payments.x402_payments WHERE status = 'expired')
                   AND EXISTS (SELECT FROM payments.x402_analytics WHERE total_payments = 1)
                   AND NOT EXISTS (SELECT FROM jobs.procrastinate_jobs)
                """
            )
        )


async def test_at_start_up_the_worker_expires_counts_and_leaves_no_job_undone(database: Database) -> None:
    await pay(database, lifetime=timedelta(microseconds=1))
    stop = asyncio.Event()
    working = asyncio.create_task(run_worker(database, JOBS, [], stop))
    done = False
    for _ in range(TRIES_MAX):
        if done := await _all_done(database):
            break
        await asyncio.sleep(PAUSE_SECONDS)
    stop.set()
    await working
    assert done  # since then it may have been time for another job


async def test_without_the_payments_book_the_worker_does_the_rest(database: Database) -> None:
    async with database.write() as tx:
        await tx.execute("DROP SCHEMA payments CASCADE")
    stop = asyncio.Event()
    working = asyncio.create_task(run_worker(database, JOBS, [], stop))
    done = 0
    for _ in range(TRIES_MAX):
        async with database.read() as tx:
            rows = await tx.dicts("SELECT task_name, attempts FROM jobs.procrastinate_jobs")
            done = await tx.value("SELECT last_value FROM jobs.procrastinate_jobs_id_seq")
        if not rows and done > 1:
            break
        await asyncio.sleep(PAUSE_SECONDS)
    stop.set()
    await working
    assert done > 1
    assert rows == []
