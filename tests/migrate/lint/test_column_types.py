"""Which changes of a column's type are free: what the lint says of each pair is what PostgreSQL does."""

from contextlib import suppress
from typing import Any

import psycopg
import pytest
from pglast import parse_sql

from tollbook.migrate.lint import column_types
from tollbook.migrate.lint.column_types import Type

TYPES = (
    "text", "varchar", "varchar(20)", "varchar(40)", "char(5)", "char(10)", "citext", "name", "bytea",
    "smallint", "integer", "bigint", "real", "double precision", "money", "boolean",
    "numeric", "numeric(10)", "numeric(10,2)", "numeric(12,2)", "numeric(12,4)", "numeric(8,2)",
    "date", "time", "time(3)", "timetz", "timestamp", "timestamp(0)", "timestamp(3)",
    "timestamptz", "timestamptz(3)",
    "interval", "interval(3)", "interval year", "bit(5)", "bit(8)", "varbit", "varbit(5)", "varbit(8)",
    "json", "jsonb", "xml", "uuid", "inet", "cidr", "text[]", "varchar(20)[]", "varchar(40)[]",
    "integer[]", "bigint[]",
)  # fmt: skip


def read(name: str) -> Type:
    tree: Any = parse_sql(f"CREATE TABLE t (c {name})")[0].stmt
    found = column_types.read(tree.tableElts[0].typeName)
    assert found is not None
    return found


def change(connection: psycopg.Connection[Any], old: str, new: str) -> tuple[bool, bool] | None:
    """Return whether the table was written anew, and whether its index; None where there is no such cast."""
    with connection.transaction(force_rollback=True):
        connection.execute(f"CREATE TABLE changed (c {old})".encode())
        with (
            suppress(psycopg.errors.UndefinedObject),
            connection.transaction(),
        ):  # json and xml sort not at all
            connection.execute("CREATE INDEX changed_c ON changed (c)")
        before = find_file(connection, "changed"), find_file(connection, "changed_c")
        try:
            connection.execute(f"ALTER TABLE changed ALTER c TYPE {new} USING c::{new}".encode())
        except (psycopg.errors.CannotCoerce, psycopg.errors.SyntaxError, psycopg.errors.UndefinedObject):
            return None
        return (
            find_file(connection, "changed") != before[0],
            find_file(connection, "changed_c") != before[1],
        )


def find_file(connection: psycopg.Connection[Any], name: str) -> int | None:
    row = connection.execute("SELECT relfilenode FROM pg_class WHERE relname = %s", [name]).fetchone()
    return row and row[0]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Paris"])
def test_every_change_of_type_is_judged_as_postgresql_does_it(url: str, zone: str) -> None:
    wrong: list[str] = []
    tried = 0
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION citext")
        connection.execute(f"SET timezone = '{zone}'".encode())
        for old in TYPES:
            for new in TYPES:
                seen = change(connection, old, new)
                if seen is None:
                    continue
                tried += 1
                effect = column_types.judge(read(old), read(new))
                table = effect == "rewrite" or (effect == "indexes in UTC" and zone != "UTC")
                written, indexed = seen
                right = written if table else (not written and indexed == effect.startswith("indexes"))
                if not right:
                    wrong.append(f"{old} to {new}: {effect}, but table, index written: {seen}")
    assert tried > 500
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bigint", "integer"), ("integer", "smallint"), ("numeric(10,2)", "numeric(8,2)"),
        ("numeric", "integer"),
        ("numeric(12,4)", "numeric(12,2)"), ("double precision", "real"), ("bigint", "real"),
        ("text", "varchar(20)"),
        ("varchar(40)", "varchar(20)"), ("char(10)", "char(5)"), ("text", "integer"), ("varchar(20)", "uuid"),
        ("timestamptz", "date"), ("timestamptz", "timestamp"), ("timestamp(3)", "timestamp(0)"),
        ("text", "mood"),
        ("double precision", "bigint"), ("numeric", "numeric(10,2)"), ("timestamptz", "time"),
        ("varbit(8)", "varbit(5)"),
    ],
)  # fmt: skip
def test_what_can_lose_or_fail_is_said_to(old: str, new: str) -> None:
    assert column_types.find_loss(read(old), read(new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("integer", "bigint"), ("varchar(20)", "varchar(40)"), ("varchar(20)", "text"),
        ("numeric(10,2)", "numeric(12,2)"),
        ("numeric(10,2)", "numeric"), ("real", "double precision"), ("date", "timestamptz"),
        ("json", "jsonb"),
        ("timestamp", "timestamptz"), ("cidr", "inet"), ("timestamp(3)", "timestamp(6)"),
        ("smallint", "integer"),
    ],
)  # fmt: skip
def test_what_keeps_every_value_is_no_loss(old: str, new: str) -> None:
    assert not column_types.find_loss(read(old), read(new))
