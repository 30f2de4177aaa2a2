"""What the stores share: a pool of synchronous connections, and the tables, made when they are missing."""

import hashlib
import os
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from tollbook.core.database import READ_ONLY, has_news, is_lost
from tollbook.core.errors import DatabaseUnreachable

CONNECTIONS_MAX = 8
WAIT_SECONDS_MAX = 10.0  # for a connection, and for another process's lock on a channel
FOLDER = Path(__file__).parent / "migrations"
MISSING = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
)

Pool = ConnectionPool[Connection[TupleRow]]


class Connections:
    """A thread-safe pool on one database, opened at the first use; several stores may share one.

    A process that was forked after the first use opens a pool of its own.
    """

    def __init__(self, url: str, *, connections_max: int = CONNECTIONS_MAX) -> None:
        self._url = url
        self._connections_max = connections_max
        self._lock = threading.Lock()
        self._pool: Pool | None = None
        self._process_id = 0

    @contextmanager
    def open(self) -> Generator[Connection[TupleRow]]:
        """A connection; each statement commits by itself. Raises DatabaseUnreachable."""
        try:
            with self._find_pool().connection() as connection:
                yield connection
        except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction) as error:
            if not is_lost(error):
                raise
            if error.sqlstate == READ_ONLY:
                self._find_pool().drain()
            # Without its cause: that may quote the address of the database.
            raise DatabaseUnreachable(
                "The database of the stores does not answer. Check its address and that the server runs."
            ) from None

    def execute(self, sql: LiteralString, params: dict[str, Any]) -> int:
        """Run one statement; how many rows it touched."""
        with self.open() as connection:
            return connection.execute(sql, params).rowcount

    def fetch(self, sql: LiteralString, params: dict[str, Any]) -> TupleRow | None:
        """Run one statement; its first row."""
        with self.open() as connection:
            return connection.execute(sql, params).fetchone()

    def close(self) -> None:
        """Close the connections; the next use opens them again."""
        with self._lock:
            if self._pool is not None and self._process_id == os.getpid():
                self._pool.close()
            self._pool = None

    def _find_pool(self) -> Pool:
        with self._lock:
            if self._pool is None or self._process_id != os.getpid():
                self._pool, self._process_id = self._make_pool(), os.getpid()
            return self._pool

    def _make_pool(self) -> Pool:
        make_tables(self._url)
        pool: Pool = ConnectionPool(
            self._url,
            min_size=1,
            max_size=self._connections_max,
            timeout=WAIT_SECONDS_MAX,
            kwargs={"application_name": "tollbook-stores", "autocommit": True},
            check=_check,
            open=True,
        )
        weakref.finalize(self, _close, pool, os.getpid())
        return pool


def find_connections(database: str | Connections) -> Connections:
    """What a store is given: an address, for a pool of its own, or the pool it shares with others."""
    return Connections(database) if isinstance(database, str) else database


def make_tables(url: str) -> None:
    """Make or bring up to date the tables of the stores, unless they are as needed. Raises MigrateError.

    Any number of processes may do this at once: the engine lets one at a time, and looks again when it may.
    Asking first costs one round trip, and lets a role work that may not make tables.
    """
    newest = max(FOLDER.glob("*.check.sql"))
    with psycopg.connect(url, autocommit=True, connect_timeout=int(WAIT_SECONDS_MAX)) as connection:
        try:
            connection.execute(newest.read_bytes())
            return
        except MISSING:
            pass
    from tollbook import migrate  # here, because once the tables are made nobody needs the engine

    migrate.apply(url, [migrate.Folder("stores", FOLDER)], backup=False)


def hash_key(key: str) -> bytes:
    """What the database knows of a key: keys have any length, and some are signatures."""
    return hashlib.sha256(key.encode()).digest()


def _check(connection: Connection[TupleRow]) -> None:
    if has_news(connection.fileno()):
        ConnectionPool.check_connection(connection)


def _close(pool: Pool, process_id: int) -> None:
    """End the pool's threads before the process ends; not in a fork, whose sockets are its parent's."""
    if os.getpid() == process_id:
        pool.close()
