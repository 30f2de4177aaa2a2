"""Limits where commands are tried again: those of the worker, whatever environment it is done in."""

import asyncio
import os

import pytest
from click.testing import CliRunner

from fixtures.orders import fail_command
from tollbook.books.settlement import commands, jobs, requests
from tollbook.books.settlement.intake import take
from tollbook.books.settlement.limits import LimitReached, LimitsUntold
from tollbook.books.settlement.requests import CommandRequest
from tollbook.books.settlement.settings import Limits, SettlementSettings
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.local_chain import NETWORK
from tollbook.entrypoints.cli import tollbook

LOW = {NETWORK: {"USDC": Limits(day="0.0015")}}  # pyright: ignore[reportArgumentType] - one such, not two


async def test_what_was_counted_on_days_that_are_over_is_forgotten(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "FORGOTTEN_A_CALL", 2)
    async with database.write() as tx:
        await tx.execute(
            "INSERT INTO settlement.spending (network, asset, payee, day, amount_minor) "
            "SELECT %(network)s, '', '', %(today)s - n, 1 FROM generate_series(0, 6) AS n",
            {"network": NETWORK, "today": clock.now().date()},
        )
    assert await jobs.forget_spending(database) == 5
    assert await jobs.forget_spending(database) == 0
    async with database.read() as tx:
        assert await tx.value("SELECT count(*) FROM settlement.spending") == 2


async def test_what_is_tried_again_keeps_to_the_limits_that_the_worker_has(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("TOLLBOOK_")]:
        monkeypatch.delenv(name)
    for command_id in ("first", "second"):
        request = CommandRequest(command_id=command_id, amount="0.001", payee="0x" + "ab" * 20)
        await take(database, requests.read(request))
        async with database.write() as tx:
            await fail_command(tx, command_id)

    async def retry(command_id: str) -> BaseException | None:
        """On a machine that knows neither nodes nor limits."""
        words = ["settlement", "retry", command_id, "--database-url", database.url]
        return (await asyncio.to_thread(CliRunner().invoke, tollbook, words)).exception

    assert isinstance(await retry("first"), LimitsUntold)
    stop = asyncio.Event()
    settings = SettlementSettings(rpc_urls={NETWORK: "http://127.0.0.1:9"}, settlement_limits=LOW)
    working = asyncio.create_task(jobs.work(database, settings, stop))
    while isinstance(told := await retry("first"), LimitsUntold):
        assert not working.done()
    assert told is None
    assert isinstance(await retry("second"), LimitReached)
    stop.set()
    await working
    async with database.read() as tx:
        assert (await commands.get(tx, "first")).status == "validated"
        assert (await commands.get(tx, "second")).status == "failed"
