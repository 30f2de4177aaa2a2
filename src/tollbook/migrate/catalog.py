"""The catalog as one list of objects with their definitions, and the difference of two such lists."""

from dataclasses import dataclass

from tollbook.migrate.session import Connection

# Kinds that are parts of a table: listed only where the table itself is neither new nor gone.
PARTS = ("column", "constraint")


@dataclass(frozen=True, slots=True)
class Change:
    """An object gained (before is None), lost (after is None) or changed, with its definitions."""

    kind: str
    name: str
    before: str | None
    after: str | None

    @property
    def what(self) -> str:
        """gained, lost or changed."""
        return "gained" if self.before is None else "lost" if self.after is None else "changed"


Snapshot = dict[tuple[str, str], str]


def snapshot(conn: Connection) -> Snapshot:
    """Return every object's definition by (kind, name), less the system's, the engine's and extensions'."""
    return {(kind, name): definition for kind, name, definition in conn.execute(SNAPSHOT, prepare=False)}


def diff(before: Snapshot, after: Snapshot) -> list[Change]:
    """Return what differs, by kind and name; parts of new or gone tables are left out."""
    changes = [
        Change(*key, before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    whole = {change.name for change in changes if change.kind == "table" and change.what != "changed"}
    return [
        change
        for change in changes
        if change.kind not in PARTS or change.name.rpartition(".")[0] not in whole
    ]


SNAPSHOT = """
WITH spaces AS (
    SELECT oid, quote_ident(nspname) AS name, nspacl FROM pg_namespace
    WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'tollbook_migrate')
), foreigners AS (
    SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
), relations AS (
    SELECT c.*, s.name || '.' || quote_ident(c.relname) AS full_name
    FROM pg_class c JOIN spaces s ON s.oid = c.relnamespace
    WHERE c.relpersistence <> 't'
      AND NOT EXISTS (SELECT FROM foreigners f WHERE f.classid = 'pg_class'::regclass AND f.objid = c.oid)
)
SELECT 'schema', name, coalesce(nspacl::text, '') FROM spaces
WHERE NOT EXISTS (SELECT FROM foreigners f
    WHERE f.classid = 'pg_namespace'::regclass AND f.objid = spaces.oid)
UNION ALL SELECT 'extension', quote_ident(extname), extversion FROM pg_extension
UNION ALL SELECT 'table', full_name,
    concat_ws(' ', CASE relpersistence WHEN 'u' THEN 'unlogged' END, CASE relkind WHEN 'f' THEN 'foreign' END,
        CASE WHEN relkind = 'p' THEN 'partitioned by ' || pg_get_partkeydef(oid) END,
        CASE WHEN relispartition THEN 'partition ' || pg_get_expr(relpartbound, oid) END,
        CASE WHEN relrowsecurity THEN 'row security' END, CASE WHEN relforcerowsecurity THEN 'forced' END,
        relacl::text, reloptions::text, 'owner ' || relowner::regrole::text)
FROM relations WHERE relkind IN ('r', 'p', 'f')
UNION ALL SELECT 'column', r.full_name || '.' || quote_ident(a.attname),
    concat_ws(' ', format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END,
        CASE WHEN d.oid IS NOT NULL THEN
            CASE WHEN a.attgenerated <> '' THEN 'generated ' ELSE 'default ' END
            || pg_get_expr(d.adbin, d.adrelid) END,
        CASE WHEN a.attidentity <> '' THEN 'identity ' || a.attidentity::text END, a.attacl::text)
FROM relations r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE r.relkind IN ('r', 'p', 'f')
UNION ALL SELECT CASE relkind WHEN 'v' THEN 'view' ELSE 'materialized view' END, full_name,
    concat_ws(' ', pg_get_viewdef(oid), relacl::text, 'owner ' || relowner::regrole::text)
FROM relations WHERE relkind IN ('v', 'm')
UNION ALL SELECT 'index', full_name,
    pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid THEN '' ELSE ' (invalid)' END
FROM relations r JOIN pg_index i ON i.indexrelid = r.oid
WHERE NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = r.oid AND k.contype IN ('p', 'u', 'x'))
UNION ALL SELECT 'constraint', r.full_name || '.' || quote_ident(k.conname),
    pg_get_constraintdef(k.oid)
FROM relations r JOIN pg_constraint k ON k.conrelid = r.oid WHERE k.contype IN ('p', 'u', 'f', 'c', 'x')
UNION ALL SELECT 'sequence', r.full_name,
    format('as %s start %s increment %s range %s to %s%s', q.seqtypid::regtype, q.seqstart, q.seqincrement,
        q.seqmin, q.seqmax, CASE WHEN q.seqcycle THEN ' cycle' ELSE '' END)
FROM relations r JOIN pg_sequence q ON q.seqrelid = r.oid
WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = r.oid AND d.classid = 'pg_class'::regclass
    AND d.deptype = 'i')
UNION ALL SELECT 'function',
    format('%s.%I(%s)', s.name, p.proname, pg_get_function_identity_arguments(p.oid)),
    CASE WHEN p.prokind = 'a' THEN 'aggregate' ELSE pg_get_functiondef(p.oid) END
    || coalesce(p.proacl::text, '')
FROM pg_proc p JOIN spaces s ON s.oid = p.pronamespace
WHERE NOT EXISTS (SELECT FROM foreigners f WHERE f.classid = 'pg_proc'::regclass AND f.objid = p.oid)
UNION ALL SELECT 'trigger', r.full_name || '.' || quote_ident(t.tgname), pg_get_triggerdef(t.oid)
    || CASE t.tgenabled WHEN 'O' THEN '' WHEN 'D' THEN ' (disabled)' ELSE ' (' || t.tgenabled::text || ')' END
FROM relations r JOIN pg_trigger t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal
UNION ALL SELECT 'policy', r.full_name || '.' || quote_ident(p.polname),
    concat_ws(' ', p.polcmd::text, CASE WHEN p.polpermissive THEN 'permissive' ELSE 'restrictive' END,
        p.polroles::regrole[]::text, pg_get_expr(p.polqual, p.polrelid),
        pg_get_expr(p.polwithcheck, p.polrelid))
FROM relations r JOIN pg_policy p ON p.polrelid = r.oid
UNION ALL SELECT 'type', s.name || '.' || quote_ident(t.typname), CASE t.typtype
    WHEN 'e' THEN 'enum ' || (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder)
        FROM pg_enum WHERE enumtypid = t.oid)
    WHEN 'd' THEN concat_ws(' ', 'domain', format_type(t.typbasetype, t.typtypmod), t.typdefault,
        (SELECT string_agg(pg_get_constraintdef(k.oid), ' ' ORDER BY k.conname) FROM pg_constraint k
         WHERE k.contypid = t.oid))
    WHEN 'c' THEN 'composite ' || coalesce((SELECT string_agg(quote_ident(attname) || ' '
        || format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped), '')
    ELSE 'type ' || t.typtype::text END
FROM pg_type t JOIN spaces s ON s.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE (t.typtype IN ('e', 'd', 'r') OR (t.typtype = 'c' AND c.relkind = 'c')
    OR (t.typtype = 'b' AND t.typcategory <> 'A'))
  AND NOT EXISTS (SELECT FROM foreigners f WHERE f.classid = 'pg_type'::regclass AND f.objid = t.oid)
"""
