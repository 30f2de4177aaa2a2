"""Trying a transaction again while other sessions are in its way, with growing pauses between."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg

from tollbook.migrate.errors import LockHeld, MigrateError, StatementFailed
from tollbook.migrate.events import Event, Listener
from tollbook.migrate.session import Connection
from tollbook.migrate.traffic import Guard

ATTEMPTS_MAX = 5
PAUSE_SECONDS = (0.5, 10.0)  # first and longest pause between attempts, with jitter
# lock_not_available, deadlock_detected, serialization_failure: others were in the way, not the file at fault
RETRIED = ("55P03", "40P01", "40001")
QUERY_CANCELED = "57014"
BLOCKERS_SHOWN_MAX = 3

T = TypeVar("T")


def retrying(
    conn: Connection,
    name: str,
    attempt: Callable[[], T],
    listen: Listener,
    guard: Guard,
    patience_seconds: float,
) -> T:
    """Try a transaction again, after a growing pause, while others are in its way.

    Each attempt is watched: nobody waits behind it for longer than the patience. Raises LockHeld, InTheWay.
    """

    def explain(error: BaseException) -> str:
        why = guard.gave_way if guard.gave_way and read_sqlstate(error) == QUERY_CANCELED else ""
        whom = "; ".join(str(one) for one in guard.seen)
        return (f"cancelled: {why} while it waited" if why else _first_sentence(error)) + (
            f" for {whom}" if whom else ""
        )

    first, longest = PAUSE_SECONDS
    # A loop of our own: setting up a library's for each of a thousand small migrations took a tenth of a run.
    for number in range(1, ATTEMPTS_MAX + 1):
        try:
            with guard.watching(name, patience_seconds):
                return attempt()
        except BaseException as error:
            roll_back(conn)
            if not is_passing(error, guard):
                raise
            if number == ATTEMPTS_MAX:
                raise LockHeld(
                    f"{name} gave way to other sessions {ATTEMPTS_MAX} times ({explain(error)}); "
                    f"it is rolled back. {'' if guard.seen else _name_blockers(conn)} "
                    "Run again when they are done, or give it longer by --lock-timeout.",
                    getattr(error, "place", None),
                    sqlstate=read_sqlstate(error),
                ) from error
            pause = min(first * 2 ** (number - 1), longest) + random.uniform(0, first)  # noqa: S311
            text = f"{name}: {explain(error)}; attempt {number + 1} of {ATTEMPTS_MAX} in {pause:.1f} s"
            listen(Event("retrying", text))
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def is_passing(error: BaseException, guard: Guard) -> bool:
    """Whether others were in the way, or we in theirs."""
    ours = bool(guard.gave_way) and read_sqlstate(error) == QUERY_CANCELED
    return ours or read_sqlstate(error) in RETRIED


def read_sqlstate(error: BaseException | None) -> str | None:
    """Return the server's code of an error, wherever it came from."""
    if isinstance(error, MigrateError):
        return error.details.get("sqlstate") if isinstance(error, StatementFailed) else None
    return error.sqlstate if isinstance(error, psycopg.Error) else None


def roll_back(conn: Connection) -> None:
    """Leave the open transaction, if the session still lives."""
    if not conn.broken and not conn.closed:
        conn.execute("ROLLBACK")


def _first_sentence(error: BaseException | None) -> str:
    return str(getattr(error, "sentence", None) or error).splitlines()[0].rstrip(".")


def _name_blockers(conn: Connection) -> str:
    rows = conn.execute(
        """SELECT a.pid, a.application_name, a.xact_start, left(a.query, 80)
        FROM pg_stat_activity a
        WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL
          AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'relation' AND l.granted)
        ORDER BY a.xact_start LIMIT %(most)s""",
        {"most": BLOCKERS_SHOWN_MAX},
    ).fetchall()
    if not rows:
        return "No transaction is open now."
    shown = [
        f"process {pid} ({name or 'unnamed'}) since {since:%H:%M:%S}: {query}"
        for pid, name, since, query in rows
    ]
    return f"Open transactions, oldest first: {'; '.join(shown)}."
