"""Jobs: run at start-up, retried when they fail, stopped when told; the schema is the installed library's."""

import asyncio
from pathlib import Path

import procrastinate
import pytest

import tollbook
from tollbook.core import jobs
from tollbook.core.database import Database
from tollbook.core.jobs import Job

WAIT_SECONDS_MAX = 60


async def _until(condition: asyncio.Event, database: Database, known: list[Job]) -> None:
    stop = asyncio.Event()
    working = asyncio.create_task(jobs.work(database, known, stop))
    try:
        await asyncio.wait_for(condition.wait(), WAIT_SECONDS_MAX)
    finally:
        stop.set()
        await asyncio.wait_for(working, WAIT_SECONDS_MAX)


async def test_every_job_runs_once_at_start_up_and_the_worker_stops_when_told(database: Database) -> None:
    ran: list[str] = []
    all_ran = asyncio.Event()

    def job(name: str) -> Job:
        async def run(_: Database) -> None:
            ran.append(name)
            if len(ran) == 2:
                all_ran.set()

        return Job(name, "0 0 1 1 *", run)

    await _until(all_ran, database, [job("one"), job("two")])
    assert sorted(ran) == ["one", "two"]
    async with database.read() as tx:
        assert await tx.value("SELECT count(*) FROM jobs.procrastinate_jobs") == 0


async def test_a_job_that_fails_says_so_and_is_tried_again(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "RETRY_WAIT_SECONDS", 0)
    attempts: list[int] = []
    done = asyncio.Event()

    async def run(_: Database) -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise LookupError("not yet")
        done.set()

    await _until(done, database, [Job("stubborn", "0 0 1 1 *", run)])
    assert len(attempts) == 3
    assert [record.getMessage() for record in caplog.records].count("job stubborn failed") == 2


async def test_what_a_killed_worker_left_half_done_is_given_up(database: Database) -> None:
    async with database.write() as tx:
        await tx.execute(
            "INSERT INTO jobs.procrastinate_workers (last_heartbeat) VALUES (now() - interval '1 hour')"
        )
        await tx.execute(
            "INSERT INTO jobs.procrastinate_jobs (queue_name, task_name, status, worker_id)"
            " SELECT 'default', 'one', 'doing', id FROM jobs.procrastinate_workers"
        )
    ran = asyncio.Event()

    async def run(_: Database) -> None:
        ran.set()

    await _until(ran, database, [Job("one", "0 0 1 1 *", run)])
    async with database.read() as tx:
        assert await tx.value("SELECT count(*) FROM jobs.procrastinate_jobs") == 0


async def test_a_worker_whose_connections_are_cut_goes_on(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "RETRY_WAIT_SECONDS", 0)
    ran: list[int] = []
    ran_again = asyncio.Event()

    async def run(known: Database) -> None:
        async with known.read() as tx:
            cut = await tx.value(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name = 'tollbook jobs' AND datname = current_database()"
            )
        ran.append(cut)
        if len(ran) == 2:
            ran_again.set()
            return
        raise LookupError("try again without them")

    await _until(ran_again, database, [Job("cutter", "0 0 1 1 *", run)])
    assert ran[0] > 0


async def test_a_cancelled_worker_ends_even_when_the_database_is_gone(database: Database) -> None:
    began = asyncio.Event()

    async def run(known: Database) -> None:
        async with known.write() as tx:
            await tx.execute("ALTER TABLE jobs.procrastinate_workers RENAME TO gone")
        began.set()

    working = asyncio.create_task(jobs.work(database, [Job("one", "0 0 1 1 *", run)], asyncio.Event()))
    await asyncio.wait_for(began.wait(), WAIT_SECONDS_MAX)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(working, WAIT_SECONDS_MAX)


def test_the_migration_is_the_installed_librarys_schema() -> None:
    migration = Path(tollbook.__file__).parent / "core" / "migrations" / "0002_jobs.up.sql"
    text = migration.read_text()
    start, end = "-- >>> procrastinate/sql/schema.sql\n", "-- <<< procrastinate/sql/schema.sql\n"
    ours = text[text.index(start) + len(start) : text.index(end)]
    assert ours == (Path(procrastinate.__file__).parent / "sql" / "schema.sql").read_text()
