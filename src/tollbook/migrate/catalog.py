"""What the database holds: promised objects looked up by name, and snapshots of everything to compare."""

from __future__ import annotations

import json
from dataclasses import dataclass

from psycopg.rows import class_row

from tollbook.migrate.promises import RELATIONS, Promise
from tollbook.migrate.session import Connection, Session

OBJECTS_MAX = 200_000  # a snapshot of a larger database is refused by name, not by running out of memory


@dataclass(frozen=True, slots=True)
class Found:
    """An object that is there. `number`: the promise's position. `usable`: an index valid and ready."""

    number: int
    kind: str
    schema: str | None
    name: str
    usable: bool


def find(connection: Connection, promises: list[Promise]) -> dict[int, Found]:
    """Look every promise up, by schema or else by the session's search path; keyed by position."""
    rows: dict[str, list[dict[str, object]]] = {}
    for number, promise in enumerate(promises):
        group = "relation" if promise.kind in RELATIONS else promise.kind
        group = "index without a name" if promise.name is None else group
        rows.setdefault(group, []).append({**promise.row(), "number": number})
    found: list[Found] = []
    for group, wanted in rows.items():
        found += LOOKUPS[group](connection, json.dumps(wanted))
    return {one.number: one for one in found}


def _relations(connection: Connection, wanted: str) -> list[Found]:
    with connection.cursor(row_factory=class_row(Found)) as cursor:
        return cursor.execute(
            """
            SELECT p.number, n.nspname AS schema, c.relname AS name,
                   CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                        WHEN 'i' THEN 'index' WHEN 'I' THEN 'index' WHEN 'S' THEN 'sequence'
                        WHEN 'c' THEN 'type' ELSE 'table' END AS kind,
                   coalesce(i.indisvalid AND i.indisready, true) AS usable
              FROM jsonb_to_recordset(%(wanted)s::jsonb) AS p (number int, schema name, name name)
              JOIN pg_class c ON c.relname = p.name
              JOIN pg_namespace n ON n.oid = c.relnamespace
              LEFT JOIN pg_index i ON i.indexrelid = c.oid
             WHERE CASE WHEN p.schema IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = p.schema END
            """,
            {"wanted": wanted},
        ).fetchall()


def _nameless_indexes(connection: Connection, wanted: str) -> list[Found]:
    """Find indexes by table and keys: the newest that fit, one for each of several promises alike."""
    with connection.cursor(row_factory=class_row(Found)) as cursor:
        return cursor.execute(
            """
            WITH wanted AS (
                SELECT p.number, p.schema, p."table", p.columns,
                       row_number() OVER (PARTITION BY p.schema, p."table", p.columns ORDER BY number DESC)
                  FROM jsonb_to_recordset(%(wanted)s::jsonb)
                       AS p (number int, schema name, "table" name, columns jsonb)
            ), present AS (
                SELECT w.number, n.nspname, x.relname, i.indisvalid AND i.indisready AS usable, w.row_number,
                       row_number() OVER (PARTITION BY w.number ORDER BY x.oid DESC) AS nth
                  FROM wanted w
                  JOIN pg_class c ON c.relname = w."table"
                  JOIN pg_namespace n ON n.oid = c.relnamespace
                  JOIN pg_index i ON i.indrelid = c.oid AND i.indnkeyatts = jsonb_array_length(w.columns)
                  JOIN pg_class x ON x.oid = i.indexrelid
                 WHERE CASE WHEN w.schema IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = w.schema END
                   AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.oid)
                   AND NOT EXISTS (
                       SELECT FROM jsonb_array_elements_text(w.columns) WITH ORDINALITY AS k (column_name, place)
                         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[k.place - 1]
                        WHERE coalesce(a.attname, '') <> k.column_name)
            )
            SELECT number, 'index' AS kind, nspname AS schema, relname AS name, usable
              FROM present WHERE nth = row_number
            """,
            {"wanted": wanted},
        ).fetchall()


def _routines(connection: Connection, wanted: str) -> list[Found]:
    with connection.cursor(row_factory=class_row(Found)) as cursor:
        return cursor.execute(
            """
            SELECT p.number, CASE f.prokind WHEN 'p' THEN 'procedure' ELSE 'function' END AS kind,
                   n.nspname AS schema, f.proname AS name, true AS usable
              FROM jsonb_to_recordset(%(wanted)s::jsonb)
                   AS p (number int, schema name, name name, arguments jsonb)
              JOIN pg_proc f ON f.proname = p.name
              JOIN pg_namespace n ON n.oid = f.pronamespace
             WHERE CASE WHEN p.schema IS NULL THEN pg_function_is_visible(f.oid) ELSE n.nspname = p.schema END
               AND f.pronargs = jsonb_array_length(p.arguments)
               AND NOT EXISTS (
                   SELECT FROM jsonb_array_elements_text(p.arguments) WITH ORDINALITY AS a (type_name, place)
                    WHERE to_regtype(a.type_name) <> f.proargtypes[a.place - 1])
            """,
            {"wanted": wanted},
        ).fetchall()


def _types(connection: Connection, wanted: str) -> list[Found]:
    with connection.cursor(row_factory=class_row(Found)) as cursor:
        return cursor.execute(
            """
            SELECT p.number, 'type' AS kind, n.nspname AS schema, t.typname AS name, t.typisdefined AS usable
              FROM jsonb_to_recordset(%(wanted)s::jsonb) AS p (number int, schema name, name name)
              JOIN pg_type t ON t.typname = p.name
              JOIN pg_namespace n ON n.oid = t.typnamespace
             WHERE CASE WHEN p.schema IS NULL THEN pg_type_is_visible(t.oid) ELSE n.nspname = p.schema END
            """,
            {"wanted": wanted},
        ).fetchall()


def _triggers(connection: Connection, wanted: str) -> list[Found]:
    with connection.cursor(row_factory=class_row(Found)) as cursor:
        return cursor.execute(
            """
            SELECT p.number, 'trigger' AS kind, n.nspname AS schema, t.tgname AS name, true AS usable
              FROM jsonb_to_recordset(%(wanted)s::jsonb)
                   AS p (number int, schema name, name name, "table" name)
              JOIN pg_class c ON c.relname = p."table"
              JOIN pg_namespace n ON n.oid = c.relnamespace
              JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = p.name
             WHERE CASE WHEN p.schema IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = p.schema END
            """,
            {"wanted": wanted},
        ).fetchall()


def _schemas(connection: Connection, wanted: str) -> list[Found]:
    with connection.cursor(row_factory=class_row(Found)) as cursor:
        return cursor.execute(
            """
            SELECT p.number, 'schema' AS kind, NULL AS schema, n.nspname AS name, true AS usable
              FROM jsonb_to_recordset(%(wanted)s::jsonb) AS p (number int, name name)
              JOIN pg_namespace n ON n.nspname = p.name
            """,
            {"wanted": wanted},
        ).fetchall()


def _extensions(connection: Connection, wanted: str) -> list[Found]:
    with connection.cursor(row_factory=class_row(Found)) as cursor:
        return cursor.execute(
            """
            SELECT p.number, 'extension' AS kind, NULL AS schema, e.extname AS name, true AS usable
              FROM jsonb_to_recordset(%(wanted)s::jsonb) AS p (number int, name name)
              JOIN pg_extension e ON e.extname = p.name
            """,
            {"wanted": wanted},
        ).fetchall()


LOOKUPS = {
    "relation": _relations,
    "index without a name": _nameless_indexes,
    "function": _routines,
    "procedure": _routines,
    "type": _types,
    "trigger": _triggers,
    "schema": _schemas,
    "extension": _extensions,
}


@dataclass(frozen=True, slots=True)
class Change:
    """One object the catalog gained, lost or changed. `how`: gained, lost or changed."""

    how: str
    kind: str
    name: str


Snapshot = dict[tuple[str, str], str]


def compare(before: Snapshot, after: Snapshot) -> list[Change]:
    """Return what differs, by kind and name; the columns of a new or dropped table are not told apart."""
    changes = [
        Change("gained" if key not in before else "lost" if key not in after else "changed", *key)
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    whole = {(change.how, change.name) for change in changes if change.kind == "table"}
    return [c for c in changes if c.kind != "column" or (c.how, c.name.rpartition(".")[0]) not in whole]


def snapshot(session: Session) -> Snapshot:
    """Return every object of the user's schemas with its definition. Extensions' own objects are left out."""
    session.command(
        "SET search_path = pg_catalog"
    )  # so that definitions come out the same whatever ran before
    rows = session.connection.execute(
        """
        WITH spaces AS (
            SELECT oid, nspname FROM pg_namespace
             WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'tollbook_migrate')
        ), ours AS (
            SELECT objid, classid FROM pg_depend WHERE deptype = 'e'
        ), relations AS (
            SELECT c.*, format('%%I.%%I', s.nspname, c.relname) AS path FROM pg_class c JOIN spaces s ON s.oid = c.relnamespace
             WHERE NOT EXISTS (SELECT FROM ours o WHERE o.objid = c.oid AND o.classid = 'pg_class'::regclass)
        )
        SELECT 'schema', format('%%I', nspname), '' FROM spaces
        UNION ALL
        SELECT 'extension', extname, extversion FROM pg_extension
        UNION ALL
        SELECT CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence'
                    ELSE 'table' END, path,
               concat_ws(' ', relkind, relpersistence, reloptions::text, relrowsecurity, relacl::text,
                         pg_get_userbyid(relowner), pg_get_partkeydef(oid), pg_get_expr(relpartbound, oid),
                         CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(oid) END,
                         CASE WHEN relkind = 'S' THEN (SELECT concat_ws(' ', seqtypid::regtype, seqstart, seqincrement)
                                                         FROM pg_sequence WHERE seqrelid = relations.oid) END)
          FROM relations WHERE relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
        UNION ALL
        SELECT 'index', path, pg_get_indexdef(oid) FROM relations WHERE relkind IN ('i', 'I')
        UNION ALL
        SELECT 'column', format('%%s.%%I', r.path, a.attname),
               concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
                         pg_get_expr(d.adbin, d.adrelid))
          FROM relations r
          JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
          LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
         WHERE r.relkind IN ('r', 'p', 'f')
        UNION ALL
        SELECT 'constraint', format('%%s.%%I', coalesce(r.path, format_type(k.contypid, NULL)), k.conname),
               pg_get_constraintdef(k.oid)
          FROM pg_constraint k JOIN spaces s ON s.oid = k.connamespace LEFT JOIN relations r ON r.oid = k.conrelid
         WHERE k.contype <> 'n'
        UNION ALL
        SELECT 'trigger', format('%%s.%%I', r.path, t.tgname), pg_get_triggerdef(t.oid) || t.tgenabled
          FROM pg_trigger t JOIN relations r ON r.oid = t.tgrelid WHERE NOT t.tgisinternal
        UNION ALL
        SELECT CASE f.prokind WHEN 'p' THEN 'procedure' ELSE 'function' END,
               format('%%I.%%I(%%s)', s.nspname, f.proname, pg_get_function_identity_arguments(f.oid)),
               CASE WHEN f.prokind <> 'a' THEN pg_get_functiondef(f.oid) ELSE '' END || coalesce(f.proacl::text, '')
          FROM pg_proc f JOIN spaces s ON s.oid = f.pronamespace
         WHERE NOT EXISTS (SELECT FROM ours o WHERE o.objid = f.oid AND o.classid = 'pg_proc'::regclass)
        UNION ALL
        SELECT 'type', format('%%I.%%I', s.nspname, t.typname),
               concat_ws(' ', t.typtype, format_type(t.typbasetype, t.typtypmod), t.typnotnull, t.typdefault,
                         (SELECT string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder)
                            FROM pg_enum e WHERE e.enumtypid = t.oid),
                         (SELECT string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod)), ','
                                            ORDER BY a.attnum)
                            FROM pg_attribute a WHERE a.attrelid = t.typrelid AND NOT a.attisdropped))
          FROM pg_type t JOIN spaces s ON s.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
         WHERE (t.typtype IN ('e', 'd', 'r') OR c.relkind = 'c')
           AND NOT EXISTS (SELECT FROM ours o WHERE o.objid = t.oid AND o.classid = 'pg_type'::regclass)
         LIMIT %(objects_max)s
        """,
        {"objects_max": OBJECTS_MAX},
    ).fetchall()
    session.command("RESET search_path")
    return {(str(kind), str(name)): str(definition) for kind, name, definition in rows}
