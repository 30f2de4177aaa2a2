"""The worker: every book's periodic jobs and services, run from one process or several."""

import asyncio
from collections.abc import Sequence

from tollbook.books.payments import jobs as payments
from tollbook.books.settlement import jobs as settlement
from tollbook.core import idempotency, jobs, journal, services
from tollbook.core.database import Database
from tollbook.core.jobs import Job
from tollbook.core.services import Service
from tollbook.core.settings import Settings
from tollbook.core.webhooks import jobs as webhooks

JOBS: list[Job] = [
    Job("core.make_journal_partitions", "13 3 * * *", journal.make_partitions),
    Job("core.forget_answers", "37 * * * *", idempotency.forget),
    *webhooks.JOBS,
    *payments.JOBS,
    *settlement.JOBS,
]


def make_services(settings: Settings) -> list[Service]:
    """What works all the time."""
    return [webhooks.make_service(settings, payments.ID_PREFIXES), *settlement.SERVICES]


async def run_worker(
    database: Database, jobs_to_run: Sequence[Job], services_to_run: Sequence[Service], stop: asyncio.Event
) -> None:
    """Run the jobs, each once now and then by its clock, and the services, until `stop` is set.

    Those of the payments book only where this database has it. Raises NotMigrated.
    """
    async with database.write() as tx:
        await journal.check_epoch(tx)
        if not await tx.value("SELECT to_regclass('payments.x402_payments') IS NOT NULL"):
            jobs_to_run = [job for job in jobs_to_run if job not in payments.JOBS]
    async with asyncio.TaskGroup() as group:
        group.create_task(jobs.work(database, jobs_to_run, stop))
        group.create_task(services.run(database, services_to_run, stop))
