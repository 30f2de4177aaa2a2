"""A plain migration in one round trip: statements, proof that its objects are there, record and COMMIT.

Plain is what most are: one transaction that only adds, by statements whose effect the grammar tells. Whatever
is otherwise goes the long way (course.py), which asks before it commits and can say what is wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import psycopg
from pglast import ast

from tollbook.migrate import execution, history
from tollbook.migrate.course import Course, name_opening
from tollbook.migrate.exchange import GOOD, quote, send
from tollbook.migrate.execution import BEGIN, RESET_ROLE, Prepared, Sql
from tollbook.migrate.headers import Options
from tollbook.migrate.objects import Promise
from tollbook.migrate.presence import RELATION_KINDS
from tollbook.migrate.retrying import retrying
from tollbook.migrate.session import LEAVE_NOTHING

# What may change where names lead to, and what may have to be cut in two.
NOT_PLAIN = (ast.VariableSetStmt, ast.TransactionStmt, ast.AlterEnumStmt)
UNPROVEN = psycopg.errors.NotNullViolation.sqlstate  # the record's promises are NULL where the proof fails


@dataclass(frozen=True, slots=True)
class Plain:
    """What a plain migration sends, and what is there when that has gone well."""

    sql: Sql
    made: tuple[Promise, ...]


class AtOnce:
    """Sends plain migrations whole. It knows the schema in which a session of this run begins."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.schema = self._read_schema()
        # The next one's, written while the server is at work on this.
        self._ahead: tuple[Prepared, Plain | None] | None = None

    def apply(self, one: Prepared, following: Prepared | None) -> tuple[Promise, ...] | None:
        """Apply a migration and return what it made. Not plain, or not proven: None, with nothing done.

        Raises StatementFailed, LockHeld, InTheWay.
        """
        plain = self._ahead[1] if self._ahead and self._ahead[0] is one else self._write(one)
        self._ahead = None
        if plain is None:
            return None

        def write_ahead() -> None:
            self._ahead = (following, self._write(following)) if following else None

        course = self.course
        proven = retrying(
            course.conn,
            one.migration.id,
            lambda: self._send(plain.sql, write_ahead),
            course.listen,
            course.guard,
            one.migration.up.options.lock_timeout_seconds or course.lock_timeout_seconds,
        )
        if proven:
            return plain.made
        course.conn.execute("ROLLBACK")
        self._ahead, self.schema = None, self._read_schema()  # one of the user's own name may have been made
        return None

    def _read_schema(self) -> str | None:
        row = self.course.conn.execute("SELECT current_schema()::text").fetchone()
        return row[0] if row else None

    def _write(self, one: Prepared) -> Plain | None:
        """Return what is to be sent; None where the migration is not plain."""
        if not (is_plain(one) and self.schema):
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

    def _send(self, sql: Sql, meanwhile: Callable[[], None]) -> bool:
        """Whether it is proven, and committed. Raises StatementFailed."""
        results = send(self.course.conn, sql.text, meanwhile=meanwhile)
        if results[-1].status in GOOD:
            return True
        error = psycopg.errors.error_from_result(results[-1])
        if error.sqlstate == UNPROVEN and (error.diag.schema_name, error.diag.table_name) == history.TABLE:
            return False
        raise execution.explain(self.course.conn, sql, error, len(results) - 1)


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


def _name(promise: Promise) -> str:
    return ".".join('"' + (part or "").replace('"', '""') + '"' for part in (promise.schema, promise.name))
