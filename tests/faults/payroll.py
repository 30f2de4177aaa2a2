"""The worker that dies where a test wants it to: commands are taken in, and carried out turn by turn."""

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tollbook.books.settlement import commands, intake, jobs, requests, validation
from tollbook.books.settlement.execution import Desk, Pace, open_desk
from tollbook.books.settlement.requests import CommandRequest
from tollbook.books.settlement.settings import SettlementSettings
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.local_chain import NETWORK

if TYPE_CHECKING:
    from faults.paid_shop import Life

TURNS_MAX = 400
PAUSE_SECONDS = 0.01
OPEN = ("received", "validated", "executed")
PACE = Pace(
    idle_seconds=0.02, mend_seconds=0.05, lost_seconds=0.0, pause_min=timedelta(0), held=timedelta(seconds=30)
)


async def carry_out(life: "Life") -> None:
    """Take the wanted commands in, and take turns until they have ended.

    The lanes are mended by whoever comes after a death alone: killing a sweep is the lanes' own test.
    """
    assert life.wanted is not None
    orders: list[dict[str, Any]] = json.loads(life.wanted["orders"])
    standards = validation.make_standards(SettlementSettings(rpc_urls={NETWORK: life.node_url}))
    async with (
        Database(life.database_url) as database,
        open_desk(database, NETWORK, life.node_url, [life.operator_key], pace=PACE, confirmations=1) as desk,
    ):
        life.counting = True
        for order in orders:
            await intake.take(database, requests.read(CommandRequest(**order)))
        for _ in range(TURNS_MAX):
            await validation.validate_due(database, standards, clock.now())
            await take_turn(desk, mends=bool(life.late))
            if await have_ended(database, [order["command_id"] for order in orders]):
                return
            await asyncio.sleep(PAUSE_SECONDS)
    raise AssertionError("it never ended")


async def take_turn(desk: Desk, *, mends: bool) -> None:
    await desk.send()
    await desk.resume()
    if mends:
        await desk.mend()
    await desk.judge()
    await desk.reopen()


async def have_ended(database: Database, command_ids: Sequence[str]) -> bool:
    async with database.read() as tx:
        found = [await commands.get(tx, command_id) for command_id in command_ids]
    return all(one.status not in OPEN for one in found)


async def work(life: "Life") -> None:
    """What the worker does all the time, until it is killed."""
    async with Database(life.database_url) as database:
        settings = SettlementSettings(rpc_urls={NETWORK: life.node_url})
        await jobs.work(database, settings, asyncio.Event(), PACE)
