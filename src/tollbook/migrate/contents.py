"""A database's contents at one moment: the moment is held for pg_dump, and counted meanwhile."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from tollbook.migrate.manifest import Contents
from tollbook.migrate.pg_tools import Target

LOCKED_AT_ONCE = 500  # tables in one LOCK
Connection = psycopg.Connection[tuple[object, ...]]

# Nothing of the system's, of a session's own, or of an extension's: the dump has none of these either.
# The SQL below is put together from constants of this module alone, and names that format(%I) has quoted.
_OURS = """
    n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND NOT EXISTS (SELECT FROM pg_depend AS e
                    WHERE e.classid = '{catalog}'::regclass AND e.objid = {oid} AND e.deptype = 'e')
"""
TABLES = f"""
SELECT format('%I.%I', n.nspname, c.relname), c.relkind = 'r'
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
  AND {_OURS.format(catalog="pg_class", oid="c.oid")}
ORDER BY 1
"""  # noqa: S608
# Clones made for partitions count as part of the original; NOT NULL became a constraint in version 18.
KINDS = f"""
SELECT kind, count(*) FROM (
    SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence'
                          WHEN 'f' THEN 'foreign table' WHEN 'i' THEN 'index' WHEN 'I' THEN 'index'
                          ELSE 'table' END AS kind
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'i', 'I') AND c.relpersistence <> 't'
      AND {_OURS.format(catalog="pg_class", oid="c.oid")}
      AND NOT EXISTS (SELECT FROM pg_index AS i JOIN pg_depend AS e ON e.objid = i.indrelid
                      WHERE i.indexrelid = c.oid AND e.classid = 'pg_class'::regclass AND e.deptype = 'e')
    UNION ALL SELECT 'function'
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE {_OURS.format(catalog="pg_proc", oid="p.oid")}
    UNION ALL SELECT 'type'
    FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
    LEFT JOIN pg_class AS c ON c.oid = t.typrelid
    WHERE (t.typtype IN ('e', 'd', 'r') OR c.relkind = 'c') AND {_OURS.format(catalog="pg_type", oid="t.oid")}
    UNION ALL SELECT 'trigger'
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND {_OURS.format(catalog="pg_class", oid="c.oid")}
    UNION ALL SELECT 'constraint'
    FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE k.contype IN ('p', 'u', 'f', 'c', 'x') AND k.conparentid = 0
      AND {_OURS.format(catalog="pg_class", oid="c.oid")}
    UNION ALL SELECT 'policy'
    FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE {_OURS.format(catalog="pg_class", oid="c.oid")}
    UNION ALL SELECT 'schema'
    FROM pg_namespace AS n
    WHERE n.nspname <> 'public' AND {_OURS.format(catalog="pg_namespace", oid="n.oid")}
    UNION ALL SELECT 'extension' FROM pg_extension
    UNION ALL SELECT 'event trigger' FROM pg_event_trigger
    UNION ALL SELECT 'large object' FROM pg_largeobject_metadata
) AS found
GROUP BY kind ORDER BY kind
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment of a database, held by an open transaction; `snapshot` is its name for pg_dump."""

    connection: Connection
    snapshot: str
    system: str
    server: str
    database_bytes: int

    def count(self) -> Contents:
        """Count all of it, as it was at this moment. Raises psycopg.Error."""
        return count(self.connection)


@contextmanager
def held(target: Target) -> Generator[Moment]:
    """Hold a moment and the tables in it: nobody can drop or empty them until the end. Raises psycopg.Error.

    Waits, like pg_dump, for who is changing one just now.
    """
    with target.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        _prepare(connection)
        row = connection.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        tables = [str(name) for name, _ in connection.execute(TABLES)]
        for start in range(0, len(tables), LOCKED_AT_ONCE):
            names = ", ".join(f"ONLY {name}" for name in tables[start : start + LOCKED_AT_ONCE])
            connection.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE".encode())
        size = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert size is not None
        server = connection.info.parameter_status("server_version") or ""
        yield Moment(connection, str(row[0]), _identify(connection), server.split()[0], int(str(size[0])))


def _identify(connection: Connection) -> str:
    """Return the cluster's own number; "unknown" where that is closed to us."""
    may = connection.execute("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')").fetchone()
    if not may or not may[0]:
        return "unknown"
    row = connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
    assert row is not None
    return str(row[0])


def _prepare(connection: Connection) -> None:
    """No time limit ends the transaction while pg_dump works, and no policy hides a row from the count."""
    names = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
    if connection.info.server_version >= 170000:
        names.append("transaction_timeout")
    for name in names:
        connection.execute(f"SET LOCAL {name} = 0".encode())
    connection.execute("SET LOCAL row_security = off")


def count(connection: Connection) -> Contents:
    """Count rows by table and objects by kind, and name the migrations in force."""
    leaves = [str(name) for name, has_rows in connection.execute(TABLES).fetchall() if has_rows]
    tables = {name: _count_rows(connection, name) for name in leaves}
    objects = {str(kind): int(str(number)) for kind, number in connection.execute(KINDS)}
    return Contents(tables, objects, tuple(_read_history(connection, leaves)))


def _count_rows(connection: Connection, table: str) -> int:
    query = f"SELECT count(*) FROM ONLY {table}"  # noqa: S608  (the server quoted the name)
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(str(row[0]))


def _read_history(connection: Connection, tables: Iterable[str]) -> list[str]:
    if "tollbook_migrate.history" not in tables:
        return []
    rows = connection.execute(
        """SELECT folder || '/' || version FROM tollbook_migrate.history
        WHERE reverted_at IS NULL ORDER BY id"""
    )
    return [str(name) for (name,) in rows]
