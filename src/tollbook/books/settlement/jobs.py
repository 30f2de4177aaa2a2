"""What the settlement book does all the time, and by the clock."""

import asyncio
import logging
from contextlib import AsyncExitStack

from tollbook.books.settlement import due, endings, limits, validation
from tollbook.books.settlement.dry_run import list_nodes, read_keys
from tollbook.books.settlement.execution import IDLE_SECONDS, Pace, open_desk
from tollbook.books.settlement.settings import SettlementSettings
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.jobs import Job
from tollbook.core.services import Service, repeat, rest

EXPIRY_SECONDS = 1.0
ABSENT_SECONDS = 60.0  # until a book that is not installed is looked for again
FORGONE_MAX = 10_000
FORGOTTEN_A_CALL, CALLS_MAX = 10_000, 1_000

logger = logging.getLogger(__name__)


async def carry_out(database: Database, stop: asyncio.Event) -> None:
    """Carry commands out until `stop` is set, with the nodes and keys of the environment."""
    while not await is_installed(database):
        await rest(stop, ABSENT_SECONDS)
        if stop.is_set():
            return
    await work(database, SettlementSettings(), stop)


async def work(
    database: Database, settings: SettlementSettings, stop: asyncio.Event, pace: Pace | None = None
) -> None:
    """Validate what is received and pay what is validated, until `stop` is set.

    Where no node is named, nothing is looked at; without a key nothing is paid. Raises UnknownNetwork,
    MalformedAddress, LimitMeaningless, OperatorKeyUnusable.
    """
    urls, keys, pace = list_nodes(settings), read_keys(settings), pace or Pace()
    standards = validation.make_standards(settings)
    async with database.write() as tx:
        await limits.tell(tx, urls, standards.limits, now=clock.now())
    if not urls or not keys:
        logger.info("commands are not paid here: there is no %s", "node" if not urls else "operator's key")
    async with AsyncExitStack() as stack:
        desks = [
            await stack.enter_async_context(
                open_desk(database, network, url, keys, pace=pace, dry_run=settings.settlement_dry_run)
            )
            for network, url in urls.items()
            if keys
        ]

        async def validate() -> int:
            return await validation.validate_due(database, standards, clock.now()) if urls else 0

        async def expire() -> int:
            return await validation.expire_due(database, clock.now())

        async with asyncio.TaskGroup() as group:
            group.create_task(repeat(validate, stop, min(pace.idle_seconds, IDLE_SECONDS), "commands"))
            group.create_task(repeat(expire, stop, EXPIRY_SECONDS, "commands"))
            for desk in desks:
                group.create_task(desk.work(stop))


async def is_installed(database: Database) -> bool:
    """Whether this database has the book."""
    async with database.read() as tx:
        return await tx.value("SELECT to_regclass('settlement.settlement_commands') IS NOT NULL")


async def reopen_forgone(database: Database) -> int:
    """Open what was settled by transactions that were taken back while nobody here was looking."""
    if not await is_installed(database):
        return 0
    async with database.read() as tx:
        forgone = await due.find_forgone(tx, FORGONE_MAX)
    for one in forgone:
        await endings.reopen(database, one, clock.now())
    return len(forgone)


async def forget_spending(database: Database) -> int:
    """Delete what the limits counted on days that are over; how many sums."""
    total = 0
    for _ in range(CALLS_MAX if await is_installed(database) else 0):
        async with database.write() as tx:
            gone = await limits.forget(tx, now=clock.now(), limit=FORGOTTEN_A_CALL)
        total += gone
        if gone < FORGOTTEN_A_CALL:
            break
    return total


JOBS: list[Job] = [
    Job("settlement.reopen_forgone", "47 * * * *", reopen_forgone),
    Job("settlement.forget_spending", "38 2 * * *", forget_spending),
]
SERVICES: list[Service] = [Service("settlement.carry_out", carry_out)]
