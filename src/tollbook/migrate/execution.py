"""Running a script in one round trip inside the open transaction, and saying where it failed if it does."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGresult

from tollbook.migrate.advice import advise
from tollbook.migrate.backfill_file import Backfill
from tollbook.migrate.errors import Place, StatementFailed, VerificationFailed
from tollbook.migrate.exchange import GOOD, command, load, send, write
from tollbook.migrate.files import Migration, Script
from tollbook.migrate.objects import Promise
from tollbook.migrate.presence import Presence, Verdict, ask, gather, judge, look_up
from tollbook.migrate.promises import Promises
from tollbook.migrate.segments import Segment
from tollbook.migrate.session import Connection, check_pid
from tollbook.migrate.statements import Reading, Statement

BOOLEAN_OID = 16
# A file may have changed the role, the search path and any setting; none of it may reach the next one.
RESET_ROLE = "RESET SESSION AUTHORIZATION; RESET ROLE;"
RESET = f"{RESET_ROLE} RESET ALL;"
RESET_COUNT = 3
# In full: sent in one query with RESET, it begins under the defaults that the last file set.
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;"
ROLLED_BACK = " Rolled back; correct the file and run again."
WRONG_SHOWN_MAX = 20
CONTEXT_LINES_MAX = 3


@dataclass(frozen=True, slots=True)
class Prepared:
    """A migration with what its files say, read before anything runs."""

    migration: Migration
    reading: Reading
    promises: Promises
    check: Reading | None = None
    backfill: Backfill | None = None


@dataclass(frozen=True, slots=True)
class Sql:
    """Statements of a script as they are sent: what stands before and after them counts in statements."""

    script: Script
    reading: Reading
    statements: tuple[Statement, ...]
    before: str = ""
    before_count: int = 0
    after: str = ""

    @property
    def start(self) -> int:
        """Where in the script's text the statements begin."""
        return self.statements[0].index if self.statements else 0

    @property
    def text(self) -> str:
        """All that is sent."""
        own = self.reading.text[self.start : self.statements[-1].end] if self.statements else ""
        return f"{self.before}{own}\n;{self.after}"


def run(conn: Connection, sql: Sql) -> list[PGresult]:
    """Run statements, with what surrounds them, in one round trip. Raises StatementFailed with its place."""
    results = send(conn, sql.text, (one.rows for one in sql.statements if one.rows is not None))
    last = results[-1]
    if last.status not in GOOD:
        error = psycopg.errors.error_from_result(last)
        raise explain(conn, sql, error, len(results) - 1) from error
    return results


def explain(conn: Connection, sql: Sql, error: psycopg.Error, number: int) -> Exception:
    """Turn the server's error in result `number` into a sentence with the file's line and a caret."""
    diag = error.diag
    if diag.severity_nonlocalized in ("FATAL", "PANIC"):
        conn.close()  # the session is over, which is no fault of the file
        return psycopg.OperationalError(str(error))
    index = number - sql.before_count
    place: Place | None = Place(str(sql.script.path))
    sentence = diag.message_primary or str(error)
    exact = int(diag.statement_position or 0) - len(sql.before) - 1
    if sql.statements and 0 <= exact < sql.statements[-1].end - sql.start:
        place = sql.script.point(sql.start + exact)
    elif 0 <= index < len(sql.statements):
        place = sql.script.point(sql.statements[index].index, caret=False)
    elif index == len(sql.statements):
        sentence = f"{sentence} (when its deferred constraints were checked at the end)"
    parts = [f"{sentence} [{error.sqlstate}]"]
    parts += [
        f"{word}: {text}"
        for word, text in (("Detail", diag.message_detail), ("Hint", diag.message_hint))
        if text
    ]
    if diag.context:
        parts.append("In: " + "; ".join(diag.context.splitlines()[:CONTEXT_LINES_MAX]))
    if advice := advise(error.sqlstate, diag.message_primary or ""):
        parts.append(advice)
    return StatementFailed(
        ". ".join(part.rstrip(".") for part in parts) + "." + ROLLED_BACK,
        place,
        sqlstate=error.sqlstate,
        detail=diag.message_detail,
        hint=diag.message_hint,
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a segment left at its end: the search path, and what the catalog says of the script's promises."""

    path: tuple[str, ...]
    presence: Presence


def perform(
    conn: Connection,
    prepared: Prepared,
    segment: Segment,
    pid: int,
    opening: str,
    opening_count: int,
    *,
    committing: bool = False,
) -> Outcome:
    """Run a segment in the transaction that `opening` begins, leaving it uncommitted.

    The catalog is asked for the script's promises in the same round trip. Raises StatementFailed and
    SessionNotOurs; the caller rolls back.
    """
    questions = ask(prepared.promises.made)
    after = (
        f"SET CONSTRAINTS ALL IMMEDIATE; {RESET_ROLE}"
        "SELECT pg_backend_pid(), array_to_json(current_schemas(false));"
    )
    sql = Sql(
        prepared.migration.up,
        prepared.reading,
        segment.statements,
        opening,
        opening_count,
        after + write(conn, questions),
    )
    program = prepared.migration.up.program
    results = _run_program(conn, sql, committing=committing) if program else run(conn, sql)
    said = results[len(results) - len(questions) - 1]
    check_pid(int(said.get_value(0, 0) or b"0"), pid)
    path = tuple(json.loads(said.get_value(0, 1) or b"[]"))
    return Outcome(path, gather(load(conn, results[len(results) - len(questions) :])))


def _run_program(conn: Connection, sql: Sql, *, committing: bool) -> list[PGresult]:
    """Run what is no SQL between what stands before and after it. Raises StatementFailed."""
    assert sql.script.program is not None
    command(conn, sql.before)
    try:
        sql.script.program(conn, committing)
    except Exception as error:  # it is a program of the user's: anything may be raised
        cause = getattr(error, "orig", None) or error
        state = cause.sqlstate if isinstance(cause, psycopg.Error) else None
        said = " ".join(str(cause).split()).rstrip(".") or type(cause).__name__
        advice = advise(state, cause.diag.message_primary or "") if isinstance(cause, psycopg.Error) else None
        raise StatementFailed(
            f"{said}.{f' {advice}.' if advice else ''}{_name_rest(error)}",
            Place(str(sql.script.path)),
            sqlstate=state,
        ) from error
    return command(conn, sql.after)


def _name_rest(error: Exception) -> str:
    """Return what is left of a program that failed: nothing, unless it says otherwise."""
    if isinstance(error, FileNotFoundError):
        return f" It is looked for from where this is run, as its tool does.{ROLLED_BACK}"
    return " ".join(["", *getattr(error, "__notes__", ())]) or ROLLED_BACK


def prove(conn: Connection, prepared: Prepared, outcome: Outcome, settings: str) -> tuple[Promise, ...]:
    """Judge what a migration that ran promises, and run its check. Raises VerificationFailed.

    Returns the promises with the schemas and names found.
    """
    verdict = judge(prepared.promises.made, outcome.presence, outcome.path)
    refuse_unkept(prepared.migration.id, verdict)
    if prepared.migration.check is not None and prepared.check is not None:
        run_check(conn, prepared.migration.check, prepared.check, settings)
    return verdict.found


def refuse_unkept(name: str, verdict: Verdict) -> None:
    """Raise VerificationFailed where a promise is not kept, naming each."""
    if not verdict.wrong:
        return
    shown = list(verdict.wrong[:WRONG_SHOWN_MAX])
    if len(verdict.wrong) > len(shown):
        shown.append(f"and {len(verdict.wrong) - len(shown)} more")
    raise VerificationFailed(
        f"{name} ran, but not everything it promises is there: {'; '.join(shown)}. It is rolled back. "
        "Correct the file and run again.",
        missing=[str(promise) for promise in verdict.missing],
    )


def run_check(conn: Connection, script: Script, reading: Reading, settings: str) -> None:
    """Run smoke statements inside a savepoint and roll them back. Raises VerificationFailed.

    It fails on any error, and where a SELECT of one boolean column returns false or NULL in any row.
    """
    before = f"SAVEPOINT smoke; {RESET} {settings}"
    count = 1 + RESET_COUNT + settings.count(";")
    sql = Sql(script, reading, reading.statements, before, count, "ROLLBACK TO SAVEPOINT smoke")
    try:
        results = run(conn, sql)
    except StatementFailed as error:
        raise VerificationFailed(
            f"The check failed: {error.sentence}", error.place, **error.details
        ) from None
    for statement, result in zip(reading.statements, results[sql.before_count :], strict=False):
        if script.options.truths and is_false(result):
            raise VerificationFailed(
                "The check failed: this statement returned false or NULL. The migration is rolled back.",
                script.point(statement.index, caret=False),
            )


def is_false(result: PGresult) -> bool:
    """Whether a result is one boolean column with a row that is not true."""
    if result.status != pq.ExecStatus.TUPLES_OK or result.nfields != 1 or result.ftype(0) != BOOLEAN_OID:
        return False
    return any(result.get_value(row, 0) != b"t" for row in range(result.ntuples))


def find_standing(conn: Connection, promises: Sequence[Promise]) -> list[Promise]:
    """Return those of the promises, all with their schemas, that are kept now."""
    return list(judge(promises, look_up(conn, promises), ()).found)
