"""The worker: every book's periodic jobs, run from one process or several."""

import asyncio
from collections.abc import Sequence

from tollbook.books.payments import jobs as payments
from tollbook.core import idempotency, jobs, journal
from tollbook.core.database import Database
from tollbook.core.jobs import Job

JOBS: list[Job] = [
    Job("core.make_journal_partitions", "13 3 * * *", journal.make_partitions),
    Job("core.forget_answers", "37 * * * *", idempotency.forget),
    *payments.JOBS,
]


async def run_worker(database: Database, jobs_to_run: Sequence[Job], stop: asyncio.Event) -> None:
    """Run the jobs, each once now and then by its clock, until `stop` is set. Raises NotMigrated."""
    async with database.write() as tx:
        await journal.check_epoch(tx)
    await jobs.work(database, jobs_to_run, stop)
