"""Watching a statement: what it locks, whether it reads a table's rows, whether it writes them anew."""

import threading
import time
from dataclasses import dataclass
from typing import Any

import psycopg
from pglast import parse_sql
from psycopg import sql

from tollbook.migrate.lint.examples import GIVEN
from tollbook.migrate.lint.rule import Claim, Example

WAIT_SECONDS_MAX = 120
# PostgreSQL's table of conflicts, as far as one lock is stronger than another.
STRENGTH = (
    "AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock",
    "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What a transaction did to a table."""

    lock: str | None
    scan: bool
    rewrite: bool

    def is_as_bad_as(self, claim: Claim) -> bool:
        """Whether it held a lock at least as strong, for at least as long a work."""
        strong = self.lock is not None and STRENGTH.index(self.lock) >= STRENGTH.index(claim.lock)
        return strong and (self.scan or not claim.scan) and (self.rewrite or not claim.rewrite)


def set_up(connection: psycopg.Connection[Any], example: Example) -> None:
    """Make the tables of an example, with rows, in the place of whatever the last one left."""
    for (schema,) in connection.execute(
        "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|inform)'"
    ).fetchall():
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    connection.execute("CREATE SCHEMA public AUTHORIZATION tollbook")  # also where the superuser tidies up
    connection.execute(f"{GIVEN}{example.given}".encode())


def split(text: str) -> list[str]:
    """Take SQL apart into its statements."""
    raw = parse_sql(text)
    return [text[one.stmt_location : one.stmt_location + (one.stmt_len or len(text))] for one in raw]


def find_table(connection: psycopg.Connection[Any], name: str) -> int:
    """Return a table's oid, by which it is known even when it is renamed or dropped."""
    row = connection.execute("SELECT %(name)s::regclass::oid", {"name": name}).fetchone()
    assert row is not None
    return int(row[0])


def watch(connection: psycopg.Connection[Any], statements: list[str], table: int) -> Seen:
    """Run statements in a transaction and look, before it ends, at what it did to a table."""
    before = _read_file_node(connection, table)
    with connection.transaction():
        scans = _count_scans(connection, table)
        for statement in statements:
            connection.execute(statement.encode())
        lock = _read_lock(connection, table, connection.info.backend_pid)
        scan = _count_scans(connection, table) > scans
        rewrite = _read_file_node(connection, table) not in (before, None)
    return Seen(lock, scan or rewrite, rewrite)


def watch_alone(connection: psycopg.Connection[Any], url: str, statement: str, table: int) -> Seen:
    """Run a statement that takes no transaction, and look at its locks while it waits for another session.

    The other has read the table and not ended, so the statement comes to wait for it (all that run
    CONCURRENTLY do) or, if it would lock readers out, waits for its lock: both are seen.
    """
    before = _read_file_node(connection, table)
    with psycopg.connect(url) as other, psycopg.connect(url, autocommit=True) as looking:
        other.execute(f"SELECT FROM pg_class WHERE oid = {table}".encode())
        other.execute(f"LOCK TABLE {_read_name(looking, table)} IN ROW EXCLUSIVE MODE".encode())
        runner = threading.Thread(target=lambda: connection.execute(statement.encode()))
        runner.start()
        lock = None
        until = time.monotonic() + WAIT_SECONDS_MAX
        while runner.is_alive() and time.monotonic() < until:
            waits = _is_waiting(looking, connection.info.backend_pid)  # and does until we have looked
            found = _read_lock(looking, table, connection.info.backend_pid)
            lock = max((lock, found), key=lambda one: STRENGTH.index(one) if one else -1)
            if waits:
                break
        other.rollback()
        runner.join(WAIT_SECONDS_MAX)
        assert not runner.is_alive()
        return Seen(lock, True, _read_file_node(looking, table) not in (before, None))


def _count_scans(connection: psycopg.Connection[Any], table: int) -> int:
    row = connection.execute("SELECT pg_stat_get_xact_numscans(%(table)s)", {"table": table}).fetchone()
    return int(row[0]) if row else 0


def _is_waiting(connection: psycopg.Connection[Any], pid: int) -> bool:
    row = connection.execute("SELECT cardinality(pg_blocking_pids(%(pid)s))", {"pid": pid}).fetchone()
    return bool(row and row[0])


def _read_lock(connection: psycopg.Connection[Any], table: int, pid: int) -> str | None:
    rows = connection.execute(
        """SELECT mode FROM pg_locks WHERE locktype = 'relation' AND relation = %(table)s AND pid = %(pid)s
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())""",
        {"table": table, "pid": pid},
    ).fetchall()
    return max((row[0] for row in rows), key=STRENGTH.index, default=None)


def _read_file_node(connection: psycopg.Connection[Any], table: int) -> int | None:
    row = connection.execute(
        "SELECT relfilenode FROM pg_class WHERE oid = %(table)s", {"table": table}
    ).fetchone()
    return int(row[0]) if row else None


def _read_name(connection: psycopg.Connection[Any], table: int) -> str:
    row = connection.execute("SELECT %(table)s::regclass::text", {"table": table}).fetchone()
    assert row is not None
    return str(row[0])
