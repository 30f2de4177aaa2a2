"""Scripts carried out statement by statement and watched: on a shadow really committed, else all undone."""

import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import psycopg
from pglast import ast, visitors
from psycopg import sql

from tollbook.migrate import execution, segments, statements
from tollbook.migrate.backfill_file import Backfill
from tollbook.migrate.catalog import Change
from tollbook.migrate.course import name_opening, name_role, name_roles, name_settings
from tollbook.migrate.errors import StatementFailed, VerificationFailed
from tollbook.migrate.exchange import command
from tollbook.migrate.execution import BEGIN, RESET_ROLE, Outcome, Prepared, Sql
from tollbook.migrate.objects import Promise
from tollbook.migrate.observation import Observation, Observer, Seen, read_locks, shorten
from tollbook.migrate.presence import judge
from tollbook.migrate.retrying import read_sqlstate, roll_back
from tollbook.migrate.segments import Segment
from tollbook.migrate.session import LEAVE_NOTHING, Connection
from tollbook.migrate.statements import Statement

MANY = 20  # INSERTs in a row into one table that are looked at together
HELD_TABLES_MAX = 2_000
HOLD_SECONDS_MAX = 2.0
POLL_SECONDS = 0.002
ON_ROWS = (ast.SelectStmt, ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt)
READING = (*ON_ROWS, ast.DoStmt, ast.CallStmt)
# Functions whose work a rollback does not undo; of them those that reach out of the server, also of a shadow.
LASTING = re.compile(
    r"\b(?P<remote>dblink\w*|lo_export|pg_file_\w+)\s*\(|\b(?P<name>setval|pg_(?:terminate|cancel)_backend"
    r"|pg_stat_reset\w*|pg_(?:create|drop|copy)_\w*slot|pg_replication_(?:origin|slot)_\w+|pg_reload_conf"
    r"|pg_switch_wal|pg_logical_emit_message|pg_create_restore_point|pg_advisory_unlock\w*)\s*\(",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Walked:
    """A script that was carried out, and what the catalog gained, lost and changed from its begin to its end.

    unproven: why its check could not be judged, if it could not.
    """

    observations: tuple[Observation, ...]
    kept: tuple[Promise, ...]
    changes: tuple[Change, ...]
    seconds: float
    unproven: str = ""


class CannotRollBack(Exception):
    """What a script needs is committed, which a run that is to be rolled back cannot do."""


class Walk:
    """Carries out scripts in one session and watches each statement.

    watch, on a shadow, opens a second session there; without it nothing is committed. lenient: a check that
    does not hold is said, and no error, as the rows it looks at may not be there.
    """

    def __init__(
        self,
        conn: Connection,
        pid: int,
        lock_timeout_seconds: float,
        *,
        watch: Callable[[], Connection] | None = None,
        lenient: bool = False,
    ) -> None:
        self.conn = conn
        self.pid = pid
        self.settings = name_settings(lock_timeout_seconds)
        self.lock_timeout_seconds = lock_timeout_seconds
        self.watch = watch
        self.lenient = lenient
        self.observer = Observer(conn)
        self.savepoints = 0
        self.skipped = False  # whether anything was not run
        if not watch:
            conn.execute("BEGIN")
            self.observer.begin()

    def take(self, one: Prepared, done: int = 0) -> Walked:
        """Carry out a script from its statement `done` (0 the first) on.

        Raises StatementFailed, VerificationFailed, CannotRollBack.
        """
        started = time.monotonic()
        script = _Script(self, one, done)
        cuts = segments.Cuts(one.reading.statements, one.migration.up.options)
        while True:
            try:
                kept, unproven = script.go(cuts.split())
                break
            except StatementFailed as error:
                state = read_sqlstate(error)
                if state == segments.UNSAFE_NEW_ENUM_VALUE and not self.watch:
                    raise CannotRollBack(
                        "it uses a new value of an enum, which must be committed first"
                    ) from error
                if state in segments.WANT_OF_COMMIT and one.migration.up.program and not script.committing:
                    if not self.watch:
                        raise CannotRollBack(
                            "it leaves the transaction for a part of what it does"
                        ) from error
                    script.committing = True
                elif not cuts.refine(state):
                    raise
                script.start_over()
        seconds = time.monotonic() - started
        return Walked(tuple(script.seen), kept, self.observer.end_file(), seconds, unproven)


class _Script:
    """One script, segment by segment."""

    def __init__(self, walk: Walk, one: Prepared, done: int) -> None:
        self.walk = walk
        self.conn = walk.conn
        self.one = one
        self.begun = self.done = done
        self.seen: list[Observation] = []
        self.opened = False
        self.committing = False  # whether a program may commit what it has done
        self.first = 0  # the number of its first savepoint
        self.outcome: Outcome | None = None

    def start_over(self) -> None:
        """Forget what was rolled back; what was committed stays."""
        if self.walk.watch:
            roll_back(self.conn)
        else:
            command(self.conn, f"ROLLBACK TO SAVEPOINT step_{self.first}")
            self.done = self.begun
        self.opened = False
        self.seen = [one for one in self.seen if one.number <= self.done]
        self.walk.observer.start_over()

    def go(self, cut: Sequence[Segment]) -> tuple[tuple[Promise, ...], str]:
        left = [segment for segment in cut if segment.end > self.done] or [Segment(self.done, ())]
        for segment in left:
            if segment.alone:
                self._run_alone(segment)
                self.done = segment.end
                continue
            self._begin(segment)
            self._run(segment)
            if segment is not left[-1]:
                self._commit(segment)
            self.done = segment.end
        if left[-1].alone:
            self._begin(Segment(self.done, ()))
        if self.one.backfill:
            if self.walk.watch:
                self._commit(left[-1])
            self._fill(self.one.backfill)
            self._begin(Segment(self.done, ()))
        return self._finish()

    def _open(self) -> str:
        """Return the statements that give the session what the script expects."""
        if self.opened:
            return ""
        self.opened = True
        settings = name_settings(self.walk.lock_timeout_seconds, self.one.migration.up.options)
        return name_opening(self.one, self.done, settings)[0]

    def _begin(self, segment: Segment) -> None:
        roles = " ".join(name_roles(self.one, self.done))
        if self.walk.watch:
            command(self.conn, f"{self._open()} {f'{segment.modes};' if segment.modes else BEGIN} {roles}")
            self.walk.observer.begin()
        else:
            self.walk.savepoints += 1
            self.first = self.first or self.walk.savepoints
            command(self.conn, f"SAVEPOINT step_{self.walk.savepoints}; {self._open()} {roles}")
            self.walk.observer.begin(anew=False)

    def _run(self, segment: Segment) -> None:
        if self.one.migration.up.program:
            whole = Segment(0, self.one.reading.statements)
            started = time.monotonic()
            self.outcome = execution.perform(
                self.conn, self.one, whole, self.walk.pid, "SELECT 1;", 1, committing=self.committing
            )
            seen = self.walk.observer.look("")
            self._note(0, None, "the whole file", "", time.monotonic() - started, seen)
            return
        first = max(segment.first, self.done)
        for number, several in self._gather(segment.statements[first - segment.first :], first):
            statement = several[0]
            if why := self._find_refusal(statement):
                self._skip(number, statement, why)
                continue
            started = time.monotonic()
            with _indexes_first(self.conn, on=bool(self.walk.watch) and isinstance(statement.tree, READING)):
                results = execution.run(self.conn, Sql(self.one.migration.up, self.one.reading, several))
            seconds = time.monotonic() - started
            tag = (results[-1].command_status or b"").decode()
            more = f" … and {len(several) - 1:,} more" if len(several) > 1 else ""
            text = f"{self._text(statement)}{more}"
            self._note(number, statement, text, tag, seconds, self.walk.observer.look(tag))

    def _gather(
        self, statements: Sequence[Statement], first: int
    ) -> Iterator[tuple[int, tuple[Statement, ...]]]:
        """Give statements with their numbers, one by one but for many INSERTs: a look takes milliseconds."""
        for table, members in groupby(statements, self._name_filled):
            row = tuple(members)
            together = len(row) if table and len(row) >= MANY else 1
            for start in range(0, len(row), together):
                yield first + start, row[start : start + together]
            first += len(row)

    def _name_filled(self, statement: Statement) -> tuple[str, str] | None:
        """Return the table that a plain INSERT of values fills."""
        tree = statement.tree
        if not isinstance(tree, ast.InsertStmt) or not isinstance(tree.selectStmt, ast.SelectStmt):
            return None
        table: Any = tree.relation
        plain = tree.selectStmt.valuesLists and not tree.withClause and not self._find_refusal(statement)
        return (table.schemaname or "", table.relname) if plain else None

    def _text(self, statement: Statement) -> str:
        return shorten(self.one.reading.text[statement.index : statement.end])

    def _line(self, statement: Statement | None) -> int:
        return (self.one.migration.up.point(statement.index).line or 1) if statement else 1

    def _note(
        self, number: int, statement: Statement | None, text: str, tag: str, seconds: float, seen: Seen
    ) -> None:
        what = (seen.locks, seen.held, seen.written, seen.scans, seen.rows, seen.changes)
        alone = statement.alone if statement else None
        self.seen.append(Observation(number + 1, self._line(statement), text, tag, seconds, *what, alone))

    def _skip(self, number: int, statement: Statement, why: str) -> None:
        line, text = self._line(statement), self._text(statement)
        self.seen.append(Observation(number + 1, line, text, alone=statement.alone, untried=why))
        self.walk.skipped = True

    def _find_refusal(self, statement: Statement) -> str:
        """Say why a statement is not run: it would reach what is no shadow, or outlast a rollback."""
        tree, shadow = statement.tree, self.walk.watch is not None
        if isinstance(tree, ast.CopyStmt) and (
            tree.is_program or (tree.filename and (shadow or not tree.is_from))
        ):
            return "it uses a file or program of the server's machine"
        remote, lasting = _find_lasting(statement, self.one.reading.text)
        if remote:
            return f"{remote} reaches out of the database"
        if not shadow:
            what = "ANALYZE" if isinstance(tree, ast.VacuumStmt) else lasting
            return f"what {what} does is not rolled back" if what else ""
        if isinstance(
            tree, ast.CreateSubscriptionStmt | ast.AlterSubscriptionStmt | ast.DropSubscriptionStmt
        ):
            return "it reaches another server"
        if isinstance(tree, ast.CreateTableSpaceStmt | ast.DropTableSpaceStmt | ast.AlterSystemStmt):
            return "it is about the server's machine"
        return ""

    def _run_alone(self, segment: Segment) -> None:
        statement = segment.statements[0]
        if self.walk.watch is None:
            self._skip(segment.first, statement, "it cannot be rolled back")
        elif why := self._find_refusal(statement):
            self._skip(segment.first, statement, why)
        else:
            roles = " ".join(name_roles(self.one, self.done)).replace("SET LOCAL", "SET")
            command(self.conn, f"{self._open()} {roles} SELECT 1")
            self.walk.observer.begin(alone=True)
            started = time.monotonic()
            locks = watched(
                self.walk.watch,
                self.walk.pid,
                lambda: execution.run(self.conn, Sql(self.one.migration.up, self.one.reading, (statement,))),
            )
            seconds = time.monotonic() - started
            seen = self.walk.observer.look("", alone=True, sampled=locks)
            self._note(segment.first, statement, self._text(statement), "", seconds, seen)
            command(self.conn, RESET_ROLE)

    def _commit(self, segment: Segment) -> None:
        if self.walk.watch is None:  # on the database itself all of it is rolled back
            return
        execution.perform(self.conn, self.one, Segment(segment.end, ()), self.walk.pid, "", 0)
        command(self.conn, "COMMIT")

    def _fill(self, fill: Backfill) -> None:
        """Run a back-fill over all the rows there are, as one batch."""
        if not self.walk.watch:
            text = shorten(f"back-fill: {fill.script.text[fill.index :]}")
            number = len(self.one.reading.statements) + 1
            self.seen.append(Observation(number, 1, text, untried="it commits batch by batch"))
            self.walk.skipped = True
            return
        from tollbook.migrate import backfill

        types = backfill.find_key(self.conn, fill)
        role = name_role(fill.script.options)
        ends = [self._find_end(fill, types, order) for order in ("ASC", "DESC")]
        script = replace(fill.script, text=fill.render(*ends))
        reading = statements.read(script)
        command(self.conn, f"{BEGIN} {role}")
        self.walk.observer.begin()
        started = time.monotonic()
        with _indexes_first(self.conn, on=True):
            results = execution.run(self.conn, Sql(script, reading, reading.statements))
        seconds = time.monotonic() - started
        tag = (results[-1].command_status or b"").decode()
        text = shorten(f"back-fill in batches of {fill.batch:,}: {fill.script.text[fill.index :]}")
        seen = self.walk.observer.look(tag)
        self._note(len(self.one.reading.statements), None, text, tag, seconds, seen)
        command(self.conn, f"SET CONSTRAINTS ALL IMMEDIATE; {RESET_ROLE} COMMIT")

    def _find_end(self, fill: Backfill, types: Sequence[str], order: str) -> str:
        """Return the first or last key as SQL; NULL where there are no rows."""
        keys = [sql.Identifier(name).as_string(None) for name in fill.key]
        texts, ordered = (
            ", ".join(f"{key}::text" for key in keys),
            ", ".join(f"{key} {order}" for key in keys),
        )
        query = f"SELECT {texts} FROM {fill.table} ORDER BY {ordered} LIMIT 1"  # noqa: S608 -- the user's own names
        row = self.conn.execute(query.encode()).fetchone() or [None] * len(keys)
        values = [
            f"{sql.Literal(value).as_string(self.conn)}::{kind}"
            for value, kind in zip(row, types, strict=True)
        ]
        return values[0] if len(values) == 1 else f"ROW({', '.join(values)})"

    def _finish(self) -> tuple[tuple[Promise, ...], str]:
        """Prove what the script promises inside its last transaction, and commit that on a shadow."""
        empty = Segment(self.done, ())
        if not self.walk.watch:  # its constraints are checked here, and the next file's not before its end
            command(self.conn, "SAVEPOINT ended")
        outcome = self.outcome or execution.perform(self.conn, self.one, empty, self.walk.pid, "", 0)
        left_out = [one for one in self.seen if one.untried]
        unproven = ""
        if left_out:
            verdict = judge(self.one.promises.made, outcome.presence, outcome.path)
            kept, unproven = verdict.found, "a statement was not run"
        else:
            kept = execution.prove(self.conn, replace(self.one, check=None), outcome, self.walk.settings)
            unproven = self._check()
        command(
            self.conn,
            f"{LEAVE_NOTHING}; COMMIT"
            if self.walk.watch
            else f"ROLLBACK TO SAVEPOINT ended; {RESET_ROLE} {LEAVE_NOTHING}",
        )
        return kept, unproven

    def _check(self) -> str:
        script, reading = self.one.migration.check, self.one.check
        if script is None or reading is None:
            return ""
        try:
            execution.run_check(self.conn, script, reading, self.walk.settings)
        except VerificationFailed as error:
            if not self.walk.lenient:
                raise
            command(self.conn, "ROLLBACK TO SAVEPOINT smoke")
            return f"its check does not hold on the shadow, which lacks the rows ({error.sentence})"
        return ""


@contextmanager
def _indexes_first(conn: Connection, *, on: bool) -> Generator[None]:
    """Let a full scan on a shadow, whose tables are small, mean that there is no index to go by."""
    if on:
        command(conn, "SET enable_seqscan = off")
    yield
    if on:
        command(conn, "SET enable_seqscan = on")


def _find_lasting(statement: Statement, text: str) -> tuple[str, str]:
    """Return the function called here that reaches out of the server, and that which outlasts a rollback.

    Of a block of code its words are all that is known beforehand.
    """
    tree = statement.tree
    match = LASTING.search(text, statement.index, statement.end)
    if match is None or not isinstance(tree, (*READING, ast.CreateTableAsStmt, ast.CopyStmt)):
        return "", ""
    found = match["remote"] or "", match["name"] or ""
    if isinstance(tree, ast.DoStmt):
        return found
    called: set[str] = set()

    class Finder(visitors.Visitor):
        def visit_FuncCall(self, ancestors: object, node: Any) -> None:  # noqa: N802
            called.add(node.funcname[-1].sval)

    Finder()(tree)
    return found if {name.lower() for name in found} & called else ("", "")


def watched(watch: Callable[[], Connection], pid: int, run: Callable[[], Any]) -> set[tuple[int, str]]:
    """Run what cannot be in a transaction, and return the locks that another session saw it take or want.

    Tables are held before it, first as DDL would and then as a writer would, so that it is seen at each.
    """
    failed: list[BaseException] = []

    def work() -> None:
        try:
            run()
        except BaseException as error:  # raised again in the caller's thread
            failed.append(error)

    found: set[tuple[int, str]] = set()
    worker = threading.Thread(target=work)
    with watch() as writer, watch() as definer:
        for holder, mode in ((writer, "ROW EXCLUSIVE"), (definer, "SHARE UPDATE EXCLUSIVE")):
            _hold(holder, mode)
        worker.start()
        for holder in (definer, writer):
            _look(writer, pid, worker, found, until_waiting=True)
            holder.execute("COMMIT")
        _look(writer, pid, worker, found, until_waiting=False)
    worker.join()
    if failed:
        raise failed[0]
    return found


def _hold(holder: Connection, mode: str) -> None:
    rows = holder.execute(
        """SELECT n.nspname::text, c.relname::text
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
        ORDER BY c.oid LIMIT %(most)s""",
        {"most": HELD_TABLES_MAX},
    ).fetchall()
    holder.execute("BEGIN")
    if rows:
        names = sql.SQL(", ").join(sql.SQL("ONLY {}").format(sql.Identifier(*row)) for row in rows)
        holder.execute(sql.SQL("LOCK TABLE {} IN {} MODE").format(names, sql.SQL(mode)))  # pyright: ignore[reportArgumentType]


def _look(
    conn: Connection, pid: int, worker: threading.Thread, found: set[tuple[int, str]], *, until_waiting: bool
) -> None:
    deadline = time.monotonic() + HOLD_SECONDS_MAX
    while worker.is_alive() and not (until_waiting and time.monotonic() > deadline):
        with suppress(psycopg.errors.UndefinedTable):
            found |= {(oid, mode) for oid, mode, _ in read_locks(conn, pid)}
        row = conn.execute(
            "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %(pid)s", {"pid": pid}
        ).fetchone()
        if until_waiting and row and row[0]:
            found |= {(oid, mode) for oid, mode, _ in read_locks(conn, pid)}
            return
        time.sleep(POLL_SECONDS)
