"""Services: what a book does all the time, in the worker's process beside the periodic jobs."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tollbook.core.database import Database
from tollbook.core.errors import Refusal

RESTART_SECONDS_MIN = 0.5
RESTART_SECONDS_MAX = 30.0
HEALTHY_SECONDS = 60.0  # who ran for so long is started again at once when it breaks off
BROKEN_SECONDS_MAX = 10.0  # between turns that fail
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


async def repeat(
    turn: Callable[[], Awaitable[int]],
    stop: asyncio.Event,
    idle_seconds: float,
    where: str,
    *,
    wake: asyncio.Event | None = None,
) -> None:
    """Do it again and again until `stop` is set: at once where there was something, else after a pause."""
    broken_seconds = idle_seconds
    while not stop.is_set():
        pause = idle_seconds
        try:
            if wake is not None:
                wake.clear()
            if await turn():
                pause = 0.0
            broken_seconds = idle_seconds
        except Exception as failure:  # whatever it was, the work must go on
            broken_seconds = pause = min(broken_seconds * 2, BROKEN_SECONDS_MAX)
            name = getattr(turn, "__name__", "turn")
            if isinstance(failure, Refusal):
                logger.warning("%s on %s: %s", name, where, failure.sentence)
            else:
                logger.exception("%s on %s failed", name, where)
        await _pause(stop, wake, pause)


async def _pause(stop: asyncio.Event, wake: asyncio.Event | None, seconds: float) -> None:
    if wake is None:
        await rest(stop, seconds)
        return
    waiting = [asyncio.create_task(event.wait()) for event in (stop, wake)]
    await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
