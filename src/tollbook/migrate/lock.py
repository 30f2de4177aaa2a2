"""The engine's lock: one run at a time on a database, by a session advisory lock that a dead run lets go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tollbook.migrate.errors import LockHeld
from tollbook.migrate.session import Connection, Session

# Any number does, as long as every version of the engine uses the same: the letters "tollbook".
LOCK_KEY = int.from_bytes(b"tollbook")
WAIT_SECONDS_MAX = 300.0
POLL_SECONDS_MIN = 0.05
POLL_SECONDS_MAX = 1.0


@contextmanager
def hold(
    session: Session, *, wait_seconds: float = WAIT_SECONDS_MAX, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock. Polls instead of queueing, as a queued waiter can deadlock with index builds.

    `on_wait` is told once who holds it. Raises LockHeld after `wait_seconds`.
    """
    deadline, pause, told = time.monotonic() + wait_seconds, POLL_SECONDS_MIN, False
    while not _try(session.connection):
        if not told and on_wait is not None:
            on_wait(f"Waiting for another run: {_holder(session.connection)}.")
        told = True
        if time.monotonic() + pause > deadline:
            raise LockHeld(
                f"Another run holds the lock for more than {wait_seconds:g} s: {_holder(session.connection)}."
                " Wait for it, or end it with SELECT pg_terminate_backend(pid)."
            )
        time.sleep(pause)
        pause = min(pause * 2, POLL_SECONDS_MAX)
    try:
        yield
    finally:
        if not session.connection.broken:
            session.roll_back()
            session.connection.execute("SELECT pg_advisory_unlock(%(key)s)", {"key": LOCK_KEY})


def _try(connection: Connection) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%(key)s)", {"key": LOCK_KEY}).fetchone()
    return row == (True,)


def _holder(connection: Connection) -> str:
    row = connection.execute(
        """
        SELECT l.pid, a.application_name, a.usename, host(a.client_addr)
          FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND (l.classid::bigint << 32) | l.objid::bigint = %(key)s
        """,
        {"key": LOCK_KEY},
    ).fetchone()
    if row is None:
        return "it has just ended"
    pid, application, user, address = row
    return f"backend pid {pid}, application {application or 'unnamed'!r}, user {user}, from {address or 'this host'}"
