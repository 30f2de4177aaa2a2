"""Periodic jobs: what a book wants done by the clock, kept and retried by procrastinate in schema jobs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from procrastinate import App, PsycopgConnector, RetryStrategy
from procrastinate.jobs import Status

from tollbook.core.database import Database

ATTEMPTS_MAX = 5
RETRY_WAIT_SECONDS = 10
CONNECTIONS_MAX = 4
CONCURRENCY_MAX = 2
RESTART_WAIT_SECONDS = 5.0
SHUTDOWN_SECONDS_MAX = 10.0
KEEP_FAILED_HOURS = 24 * 7

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """`run` is called at the times of `cron` (UTC, five fields) and once when a worker starts.

    It may run twice at once, and again after it was killed half-way: it must be safe to.
    """

    name: str
    cron: str
    run: Callable[[Database], Awaitable[object]]


def make_app(database: Database, jobs: Sequence[Job]) -> App:
    """The procrastinate app that knows these jobs."""
    # Its statements name no schema, so its connections look in jobs first.
    connector = PsycopgConnector(
        conninfo=database.url,
        min_size=1,
        max_size=CONNECTIONS_MAX,
        kwargs={"options": "-c search_path=jobs", "application_name": "tollbook jobs"},
    )
    app = App(connector=connector)
    for job in jobs:
        _register(app, database, job)
    return app


async def work(database: Database, jobs: Sequence[Job], stop: asyncio.Event) -> None:
    """Run the jobs until `stop` is set. A lost database is logged and waited for, never an end."""
    while not stop.is_set():
        try:
            await _work_once(database, jobs, stop)
        except Exception:  # whatever it was, the work must go on
            logger.exception("the worker broke off; it starts again in %s s", RESTART_WAIT_SECONDS)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), RESTART_WAIT_SECONDS)


async def _work_once(database: Database, jobs: Sequence[Job], stop: asyncio.Event) -> None:
    app = make_app(database, jobs)
    async with app.open_async():
        await _clear(app)
        for job in jobs:
            await app.configure_task(job.name).defer_async(timestamp=0)
        working = asyncio.create_task(
            app.run_worker_async(
                concurrency=CONCURRENCY_MAX,
                delete_jobs="successful",
                install_signal_handlers=False,
                shutdown_graceful_timeout=SHUTDOWN_SECONDS_MAX,
            )
        )
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            working.cancel()
            # Not raised here: where we are cancelled, a lost database must not hide it.
            await asyncio.gather(working, stopping, return_exceptions=True)
        if not working.cancelled():
            working.result()


async def _clear(app: App) -> None:
    """Give up what killed workers left half done: each job is about to run anyway."""
    for stalled in await app.job_manager.get_stalled_jobs():
        logger.warning("job %s was left half done by a worker that ended", stalled.task_name)
        await app.job_manager.finish_job(stalled, Status.FAILED, delete_job=True)
    await app.job_manager.delete_old_jobs(KEEP_FAILED_HOURS, include_failed=True)


def _register(app: App, database: Database, job: Job) -> None:
    async def run(timestamp: int) -> None:
        try:
            await job.run(database)
        except Exception:
            logger.exception("job %s failed", job.name)
            raise

    retry = RetryStrategy(max_attempts=ATTEMPTS_MAX, wait=RETRY_WAIT_SECONDS)
    task = app.task(name=job.name, retry=retry)(run)
    app.periodic(cron=job.cron)(task)
