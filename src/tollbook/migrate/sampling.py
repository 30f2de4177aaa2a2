"""Rows for a shadow: the history whole, the places of sequences, and a sample of every table that fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from tollbook.migrate.events import Event, Listener
from tollbook.migrate.session import Connection

HISTORY = "tollbook_migrate"
TABLES_MAX = 100_000
ROUNDS_MAX = 10  # of fetching what sampled rows refer to, which may refer on
FETCHED_AT_ONCE = 10_000
SECONDS_A_TABLE_MAX = 30
# A sample is read from single blocks, more than needed, as some are sparse and chance chooses them.
SPARE = 4
PAGES_MIN, BLOCKS_MIN = 1_000, 30


@dataclass(frozen=True, slots=True)
class Taken:
    """How many rows were copied, and a sentence for every table whose rows could not be."""

    rows: int
    lacks: list[str]


@dataclass(frozen=True, slots=True)
class _Table:
    schema: str
    name: str
    columns: tuple[str, ...]
    rows: float = 0
    pages: int = 0

    @property
    def full(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def listed(self) -> sql.Composed:
        return sql.SQL(", ").join(map(sql.Identifier, self.columns))


def copy(conn: Connection, admin: Connection, rows: int, listen: Listener) -> Taken:
    """Copy the history, `rows` rows of every other table with all they refer to, and sequences' places.

    Nothing of the rows is shown. The target is read in one read-only transaction. Triggers do not fire.
    """
    lacks: list[str] = []
    total = 0
    admin.execute("SET session_replication_role = replica")
    conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        conn.execute(f"SET LOCAL statement_timeout = '{SECONDS_A_TABLE_MAX}s'".encode())
        conn.execute("SET LOCAL datestyle = 'ISO'; SET LOCAL intervalstyle = 'postgres'")
        tables = [
            _Table(schema, name, tuple(columns or ()), *size)
            for schema, name, columns, *size in conn.execute(TABLES)
        ]
        for table in tables[:TABLES_MAX]:
            if table.schema == HISTORY:
                _attempt(conn, admin, table, None, lacks)
            elif rows:
                total += _attempt(conn, admin, table, rows, lacks)
        if rows:
            listen(Event("shadow", f"Sampled {total:,} rows."))
            total += _follow(conn, admin, lacks)
        _place_sequences(conn, admin)
    finally:
        conn.execute("ROLLBACK")
        admin.execute("RESET session_replication_role")
    _refresh(conn, admin)
    return Taken(total, lacks)


def _attempt(conn: Connection, admin: Connection, table: _Table, rows: int | None, lacks: list[str]) -> int:
    if not table.columns:
        return 0
    source = sql.SQL("SELECT {} FROM ONLY {}{}{}").format(
        table.listed,
        table.full,
        sql.SQL("" if rows is None else _thin(table, rows)),  # pyright: ignore[reportArgumentType]
        sql.SQL("" if rows is None else f" LIMIT {rows}"),  # pyright: ignore[reportArgumentType]
    )
    return _pass(conn, admin, table, source, lacks)


def _thin(table: _Table, rows: int) -> str:
    """Read blocks from all over a table that has many; the first rows are often not like the others."""
    if table.pages < PAGES_MIN or table.rows <= 0:
        return ""
    share = 100 * max(SPARE * rows / table.rows, BLOCKS_MIN / table.pages)
    return f" TABLESAMPLE SYSTEM ({share:.6f})" if share < 50 else ""


def _pass(
    conn: Connection, admin: Connection, table: _Table, source: sql.Composable, lacks: list[str]
) -> int:
    """Copy what a query gives into a table; where either side refuses, the table stays as it is."""
    out = sql.SQL("COPY ({}) TO STDOUT").format(source)
    into = sql.SQL("COPY {} ({}) FROM STDIN").format(table.full, table.listed)
    try:
        with conn.transaction(), conn.cursor() as reader, admin.transaction(), admin.cursor() as writer:
            with reader.copy(out) as given, writer.copy(into) as taken:
                for piece in given:
                    taken.write(piece)
            return max(writer.rowcount, 0)
    except psycopg.Error as error:
        if conn.broken or admin.broken:
            raise
        # The code alone: the error's text may hold a row.
        lacks.append(f"The shadow has no rows of {table.schema}.{table.name} [{error.sqlstate}].")
        return 0


def _follow(conn: Connection, admin: Connection, lacks: list[str]) -> int:
    """Fetch the rows that sampled rows refer to, and drop those whose could not be found."""
    found = 0
    links = [_Link(*row) for row in admin.execute(LINKS, prepare=False)]
    for _ in range(ROUNDS_MAX):
        fetched = sum(_fetch(conn, admin, link, lacks) for link in links)
        found += fetched
        if not fetched:
            break
    for _ in range(ROUNDS_MAX):
        if not sum(_cut(admin, link) for link in links):
            break
    return found


def _cut(admin: Connection, link: "_Link") -> int:
    """Let rows whose like were not found refer to nothing, or drop them where they must."""
    if link.free:
        empty = sql.SQL("UPDATE {} AS c SET {} = NULL {}").format(
            sql.Identifier(link.schema, link.name), sql.Identifier(link.free), link.orphans("WHERE {1}")
        )
        try:
            return admin.execute(empty).rowcount
        except psycopg.errors.CheckViolation:
            pass
    return admin.execute(link.orphans("DELETE FROM {0} AS c WHERE {1}")).rowcount


@dataclass(frozen=True, slots=True)
class _Link:
    """A foreign key. free: a column of it that may be NULL."""

    schema: str
    name: str
    columns: Sequence[str]
    to_schema: str
    to_name: str
    to_columns: Sequence[str]
    to_all: Sequence[str]
    free: str | None

    def orphans(self, text: str) -> sql.Composed:
        """Return a statement about the rows that refer to nothing: {0} is the table, {1} tells them."""
        pairs = list(zip(self.columns, self.to_columns, strict=True))
        there = sql.SQL(" AND ").join(
            sql.SQL("p.{} = c.{}").format(sql.Identifier(theirs), sql.Identifier(ours))
            for ours, theirs in pairs
        )
        filled = sql.SQL(" AND ").join(
            sql.SQL("c.{} IS NOT NULL").format(sql.Identifier(o)) for o, _ in pairs
        )
        parent = sql.Identifier(self.to_schema, self.to_name)
        told = sql.SQL("{} AND NOT EXISTS (SELECT FROM {} AS p WHERE {})").format(filled, parent, there)
        return sql.SQL(text).format(sql.Identifier(self.schema, self.name), told)  # pyright: ignore[reportArgumentType]


def _fetch(conn: Connection, admin: Connection, link: _Link, lacks: list[str]) -> int:
    wanted = sql.SQL(", ").join(sql.SQL("c.{}::text").format(sql.Identifier(one)) for one in link.columns)
    keys = admin.execute(
        sql.SQL("SELECT DISTINCT {} {} LIMIT {}").format(
            wanted, link.orphans("FROM {0} AS c WHERE {1}"), FETCHED_AT_ONCE
        )
    ).fetchall()
    if not keys:
        return 0
    table = _Table(link.to_schema, link.to_name, tuple(link.to_all))
    arrays = sql.SQL(", ").join(
        sql.SQL("{}::text[]").format(sql.Literal(list(column))) for column in zip(*keys, strict=True)
    )
    theirs = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(one)) for one in link.to_columns)
    source = sql.SQL("SELECT {} FROM {} WHERE ({}) IN (SELECT * FROM unnest({}))").format(
        table.listed, table.full, theirs, arrays
    )
    return _pass(conn, admin, table, source, lacks)


def _place_sequences(conn: Connection, admin: Connection) -> None:
    """Let sequences go on where they are on the target: rows that migrations add must not collide."""
    rows = conn.execute(
        """SELECT format('%I.%I', schemaname, sequencename), last_value FROM pg_sequences
        WHERE last_value IS NOT NULL"""
    ).fetchall()
    names, values = [name for name, _ in rows], [value for _, value in rows]
    admin.execute(
        """SELECT setval(to_regclass(name), value)
        FROM unnest(%(names)s::text[], %(values)s::bigint[]) AS given (name, value)
        WHERE to_regclass(name) IS NOT NULL""",
        {"names": names, "values": values},
    )


def _refresh(conn: Connection, admin: Connection) -> None:
    """Fill the materialized views that are filled on the target, those that read others after them."""
    rows = conn.execute(
        """SELECT n.nspname::text, c.relname::text
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'm' AND c.relispopulated ORDER BY c.oid"""
    ).fetchall()
    left: list[Any] = [sql.Identifier(*row) for row in rows]
    for _ in range(ROUNDS_MAX):
        failed: list[Any] = []
        for name in left:
            try:
                admin.execute(sql.SQL("REFRESH MATERIALIZED VIEW {}").format(name))
            except psycopg.Error:
                failed.append(name)
        if len(failed) == len(left):
            break
        left = failed


TABLES = """
SELECT n.nspname::text, c.relname::text,
    array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attgenerated = ''), c.reltuples, c.relpages
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind = 'r' AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
    AND d.deptype = 'e')
GROUP BY c.oid, n.nspname, c.relname ORDER BY c.oid
"""
# Of partitions their parents' keys alone.
LINKS = """
SELECT n.nspname::text, c.relname::text,
    (SELECT array_agg(a.attname::text ORDER BY k.place)
     FROM unnest(f.conkey) WITH ORDINALITY AS k (number, place)
     JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.number),
    pn.nspname::text, p.relname::text,
    (SELECT array_agg(a.attname::text ORDER BY k.place)
     FROM unnest(f.confkey) WITH ORDINALITY AS k (number, place)
     JOIN pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = k.number),
    (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
     WHERE a.attrelid = p.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
    (SELECT a.attname::text FROM pg_attribute a
     WHERE a.attrelid = f.conrelid AND a.attnum = ANY (f.conkey) AND NOT a.attnotnull LIMIT 1)
FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class p ON p.oid = f.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
WHERE f.contype = 'f' AND f.conparentid = 0 AND n.nspname <> 'tollbook_migrate' ORDER BY f.oid
"""
