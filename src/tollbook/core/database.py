"""The one way to PostgreSQL: a pool of psycopg connections, and transactions typed by intent."""

import select
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, LiteralString, Self, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import class_row, dict_row, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from tollbook.core.errors import DatabaseUnreachable

Row = TypeVar("Row")
Params = Mapping[str, Any]

POOL_SIZE_MAX = 10
POOL_WAIT_SECONDS_MAX = 10.0
READ_ONLY = psycopg.errors.ReadOnlySqlTransaction.sqlstate


class ReadTx:
    """A transaction that only reads: one snapshot, rows as frozen dataclasses."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self.connection = connection

    async def all(self, sql: LiteralString, params: Params | None = None, *, into: type[Row]) -> list[Row]:
        """Every row the statement gives, each as `into(**columns)`."""
        async with self.connection.cursor(binary=True, row_factory=class_row(into)) as cursor:
            await cursor.execute(sql, params)
            return await cursor.fetchall()

    async def maybe(self, sql: LiteralString, params: Params | None = None, *, into: type[Row]) -> Row | None:
        """The first row as `into(**columns)`, or None."""
        async with self.connection.cursor(binary=True, row_factory=class_row(into)) as cursor:
            await cursor.execute(sql, params)
            return await cursor.fetchone()

    async def one(self, sql: LiteralString, params: Params | None = None, *, into: type[Row]) -> Row:
        """The row a statement must give, as `into(**columns)`."""
        row = await self.maybe(sql, params, into=into)
        if row is None:
            raise LookupError("the statement gave no row where it must give one")
        return row

    async def value(self, sql: LiteralString, params: Params | None = None) -> Any:
        """The first column of the first row, or None when there is no row."""
        async with self.connection.cursor(binary=True, row_factory=tuple_row) as cursor:
            await cursor.execute(sql, params)
            row = await cursor.fetchone()
            return None if row is None else row[0]

    async def dicts(self, sql: LiteralString, params: Params | None = None) -> list[dict[str, Any]]:
        """Every row as a dict: for reports whose columns are the answer."""
        async with self.connection.cursor(binary=True, row_factory=dict_row) as cursor:
            await cursor.execute(sql, params)
            return await cursor.fetchall()


class WriteTx(ReadTx):
    """A transaction that may write; it commits when its block ends, and rolls back when the block raises."""

    async def execute(self, sql: LiteralString, params: Params | None = None) -> int:
        """Run a statement; how many rows it touched."""
        async with self.connection.cursor(binary=True) as cursor:
            await cursor.execute(sql, params)
            return cursor.rowcount


class Database:
    """A pool on one database. Open it once a process: `async with Database(url) as database`."""

    def __init__(
        self, url: str, *, application: str = "tollbook", connections_max: int = POOL_SIZE_MAX
    ) -> None:
        self.url = url
        self.pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            url,
            min_size=1,
            max_size=connections_max,
            timeout=POOL_WAIT_SECONDS_MAX,
            open=False,
            kwargs={"application_name": application, "autocommit": True},
            check=_check,
        )

    async def __aenter__(self) -> Self:
        check_address(self.url)
        await self.pool.open()
        try:
            await self.pool.wait(timeout=POOL_WAIT_SECONDS_MAX)
        except PoolTimeout as timeout:
            await self.pool.close()
            raise DatabaseUnreachable(
                "The database does not answer. Check DATABASE_URL and that the server runs: tollbook doctor."
            ) from timeout
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.close()

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[ReadTx]:
        """One read-only snapshot. Raises DatabaseUnreachable when there is no server to ask."""
        async with self._connection() as connection, connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield ReadTx(connection)

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[WriteTx]:
        """One transaction, READ COMMITTED. Raises DatabaseUnreachable when there is no server to ask."""
        async with self._connection() as connection, connection.transaction():
            yield WriteTx(connection)

    @asynccontextmanager
    async def statement(self) -> AsyncGenerator[WriteTx]:
        """For one statement that is a transaction by itself: its locks wait for no round trip to us."""
        async with self._connection() as connection:
            yield WriteTx(connection)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[AsyncConnection[Any]]:
        try:
            async with self.pool.connection() as connection:
                try:
                    yield connection
                except psycopg.errors.ReadOnlySqlTransaction:
                    await (
                        connection.close()
                    )  # the primary became a standby: the next one goes where URL leads
                    raise
        except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction) as error:
            if not is_lost(error):
                raise
            raise DatabaseUnreachable(
                "The database does not answer. Try again; if it persists run: tollbook doctor."
            ) from error


async def _check(connection: AsyncConnection[Any]) -> None:
    """Ask the server whether it is there, if it has said anything unasked, such as goodbye."""
    if has_news(connection.fileno()):
        await AsyncConnectionPool.check_connection(connection)


def has_news(file: int) -> bool:
    """Whether a connection that waits for no answer has one to read, or its end: it costs no round trip."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))


def check_address(url: str) -> None:
    """Raise DatabaseUnreachable where it is not sure what is the password of an address.

    Whoever tries such a one, libpq quotes the password, and the pool logs what it says.
    """
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parts = None
    if parts is None or "@" in f"{parts.get('host')} {parts.get('dbname')}":
        raise DatabaseUnreachable(
            "The database's address cannot be read. Percent-encode what is special in its password, and see "
            "that it begins with postgresql://."
        )


def is_lost(error: psycopg.Error) -> bool:
    """Whether the connection is gone, rather than a statement refused (a lock time-out, a full disk).

    So is one to a server that only reads now: a standby, since a failover.
    """
    state = error.sqlstate
    return state is None or state.startswith(("08", "57P")) or state == READ_ONLY
