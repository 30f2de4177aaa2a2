"""The record kept in the database itself: what was applied, what was reverted, and every run."""

import getpass
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from uuid import UUID, uuid4

from tollbook.migrate.exchange import Expression, Query, command, quote, write
from tollbook.migrate.files import Folder, Migration, find_schema
from tollbook.migrate.objects import Promise, unpack
from tollbook.migrate.session import LEAVE_NOTHING, Connection

TABLE = ("tollbook_migrate", "history")
CREATE_KEY = 7_063_417_201_337_403  # the neighbour of the run's own lock, for the moment of creation
# The engine's own tables. IF NOT EXISTS throughout: they are made under the run's lock, once.
SCHEMA_SQL = """
CREATE SCHEMA IF NOT EXISTS tollbook_migrate;
CREATE TABLE IF NOT EXISTS tollbook_migrate.runs (
    run_id uuid PRIMARY KEY,
    command text NOT NULL CHECK (command IN ('apply', 'revert', 'baseline')),
    planned text[] NOT NULL,
    engine text NOT NULL,
    started_by text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    outcome text CHECK (outcome IN ('done', 'failed', 'interrupted')),
    CHECK ((ended_at IS NULL) = (outcome IS NULL))
);
CREATE TABLE IF NOT EXISTS tollbook_migrate.history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    folder text NOT NULL,
    version text NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    run_id uuid NOT NULL REFERENCES tollbook_migrate.runs,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    duration interval NOT NULL,
    applied_by text NOT NULL,
    engine text NOT NULL,
    down_sql text,
    promised jsonb NOT NULL,
    removed jsonb NOT NULL,
    reverted_at timestamptz,
    reverted_run_id uuid REFERENCES tollbook_migrate.runs
);
CREATE UNIQUE INDEX IF NOT EXISTS history_applied
    ON tollbook_migrate.history (folder, version) WHERE reverted_at IS NULL;
CREATE TABLE IF NOT EXISTS tollbook_migrate.progress (
    folder text NOT NULL,
    version text NOT NULL,
    direction text NOT NULL CHECK (direction IN ('up', 'down')),
    statements integer NOT NULL CHECK (statements >= 0),
    fingerprint text NOT NULL,
    run_id uuid NOT NULL REFERENCES tollbook_migrate.runs,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (folder, version)
);
CREATE TABLE IF NOT EXISTS tollbook_migrate.backfills (
    folder text NOT NULL,
    version text NOT NULL,
    fingerprint text NOT NULL,
    last_key jsonb,
    end_key jsonb,
    rows bigint NOT NULL DEFAULT 0,
    changed bigint NOT NULL DEFAULT 0,
    estimate bigint,
    run_id uuid NOT NULL REFERENCES tollbook_migrate.runs,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    PRIMARY KEY (folder, version)
);
"""


@dataclass(frozen=True, slots=True)
class Applied:
    """A migration that is in force."""

    id: int
    folder: str
    version: str
    label: str
    checksum: str
    applied_at: datetime
    duration: timedelta
    applied_by: str
    down_sql: str | None
    packed_promised: str
    packed_removed: str

    @property
    def promised(self) -> tuple[Promise, ...]:
        """What it promised, unpacked when asked for: mostly nothing is pending and nobody asks."""
        return tuple(unpack(packed) for packed in json.loads(self.packed_promised))

    @property
    def removed(self) -> tuple[Promise, ...]:
        """What of earlier promises it took away, unpacked when asked for."""
        return tuple(unpack(packed) for packed in json.loads(self.packed_removed))

    @property
    def name(self) -> str:
        """The migration's full name, such as payments/0001_start."""
        return f"{self.folder}/{self.label}"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a script came that could not be one transaction: its first `statements` are committed.

    None of them are where the first cannot run in a transaction, and was begun.
    """

    folder: str
    version: str
    direction: str
    statements: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Backfilled:
    """How far a back-fill has come. rows: keys gone through; changed: rows its statement changed.

    estimate: the rows the planner took the table to have at the start; None where it knew nothing.
    """

    folder: str
    version: str
    rows: int
    changed: int
    estimate: int | None

    def __str__(self) -> str:
        of = f" of about {max(self.estimate, self.rows):,}" if self.estimate else ""
        return f"back-fill: {self.rows:,}{of} rows"


@dataclass(frozen=True, slots=True)
class Interruption:
    """A run that began and never ended: killed, or cut off. at: the first migration it left undone."""

    run_id: UUID
    command: str
    started_at: datetime
    at: str | None


@cache
def engine_version() -> str:
    """Return this engine's version, as the history keeps it."""
    from importlib import metadata  # slow, and mostly nothing is written down

    try:
        return metadata.version("tollbook")
    except metadata.PackageNotFoundError:
        return "unknown"


def exists(conn: Connection) -> bool:
    """Whether this database has a history."""
    row = conn.execute("SELECT to_regclass('tollbook_migrate.history') IS NOT NULL").fetchone()
    return bool(row and row[0])


def create(conn: Connection) -> None:
    """Make the engine's tables where they are missing."""
    row = conn.execute("SELECT to_regclass('tollbook_migrate.backfills') IS NULL").fetchone()
    if row and row[0]:
        with conn.transaction():
            # Runs in several schemas of one database may come here at once: IF NOT EXISTS alone would fail.
            conn.execute("SELECT pg_advisory_xact_lock(%(key)s)", {"key": CREATE_KEY})
            conn.execute(SCHEMA_SQL)


def read(conn: Connection, folders: Sequence[Folder] = ()) -> list[Applied]:
    """Return what is in force, oldest first; nothing where there is no history.

    Of a fleet's folders theirs alone: the history holds as much again for every other schema.
    """
    if not exists(conn):
        return []
    rows = conn.execute(
        """SELECT id, folder, version::text, name, checksum, applied_at, duration, applied_by, down_sql,
                  promised::text, removed::text
        FROM tollbook_migrate.history WHERE reverted_at IS NULL
          AND (%(names)s::text[] IS NULL OR folder = ANY(%(names)s)) ORDER BY id""",
        {"names": [one.name for one in folders] if find_schema(folders) is not None else None},
    )
    return [Applied(*row) for row in rows]


def read_progress(conn: Connection) -> dict[tuple[str, str], Progress]:
    """Return, by folder and version, the migrations that stand between two of their statements."""
    row = conn.execute("SELECT to_regclass('tollbook_migrate.progress') IS NULL").fetchone()
    if row and row[0]:
        return {}
    rows = conn.execute(
        "SELECT folder, version, direction, statements, fingerprint FROM tollbook_migrate.progress"
    )
    return {(one.folder, one.version): one for one in (Progress(*row) for row in rows)}


def read_backfills(conn: Connection) -> dict[tuple[str, str], Backfilled]:
    """Return, by folder and version, the back-fills that are under way."""
    row = conn.execute("SELECT to_regclass('tollbook_migrate.backfills') IS NULL").fetchone()
    if row and row[0]:
        return {}
    rows = conn.execute(
        """SELECT folder, version, rows, changed, estimate FROM tollbook_migrate.backfills
        WHERE ended_at IS NULL"""
    )
    return {(one.folder, one.version): one for one in (Backfilled(*row) for row in rows)}


def end_backfill(conn: Connection, migration: Migration) -> None:
    """Note that a back-fill is done, in the transaction that records its migration."""
    conn.execute(
        """UPDATE tollbook_migrate.backfills SET ended_at = clock_timestamp()
        WHERE folder = %(folder)s AND version = %(version)s AND ended_at IS NULL""",
        {"folder": migration.folder, "version": migration.version},
    )


def keep_progress(conn: Connection, run: UUID, progress: Progress) -> None:
    """Record how far a script has come, in the open transaction or in one of its own."""
    conn.execute(
        """INSERT INTO tollbook_migrate.progress AS p
            (folder, version, direction, statements, fingerprint, run_id)
        VALUES (%(folder)s, %(version)s, %(direction)s, %(statements)s, %(fingerprint)s, %(run)s)
        ON CONFLICT (folder, version) DO UPDATE SET direction = excluded.direction,
            statements = excluded.statements, fingerprint = excluded.fingerprint,
            run_id = excluded.run_id, at = clock_timestamp()""",
        {
            "folder": progress.folder,
            "version": progress.version,
            "direction": progress.direction,
            "statements": progress.statements,
            "fingerprint": progress.fingerprint,
            "run": run,
        },
    )


def find_age(conn: Connection, folder: str, version: str) -> str | None:
    """Return the id of the transaction that last noted a script's progress."""
    row = conn.execute(
        """SELECT xmin::text FROM tollbook_migrate.progress
        WHERE folder = %(folder)s AND version = %(version)s""",
        {"folder": folder, "version": version},
    ).fetchone()
    return row[0] if row else None


def forget_progress(conn: Connection, folder: str, version: str) -> None:
    """Take away the record of a script's progress, in the transaction that ends the script."""
    conn.execute(FORGET, {"folder": folder, "version": version})


def find_interrupted(conn: Connection, schema: str | None = None) -> list[Interruption]:
    """Return runs that never ended. Ask only while holding the run's lock: then none of them still works.

    With a schema, those of that schema alone, whose lock it is.
    """
    if not exists(conn):
        return []
    rows = conn.execute(
        """SELECT r.run_id, r.command, r.started_at,
            (SELECT p.name FROM unnest(r.planned) WITH ORDINALITY AS p (name, place)
             WHERE NOT EXISTS (
                SELECT FROM tollbook_migrate.history h WHERE h.folder || '/' || h.name = p.name
                AND r.run_id = CASE r.command WHEN 'apply' THEN h.run_id ELSE h.reverted_run_id END)
             ORDER BY p.place LIMIT 1)
        FROM tollbook_migrate.runs r WHERE r.ended_at IS NULL AND (%(schema)s::text IS NULL
            OR substring(r.planned[1] FROM '^[^@]*@(.*)/[^/]*$') = %(schema)s)
        ORDER BY r.started_at""",
        {"schema": schema},
    )
    return [Interruption(*row) for row in rows]


def start(conn: Connection, command: str, planned: Sequence[str]) -> UUID:
    """Record that a run begins, in a transaction of its own, so that a kill leaves a trace."""
    run = uuid4()
    conn.execute(
        """INSERT INTO tollbook_migrate.runs (run_id, command, planned, engine, started_by)
        VALUES (%(run)s, %(command)s, %(planned)s, %(engine)s, %(by)s)""",
        {
            "run": run,
            "command": command,
            "planned": list(planned),
            "engine": engine_version(),
            "by": _name_us(),
        },
    )
    return run


def end(conn: Connection, runs: Sequence[UUID], outcome: str) -> None:
    """Record how runs ended."""
    conn.execute(
        """UPDATE tollbook_migrate.runs SET ended_at = clock_timestamp(), outcome = %(outcome)s
        WHERE run_id = ANY(%(runs)s) AND ended_at IS NULL""",
        {"runs": list(runs), "outcome": outcome},
    )


def _name_us() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def add_and_commit(
    conn: Connection,
    run: UUID,
    migration: Migration,
    duration: timedelta,
    promised: Sequence[Promise],
    removed: Sequence[Promise],
    *,
    stepped: bool,
) -> None:
    """Record a migration and commit it, in one round trip; if either fails neither has happened.

    stepped: it has progress on record, which ends here.
    """
    queries = _record(run, migration, duration, promised, removed)
    if stepped:
        queries.append((FORGET, {"folder": migration.folder, "version": migration.version}))
    command(conn, f"{write(conn, queries)} {LEAVE_NOTHING}; COMMIT")


def add(
    conn: Connection,
    run: UUID,
    migration: Migration,
    duration: timedelta,
    promised: Sequence[Promise],
    removed: Sequence[Promise],
) -> None:
    """Record a migration in the open transaction."""
    command(conn, write(conn, _record(run, migration, duration, promised, removed)))


def write_proven(
    conn: Connection, run: UUID, migration: Migration, promised: Sequence[Promise], proof: str
) -> str:
    """Return the statement that records a migration if the proof, an expression, is true; else it fails.

    It returns how many seconds the transaction took, which said when it BEGAN if others are in its message.
    """
    values = _list_values(run, migration, promised, ())
    values["duration"] = Expression(f"clock_timestamp() - {SINCE}")
    values["promised"] = Expression(f"CASE WHEN {proof} THEN {quote(conn, values['promised'])}::jsonb END")
    return write(conn, [(RECORD + "\nRETURNING extract(epoch FROM duration)", values)])


def _record(
    run: UUID,
    migration: Migration,
    duration: timedelta,
    promised: Sequence[Promise],
    removed: Sequence[Promise],
) -> list[Query]:
    values = _list_values(run, migration, promised, removed)
    values["duration"] = f"{duration.total_seconds():.6f} s"
    return [(REPLACE, values), (RECORD, values)] if migration.repeatable else [(RECORD, values)]


def _list_values(
    run: UUID, migration: Migration, promised: Sequence[Promise], removed: Sequence[Promise]
) -> dict[str, str | UUID | None]:
    return {
        "folder": migration.folder,
        "version": migration.version,
        "name": migration.label,
        "checksum": migration.up.checksum,
        "run": run,
        "engine": engine_version(),
        "down": migration.down.text if migration.down else None,
        "promised": json.dumps([promise.pack() for promise in promised]),
        "removed": json.dumps([promise.pack() for promise in removed]),
    }


REPLACE = """UPDATE tollbook_migrate.history SET reverted_at = clock_timestamp(), reverted_run_id = %(run)s
WHERE folder = %(folder)s AND version = %(version)s AND reverted_at IS NULL"""
RECORD = """INSERT INTO tollbook_migrate.history
    (folder, version, name, checksum, run_id, duration, applied_by, engine, down_sql, promised, removed)
VALUES (%(folder)s, %(version)s, %(name)s, %(checksum)s, %(run)s, %(duration)s, session_user,
    %(engine)s, %(down)s, %(promised)s, %(removed)s)"""
TAKE_BACK = """UPDATE tollbook_migrate.history
SET reverted_at = clock_timestamp(), reverted_run_id = %(run)s WHERE id = %(id)s AND reverted_at IS NULL"""
# To the server all transactions of a message begin with the first.
BEGAN = "SELECT set_config('tollbook.began', clock_timestamp()::text, true)"
SINCE = "coalesce(nullif(current_setting('tollbook.began', true), '')::timestamptz, transaction_timestamp())"
FORGET = "DELETE FROM tollbook_migrate.progress WHERE folder = %(folder)s AND version = %(version)s"


def take_back_and_commit(conn: Connection, run: UUID, applied: Applied, *, stepped: bool) -> None:
    """Record that a migration was reverted and commit it, in one round trip."""
    queries: list[Query] = [(TAKE_BACK, {"run": run, "id": applied.id})]
    if stepped:
        queries.append((FORGET, {"folder": applied.folder, "version": applied.version}))
    command(conn, f"{write(conn, queries)} {LEAVE_NOTHING}; COMMIT")
