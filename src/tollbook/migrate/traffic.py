"""Guards for a database in use: who waits behind our statement, whom it waits for, how far replicas are.

A watcher looks on from a second session. It cancels our own statement where others queue up behind it, and
never anybody else's.
"""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import psycopg

from tollbook.migrate.errors import InTheWay, MigrateError, ReplicaBehind
from tollbook.migrate.events import Event, Listener
from tollbook.migrate.session import Connection, connected

QUEUE_MAX = 20
LAG_SECONDS_MAX = 10.0
LAG_BYTES_MAX = 256 * 2**20
LAG_WAIT_SECONDS_MAX = 600.0
LAG_POLL_SECONDS = 1.0
LAG_ASKED_SECONDS = 0.1  # a thousand small migrations ask now and then, not each
# Most statements are done before the watcher would look: only what takes longer costs a second session.
GRACE_SECONDS = 0.2
LOOK_SECONDS = 0.25
LEAVE_SECONDS_MAX = 5.0  # longest wait for a look of the watcher's to end
BLOCKERS_SHOWN_MAX = 3
REPLICAS_MAX = 100


@dataclass(frozen=True, slots=True)
class Traffic:
    """How far a run may stand in the way of others. queue_max 0: any number may wait.

    statement_timeout_seconds bounds every statement whose file says nothing else; None: unbounded.
    """

    queue_max: int = QUEUE_MAX
    statement_timeout_seconds: float | None = None
    lag_seconds_max: float = LAG_SECONDS_MAX
    lag_bytes_max: int = LAG_BYTES_MAX
    lag_wait_seconds_max: float = LAG_WAIT_SECONDS_MAX


@dataclass(frozen=True, slots=True)
class Blocker:
    """A session that ours waits for. idle: its transaction is open, and nobody works in it."""

    pid: int
    application: str
    idle: bool
    since: datetime | None
    query: str

    def __str__(self) -> str:
        state = "idle in transaction" if self.idle else "in a transaction"
        since = f" since {self.since:%H:%M:%S}" if self.since else ""
        return f"process {self.pid} ({self.application or 'unnamed'}), {state}{since}: {self.query}"


@dataclass(frozen=True, slots=True)
class Look:
    """What the watcher saw: whom we wait for, how many wait for us, and for how long the first of them."""

    blockers: tuple[Blocker, ...]
    behind: int
    behind_seconds: float


class Guard:
    """The watcher of one run. Its second session is opened only for a statement that takes long."""

    def __init__(self, url: str, pid: int, traffic: Traffic, listen: Listener) -> None:
        self.url = url
        self.pid = pid
        self.traffic = traffic
        self.listen = listen
        self.gave_way = ""  # why our own statement was cancelled
        self.seen: tuple[Blocker, ...] = ()  # whom this attempt waited for
        self._name = ""
        self._patience = 0.0
        self._since: float | None = None
        self._looking = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="traffic", daemon=True)
        self._lag_asked = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended.set()
        self._thread.join(LEAVE_SECONDS_MAX)

    @contextmanager
    def watching(self, name: str, patience_seconds: float) -> Generator[None]:
        """Watch what runs inside. Where it waits for a lock, nobody waits for it longer than the patience.

        Raises InTheWay where it is at work and too many wait for it: to try again would do the same.
        """
        self.gave_way, self.seen, self._name, self._patience = "", (), name, patience_seconds
        self._since = time.monotonic()
        try:
            yield
        except (MigrateError, psycopg.Error) as error:
            if self.gave_way and not self.seen:
                raise InTheWay(
                    f"{name} was stopped and rolled back: {self.gave_way} while it worked. Write it in steps "
                    "that hold no lock for long (`tollbook migrate lint` names them), or run it when less "
                    "is going on; --queue-max 0 lets any number wait."
                ) from error
            raise
        finally:
            self._since = None
            # A cancel that is under way must land here, not in what comes next.
            if self._looking.acquire(timeout=LEAVE_SECONDS_MAX):
                self._looking.release()

    def _watch(self) -> None:
        try:
            while not self._ended.wait(LOOK_SECONDS):
                if self._is_long():
                    with connected(self.url) as conn:
                        self._watch_by(conn)
        except MigrateError as error:
            self.listen(Event("note", f"Nobody watches who waits for this run: {error.sentence}"))

    def _watch_by(self, conn: Connection) -> None:
        told: set[int] = set()
        while not self._ended.wait(LOOK_SECONDS):
            with self._looking:
                if self._is_long() and self.gave_way:
                    self._cancel(conn)  # the last came between two statements, and stopped none
                elif self._is_long() and (look := look_at(conn, self.pid)):
                    self._judge(conn, look, told)

    def _is_long(self) -> bool:
        since = self._since
        return since is not None and time.monotonic() - since > GRACE_SECONDS

    def _judge(self, conn: Connection, look: Look, told: set[int]) -> None:
        if look.blockers:
            self.seen = look.blockers
            if new := [one for one in look.blockers if one.pid not in told]:
                told.update(one.pid for one in new)
                self.listen(Event("waiting", f"{self._name} waits for {_list(new)}.", {"blockers": new}))
        many = 0 < self.traffic.queue_max < look.behind
        long = look.behind_seconds > self._patience
        if (many or (long and look.behind)) if look.blockers else (many and long):
            self.seen = look.blockers
            self.gave_way = (
                f"{look.behind} sessions waited behind it, the first for {look.behind_seconds:.1f} s,"
            )
            self._cancel(conn)

    def _cancel(self, conn: Connection) -> None:
        conn.execute("SELECT pg_cancel_backend(%(pid)s)", {"pid": self.pid})

    def wait_for_replicas(self, conn: Connection) -> None:
        """Wait, outside a transaction, until every streaming replica is near. Raises ReplicaBehind."""
        if time.monotonic() - self._lag_asked < LAG_ASKED_SECONDS:
            return
        until = time.monotonic() + self.traffic.lag_wait_seconds_max
        told = False
        while behind := find_behind(conn, self.traffic):
            if time.monotonic() >= until:
                raise ReplicaBehind(
                    f"Replicas stayed behind for {self.traffic.lag_wait_seconds_max:g} s: {behind}. What is "
                    "committed stays. Run again when they have caught up, or allow more by --lag-max."
                )
            if not told:
                self.listen(Event("waiting", f"Waiting for replicas: {behind}."))
                told = True
            time.sleep(LAG_POLL_SECONDS)
        self._lag_asked = time.monotonic()


def look_at(conn: Connection, pid: int) -> Look | None:
    """Return who stands around a server process that is waiting for a lock or waited for; else None.

    Of pg_locks and not of pg_stat_activity, which hides the waits of other roles.
    """
    rows = conn.execute(
        """SELECT pid, pid = %(pid)s AS ours,
            CASE WHEN pid = %(pid)s THEN pg_blocking_pids(pid) END AS blockers,
            coalesce(extract(epoch FROM clock_timestamp() - waitstart), 0)::float8 AS seconds
        FROM pg_locks WHERE NOT granted
          AND (pid = %(pid)s OR %(pid)s = ANY(pg_blocking_pids(pid)))""",
        {"pid": pid},
    ).fetchall()
    behind = [seconds for _, ours, _, seconds in rows if not ours]
    ahead = {one for _, ours, blockers, _ in rows if ours for one in blockers if one > 0}
    if not behind and not ahead:
        return None
    return Look(_describe(conn, sorted(ahead)), len(behind), max(behind, default=0.0))


def _describe(conn: Connection, pids: list[int]) -> tuple[Blocker, ...]:
    if not pids:
        return ()
    rows = conn.execute(
        """SELECT pid, coalesce(application_name, ''), coalesce(state LIKE 'idle in transaction%%', false),
            xact_start, left(regexp_replace(coalesce(query, ''), '\\s+', ' ', 'g'), 80)
        FROM pg_stat_activity WHERE pid = ANY(%(pids)s) ORDER BY xact_start LIMIT %(most)s""",
        {"pids": pids, "most": BLOCKERS_SHOWN_MAX},
    )
    # One that has no row any more (a prepared transaction has none ever) is known by its number alone.
    found = {row[0]: Blocker(*row) for row in rows}
    return tuple(found.values()) or tuple(
        Blocker(pid, "", idle=False, since=None, query="") for pid in pids[:1]
    )


def _list(blockers: list[Blocker]) -> str:
    return "; ".join(str(one) for one in blockers)


def find_behind(conn: Connection, traffic: Traffic) -> str:
    """Return the streaming replicas that are further behind than allowed, in words; empty if none is."""
    rows: list[tuple[Any, ...]] = conn.execute(
        """SELECT coalesce(nullif(application_name, ''), client_addr::text, 'a replica'),
            coalesce(extract(epoch FROM replay_lag), 0)::float8,
            coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn), 0)::bigint
        FROM pg_stat_replication
        WHERE state = 'streaming' AND (replay_lag > make_interval(secs => %(seconds)s)
            OR pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) > %(bytes)s) LIMIT %(most)s""",
        {"seconds": traffic.lag_seconds_max, "bytes": traffic.lag_bytes_max, "most": REPLICAS_MAX},
    ).fetchall()
    return "; ".join(f"{name} by {seconds:.1f} s and {size:,} bytes" for name, seconds, size in rows)
