"""Statements that cannot run inside a transaction: what one that broke off leaves behind, and its removal."""

from typing import Any

from pglast import ast
from psycopg import sql

from tollbook.migrate.session import Connection
from tollbook.migrate.statements import Statement

LEFT_MAX = 100
# A concurrent build waits for other sessions under a lock that blocks neither reads nor writes.
CONCURRENT_LOCK_TIMEOUT_SECONDS = 600


def is_concurrent(statement: Statement) -> bool:
    """Whether a statement is one of the CONCURRENTLY kind."""
    return (statement.alone or "").endswith("CONCURRENTLY")


def is_done(conn: Connection, statement: Statement, since: str) -> bool:
    """Whether a statement that was under way when a run was killed has come to its end all the same.

    since: the transaction that noted, just before it, that it begins.
    """
    tree = statement.tree
    if isinstance(tree, ast.IndexStmt) and tree.idxname:
        return _find_index(conn, tree, valid=True) is not None
    if isinstance(tree, ast.IndexStmt):
        return _find_newer(conn, _name(tree.relation), since)
    if isinstance(tree, ast.AlterTableStmt):
        return _find_partition(conn, tree) is None
    if isinstance(tree, ast.CreatedbStmt | ast.DropdbStmt):
        return _find_database(conn, tree.dbname) == isinstance(tree, ast.CreatedbStmt)
    if isinstance(tree, ast.DropStmt):
        return all(_resolve(conn, [part.sval for part in name]) is None for name in tree.objects or ())
    return False


def finish(conn: Connection, statement: Statement) -> bool:
    """Bring a DETACH PARTITION CONCURRENTLY that broke off to its end. Returns whether there was one."""
    tree = statement.tree
    if not isinstance(tree, ast.AlterTableStmt) or not _find_partition(conn, tree):
        return False
    parts: Any = tree
    table, partition = _name(parts.relation), _name(parts.cmds[0].def_.name)
    query = f"ALTER TABLE {table} DETACH PARTITION {partition} FINALIZE"
    conn.execute(query.encode())
    return True


def _find_partition(conn: Connection, tree: Any) -> bool | None:
    """Return whether the statement's partition is half detached; None where it is no partition any more."""
    row = conn.execute(
        """SELECT inhdetachpending FROM pg_inherits
        WHERE inhparent = to_regclass(%(table)s) AND inhrelid = to_regclass(%(partition)s)""",
        {"table": _name(tree.relation), "partition": _name(tree.cmds[0].def_.name)},
    ).fetchone()
    return row[0] if row else None


def _find_database(conn: Connection, name: Any) -> bool:
    query = "SELECT FROM pg_database WHERE datname = %(name)s"
    return conn.execute(query, {"name": name}).fetchone() is not None


def _find_newer(conn: Connection, table: str, since: str) -> bool:
    """Whether the table has got a valid index since the progress was put on record, just before the build.

    The name is PostgreSQL's own choice, so it is known by its age alone.
    """
    row = conn.execute(
        """SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = to_regclass(%(table)s) AND indisvalid
          AND age(xmin) < age(%(since)s::text::xid))""",
        {"table": table, "since": since},
    ).fetchone()
    return bool(row and row[0])


def clear(conn: Connection, statement: Statement) -> list[str]:
    """Drop the invalid indexes that a broken-off build of this statement left. Returns their names."""
    tree = statement.tree
    found: list[str] = []
    if isinstance(tree, ast.IndexStmt) and tree.idxname:
        name = _find_index(conn, tree, valid=False)
        found = [name] if name else []
    elif isinstance(tree, ast.IndexStmt):
        found = _find_left(conn, _name(tree.relation), r"_idx\d*$")
    elif isinstance(tree, ast.ReindexStmt):
        found = _find_left(conn, _name(tree.relation) if tree.relation else None, r"_cc(new|old)\d*$")
    for name in found:
        conn.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.SQL(name)))  # pyright: ignore[reportArgumentType]
    return found


def _name(relation: Any) -> str:
    parts = [part for part in (relation.schemaname, relation.relname) if part]
    return sql.Identifier(*parts).as_string(None)


def _find_index(conn: Connection, tree: Any, *, valid: bool) -> str | None:
    """Return the full name of the statement's index, if it is there, (in)valid, and nobody builds it now."""
    row = conn.execute(
        """SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = to_regclass(%(table)s) AND c.relname = %(name)s AND i.indisvalid = %(valid)s
          AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)""",
        {"table": _name(tree.relation), "name": tree.idxname, "valid": valid},
    ).fetchone()
    return row[0] if row else None


def _find_left(conn: Connection, relation: str | None, ending: str) -> list[str]:
    """Return invalid indexes with names of PostgreSQL's own choosing that nobody builds now."""
    rows = conn.execute(
        """SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE NOT i.indisvalid AND c.relname ~ %(ending)s AND c.relkind = 'i'
          AND (%(relation)s::text IS NULL OR i.indrelid IN (
            SELECT coalesce(x.indrelid, t.oid)
            FROM (SELECT to_regclass(%(relation)s)::oid
                UNION SELECT relid FROM pg_partition_tree(to_regclass(%(relation)s))) AS t (oid)
            LEFT JOIN pg_index x ON x.indexrelid = t.oid))
          AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.relid = i.indrelid)
        LIMIT %(most)s""",
        {"relation": relation, "ending": ending, "most": LEFT_MAX},
    )
    return [row[0] for row in rows]


def _resolve(conn: Connection, parts: list[str]) -> str | None:
    row = conn.execute(
        "SELECT to_regclass(%(name)s)::text", {"name": sql.Identifier(*parts).as_string(None)}
    ).fetchone()
    return row[0] if row else None
