"""Back-fills: a statement run over a table range by range, each range once, whatever comes between.

A range and the note of it are one transaction. So a run that is killed goes on behind the last range that
was committed, and a statement that adds one to every row adds one to every row.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from tollbook.migrate.backfill_file import Backfill
from tollbook.migrate.course import Course, name_role
from tollbook.migrate.errors import MigrateError, PreflightRefused, Problem, StatementFailed, point
from tollbook.migrate.events import Event
from tollbook.migrate.exchange import GOOD, command, send
from tollbook.migrate.execution import BEGIN, RESET, RESET_ROLE
from tollbook.migrate.files import Migration
from tollbook.migrate.history import Backfilled
from tollbook.migrate.retrying import retrying
from tollbook.migrate.session import Connection, check_pid, read_pid

TOLD_SECONDS = 1.0


Keys = list[str]


@dataclass(slots=True)
class _Cursor:
    """The last key that is done, the last there is to do, and the figures so far."""

    types: tuple[str, ...]
    done: Keys | None
    end: Keys | None
    rows: int
    changed: int
    estimate: int | None


def run(course: Course, migration: Migration, fill: Backfill) -> None:
    """Go through the table from where the last run stopped. Raises StatementFailed, LockHeld, ReplicaBehind.

    It ends at the greatest key there was when it first began: what is written later is the business of the
    trigger or default that the migration made before.
    """
    walk = _Walk(course, migration, fill)
    walk.open()
    while walk.step():
        course.guard.wait_for_replicas(course.conn)
        time.sleep(fill.pause_seconds)


class _Walk:
    """Goes through one table, in one session."""

    def __init__(self, course: Course, migration: Migration, fill: Backfill) -> None:
        self.course = course
        self.conn = course.conn
        self.migration = migration
        self.fill = fill
        self.table = sql.SQL(fill.table).as_string(None)  # pyright: ignore[reportArgumentType]
        self.names = [sql.Identifier(name).as_string(None) for name in fill.key]
        self.values = {"folder": migration.folder, "version": migration.version}
        self.began = self.told = time.monotonic()
        self.began_at = 0
        self.cursor = _Cursor((), None, None, 0, 0, None)

    def open(self) -> None:
        """Find where to go on, or note that it begins. Raises PreflightRefused where the key is none."""
        settings = self.course.name_settings(self.fill.script.options)
        command(self.conn, f"{RESET} {settings}")
        types = find_key(self.conn, self.fill)
        kept = self.conn.execute(
            """SELECT fingerprint, last_key, end_key, rows, changed, estimate FROM tollbook_migrate.backfills
            WHERE folder = %(folder)s AND version = %(version)s AND ended_at IS NULL""",
            self.values,
        ).fetchone()
        if kept is None:
            self._begin(types)
            return
        if kept[0] != self.fill.fingerprint:
            raise PreflightRefused([self._explain_edit(kept[3])])
        self.cursor = _Cursor(types, *kept[1:])
        self.began_at = self.cursor.rows
        self.course.listen(
            Event("note", f"{self.migration.id}: the back-fill goes on behind {self.cursor.rows:,} rows.")
        )

    def _begin(self, types: tuple[str, ...]) -> None:
        last: tuple[Any, ...] | None = self.conn.execute(
            f"SELECT {self._pack()} FROM {self.table} ORDER BY {self._list(' DESC')} LIMIT 1".encode()  # noqa: S608 -- names are quoted
        ).fetchone()
        row: tuple[Any, ...] | None = self.conn.execute(
            """SELECT nullif(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c
            WHERE c.oid = to_regclass(%(table)s)
              OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass(%(table)s)) WHERE isleaf)""",
            {"table": self.fill.table},
        ).fetchone()
        self.cursor = _Cursor(types, None, last[0] if last else None, 0, 0, row[0] if row else None)
        self.conn.execute(
            """INSERT INTO tollbook_migrate.backfills AS b
                (folder, version, fingerprint, end_key, estimate, run_id)
            VALUES (%(folder)s, %(version)s, %(fingerprint)s, %(end)s, %(estimate)s, %(run)s)
            ON CONFLICT (folder, version) DO UPDATE SET fingerprint = excluded.fingerprint, last_key = NULL,
                end_key = excluded.end_key, rows = 0, changed = 0, estimate = excluded.estimate,
                run_id = excluded.run_id, started_at = clock_timestamp(), at = clock_timestamp(),
                ended_at = NULL
            WHERE b.ended_at IS NOT NULL""",
            {
                **self.values,
                "fingerprint": self.fill.fingerprint,
                "end": Jsonb(self.cursor.end) if self.cursor.end else None,
                "estimate": self.cursor.estimate,
                "run": self.course.run,
            },
        )

    def step(self) -> bool:
        """Do the next range. Returns whether there was one."""
        if self.cursor.end is None:
            return False
        found = self._find_range()
        if found is None:
            self._tell(last=True)
            return False
        first, last, rows = found
        course, options = self.course, self.fill.script.options
        patience = options.lock_timeout_seconds or course.lock_timeout_seconds
        name = f"{self.migration.id} (back-fill)"
        changed = retrying(
            self.conn, name, lambda: self._do(first, last, rows), course.listen, course.guard, patience
        )
        self.cursor.done = last
        self.cursor.rows += rows
        self.cursor.changed += changed
        self._tell(last=False)
        return True

    def _find_range(self) -> tuple[Keys, Keys, int] | None:
        assert self.cursor.end is not None
        key = f"({', '.join(self.names)})"
        bounds = [f"{key} <= {self._write(self.cursor.end)}"]
        if self.cursor.done is not None:
            bounds.append(f"{key} > {self._write(self.cursor.done)}")
        row = self.conn.execute(
            f"""SELECT (array_agg(k))[1], (array_agg(k))[count(*)], count(*) FROM (
                SELECT {self._pack()} AS k FROM {self.table} WHERE {" AND ".join(bounds)}
                ORDER BY {self._list()} LIMIT {self.fill.batch}) AS batch""".encode()  # noqa: S608 -- names and values are quoted
        ).fetchone()
        return (row[0], row[1], row[2]) if row and row[2] else None

    def _do(self, first: Keys, last: Keys, rows: int) -> int:
        """Change a range and note it, in one transaction. Returns how many rows the statement changed."""
        conn = self.conn
        command(conn, f"{BEGIN} {name_role(self.fill.script.options)}")
        results = send(conn, self.fill.render(self._write(first), self._write(last)))
        if results[-1].status not in GOOD:
            raise self._explain(psycopg.errors.error_from_result(results[-1]), first, last)
        changed = results[0].command_tuples or 0
        command(conn, f"SET CONSTRAINTS ALL IMMEDIATE; {RESET_ROLE}")
        check_pid(read_pid(conn), self.course.pid)
        noted = conn.execute(
            """UPDATE tollbook_migrate.backfills SET last_key = %(last)s, rows = rows + %(rows)s,
                changed = changed + %(changed)s, at = clock_timestamp(), run_id = %(run)s
            WHERE folder = %(folder)s AND version = %(version)s AND ended_at IS NULL
              AND last_key IS NOT DISTINCT FROM %(done)s""",
            {
                **self.values,
                "last": Jsonb(last),
                "done": Jsonb(self.cursor.done) if self.cursor.done else None,
                "rows": rows,
                "changed": changed,
                "run": self.course.run,
            },
        )
        if noted.rowcount != 1:
            raise MigrateError(
                f"The back-fill of {self.migration.id} was moved on by another session. This range is rolled "
                "back. Run again when nobody else works on tollbook_migrate.backfills."
            )
        conn.execute("COMMIT")
        return changed

    def _explain(self, error: psycopg.Error, first: Keys, last: Keys) -> Exception:
        if error.diag.severity_nonlocalized in ("FATAL", "PANIC"):
            self.conn.close()  # the session is over, which is no fault of the file
            return psycopg.OperationalError(str(error))
        script = self.fill.script
        keys = f"{', '.join(self.fill.key)} from {', '.join(first)} to {', '.join(last)}"
        detail = f" Detail: {error.diag.message_detail}." if error.diag.message_detail else ""
        return StatementFailed(
            f"{error.diag.message_primary} [{error.sqlstate}], for {keys}.{detail} That range is "
            f"rolled back, the {self.cursor.rows:,} rows before it stay. Correct the rows and run again: it "
            "goes on there.",
            point(str(script.path), script.text, self.fill.index, caret=False),
            sqlstate=error.sqlstate,
        )

    def _explain_edit(self, rows: int) -> Problem:
        where = f"folder {self.migration.folder}, version {self.migration.version}"
        return Problem(
            f"The back-fill of {self.migration.id} was edited after it had gone through {rows:,} rows.",
            "Put its statement back (batch and pause may change). Or have it begin again, if that harms no "
            f"row it has changed: take its row out of tollbook_migrate.backfills ({where}).",
            point(str(self.fill.script.path), self.fill.script.text, self.fill.index, caret=False),
        )

    def _tell(self, *, last: bool) -> None:
        now = time.monotonic()
        if not last and now - self.told < TOLD_SECONDS:
            return
        self.told = now
        cursor = self.cursor
        rate = (cursor.rows - self.began_at) / max(now - self.began, 0.001)
        left = max((cursor.estimate or 0) - cursor.rows, 0) / rate if rate and cursor.estimate else None
        standing = Backfilled(
            **self.values, rows=cursor.rows, changed=cursor.changed, estimate=cursor.estimate
        )
        ahead = "" if last or left is None else f", {_show_seconds(left)} left"
        done = f", done: {cursor.changed:,} changed" if last else ""
        self.course.listen(
            Event(
                "backfill",
                f"{self.migration.id}  {standing}, {rate:,.0f} a second{ahead}{done}",
                {"migration": self.migration.id, "standing": standing, "rate": rate, "seconds_left": left},
            )
        )

    def _pack(self) -> str:
        return f"jsonb_build_array({', '.join(f'{name}::text' for name in self.names)})"

    def _list(self, order: str = "") -> str:
        return ", ".join(f"{name}{order}" for name in self.names)

    def _write(self, keys: Sequence[str]) -> str:
        """Return keys as SQL: a value, or a row of them where the key has several columns."""
        values = [
            f"{sql.Literal(key).as_string(self.conn)}::{kind}"
            for key, kind in zip(keys, self.cursor.types, strict=True)
        ]
        return values[0] if len(values) == 1 else f"ROW({', '.join(values)})"


def find_key(conn: Connection, fill: Backfill) -> tuple[str, ...]:
    """Return the types of the key's columns. Raises PreflightRefused where they are no unique key."""
    row = conn.execute(
        """SELECT (SELECT array_agg(format_type(a.atttypid, -1) ORDER BY k.place)
                FROM unnest(%(key)s::text[]) WITH ORDINALITY AS k (name, place)
                JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = k.name AND a.attnotnull
                    AND NOT a.attisdropped),
            EXISTS (SELECT FROM pg_index i WHERE i.indrelid = t.oid AND i.indisunique AND i.indisvalid
                AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indnkeyatts = cardinality(%(key)s)
                AND %(key)s::text[] = (SELECT array_agg(a.attname::text ORDER BY x.place)
                    FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS x (number, place)
                    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = x.number
                    WHERE x.place <= i.indnkeyatts))
        FROM (SELECT to_regclass(%(table)s)::oid AS oid) AS t""",
        {"key": list(fill.key), "table": fill.table},
    ).fetchone()
    types, unique = row or (None, False)
    if not unique or not types or len(types) != len(fill.key):
        raise PreflightRefused(
            [
                Problem(
                    f"{', '.join(fill.key)} is no key of {fill.table} here: a table that is there, and a "
                    "valid unique index of exactly these columns, none of which may be NULL.",
                    "Name the primary key. What the up file made is committed; run again then.",
                    point(str(fill.script.path), fill.script.text, 0, caret=False),
                )
            ]
        )
    return tuple(types)


def _show_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
