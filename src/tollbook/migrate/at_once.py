"""A plain migration in one round trip: statements, proof that its objects are there, record and COMMIT.

Plain is what most are: one transaction that only adds, by statements whose effect the grammar tells. Whatever
is otherwise goes the long way (course.py), which asks before it commits and can say what is wrong.
"""

from dataclasses import replace

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


class AtOnce:
    """Sends plain migrations whole. It knows the schema in which a session of this run begins."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.schema = self._read_schema()

    def apply(self, one: Prepared) -> tuple[Promise, ...] | None:
        """Apply a migration and return what it made. Not plain, or not proven: None, with nothing done.

        Raises StatementFailed, LockHeld, InTheWay.
        """
        if not (is_plain(one) and self.schema):
            return None
        course = self.course
        made = tuple(replace(each, schema=each.schema or self.schema) for each in one.promises.made)
        sql = self._write(one, made)
        proven = retrying(
            course.conn,
            one.migration.id,
            lambda: self._send(sql),
            course.listen,
            course.guard,
            one.migration.up.options.lock_timeout_seconds or course.lock_timeout_seconds,
        )
        if proven:
            return made
        course.conn.execute("ROLLBACK")
        self.schema = self._read_schema()  # a schema of the user's own name may have been made since
        return None

    def _read_schema(self) -> str | None:
        row = self.course.conn.execute("SELECT current_schema()::text").fetchone()
        return row[0] if row else None

    def _write(self, one: Prepared, made: tuple[Promise, ...]) -> Sql:
        conn = self.course.conn
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
        return Sql(
            one.migration.up,
            one.reading,
            one.reading.statements,
            f"{opening} {BEGIN} ",
            count + 1,
            f"SET CONSTRAINTS ALL IMMEDIATE; {RESET_ROLE} {record} {LEAVE_NOTHING}; COMMIT",
        )

    def _send(self, sql: Sql) -> bool:
        """Whether it is proven, and committed. Raises StatementFailed."""
        results = send(self.course.conn, sql.text)
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
