"""Plain migrations in one round trip: statements, proof that their objects are there, record and COMMIT.

Plain is what most are: one transaction that only adds, by statements whose effect the grammar tells. Whatever
is otherwise goes the long way (course.py), which asks before it commits and can say what is wrong.

Light ones, which only make what is new, share a message: each is a transaction of its own in it, and where
one fails the server passes over the rest.
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

import psycopg
from pglast import ast
from psycopg.pq.abc import PGresult

from tollbook.migrate import execution, history
from tollbook.migrate.course import Course, name_opening
from tollbook.migrate.exchange import quote, send
from tollbook.migrate.execution import BEGIN, RESET_ROLE, Prepared, Sql
from tollbook.migrate.headers import Options
from tollbook.migrate.objects import RELATION_KINDS, Promise
from tollbook.migrate.retrying import is_passing, retrying, roll_back
from tollbook.migrate.session import LEAVE_NOTHING

# What may change where names lead to, and what may have to be cut in two.
NOT_PLAIN = (ast.VariableSetStmt, ast.TransactionStmt, ast.AlterEnumStmt)
UNPROVEN = psycopg.errors.NotNullViolation.sqlstate  # the record's promises are NULL where the proof fails
PARCEL_MAX = 8  # more together gain nothing
LIGHT_CHARACTERS_MAX = 16 * 1024
# All but the last of a parcel wait for no disk: the last one's COMMIT takes theirs along, before any is told.
LATE = f"{history.BEGAN}, set_config('synchronous_commit', 'off', true); "
ON_DISK = "SELECT pg_logical_emit_message(true, 'tollbook', '')"  # a COMMIT, where the last one's was not
RECORDED = -4  # where the record's result is, seen from its COMMIT


@dataclass(frozen=True, slots=True)
class Plain:
    """What a plain migration sends, and what is there when that has gone well."""

    sql: Sql
    made: tuple[Promise, ...]


@dataclass(frozen=True, slots=True)
class Parcel:
    """The migrations that go next, from a place on; plains is empty where the one is not plain."""

    at: int
    ones: Sequence[Prepared]
    plains: Sequence[Plain]


@dataclass(frozen=True, slots=True)
class Done:
    """What a committed migration made, and how long its transaction took."""

    made: tuple[Promise, ...]
    seconds: float


class AtOnce:
    """Sends plain migrations whole. It knows the schema in which a session of this run begins.

    begun: the (folder, version) of those that an earlier run has done in part, which go the long way. tell is
    called while the server is at work, and before the long way.
    """

    def __init__(
        self,
        course: Course,
        ready: Sequence[Prepared],
        begun: Set[tuple[str, str]],
        tell: Callable[[], None],
    ) -> None:
        self.course = course
        self.ready = ready
        self.begun = begun
        self.tell = tell
        self.schema = self._read_schema()
        self._ahead: Parcel | None = None  # what goes next, written while the server is at work
        self._alone: int | None = None  # the place of one that has to go the long way
        self._failure: Exception | None = None  # of the one behind those that were told last

    def take(self, at: int) -> Parcel:
        """Return what goes next, from that place on. Raises StatementFailed where that has failed already."""
        if self._failure:
            raise self._failure
        ahead, self._ahead = self._ahead, None
        return ahead if ahead and ahead.at == at else self._wrap(at)

    def apply(self, parcel: Parcel) -> list[Done]:
        """Apply the parcel's migrations and return those that are committed, the first ones.

        None of them, with nothing done: the first is to go the long way. Raises StatementFailed, LockHeld,
        InTheWay.
        """
        if not parcel.plains:
            self.tell()
            return []

        def meanwhile() -> None:
            self.tell()
            following = parcel.at + len(parcel.ones)
            self._ahead = self._wrap(following) if following < len(self.ready) else None

        one = parcel.ones[0]
        done = (
            self._send_together(parcel, meanwhile)
            if len(parcel.ones) > 1
            else retrying(
                self.course.conn,
                one.migration.id,
                lambda: self._send_one(parcel.plains[0], meanwhile),
                self.course.listen,
                self.course.guard,
                one.migration.up.options.lock_timeout_seconds or self.course.lock_timeout_seconds,
            )
        )
        if len(done) < len(parcel.ones):
            roll_back(self.course.conn)
            if self._failure and (not done or self.course.conn.broken):
                raise self._failure
            if done:
                self.course.conn.execute(ON_DISK)
            if not self._failure:
                self._ahead, self._alone = None, parcel.at + len(done)
                self.schema = self._read_schema()  # one of the user's own name may have been made
        return done

    def _wrap(self, at: int) -> Parcel:
        """Return the light ones from that place on, or whatever is there, alone."""
        plains: list[Plain] = []
        for one in self.ready[at : at + PARCEL_MAX]:
            light = is_light(one)
            plain = self._write(one) if at != self._alone and (light or not plains) else None
            if plain is None:
                break
            plains.append(plain)
            if not light:
                break
        return Parcel(at, self.ready[at : at + max(len(plains), 1)], plains)

    def _read_schema(self) -> str | None:
        row = self.course.conn.execute("SELECT current_schema()::text").fetchone()
        return row[0] if row else None

    def _write(self, one: Prepared) -> Plain | None:
        """Return what is to be sent; None where the migration is not plain."""
        if not (is_plain(one) and self.schema) or (one.migration.folder, one.migration.version) in self.begun:
            return None
        conn = self.course.conn
        made = tuple(replace(each, schema=each.schema or self.schema) for each in one.promises.made)
        proof = [f"pg_backend_pid() = {self.course.pid}"]
        if any(each.schema is None for each in one.promises.made):
            proof.append(f"current_schema() = {quote(conn, self.schema)}")
        proof += [
            f"(pg_identify_object('pg_class'::regclass, to_regclass({quote(conn, _name(each))}), 0)).type = "
            f"'{each.kind}'"
            for each in made
        ]
        opening, count = name_opening(one, 0, self.course.name_settings(one.migration.up.options))
        record = history.write_proven(conn, self.course.run, one.migration, made, " AND ".join(proof))
        sql = Sql(
            one.migration.up,
            one.reading,
            one.reading.statements,
            f"{opening} {BEGIN} ",
            count + 1,
            f"SET CONSTRAINTS ALL IMMEDIATE; {RESET_ROLE} {record} {LEAVE_NOTHING}; COMMIT",
        )
        return Plain(sql, made)

    def _send_one(self, plain: Plain, meanwhile: Callable[[], None]) -> list[Done]:
        """Return it when it is committed, nothing where it is not proven. Raises StatementFailed."""
        results = send(self.course.conn, plain.sql.text, meanwhile=meanwhile)
        commits = _find_commits(results)
        if not commits and not _is_unproven(error := _read_error(results)):
            raise execution.explain(self.course.conn, plain.sql, error, len(results) - 1)
        return [Done(plain.made, _read_seconds(results, place)) for place in commits]

    def _send_together(self, parcel: Parcel, meanwhile: Callable[[], None]) -> list[Done]:
        """Return those that are committed. The next has failed, or is to go the long way."""
        first = [LATE] * (len(parcel.plains) - 1) + [f"{history.BEGAN}; "]
        sent = [
            replace(plain.sql, before=plain.sql.before + more, before_count=plain.sql.before_count + 1)
            for plain, more in zip(parcel.plains, first, strict=True)
        ]
        guard, texts = self.course.guard, [f"{sql.text};\n" for sql in sent]
        name = f"{parcel.ones[0].migration.id} to {parcel.ones[-1].migration.id}"
        with guard.watching(name, self.course.lock_timeout_seconds):
            results = send(self.course.conn, "".join(texts), meanwhile=meanwhile)
        commits = _find_commits(results)
        done = [
            Done(plain.made, _read_seconds(results, place))
            for plain, place in zip(parcel.plains, commits, strict=False)
        ]
        if len(done) < len(texts):
            error, sql = _read_error(results), sent[len(done)]
            if not (_is_unproven(error) or is_passing(error, guard)):
                sql = replace(
                    sql,
                    before="".join(texts[: len(done)]) + sql.before,
                    before_count=(commits[-1] + 1 if commits else 0) + sql.before_count,
                )
                self._failure = execution.explain(self.course.conn, sql, error, len(results) - 1)
        return done


def _find_commits(results: Sequence[PGresult]) -> list[int]:
    return [place for place, result in enumerate(results) if result.command_status == b"COMMIT"]


def _read_seconds(results: Sequence[PGresult], commit: int) -> float:
    return float(results[commit + RECORDED].get_value(0, 0) or 0)


def _read_error(results: Sequence[PGresult]) -> psycopg.Error:
    return psycopg.errors.error_from_result(results[-1])


def _is_unproven(error: psycopg.Error) -> bool:
    return error.sqlstate == UNPROVEN and (error.diag.schema_name, error.diag.table_name) == history.TABLE


def is_plain(one: Prepared) -> bool:
    """Whether a migration is one transaction of statements that only add, and promises relations by name."""
    migration, statements = one.migration, one.reading.statements
    return (
        not (migration.up.program or migration.check or migration.backfill or migration.repeatable)
        and migration.up.options == Options(lock_timeout_seconds=migration.up.options.lock_timeout_seconds)
        and not (one.promises.opaque or one.promises.may_remove)
        and all(
            not (each.alone or each.block or each.explicit or each.rows or isinstance(each.tree, NOT_PLAIN))
            for each in statements
        )
        and all(
            each.kind in RELATION_KINDS and each.name and each.made and not each.conditional
            for each in one.promises.made
        )
    )


def is_light(one: Prepared) -> bool:
    """Whether a plain migration is short work: it makes relations, and indexes on tables that it made."""
    made: set[tuple[str | None, str | None] | None] = set()
    for each in one.reading.statements:
        match each.tree:
            case ast.CreateStmt(inhRelations=None, partbound=None):
                made.add(_find_table(each.tree))
            case ast.IndexStmt() if _find_table(each.tree) in made:
                pass
            case ast.ViewStmt() | ast.CreateSeqStmt():
                pass
            case _:
                return False
    return one.migration.up.options == Options() and len(one.reading.text) <= LIGHT_CHARACTERS_MAX


def _find_table(tree: ast.CreateStmt | ast.IndexStmt) -> tuple[str | None, str | None] | None:
    return (tree.relation.schemaname, tree.relation.relname) if tree.relation else None


def _name(promise: Promise) -> str:
    return ".".join('"' + (part or "").replace('"', '""') + '"' for part in (promise.schema, promise.name))
