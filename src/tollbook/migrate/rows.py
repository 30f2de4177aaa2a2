"""A few rows for every table, made up to fit its types, keys and checks, to see what becomes of them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import LiteralString

import psycopg
from pglast import ast, parse_sql, visitors
from psycopg import sql

from tollbook.migrate.session import Connection

ROWS = 3
ATTEMPTS_MAX = 300  # to find values that a table's checks let in
# What may be tried for a type, the likeliest first; {g} is the row's number.
GUESSES = {
    "N": ("{g}", "0", "100 + {g}", "-{g}"),
    "S": (
        "'text {g}'",
        "repeat('a', 39) || {g}",
        "md5('{g}')",
        "md5('{g}') || md5('{g}')",
        "'0x' || left(md5('{g}') || md5('{g}'), 40)",
        "'0x' || md5('{g}') || md5('{g}')",
        "'me{g}@example.com'",
        "'https://example.com/{g}'",
        "'EUR'",
        "'a{g}'",
    ),
    "B": ("true", "false"),
    "D": ("'2020-01-01'::timestamptz + {g} * interval '1 day'", "now()"),
    "T": ("{g} * interval '1 hour'",),
    "I": ("'10.0.0.{g}'",),
    "V": ("B'{g}'::text",),
    "A": ("'{{}}'", "'{{1}}'"),
    "R": ("'empty'",),
}
NAMED = {
    "uuid": ("md5('{g}')",),
    "json": ("'{{}}'", "'[]'"),
    "jsonb": ("'{{}}'", "'[]'"),
    "bytea": ("decode(md5('{g}'), 'hex')", "sha256('{g}')"),
    "xml": ("'<a/>'",),
    **{f"{name}range": ("'[{g},{g}]'",) for name in ("int4", "int8", "num")},
    **{f"{name}range": ("'[2020-01-0{g},2020-01-0{g}]'",) for name in ("date", "ts", "tstz")},
    **{f"{name}multirange": ("'{{}}'",) for name in ("int4", "int8", "num", "date", "ts", "tstz")},
}


@dataclass(slots=True)
class _Column:
    name: str
    type: str
    category: str
    guesses: tuple[str, ...]
    at: int = 0


@dataclass(slots=True)
class _Table:
    name: str
    columns: dict[str, _Column]
    references: list[tuple[list[str], str, list[str]]] = field(
        default_factory=list[tuple[list[str], str, list[str]]]
    )
    checks: dict[str, tuple[list[str], str]] = field(default_factory=dict[str, tuple[list[str], str]])
    refused: str = ""


def fill(conn: Connection) -> list[str]:
    """Put rows into each table that has none. Returns the tables that took none, each with why."""
    left = list(_read(conn).values())
    # A table that refers to others comes after them; what refers in a ring stays without rows.
    for _ in range(len(left)):
        again = [one for one in left if not _fill(conn, one)]
        if len(again) == len(left):
            break
        left = again
    return [f"{one.name} ({one.refused})" for one in left]


def digest(conn: Connection, columns: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, str]]:
    """Return, by table, how many rows it has, and a sum of what stands in these of its columns.

    Those of a foreign table are another server's, and those of a table that inherits are its own.
    """
    found: dict[str, tuple[int, str]] = {}
    kinds: dict[str, str] = dict(conn.execute(KINDS).fetchall())
    for table, names in columns.items():
        if (kind := kinds[table]) == "f":
            continue
        listed, only = ", ".join(names) or "NULL", "ONLY" if kind == "r" else ""
        row = conn.execute(
            f"""SELECT count(*), coalesce(md5(string_agg(line, ',' ORDER BY line)), '')
            FROM (SELECT ROW({listed})::text AS line FROM {only} {table}) AS lines""".encode()  # noqa: S608
        ).fetchone()
        assert row is not None
        found[table] = (int(row[0]), str(row[1]))
    return found


def _read(conn: Connection) -> dict[str, _Table]:
    tables: dict[str, _Table] = {}
    for table, column, type_, category, basic, length, labels, required in conn.execute(
        COLUMNS, prepare=False
    ):
        one = tables.setdefault(table, _Table(table, {}))
        if column is not None:
            guesses = _guess(category, basic, length, labels)
            if guesses:
                empty = () if required else ("NULL",)  # where a check wants it so
                one.columns[column] = _Column(column, type_, category, (*guesses, *empty))
    for table, kind, name, columns, other, others, text in conn.execute(CONSTRAINTS, prepare=False):
        if table not in tables:
            continue
        if kind == "f":
            tables[table].references.append((columns, other, others))
        else:
            tables[table].checks[name] = (columns, text)
            for column in (tables[table].columns.get(column) for column in columns):
                if column is not None:
                    column.guesses = (*column.guesses, *_find_constants(text, column.category))
    return tables


def _guess(category: str, basic: str, length: int, labels: list[str] | None) -> tuple[str, ...]:
    if labels:
        return tuple(sql.Literal(label).as_string(None) for label in labels)
    guesses = NAMED.get(basic) or GUESSES.get(category, ())
    return tuple(f"left({one}, {length})" for one in guesses) if category == "S" and length > 0 else guesses


def _find_constants(check: str, category: str) -> Iterator[str]:
    """Give the constants of a check that fit a column: one of them may be what it wants."""
    found: list[str] = []

    class Finder(visitors.Visitor):
        def visit_A_Const(self, ancestors: object, node: ast.A_Const) -> None:  # noqa: N802
            if isinstance(node.val, ast.String) and category == "S":
                found.append(sql.Literal(node.val.sval).as_string(None).replace("{", "{{").replace("}", "}}"))
            elif isinstance(node.val, ast.Integer) and category == "N":
                found.append(str(node.val.ival or 0))

    Finder()(parse_sql(f"ALTER TABLE t ADD {re.sub(r' NOT VALID$', '', check)}"))
    return iter(found)


def _fill(conn: Connection, table: _Table) -> bool:
    """Try values until the table takes them; whether it has rows then."""
    row = conn.execute(f"SELECT EXISTS (SELECT FROM {table.name})".encode()).fetchone()  # noqa: S608
    if row and row[0]:
        return True
    taken = sum(_insert_one(conn, table, number) for number in range(1, ROWS + 1))
    return taken > 0


def _insert_one(conn: Connection, table: _Table, number: int) -> bool:
    for _ in range(ATTEMPTS_MAX):
        try:
            with conn.transaction():
                conn.execute(_write(table, number).encode())
            return True
        except psycopg.Error as error:
            table.refused = error.diag.message_primary or str(error)
            check = error.diag.constraint_name or ""
            if not isinstance(error, psycopg.errors.CheckViolation) or not _try_next(table, check):
                return False
    return False


def _try_next(table: _Table, check: str) -> bool:
    """Turn to the next combination of values for the columns of a check, as a counter turns."""
    columns = [table.columns[name] for name in table.checks.get(check, ([], ""))[0] if name in table.columns]
    for column in columns:
        column.at = (column.at + 1) % len(column.guesses)
        if column.at:
            return True
    return False


def _write(table: _Table, number: int) -> str:
    values = {
        name: f"({column.guesses[column.at].format(g=number)})::{column.type}"
        for name, column in table.columns.items()
    }
    for columns, other, others in table.references:
        for column, there in zip(columns, others, strict=True):
            values[column] = (
                f"(SELECT {there} FROM {other} ORDER BY {', '.join(others)} LIMIT 1 "  # noqa: S608
                f"OFFSET (SELECT {number} % greatest(count(*), 1) FROM {other}))"
            )
    if not values:
        return f"INSERT INTO {table.name} DEFAULT VALUES"
    return f"INSERT INTO {table.name} ({', '.join(values)}) SELECT {', '.join(values.values())}"


KINDS: LiteralString = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relkind::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'f')
"""
# Partitions are filled through their table. What has a default, or is generated, is left to it.
COLUMNS: LiteralString = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), quote_ident(a.attname),
    format_type(a.atttypid, a.atttypmod), b.typcategory::text, b.typname::text,
    CASE WHEN b.typname IN ('varchar', 'bpchar') THEN greatest(a.atttypmod, t.typtypmod) - 4 ELSE 0 END,
    (SELECT array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = b.oid),
    a.attnotnull
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND NOT a.atthasdef
    AND a.attidentity = '' AND a.attgenerated = ''
LEFT JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_type b ON b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
  AND n.nspname NOT IN ('information_schema', 'tollbook_migrate')
ORDER BY c.oid, a.attnum
"""
CONSTRAINTS: LiteralString = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), k.contype::text, k.conname::text,
    (SELECT array_agg(quote_ident(attname) ORDER BY o) FROM unnest(k.conkey) WITH ORDINALITY AS u (num, o)
        JOIN pg_attribute ON attrelid = c.oid AND attnum = num),
    CASE WHEN f.oid IS NOT NULL THEN quote_ident(m.nspname) || '.' || quote_ident(f.relname) END,
    (SELECT array_agg(quote_ident(attname) ORDER BY o) FROM unnest(k.confkey) WITH ORDINALITY AS u (num, o)
        JOIN pg_attribute ON attrelid = f.oid AND attnum = num),
    pg_get_constraintdef(k.oid)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_class f ON f.oid = k.confrelid LEFT JOIN pg_namespace m ON m.oid = f.relnamespace
WHERE k.contype IN ('c', 'f') AND k.conkey IS NOT NULL AND k.confrelid IS DISTINCT FROM k.conrelid
ORDER BY k.oid
"""
