"""Services: what a book does all the time, in the worker's process beside the periodic jobs."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tollbook.core.database import Database

RESTART_SECONDS_MIN = 0.5
RESTART_SECONDS_MAX = 30.0
HEALTHY_SECONDS = 60.0  # who ran for so long is started again at once when it breaks off
STOP_SECONDS_MAX = 5.0  # then what has not ended is cut off, as a kill would

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """`run` works until the event is set, and ends soon after it is.

    It may run in many processes at once, and be killed anywhere: it must be safe to. Where it raises, it is
    started again after a pause that grows.
    """

    name: str
    run: Callable[[Database, asyncio.Event], Awaitable[object]]


async def run(database: Database, services: Sequence[Service], stop: asyncio.Event) -> None:
    """Run them side by side until `stop` is set. Where this is cancelled it sets `stop` itself."""
    running = [asyncio.create_task(_keep_up(database, one, stop), name=one.name) for one in services]
    try:
        await stop.wait()
    finally:
        stop.set()
        if running:
            await asyncio.wait(running, timeout=STOP_SECONDS_MAX)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _keep_up(database: Database, service: Service, stop: asyncio.Event) -> None:
    pause = RESTART_SECONDS_MIN
    while not stop.is_set():
        began_at = time.monotonic()
        try:
            await service.run(database, stop)
        except Exception:  # whatever it was, the work must go on
            if time.monotonic() - began_at > HEALTHY_SECONDS:
                pause = RESTART_SECONDS_MIN
            logger.exception("%s broke off; it starts again in %.1f s", service.name, pause)
        await rest(stop, pause)
        pause = min(pause * 2, RESTART_SECONDS_MAX)


async def rest(stop: asyncio.Event, seconds: float) -> None:
    """Wait so long, or until it is time to stop."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
