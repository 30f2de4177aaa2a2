"""The one database session a run works in: its address, its opening, and the lock that keeps others out."""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import psycopg
from psycopg import conninfo

from tollbook.migrate.errors import (
    ConnectionLost,
    DatabaseUnreachable,
    LockHeld,
    MigrateError,
    SessionNotOurs,
    WrongUsage,
)
from tollbook.migrate.events import Event, Listener
from tollbook.migrate.url import ADDRESS, normalize

APPLICATION_NAME = "tollbook migrate"
CONNECT_SECONDS_MAX = 10
LOCK_WAIT_SECONDS_MAX = 300.0
LOCK_POLL_SECONDS = (0.05, 1.0)  # first and longest pause between two tries
# Any constant will do, but it must stay: versions of this engine exclude each other by it.
LOCK_KEY = 7_063_417_201_337_402
SECRETS = ("password", "sslpassword")

# What outlives a transaction and is no setting: the next file is to find none of it.
LEAVE_NOTHING = "CLOSE ALL; DISCARD TEMP; DEALLOCATE ALL"

Connection = psycopg.Connection[tuple[Any, ...]]


def read_url(url: str) -> dict[str, str]:
    """Return libpq's parameters of a URL, in libpq's words or others' (url.py), or a `key=value` text.

    Raises WrongUsage, with a sentence that repeats nothing of the URL: it may hold the password.
    """
    text = normalize(url) if ADDRESS.match(url.strip()) else url.strip()
    try:
        parameters = {
            key: str(value) for key, value in conninfo.conninfo_to_dict(text).items() if value is not None
        }
    except psycopg.Error:
        raise WrongUsage(_explain_url()) from None
    host = parameters.get("host", "")
    if "@" in ("" if host.startswith(("/", "@")) else host) + parameters.get("dbname", ""):
        raise WrongUsage(_explain_url())  # a password with an unescaped @ or / : its end is in one of them
    return parameters


def _explain_url() -> str:
    return (
        "The database URL cannot be read. Write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with "
        "@ : / # ? % in the password written as %40 %3A %2F %23 %3F %25."
    )


def name_target(parameters: dict[str, str]) -> str:
    """Return user@host:port/database for people to read; never the password."""
    host = parameters.get("host") or parameters.get("hostaddr") or os.environ.get("PGHOST") or "local"
    user = parameters.get("user") or os.environ.get("PGUSER") or ""
    port = parameters.get("port") or os.environ.get("PGPORT") or ""
    database = parameters.get("dbname") or os.environ.get("PGDATABASE") or user
    service = parameters.get("service") or os.environ.get("PGSERVICE")
    if service and not parameters.get("host"):
        return f"service {service}" + (f"/{parameters['dbname']}" if parameters.get("dbname") else "")
    return f"{user}{'@' if user else ''}{host}{':' if port else ''}{port}/{database}"


def hide(text: str, parameters: dict[str, str]) -> str:
    """Return a text of the server's or a tool's without the secrets of the connection."""
    secrets = [parameters[key] for key in SECRETS if parameters.get(key)] + [os.environ.get("PGPASSWORD", "")]
    for secret in secrets:
        if len(secret) > 3:  # a shorter one would blank out half of every word, and is no secret
            text = text.replace(secret, "***")
    return text.strip()


@contextmanager
def connected(url: str) -> Generator[Connection]:
    """Open a session in autocommit mode, closed at the end. Raises DatabaseUnreachable, ConnectionLost."""
    parameters = read_url(url)
    connection = _connect(parameters)
    try:
        yield connection
    except psycopg.Error as error:
        if not connection.broken and not connection.closed:
            raise MigrateError(
                f"PostgreSQL refused: {hide(_first_line(error), parameters)} [{error.sqlstate}]. "
                "What was not committed is rolled back.",
                sqlstate=error.sqlstate,
            ) from error
        raise ConnectionLost(
            f"The connection to {name_target(parameters)} was lost ({_first_line(error)}). What was not "
            "committed is rolled back by the server. Run the same command again: it says where it stands.",
        ) from error
    finally:
        connection.close()


def _connect(parameters: dict[str, str]) -> Connection:
    options = {"application_name": APPLICATION_NAME, "connect_timeout": str(CONNECT_SECONDS_MAX)} | parameters
    try:
        # Prepared statements are the files' own: the engine has none of its own.
        options |= {"client_encoding": "utf8"}
        return psycopg.connect(**options, autocommit=True, prepare_threshold=None)  # pyright: ignore[reportArgumentType]
    except psycopg.Error as error:
        raise DatabaseUnreachable(
            f"No connection to {name_target(parameters)}: {hide(_first_line(error), parameters)}. Check that "
            "the server runs and that host, port, user, password and database of --database-url are right."
        ) from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


@contextmanager
def locked(
    conn: Connection, url: str, listen: Listener, wait_seconds_max: float, schema: str | None = None
) -> Generator[int]:
    """Be the only run on this database. Gives the server process id. Raises LockHeld, SessionNotOurs.

    With a schema: the only one in that schema, beside others in theirs, and none on the whole database.

    The lock is tried for again and again, never waited for inside a statement: a waiting statement would
    hold a snapshot, which CREATE INDEX CONCURRENTLY of another session waits for in turn.
    """
    pid = _check_session(conn, url)  # before: a lock that a pooler has could be nobody's to give back
    with _held(conn, listen, wait_seconds_max, LOCK_KEY, shared=schema is not None):
        if schema is None:
            yield pid
            return
        with _held(conn, listen, wait_seconds_max, _find_key(schema), shared=False):
            yield pid


def _find_key(schema: str) -> int:
    return int.from_bytes(sha256(f"tollbook {schema}".encode()).digest()[:8], signed=True)


@contextmanager
def _held(
    conn: Connection, listen: Listener, wait_seconds_max: float, key: int, *, shared: bool
) -> Generator[None]:
    _wait_for_lock(conn, listen, wait_seconds_max, key, shared=shared)
    try:
        yield
    finally:
        if not conn.broken and not conn.closed:
            conn.execute(
                "SELECT CASE WHEN %(shared)s THEN pg_advisory_unlock_shared(%(key)s) "
                "ELSE pg_advisory_unlock(%(key)s) END",
                {"key": key, "shared": shared},
            )


def _wait_for_lock(
    conn: Connection, listen: Listener, wait_seconds_max: float, key: int, *, shared: bool
) -> None:
    pause, longest = LOCK_POLL_SECONDS
    until = time.monotonic() + wait_seconds_max
    told = False
    while not _try_lock(conn, key, shared=shared):
        if time.monotonic() >= until:
            raise LockHeld(
                f"Another run has held this database for {wait_seconds_max:g} s: {_name_holder(conn, key)}. "
                "Wait for it to end and run again; if it is stuck, end it with pg_terminate_backend."
            )
        if not told:
            listen(Event("waiting", f"Waiting for another run: {_name_holder(conn, key)}."))
            told = True
        time.sleep(pause)
        pause = min(pause * 2, longest)


def _try_lock(conn: Connection, key: int, *, shared: bool) -> bool:
    row = conn.execute(
        "SELECT CASE WHEN %(shared)s THEN pg_try_advisory_lock_shared(%(key)s) "
        "ELSE pg_try_advisory_lock(%(key)s) END",
        {"key": key, "shared": shared},
    ).fetchone()
    return bool(row and row[0])


def _name_holder(conn: Connection, key: int) -> str:
    row = conn.execute(
        """SELECT a.pid, a.application_name, a.usename, a.backend_start
        FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype = 'advisory' AND l.granted
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND (l.classid::bigint << 32) + l.objid::bigint = %(key)s AND l.objsubid = 1
          AND a.pid <> pg_backend_pid()""",
        {"key": key},
    ).fetchone()
    if row is None:
        return "a session that is just ending"
    pid, application, user, since = row
    name = application or "no application name"
    return f"process {pid} ({name}, user {user}, since {since:%Y-%m-%d %H:%M:%S})"


def _check_session(conn: Connection, url: str) -> int:
    """Return the server process of this session; refuse where a pooler lends it to others too.

    A pooler gives its clients process ids of its own. Behind one, a second session that is given the very
    server process that we have proves that sessions are shared by the transaction.
    """
    pid = read_pid(conn)
    if pid == conn.info.backend_pid:
        return pid
    with connected(url) as probe:
        if read_pid(probe) == pid or read_pid(conn) != pid:
            raise SessionNotOurs(_explain_pooler())
    return pid


def read_pid(conn: Connection) -> int:
    """Return the id of the server process that runs our statements."""
    row = conn.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def _explain_pooler() -> str:
    return (
        "This address is a connection pooler in transaction mode (such as PgBouncer): the session changes "
        "its server process, so the run's lock protects nothing and would leak. Give the server's own "
        "address, or a pool in session mode, in --database-url."
    )


def check_pid(seen: int, expected: int) -> None:
    """Refuse to commit what another server process ran than the one that holds our lock."""
    if seen != expected:
        raise SessionNotOurs(_explain_pooler())
