"""Usage lines: a connection of its own with a loop that flushes what waits, and numbers packed for it."""

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection, pq
from psycopg.adapt import Dumper

from tollbook.core.errors import DatabaseUnreachable

RECONNECT_SECONDS_MAX = 2.0
RECONNECT_SECONDS_MIN = 0.05
CONNECT_SECONDS_MAX = 5
ANSWER_SECONDS_MAX = 15  # the server ends the statement earlier, unless it or the network is gone
STATEMENT_SECONDS_MAX = 10
# One plan for any number of rows, from index to index whatever the tables were when it was made: planning
# this statement anew takes longer than running it.
SETTINGS = (
    "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_hashjoin=off "
    f"-c enable_mergejoin=off -c statement_timeout={STATEMENT_SECONDS_MAX}s -c synchronous_commit="
)

FAILURES = (psycopg.Error, TimeoutError, OSError)

log = logging.getLogger(__name__)


class TakenElsewhere(Exception):
    """The connection that was open at the taking is lost; perhaps the server, and the taking, with it."""


class Line:
    """A connection of its own, and the loop that flushes on it what waits, as soon as something does."""

    def __init__(self, url: str, synchronous_commit: str, flush: "Callable[[Line], Awaitable[None]]") -> None:
        self._url = url
        self._settings = SETTINGS + synchronous_commit
        self._flush = flush
        self._wanted = asyncio.Event()
        self._closing = False
        self._connection: AsyncConnection[Any] | None = None
        self._number = 0  # of the connection
        self._busy = asyncio.Lock()
        self._lost = False  # the other line was, so this one is as well, or soon
        self._loop: asyncio.Task[None] | None = None
        self.other: Line | None = None  # to the same server: what cuts one of them has cut both

    def open(self) -> None:
        self._loop = asyncio.create_task(self._run())

    def wake(self) -> None:
        self._wanted.set()

    def check_open(self) -> None:
        """Raises DatabaseUnreachable once nothing will be flushed any more."""
        if self._closing:
            raise DatabaseUnreachable("This process is shutting down. Try again in a second.")

    async def close(self) -> None:
        self._closing = True
        self.wake()
        if self._loop is not None:
            await self._loop
        await self._hang_up()

    async def execute(
        self, sql: LiteralString, params: Mapping[str, Any], number: int | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement as one transaction. Hang up after a failure that may have lost the line.

        With a `number`, on that connection or on none.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                async with self._busy:
                    connection = await self._reach()
                    if number not in (None, self._number):
                        raise TakenElsewhere
                    async with connection.cursor(binary=True) as cursor:
                        await cursor.execute(sql, params, prepare=True)
                        return await cursor.fetchall() if cursor.description else []
        except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction, TimeoutError, OSError):
            await self._hang_up()
            if self.other is not None:
                self.other.lose()
            raise

    async def dial(self) -> int:
        """Connect where there is no connection; its number."""
        if self._connection is None or self._lost:
            async with self._busy:
                await self._reach()
        return self._number

    def lose(self) -> None:
        """Connect anew before anything else."""
        self._lost = True

    async def _reach(self) -> AsyncConnection[Any]:
        if self._lost:
            self._lost = False
            await self._hang_up()
        if self._connection is None:
            self._connection = await self._connect()
            self._number += 1
        return self._connection

    async def _run(self) -> None:
        pause_seconds = RECONNECT_SECONDS_MIN
        while not self._closing or self._wanted.is_set():
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._flush(self)
                pause_seconds = RECONNECT_SECONDS_MIN
            except Exception as error:  # the loop must outlive everything; those who waited were told
                log.warning("requests could not be metered: %s", error)
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, RECONNECT_SECONDS_MAX)

    async def _connect(self) -> AsyncConnection[Any]:
        connection = await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            application_name="tollbook-meter",
            connect_timeout=CONNECT_SECONDS_MAX,
            options=self._settings,
        )
        _register_arrays(connection)
        return connection

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*FAILURES):
                await connection.close()


# psycopg dumps a list item by item; for these long lists of numbers that was a third of a request's cost. So
# they are packed at once, as PostgreSQL sends and receives arrays.


class BigInts(bytes):
    """A packed bigint[]."""


class Integers(bytes):
    """A packed integer[]."""


class SmallInts(bytes):
    """A packed smallint[]."""


_ARRAY_TYPES: dict[type[bytes], int] = {BigInts: 1016, Integers: 1007, SmallInts: 1005}
_ELEMENTS = {"q": (20, 8), "i": (23, 4), "h": (21, 2)}  # struct's letter: PostgreSQL's type, its bytes


def pack(letter: str, numbers: Sequence[int]) -> bytes:
    """One dimension, no nulls, the elements' type, how many, counted from 1; then each with its length."""
    type_oid, size = _ELEMENTS[letter]
    count = len(numbers)
    body = [size] * (2 * count)
    body[1::2] = numbers
    return struct.pack(f"!5i{('i' + letter) * count}", 1, 0, type_oid, count, 1, *body)


def _make_dumper(array_type_oid: int) -> type[Dumper]:
    class PackedDumper(Dumper):
        format = pq.Format.BINARY
        oid = array_type_oid

        def dump(self, obj: bytes) -> bytes:
            return obj

    return PackedDumper


def _register_arrays(connection: AsyncConnection[Any]) -> None:
    for packed, oid in _ARRAY_TYPES.items():
        connection.adapters.register_dumper(packed, _make_dumper(oid))
