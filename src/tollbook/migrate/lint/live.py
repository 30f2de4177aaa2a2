"""A database's schema as statements that would make it: so the lint knows what no file says."""

import hashlib
from pathlib import Path

from pglast import parse_sql
from pglast.parser import ParseError

from tollbook.migrate.files import Migration, Script
from tollbook.migrate.session import Connection

NAME = "the database"


def read(conn: Connection) -> Migration:
    """Return the schema as a migration that is applied already: tables, keys, checks, indexes, signatures."""
    rows = conn.execute(
        """WITH own AS (
            SELECT oid, nspname FROM pg_namespace
            WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'tollbook_migrate')
        ), part AS (
            SELECT objid FROM pg_depend WHERE deptype = 'e'
        ), relation AS (
            SELECT c.oid, c.relkind, c.relrowsecurity, format('%%I.%%I', n.nspname, c.relname) AS name,
                (SELECT string_agg(format('%%I %%s%%s', attname, format_type(atttypid, atttypmod),
                    CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END), ', ' ORDER BY attnum)
                FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns,
                (SELECT string_agg(format('%%I', attname), ', ' ORDER BY attnum)
                FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS names,
                (SELECT string_agg(format('CONSTRAINT %%I %%s', conname, pg_get_constraintdef(oid)), ', ')
                FROM pg_constraint WHERE conrelid = c.oid AND contype IN ('c', 'f', 'p', 'u', 'x')) AS rules
            FROM pg_class c JOIN own n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND c.oid NOT IN (SELECT objid FROM part)
        )
        SELECT 1, format('CREATE SCHEMA %%I', nspname) FROM own
        UNION ALL SELECT 2, format('CREATE TYPE %%I.%%I AS ENUM (%%s)', n.nspname, t.typname,
            (SELECT string_agg(quote_literal(enumlabel), ', ') FROM pg_enum WHERE enumtypid = t.oid))
            FROM pg_type t JOIN own n ON n.oid = t.typnamespace WHERE t.typtype = 'e'
        UNION ALL SELECT 2, format('CREATE DOMAIN %%I.%%I AS %%s %%s', n.nspname, t.typname,
            format_type(t.typbasetype, t.typtypmod), CASE WHEN t.typnotnull OR EXISTS (
                SELECT FROM pg_constraint WHERE contypid = t.oid) THEN 'CHECK (true)' ELSE '' END)
            FROM pg_type t JOIN own n ON n.oid = t.typnamespace WHERE t.typtype = 'd'
        UNION ALL SELECT 3, CASE relkind
            WHEN 'S' THEN format('CREATE SEQUENCE %%s', name)
            WHEN 'v' THEN format('CREATE VIEW %%s (%%s) AS SELECT', name, names)
            WHEN 'm' THEN format('CREATE MATERIALIZED VIEW %%s AS SELECT', name)
            ELSE format('CREATE TABLE %%s (%%s)%%s', name, concat_ws(', ', columns, rules),
                CASE relkind WHEN 'p' THEN ' PARTITION BY ' || pg_get_partkeydef(oid) ELSE '' END)
            END FROM relation
        UNION ALL SELECT 4, pg_get_indexdef(i.indexrelid)
            FROM pg_index i JOIN relation r ON r.oid = i.indrelid
            WHERE NOT EXISTS (
                SELECT FROM pg_constraint WHERE conindid = i.indexrelid AND contype IN ('p', 'u', 'x'))
        UNION ALL SELECT 4, pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN relation r ON r.oid = t.tgrelid
            WHERE NOT t.tgisinternal
        UNION ALL SELECT 4, format('ALTER TABLE %%s ENABLE ROW LEVEL SECURITY', name) FROM relation
            WHERE relrowsecurity
        UNION ALL SELECT 4, format('CREATE POLICY %%I ON %%s', p.polname, r.name)
            FROM pg_policy p JOIN relation r ON r.oid = p.polrelid
        UNION ALL SELECT 5, pg_get_functiondef(p.oid) FROM pg_proc p JOIN own n ON n.oid = p.pronamespace
            WHERE p.prokind IN ('f', 'p') AND p.oid NOT IN (SELECT objid FROM part)
        ORDER BY 1""",
        {},
    ).fetchall()
    # A newer server may write what this grammar does not know: that is then not known, and the rest is.
    text = ";\n".join(str(statement) for _, statement in rows if _parses(str(statement)))
    return Migration(NAME, "0", NAME, Script(Path(NAME), text, hashlib.sha256(text.encode()).hexdigest()))


def _parses(statement: str) -> bool:
    try:
        parse_sql(statement)
    except ParseError:
        return False
    return True
