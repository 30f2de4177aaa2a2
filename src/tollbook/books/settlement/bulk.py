"""Many commands at once: a stream of lines (NDJSON) or a JSON array, and a result for each.

What is read is parsed while the database writes what came before; nobody is read faster than that. Each
chunk is one transaction, and its results are told when it is on disk. Results that nobody reads yet wait
here, so that a client may send all it has before it reads.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from pydantic_core import from_json, to_json

from tollbook.books.settlement import intake, requests
from tollbook.books.settlement.errors import CommandMalformed
from tollbook.books.settlement.intake import Received
from tollbook.books.settlement.requests import Order
from tollbook.core.database import Database
from tollbook.core.errors import Refusal

LINE_BYTES_MAX = 8 * 1024
LINES_MAX = 1_000_000  # of one stream
CHUNK_ORDERS_MAX = 2_000
STORES_MAX = 3  # chunks of one stream on their way to the disk at once
WAITING_ORDERS_MAX = 3 * CHUNK_ORDERS_MAX
ITEMS_MAX = 10_000  # of one array
ARRAY_BYTES_MAX = 8 * 1024 * 1024

Tell = Callable[[bytes], Awaitable[None]]


class StreamTooLong(Refusal):
    """A stream has more lines than one request may bring."""

    reason = "stream-too-long"
    status = 413


class ArrayMalformed(Refusal):
    """The body is no JSON array of commands."""

    reason = "array-malformed"
    status = 422
    exit_code = 2


@dataclass(slots=True)
class Counts:
    """What became of the lines. Of `accepted`, so many were `replayed`: here before."""

    lines: int = 0
    accepted: int = 0
    replayed: int = 0
    rejected: int = 0


class _Line(NamedTuple):
    number: int
    read: Order | CommandMalformed


class LineCutter:
    """Cuts bytes into numbered lines. One that is too long loses its rest, and keeps a byte too many."""

    def __init__(self) -> None:
        self._rest = b""
        self._number = 0

    def feed(self, part: bytes, *, is_last: bool = False) -> list[tuple[int, bytes]]:
        """The lines that are whole now, without those that are blank. Raises StreamTooLong."""
        *lines, rest = (self._rest + part).split(b"\n")
        if is_last:
            lines.append(rest)
        self._rest = rest[: LINE_BYTES_MAX + 1]
        first = self._number + 1
        self._number += len(lines)
        if self._number > LINES_MAX + 1:
            raise StreamTooLong(
                f"A stream has {LINES_MAX} lines at most. What was told is kept; send the rest in another."
            )
        return [
            (number, line[: LINE_BYTES_MAX + 1])
            for number, line in enumerate(lines, first)
            if line.strip() or len(line) > LINE_BYTES_MAX  # what it lost may have been no blank
        ]


async def take_stream(database: Database, parts: AsyncIterator[bytes], tell: Tell) -> Counts:
    """Receive the commands of a stream, telling each chunk's results as lines of JSON.

    Raises StreamTooLong, DatabaseUnreachable and what `parts` raises; what was told by then is kept.
    """
    counts, cutter = Counts(), LineCutter()
    waiting: list[_Line] = []
    reading: asyncio.Task[bytes | None] | None = asyncio.create_task(_next(parts))
    storing = deque[asyncio.Task[list[bytes]]]()
    try:
        while reading or storing or waiting:
            # Another one beside the first only where it is full: a slow stream is not cut into crumbs.
            while waiting and len(storing) < STORES_MAX and not (storing and len(waiting) < CHUNK_ORDERS_MAX):
                chunk, waiting = waiting[:CHUNK_ORDERS_MAX], waiting[CHUNK_ORDERS_MAX:]
                storing.append(asyncio.create_task(_store(database, chunk, counts)))
            wanted = reading if len(waiting) < WAITING_ORDERS_MAX else None
            first = storing[0] if storing else None
            tasks: list[asyncio.Task[Any]] = [task for task in (wanted, first) if task is not None]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            while storing and storing[0].done():
                await tell(b"".join(storing.popleft().result()))
            if wanted is not None and wanted.done():
                part = wanted.result()
                waiting += _read(cutter.feed(part or b"", is_last=part is None))
                reading = None if part is None else asyncio.create_task(_next(parts))
    finally:
        left: list[asyncio.Task[Any]] = [task for task in (reading, *storing) if task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    return counts


async def take_array(database: Database, body: bytes) -> tuple[list[dict[str, object]], Counts]:
    """Receive the commands of a JSON array: a result for each, in its order. Raises ArrayMalformed."""
    counts = Counts()
    results = await _store(database, _read(_split(body)), counts)
    return [cast("dict[str, object]", json.loads(result)) for result in results], counts


def read_all(body: bytes) -> list[Order | CommandMalformed]:
    """The commands of a JSON array, or of lines. Raises ArrayMalformed, StreamTooLong."""
    lines = _split(body) if is_array(body) else LineCutter().feed(body, is_last=True)
    return [line.read for line in _read(lines)]


def is_array(beginning: bytes) -> bool:
    """Whether it is an array that begins so, or else lines."""
    return beginning.lstrip()[:1] == b"["


def _split(body: bytes) -> list[tuple[int, bytes]]:
    try:
        items = from_json(body)
    except ValueError as error:
        raise ArrayMalformed(f"The body is no JSON: {error}. Send an array of commands, or NDJSON.") from None
    if not isinstance(items, list):
        raise ArrayMalformed("The body is no JSON array. Send one of commands, or NDJSON.")
    values = cast("list[object]", items)
    if len(values) > ITEMS_MAX:
        raise ArrayMalformed(f"An array has {ITEMS_MAX} commands at most. Send the rest in another.")
    return [(number, to_json(value)) for number, value in enumerate(values, 1)]


def show_end(counts: Counts) -> bytes:
    """The last line of a stream's results: whoever does not get it was not heard to the end."""
    return to_json(
        {
            "lines": counts.lines,
            "accepted": counts.accepted,
            "replayed": counts.replayed,
            "rejected": counts.rejected,
        }
    ) + b"\n"  # fmt: skip


def show_refusal(refusal: Refusal) -> bytes:
    """The last line of a stream that was given up: what was told before it is kept."""
    return to_json({"status": "broken", "reason": refusal.reason, "detail": refusal.sentence}) + b"\n"


async def _next(parts: AsyncIterator[bytes]) -> bytes | None:
    async for part in parts:
        return part
    return None


def _read(lines: Sequence[tuple[int, bytes]]) -> list[_Line]:
    short = [(number, line) for number, line in lines if len(line) <= LINE_BYTES_MAX]
    read = requests.read_lines([line for _, line in short])
    found = [_Line(number, one) for (number, _), one in zip(short, read, strict=True)]
    if len(short) < len(lines):
        too_long = CommandMalformed(f"A line has {LINE_BYTES_MAX} bytes at most.")
        found += [_Line(number, too_long) for number, line in lines if len(line) > LINE_BYTES_MAX]
        found.sort(key=lambda line: line.number)
    return found


async def _store(database: Database, chunk: Sequence[_Line], counts: Counts) -> list[bytes]:
    """One chunk into the books; its results, in order."""
    orders = [line.read for line in chunk if isinstance(line.read, Order)]
    outcomes = iter(await intake.take_all(database, orders) if orders else [])
    return [
        _show(line, next(outcomes) if isinstance(line.read, Order) else line.read, counts) for line in chunk
    ]


def _show(line: _Line, outcome: Received | Refusal, counts: Counts) -> bytes:
    counts.lines += 1
    if isinstance(outcome, Received):
        counts.accepted += 1
        counts.replayed += outcome.replayed
        replayed = ',"replayed":true' if outcome.replayed else ""
        # An id that was accepted has nothing in it that JSON would escape.
        text = f'{{"line":{line.number},"status":"accepted","command_id":"{outcome.command_id}"{replayed}}}\n'
        return text.encode()
    counts.rejected += 1
    return to_json(
        {
            "line": line.number,
            "status": "rejected",
            "command_id": line.read.command_id if isinstance(line.read, Order) else None,
            "reason": outcome.reason,
            "detail": outcome.sentence,
        }
    ) + b"\n"  # fmt: skip
