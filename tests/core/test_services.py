"""Services: side by side, started again when they break off, ended when told or cancelled."""

import asyncio
from contextlib import suppress

import pytest

from tollbook.core import services
from tollbook.core.database import Database
from tollbook.core.services import Service

WAIT_SECONDS_MAX = 60


async def test_a_service_that_breaks_off_is_started_again_and_stops_no_other(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "RESTART_SECONDS_MIN", 0.01)
    stop, healed, lives = asyncio.Event(), asyncio.Event(), {"frail": 0, "sound": 0}

    async def fail(_: Database, stop: asyncio.Event) -> None:
        lives["frail"] += 1
        if lives["frail"] < 3:
            raise LookupError("not yet")
        healed.set()
        await stop.wait()

    async def last(_: Database, stop: asyncio.Event) -> None:
        lives["sound"] += 1
        await healed.wait()
        stop.set()

    known = [Service("frail", fail), Service("sound", last)]
    await asyncio.wait_for(services.run(database, known, stop), WAIT_SECONDS_MAX)
    assert lives == {"frail": 3, "sound": 1}
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"frail broke off; it starts again in {pause} s" for pause in ("0.0", "0.0")]


async def test_services_of_a_cancelled_worker_end_by_themselves_or_are_cut_off(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "STOP_SECONDS_MAX", 0.1)
    stop, ended = asyncio.Event(), list[str]()

    async def end(_: Database, stop: asyncio.Event) -> None:
        await stop.wait()
        ended.append("by itself")

    async def hang(_: Database, stop: asyncio.Event) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cut off")

    running = asyncio.create_task(services.run(database, [Service("a", end), Service("b", hang)], stop))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.wait_for(running, WAIT_SECONDS_MAX)
    assert stop.is_set()
    assert ended == ["by itself", "cut off"]
