"""One script carried out: in one transaction, or segment by segment with its progress on record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from pglast import ast

from tollbook.migrate import alone, execution, history, segments
from tollbook.migrate.errors import Problem, StatementFailed
from tollbook.migrate.events import Event, Listener
from tollbook.migrate.execution import BEGIN, RESET, RESET_COUNT, RESET_ROLE, Outcome, Prepared, Sql
from tollbook.migrate.headers import Options
from tollbook.migrate.history import Progress
from tollbook.migrate.retrying import read_sqlstate, retrying
from tollbook.migrate.segments import Segment
from tollbook.migrate.session import Connection
from tollbook.migrate.statements import Statement
from tollbook.migrate.traffic import Guard

# What names the role that a session acts as: taken anew in each transaction, as each ends as the engine.
ROLES = ("role", "session_authorization")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Course:
    """The session a run works in: its server process, its number, how long it waits, whom it tells."""

    conn: Connection
    pid: int
    run: UUID
    lock_timeout_seconds: float
    listen: Listener
    guard: Guard

    def name_settings(self, options: Options | None = None) -> str:
        """Return the statements that bound the waits of a script of this run."""
        return name_settings(self.lock_timeout_seconds, options, self.guard.traffic.statement_timeout_seconds)


def name_settings(
    lock_timeout_seconds: float,
    options: Options | None = None,
    statement_timeout_seconds: float | None = None,
) -> str:
    """Return the statements that bound the waits of a script; its own header goes before the run's."""
    lock = (options and options.lock_timeout_seconds) or lock_timeout_seconds
    texts = [f"SET lock_timeout = {round(lock * 1000)};"]
    if statement := (options and options.statement_timeout_seconds) or statement_timeout_seconds:
        texts.append(f"SET statement_timeout = {round(statement * 1000)};")
    return " ".join(texts)


def name_role(options: Options) -> str:
    """Return the statement that takes the role of a script's header for the open transaction, if any."""
    if not options.role:
        return ""
    return "SET LOCAL ROLE {};".format('"' + options.role.replace('"', '""') + '"')


def name_roles(one: Prepared, done: int) -> list[str]:
    """Return the statements that take the role of a script after `done` statements of its own."""
    header = name_role(one.migration.up.options)
    return [*([header] if header else []), *_find_set(one, done, roles=True)]


def name_opening(one: Prepared, done: int, settings: str) -> tuple[str, int]:
    """Return what gives a session what a script expects after `done` statements, and the number of it."""
    again = _find_set(one, done, roles=False)
    return f"{RESET} {settings} {' '.join(again)}", RESET_COUNT + settings.count(";") + len(again)


def _find_set(one: Prepared, done: int, *, roles: bool) -> list[str]:
    """Return what the first `done` statements set for longer than their transaction."""
    return [
        f"{one.reading.text[statement.index : statement.end]}\n;"
        for statement in one.reading.statements[:done]
        if _sets(statement.tree) and (getattr(statement.tree, "name", None) in ROLES) == roles
    ]


def _sets(tree: Any) -> bool:
    """Whether a statement sets something beyond its transaction: SET, SELECT set_config(…, false)."""
    if isinstance(tree, ast.VariableSetStmt):
        return not tree.is_local and tree.name != "TRANSACTION"
    if not isinstance(tree, ast.SelectStmt) or tree.fromClause or not tree.targetList:
        return False
    calls: list[Any] = [target.val for target in tree.targetList]
    return all(
        isinstance(call, ast.FuncCall)
        and [part.sval for part in call.funcname or ()][-1] == "set_config"
        and _is_false((call.args or (None,))[-1])
        for call in calls
    )


def _is_false(argument: Any) -> bool:
    return isinstance(getattr(argument, "val", None), ast.Boolean) and not argument.val.boolval


def check_progress(one: Prepared, progress: Progress, direction: str) -> list[Problem]:
    """Name what keeps a script from going on where it stopped: its first statements have changed."""
    done = one.reading.statements[: progress.statements]
    same = segments.fingerprint(one.reading.text, done) == progress.fingerprint
    if same and progress.direction == direction:
        return []
    then = (
        "Put those statements back as they were; what follows them may be corrected."
        if progress.direction == direction
        else f"Finish that first: run the same command as before ({progress.direction})."
    )
    return [
        Problem(
            f"{one.migration.id} stopped after {progress.statements} statements of its {progress.direction} "
            f"file, which are committed{'.' if same else ', and not the same any more.'}",
            then,
        )
    ]


def carry_out(
    course: Course,
    one: Prepared,
    progress: Progress | None,
    direction: str,
    finish: Callable[[Outcome, int], T],
) -> T:
    """Run a script from where it stopped. `finish` proves, records and commits inside its last transaction.

    It is given what its transaction came to, and how many statements were committed before its transaction.
    Raises StatementFailed, LockHeld, SessionNotOurs.
    """
    walk = _Walk(course, one, progress, direction)
    cuts = segments.Cuts(one.reading.statements, one.migration.up.options)
    while True:
        try:
            return walk.go(cuts.split(), finish)
        except StatementFailed as error:
            state = read_sqlstate(error)
            if state in segments.WANT_OF_COMMIT and one.migration.up.program and not walk.committing:
                walk.committing = True
            elif not cuts.refine(state):
                raise


def carry_out_and_keep(course: Course, one: Prepared, progress: Progress | None) -> Progress | None:
    """Run and commit all of a script, short of its record, which is to follow its back-fill.

    Returns the progress that is then on record: `carry_out` goes on from it with nothing left but its end.
    """
    migration, reading = one.migration, one.reading
    count = len(reading.statements)
    if not count or (progress and progress.statements == count):
        return progress
    done = segments.fingerprint(reading.text, reading.statements)
    kept = Progress(migration.folder, migration.version, "up", count, done)

    def finish(outcome: Outcome, before: int) -> Progress:
        history.keep_progress(course.conn, course.run, kept)
        course.conn.execute("COMMIT")
        return kept

    return carry_out(course, one, progress, "up", finish)


class _Walk:
    """Goes through the segments of one script, in one session."""

    def __init__(self, course: Course, one: Prepared, progress: Progress | None, direction: str) -> None:
        self.course = course
        self.one = one
        self.direction = direction
        self.fingerprints = segments.Fingerprints(one.reading.text, one.reading.statements)
        self.done = progress.statements if progress else 0
        self.resumed_at = self.done if progress else -1
        self.begun = progress is not None  # whether it is on record
        self.committing = False  # whether a program may commit what it has done
        self.opened = False  # whether the session has the script's settings

    def go(self, cut: Sequence[Segment], finish: Callable[[Outcome, int], T]) -> T:
        left = [_trim(segment, self.done) for segment in cut if segment.end > self.done]
        *before, last = left or [Segment(self.done, ())]
        if last.alone:
            before, last = [*before, last], Segment(last.end, ())
        for segment in before:
            if segment.alone:
                self._retry(lambda segment=segment: self._run_alone(segment), self._find_patience(segment))
            else:
                self._retry(lambda segment=segment: self._run_and_keep(segment))
            self.opened, self.done = True, segment.end
        return self._retry(lambda: finish(self._run(last), self.done))

    def _find_patience(self, segment: Segment) -> float:
        patient = self._is_patient(segment.statements[0])
        return alone.CONCURRENT_LOCK_TIMEOUT_SECONDS if patient else self._lock_timeout_seconds

    def _is_patient(self, statement: Statement) -> bool:
        """A concurrent statement waits long for others; it stands in nobody's way but of its own kind."""
        return alone.is_concurrent(statement) and not self._sets_own_timeout()

    @property
    def _lock_timeout_seconds(self) -> float:
        own = self.one.migration.up.options.lock_timeout_seconds
        return own or self.course.lock_timeout_seconds

    def _retry(self, attempt: Callable[[], T], patience_seconds: float | None = None) -> T:
        course = self.course
        patience = patience_seconds or self._lock_timeout_seconds
        name = self.one.migration.id
        try:
            return retrying(course.conn, name, attempt, course.listen, course.guard, patience)
        except StatementFailed as error:
            if not self.done:
                raise
            said = error.sentence.removesuffix(execution.ROLLED_BACK)
            raise StatementFailed(
                f"{said} What this file had committed before stays ({self.done} of "
                f"{len(self.one.reading.statements)} statements); correct what follows and run again.",
                error.place,
                **error.details,
            ) from error

    def _open(self) -> tuple[str, int]:
        """Return the statements that give the session what the script expects, and their number."""
        if self.opened:
            return "", 0
        settings = self.course.name_settings(self.one.migration.up.options)
        return name_opening(self.one, self.done, settings)

    def _run(self, segment: Segment) -> Outcome:
        opening, count = self._open()
        roles = name_roles(self.one, self.done)
        begin = f"{segment.modes};" if segment.modes else BEGIN
        return execution.perform(
            self.course.conn,
            self.one,
            segment,
            self.course.pid,
            f"{opening} {begin} {' '.join(roles)}",
            count + 1 + len(roles),
            committing=self.committing,
        )

    def _run_and_keep(self, segment: Segment) -> None:
        self._run(segment)
        self._keep(segment.end)
        self.course.conn.execute("COMMIT")

    def _keep(self, statements: int) -> None:
        migration, done = self.one.migration, self.fingerprints.take(statements)
        progress = Progress(migration.folder, migration.version, self.direction, statements, done)
        history.keep_progress(self.course.conn, self.course.run, progress)
        self.begun = True

    def _find_age(self) -> str | None:
        """Return the transaction that noted the progress this run goes on from."""
        migration = self.one.migration
        return history.find_age(self.course.conn, migration.folder, migration.version)

    def _forget(self) -> None:
        """Nothing was committed, so nothing is begun."""
        self.course.conn.execute(RESET_ROLE.encode())
        history.forget_progress(self.course.conn, self.one.migration.folder, self.one.migration.version)
        self.begun = False

    def _run_alone(self, segment: Segment) -> None:
        conn, statement = self.course.conn, segment.statements[0]
        conn.execute(f"{RESET_ROLE} {self._open()[0]}".encode())
        self.opened = True
        if not self.begun:  # so that the next run knows, should this one be killed while it runs
            self._keep(segment.first)
        since = self._find_age() if segment.first == self.resumed_at else None
        conn.execute(" ".join(name_roles(self.one, self.done)).replace("SET LOCAL", "SET").encode())
        for name in alone.clear(conn, statement):
            text = f"Dropped the invalid index {name}, left by a build that broke off."
            self.course.listen(Event("note", text))
        if not alone.finish(conn, statement) and not (since and alone.is_done(conn, statement, since)):
            self.course.listen(Event("alone", f"{statement.alone} runs outside a transaction."))
            self._send_alone(statement)
        conn.execute(RESET_ROLE.encode())
        self._keep(segment.end)

    def _send_alone(self, statement: Statement) -> None:
        conn = self.course.conn
        patient = self._is_patient(statement)
        if patient:
            conn.execute(name_settings(alone.CONCURRENT_LOCK_TIMEOUT_SECONDS).encode())
        try:
            execution.run(conn, Sql(self.one.migration.up, self.one.reading, (statement,)))
        except StatementFailed as error:
            alone.clear(conn, statement)
            if not self.done:
                self._forget()
            if not segments.may_commit(statement):
                raise
            # Without its code: whatever was in its way, it is not tried again by itself.
            raise StatementFailed(
                f"{error.sentence} What {statement.alone} committed itself stays: see that it can run again.",
                error.place,
                **error.details | {"sqlstate": None},
            ) from error
        if patient:
            conn.execute(name_settings(self.course.lock_timeout_seconds).encode())

    def _sets_own_timeout(self) -> bool:
        return bool(self.one.migration.up.options.lock_timeout_seconds) or any(
            isinstance(statement.tree, ast.VariableSetStmt) and statement.tree.name == "lock_timeout"
            for statement in self.one.reading.statements
        )


def _trim(segment: Segment, done: int) -> Segment:
    if segment.first >= done:
        return segment
    return Segment(done, segment.statements[done - segment.first :])
