"""The catalog asked in one query: every object with its definition, and the SQL that makes and drops it."""

from typing import LiteralString

from tollbook.migrate.surroundings import AGGREGATES, BESIDE, COMMENTS, OUTSIDE, RIGHTS, VIEWS

# What makes PostgreSQL print the same text for the same definition, wherever and by whomever it is asked.
PLAIN: LiteralString = """SET LOCAL search_path = ''; SET LOCAL timezone = 'UTC'; SET LOCAL datestyle =
    'ISO, YMD';
SET LOCAL intervalstyle = 'postgres'; SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex';
SET LOCAL quote_all_identifiers = off; SET LOCAL enable_seqscan = on"""

COMMON: LiteralString = (
    """
WITH foreigners AS MATERIALIZED (
    SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
), spaces AS MATERIALIZED (
    SELECT n.oid, quote_ident(nspname) AS name, nspacl, nspowner FROM pg_namespace n
    WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'tollbook_migrate')
      AND NOT EXISTS (SELECT FROM foreigners f WHERE f.classid = 'pg_namespace'::regclass AND f.objid = n.oid)
), relations AS MATERIALIZED (
    SELECT c.*, s.name || '.' || quote_ident(c.relname) AS full_name
    FROM pg_class c JOIN spaces s ON s.oid = c.relnamespace
    WHERE c.relpersistence <> 't' AND c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S', 'i', 'I', 'c')
      AND NOT EXISTS (SELECT FROM foreigners f WHERE f.classid = 'pg_class'::regclass AND f.objid = c.oid)
), columns AS MATERIALIZED (
    SELECT a.*, r.full_name, quote_ident(a.attname) AS name, r.relkind,
        format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attcollation <> t.typcollation
            AND a.attcollation <> 0 THEN ' COLLATE ' || a.attcollation::regcollation ELSE '' END AS type,
        pg_get_expr(d.adbin, d.adrelid) AS expression, t.typstorage
    FROM relations r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE r.relkind IN ('r', 'p', 'f', 'c')
), identities AS MATERIALIZED (
    SELECT d.refobjid AS attrelid, d.refobjsubid::smallint AS attnum, r.full_name AS sequence, r.relname,
        nullif(concat_ws(' ', 'START ' || nullif(q.seqstart, CASE WHEN up THEN q.seqmin ELSE q.seqmax END),
        'INCREMENT ' || nullif(q.seqincrement, 1),
        'MINVALUE ' || nullif(q.seqmin, CASE WHEN up THEN 1 ELSE -highest - 1 END),
        'MAXVALUE ' || nullif(q.seqmax, CASE WHEN up THEN highest ELSE -1 END),
        'CACHE ' || nullif(q.seqcache, 1), CASE WHEN q.seqcycle THEN 'CYCLE' END), '') AS options,
        format('SET START %s SET INCREMENT %s SET MINVALUE %s SET MAXVALUE %s SET CACHE %s SET %s',
        q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcache,
        CASE WHEN q.seqcycle THEN '' ELSE 'NO ' END || 'CYCLE') AS change,
        ARRAY[q.seqstart, q.seqincrement] AS numbered
    FROM pg_sequence q JOIN relations r ON r.oid = q.seqrelid
    JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.deptype = 'i'
        AND d.refclassid = 'pg_class'::regclass,
    LATERAL (SELECT q.seqincrement > 0 AS up, CASE q.seqtypid WHEN 'smallint'::regtype THEN 32767
        WHEN 'integer'::regtype THEN 2147483647 ELSE 9223372036854775807 END AS highest) x
), routines AS MATERIALIZED (
    SELECT p.*, format('%s.%I(%s)', s.name, p.proname, pg_get_function_identity_arguments(p.oid)) AS
        full_name,
        format('%s.%I(%s)', s.name, p.proname, oidvectortypes(p.proargtypes)) AS called
    FROM pg_proc p JOIN spaces s ON s.oid = p.pronamespace
    WHERE NOT EXISTS (SELECT FROM foreigners f WHERE f.classid = 'pg_proc'::regclass AND f.objid = p.oid)
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
        AND d.deptype = 'i')
), types AS MATERIALIZED (
    SELECT t.*, s.name || '.' || quote_ident(t.typname) AS full_name
    FROM pg_type t JOIN spaces s ON s.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
    WHERE (t.typtype IN ('e', 'd', 'r') OR (t.typtype = 'c' AND c.relkind = 'c')
        OR (t.typtype = 'b' AND t.typcategory <> 'A'))
      AND NOT EXISTS (SELECT FROM foreigners f WHERE f.classid = 'pg_type'::regclass AND f.objid = t.oid)
), rights AS MATERIALIZED (
    SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS word, full_name AS of, full_name AS
        parent,
        relowner AS owner, coalesce(relacl, '{}') AS acl, NULL::aclitem[] AS usual, oid, 0 AS sub,
            ''::text AS part
    FROM relations WHERE relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND relacl IS NOT NULL
    UNION ALL SELECT 'TABLE', c.full_name, c.full_name, r.relowner, c.attacl, NULL, r.oid, c.attnum,
        ' (' || c.name || ')'
    FROM columns c JOIN relations r ON r.oid = c.attrelid WHERE c.attacl IS NOT NULL
    UNION ALL SELECT 'ROUTINE', called, full_name, proowner, proacl, acldefault('f', proowner), oid, 0, ''
    FROM routines WHERE proacl IS NOT NULL
    UNION ALL SELECT 'SCHEMA', name, name, nspowner, nspacl, NULL, oid, 0, '' FROM spaces
    WHERE nspacl IS NOT NULL
    UNION ALL SELECT 'TYPE', full_name, full_name, typowner, typacl, acldefault('T', typowner), oid, 0, ''
    FROM types WHERE typacl IS NOT NULL
"""  # noqa: S608 -- nobody's input is in it
    + RIGHTS
    + """
), defaults AS MATERIALIZED (
    SELECT d.*, concat_ws(' ', CASE WHEN x.others THEN x.role END, s.name, lower(x.word)) AS scope, x.word,
        x.others, s.name AS schema, concat_ws(' ', CASE WHEN x.others THEN 'FOR ROLE ' || x.role END,
        'IN SCHEMA ' || s.name) AS for_whom,
        CASE WHEN s.oid IS NULL THEN acldefault(CASE defaclobjtype WHEN 'S' THEN 's' ELSE defaclobjtype END,
            defaclrole) END AS usual
    FROM pg_default_acl d LEFT JOIN spaces s ON s.oid = d.defaclnamespace,
    -- Those of the role that owns the engine's own tables are the files', by whatever name it goes here.
    LATERAL (SELECT defaclrole::regrole::text AS role, defaclrole::regrole::text <> coalesce((SELECT
            nspowner::regrole::text FROM pg_namespace WHERE nspname = 'tollbook_migrate'),
            quote_ident(current_user)) AS others,
        CASE defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'ROUTINES' WHEN 'T'
            THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END AS word) x
    WHERE s.oid IS NOT NULL OR d.defaclnamespace = 0
)
"""
    + OUTSIDE
    + AGGREGATES
)

OBJECTS: LiteralString = (
    COMMON  # noqa: S608 -- nobody's input is in it
    + """
SELECT kind, name, definition, make, dropped, parent, class, oid, sub, facts, owner FROM (
SELECT 'schema' AS kind, name, '' AS definition, 'CREATE SCHEMA ' || name AS make, 'DROP SCHEMA ' || name
    AS dropped, NULL AS parent, 'pg_namespace' AS class, oid, 0 AS sub, NULL::jsonb AS facts,
    nspowner::regrole::text AS owner
FROM spaces
UNION ALL SELECT 'extension', quote_ident(extname), '', format('CREATE EXTENSION IF NOT EXISTS %I SCHEMA %s',
    extname, extnamespace::regnamespace), format('DROP EXTENSION %I', extname), NULL, 'pg_extension', oid, 0,
    NULL, NULL FROM pg_extension
UNION ALL SELECT 'table', full_name,
    concat_ws(' ', CASE relpersistence WHEN 'u' THEN 'unlogged' END, 'foreign on ' || e.server || coalesce(
            e.shown, ''),
        CASE WHEN relkind = 'p' THEN 'partitioned by ' || pg_get_partkeydef(oid) END,
        CASE WHEN relispartition THEN 'partition of ' || p.parents || ' ' || pg_get_expr(relpartbound, oid)
            WHEN p.parents IS NOT NULL THEN 'inherits ' || p.parents END,
        'of ' || nullif(reloftype, 0)::regtype, CASE WHEN relrowsecurity THEN 'row security' END,
        CASE WHEN relforcerowsecurity THEN 'forced' END,
        CASE relreplident WHEN 'f' THEN 'replica identity full' WHEN 'n' THEN 'replica identity nothing'
            WHEN 'i' THEN 'replica identity ' || coalesce('by ' || x.columns, 'by an index that is gone') END,
        'with ' || array_to_string(reloptions, ', ')),
    NULL, format('DROP %s %s', CASE relkind WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, full_name), NULL,
    'pg_class', oid, 0,
    jsonb_build_object('kind', relkind, 'persistence', relpersistence, 'rows', relrowsecurity, 'forced',
        relforcerowsecurity, 'replica', relreplident, 'options', coalesce(to_jsonb(reloptions), '[]'),
        'key', pg_get_partkeydef(oid), 'bound', CASE WHEN relispartition THEN pg_get_expr(relpartbound,
            oid) END,
        'parents', p.parents, 'replica_by', x.columns, 'replica_index', x.name, 'replica_of', x.of,
        'server', e.server, 'outside', e.options, 'given', e.given, 'of_type', nullif(reloftype, 0)::regtype),
    relowner::regrole::text
FROM relations LEFT JOIN outside e ON (e.of_class, e.of_oid) = ('pg_class', relations.oid)
LEFT JOIN LATERAL (SELECT string_agg(inhparent::regclass::text, ', ' ORDER BY inhseqno) AS
    parents
    FROM pg_inherits WHERE inhrelid = relations.oid) p ON true
LEFT JOIN LATERAL (SELECT quote_ident(o.relname) AS name, coalesce(relations.full_name || '.' ||
        quote_ident(k.conname), o.full_name) AS of,
        (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY n)
        FROM unnest(i.indkey) WITH ORDINALITY u (num, n) JOIN pg_attribute a ON a.attrelid = i.indrelid
        AND a.attnum = u.num WHERE n <= i.indnkeyatts) AS columns
    FROM pg_index i JOIN relations o ON o.oid = i.indexrelid LEFT JOIN pg_constraint k ON k.conindid = o.oid
        AND k.contype IN ('p', 'u') WHERE i.indrelid = relations.oid AND i.indisreplident
        AND relations.relreplident = 'i') x ON true
WHERE relkind IN ('r', 'p', 'f')
UNION ALL SELECT 'column', full_name || '.' || name,
    concat_ws(' ', type, CASE WHEN attnotnull THEN 'not null' END, CASE WHEN attnotnull AND EXISTS (
        SELECT FROM pg_constraint k WHERE k.conrelid = attrelid AND k.contype = 'n' AND NOT k.convalidated
        AND k.conkey = ARRAY[attnum]) THEN '(not valid)' END,
        CASE WHEN attgenerated <> '' THEN 'generated ' ELSE 'default ' END || expression,
        CASE attidentity WHEN 'a' THEN 'identity always' WHEN 'd' THEN 'identity by default' END,
        '(' || lower(i.options) || ')'),
    NULL, format('ALTER TABLE %s DROP COLUMN %s', full_name, name), full_name, 'column', attrelid, attnum,
    jsonb_build_object('name', name, 'type', type, 'required', attnotnull, 'expression', expression,
        'generated', attgenerated, 'identity', attidentity, 'inherited', attinhcount > 0,
        'options', i.options, 'change', i.change, 'numbered', i.numbered, 'sequence', i.sequence,
        'named', i.relname <> (SELECT c.relname FROM pg_class c WHERE c.oid = attrelid) || '_' || attname
            || '_seq'), NULL
FROM columns LEFT JOIN identities i USING (attrelid, attnum) WHERE columns.relkind <> 'c'
UNION ALL SELECT CASE relkind WHEN 'v' THEN 'view' ELSE 'materialized view' END, full_name,
    concat_ws(' ', 'with ' || array_to_string(reloptions, ', '), pg_get_viewdef(oid)),
    format('CREATE %s %s%s AS%s', CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'MATERIALIZED VIEW' END, full_name,
        ' WITH (' || array_to_string(reloptions, ', ') || ')', E'\\n' || rtrim(pg_get_viewdef(oid), ';')),
    format('DROP %s %s', CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'MATERIALIZED VIEW' END, full_name), NULL,
    'pg_class', oid, 0, jsonb_build_object('query', rtrim(pg_get_viewdef(oid), ';'), 'options',
        array_to_string(reloptions, ', ')), relowner::regrole::text
FROM relations WHERE relkind IN ('v', 'm')
UNION ALL SELECT 'index', r.full_name,
    pg_get_indexdef(r.oid) || CASE WHEN i.indisvalid THEN '' WHEN r.relkind = 'I'
        THEN ' (not yet on every partition)' ELSE ' (invalid)' END,
    CASE r.relkind WHEN 'I' THEN replace(pg_get_indexdef(r.oid), ' ON ONLY ', ' ON ')
        ELSE pg_get_indexdef(r.oid) END,
    'DROP INDEX ' || r.full_name, t.full_name, 'pg_class', r.oid, 0,
    jsonb_build_object('valid', i.indisvalid), NULL
FROM relations r JOIN pg_index i ON i.indexrelid = r.oid JOIN relations t ON t.oid = i.indrelid
WHERE NOT r.relispartition
  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = r.oid AND k.contype IN ('p', 'u', 'x'))
UNION ALL SELECT 'constraint', r.full_name || '.' || quote_ident(k.conname), pg_get_constraintdef(k.oid)
    || CASE WHEN off.enable IS NULL THEN '' ELSE ' (disabled)' END,
    format('ALTER TABLE %s ADD CONSTRAINT %I %s', r.full_name, k.conname, pg_get_constraintdef(k.oid)),
    format('ALTER TABLE %s DROP CONSTRAINT %I', r.full_name, k.conname), r.full_name, 'pg_constraint',
        k.oid, 0,
    jsonb_build_object('name', quote_ident(k.conname), 'type', k.contype, 'valid', k.convalidated,
        'generated', k.conname ~ ('^' || left(regexp_replace(r.relname, '([^[:alnum:]_])', '\\\\\\1',
            'g'), 20)
            || '.*(_pkey|_key|_fkey|_check|_excl)[0-9]*$'), 'enable', off.enable), NULL
FROM relations r JOIN pg_constraint k ON k.conrelid = r.oid
CROSS JOIN LATERAL (SELECT string_agg(format('ALTER TABLE %s ENABLE TRIGGER %I', tgrelid::regclass, tgname),
    '; ') AS enable FROM pg_trigger WHERE tgconstraint = k.oid AND tgenabled = 'D') off
WHERE k.contype IN ('p', 'u', 'f', 'c', 'x') AND k.conparentid = 0 AND k.conislocal
UNION ALL SELECT 'sequence', r.full_name,
    format('%sas %s start %s increment %s range %s to %s cache %s%s', lower(p.unlogged),
        q.seqtypid::regtype, q.seqstart,
        q.seqincrement, q.seqmin, q.seqmax, q.seqcache, CASE WHEN q.seqcycle THEN ' cycle' ELSE '' END),
    format('CREATE %sSEQUENCE %s AS %s START %s INCREMENT %s MINVALUE %s MAXVALUE %s CACHE %s%s', p.unlogged,
        r.full_name, q.seqtypid::regtype, q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcache,
        CASE WHEN q.seqcycle THEN ' CYCLE' ELSE '' END),
    'DROP SEQUENCE ' || r.full_name, NULL, 'pg_class', r.oid, 0,
    jsonb_build_object('change',
        format('ALTER SEQUENCE %s AS %s START %s INCREMENT %s MINVALUE %s MAXVALUE %s '
        'CACHE %s%s', r.full_name, q.seqtypid::regtype, q.seqstart, q.seqincrement, q.seqmin, q.seqmax,
        q.seqcache, CASE WHEN q.seqcycle THEN ' CYCLE' ELSE ' NO CYCLE' END),
        'owner', r.relowner::regrole::text, 'unlogged', p.unlogged), CASE WHEN NOT EXISTS (SELECT
        FROM pg_depend d WHERE d.objid = r.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'a')
        THEN r.relowner::regrole::text END
FROM relations r JOIN pg_sequence q ON q.seqrelid = r.oid, LATERAL (SELECT CASE r.relpersistence WHEN 'u' THEN
    'UNLOGGED ' ELSE '' END AS unlogged) p
WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = r.oid AND d.classid = 'pg_class'::regclass
    AND d.deptype = 'i')
UNION ALL SELECT 'sequence owner', r.full_name, c.full_name || '.' || c.name,
    format('ALTER SEQUENCE %s OWNED BY %s.%s', r.full_name, c.full_name, c.name),
    format('ALTER SEQUENCE %s OWNED BY NONE', r.full_name), r.full_name, 'sequence owner', r.oid, 0,
    jsonb_build_object('table', c.full_name, 'name', c.name, 'numbered',
        ARRAY[q.seqstart, q.seqincrement]), NULL
FROM relations r JOIN pg_sequence q ON q.seqrelid = r.oid
JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.deptype = 'a'
    AND d.refclassid = 'pg_class'::regclass
JOIN columns c ON c.attrelid = d.refobjid AND c.attnum = d.refobjsubid
WHERE r.relkind = 'S'
UNION ALL SELECT 'function', full_name,
    CASE WHEN prokind = 'a' THEN 'aggregate ' || a.text ELSE pg_get_functiondef(oid) END,
    CASE WHEN prokind = 'a' THEN format('CREATE AGGREGATE %s (%s)', full_name, a.text)
        ELSE rtrim(pg_get_functiondef(oid), E'\\n') END,
    format('DROP %s %s', CASE prokind WHEN 'a' THEN 'AGGREGATE' WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END,
        full_name), NULL, 'pg_proc', oid, 0,
    jsonb_build_object('kind', prokind, 'called', called, 'shape', concat_ws(' ',
        pg_get_function_arguments(oid), '->', pg_get_function_result(oid), proisstrict AND prokind = 'w')),
    proowner::regrole::text
FROM routines LEFT JOIN aggregates a ON a.aggfnoid = oid
UNION ALL SELECT 'trigger', r.full_name || '.' || quote_ident(t.tgname), pg_get_triggerdef(t.oid)
    || CASE t.tgenabled WHEN 'O' THEN '' WHEN 'D' THEN ' (disabled)' WHEN 'A' THEN ' (always)'
        ELSE ' (replica)' END,
    pg_get_triggerdef(t.oid) || CASE WHEN t.tgenabled = 'O' THEN '' ELSE E';\\n' || format(
        'ALTER TABLE %s %s TRIGGER %I', r.full_name, CASE t.tgenabled WHEN 'D' THEN 'DISABLE'
        WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE REPLICA' END, t.tgname) END,
    format('DROP TRIGGER %I ON %s', t.tgname, r.full_name), r.full_name, 'pg_trigger', t.oid, 0,
    jsonb_build_object('text', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled, 'enable', format(
        'ALTER TABLE %s %s TRIGGER %I', r.full_name, CASE t.tgenabled WHEN 'D' THEN 'DISABLE'
        WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE' END, t.tgname)), NULL
FROM relations r JOIN pg_trigger t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal AND t.tgparentid = 0
UNION ALL SELECT 'policy', r.full_name || '.' || quote_ident(p.polname), text,
    format('CREATE POLICY %I ON %s %s', p.polname, r.full_name, text),
    format('DROP POLICY %I ON %s', p.polname, r.full_name), r.full_name, 'pg_policy', p.oid, 0, NULL, NULL
FROM relations r JOIN pg_policy p ON p.polrelid = r.oid, LATERAL (SELECT concat_ws(' ', 'AS',
    CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END, 'FOR',
    CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE'
        ELSE 'ALL' END, 'TO',
    (SELECT string_agg(CASE WHEN o = 0 THEN 'PUBLIC' ELSE o::regrole::text END, ', ' ORDER BY
        o::regrole::text)
        FROM unnest(p.polroles) o),
    'USING (' || pg_get_expr(p.polqual, p.polrelid) || ')',
    'WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')') AS text) x
UNION ALL SELECT 'rule', r.full_name || '.' || quote_ident(u.rulename), concat_ws(' ',
    pg_get_ruledef(u.oid), '(' || lower(w.fires) || ')'),
    concat_ws(E';\\n', rtrim(pg_get_ruledef(u.oid), ';'),
    format('ALTER TABLE %s ', r.full_name) || w.fires || format(' RULE %I', u.rulename)),
    format('DROP RULE %I ON %s', u.rulename, r.full_name), r.full_name,
    'pg_rewrite', u.oid, 0, NULL, NULL
FROM relations r JOIN pg_rewrite u ON u.ev_class = r.oid, LATERAL (SELECT CASE u.ev_enabled WHEN 'D' THEN
    'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' END AS fires) w
WHERE u.rulename <> '_RETURN'
UNION ALL SELECT 'statistics', s.name || '.' || quote_ident(e.stxname), x.text, x.text,
    format('DROP STATISTICS %s.%I', s.name, e.stxname), r.full_name,
    'pg_statistic_ext', e.oid, 0, NULL, NULL
FROM pg_statistic_ext e JOIN spaces s ON s.oid = e.stxnamespace JOIN relations r ON r.oid = e.stxrelid,
LATERAL (SELECT concat_ws(E';\\n', pg_get_statisticsobjdef(e.oid), format(
    'ALTER STATISTICS %s.%I SET STATISTICS ', s.name, e.stxname) || nullif(e.stxstattarget, -1)) AS text) x
UNION ALL SELECT 'type', full_name, CASE WHEN body IS NULL THEN 'type ' || typtype::text ELSE body END,
    CASE typtype WHEN 'd' THEN 'CREATE DOMAIN ' || full_name || ' AS ' || body
        ELSE 'CREATE TYPE ' || full_name || ' AS ' || body END,
    CASE typtype WHEN 'd' THEN 'DROP DOMAIN ' ELSE 'DROP TYPE ' END || full_name, NULL, 'pg_type', oid, 0,
    jsonb_build_object('kind', typtype, 'labels', labels, 'fields', fields, 'base', base, 'default',
        typdefault,
        'required', typnotnull), typowner::regrole::text
FROM types t, LATERAL (SELECT
    (SELECT jsonb_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid) AS labels,
    (SELECT jsonb_agg(jsonb_build_array(c.name, c.type) ORDER BY c.attnum) FROM columns c
        WHERE c.attrelid = t.typrelid) AS fields,
    concat_ws(' ', format_type(t.typbasetype, t.typtypmod), 'COLLATE ' || (SELECT t.typcollation::regcollation
        FROM pg_type b WHERE b.oid = t.typbasetype AND b.typcollation <> t.typcollation)) AS base) y,
LATERAL (SELECT CASE t.typtype
    WHEN 'e' THEN 'ENUM (' || coalesce((SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY
        enumsortorder)
        FROM pg_enum WHERE enumtypid = t.oid), '') || ')'
    WHEN 'c' THEN '(' || coalesce((SELECT string_agg(c.name || ' ' || c.type, ', ' ORDER BY c.attnum)
        FROM columns c WHERE c.attrelid = t.typrelid), '') || ')'
    WHEN 'd' THEN concat_ws(' ', base, 'DEFAULT ' || t.typdefault, CASE WHEN t.typnotnull THEN 'NOT NULL' END)
    WHEN 'r' THEN (SELECT format('RANGE (%s)', concat_ws(', ', 'SUBTYPE = ' || rngsubtype::regtype,
        'SUBTYPE_OPCLASS = ' || (SELECT format('%s.%I', opcnamespace::regnamespace, opcname) FROM pg_opclass o
            WHERE o.oid = rngsubopc AND NOT opcdefault),
        'COLLATION = ' || (SELECT rngcollation::regcollation FROM pg_type b
            WHERE b.oid = rngsubtype AND b.typcollation <> rngcollation),
        'CANONICAL = ' || nullif(rngcanonical, 0)::regproc,
        'SUBTYPE_DIFF = ' || nullif(rngsubdiff, 0)::regproc, 'MULTIRANGE_TYPE_NAME = ' || (SELECT format(
            '%s.%I', m.typnamespace::regnamespace, m.typname) FROM pg_type m WHERE m.oid = rngmultitypid)))
        FROM pg_range WHERE rngtypid = t.oid)
    END AS body) x
UNION ALL SELECT 'domain constraint', t.full_name || '.' || quote_ident(k.conname),
    pg_get_constraintdef(k.oid),
    format('ALTER DOMAIN %s ADD CONSTRAINT %I %s', t.full_name, k.conname, pg_get_constraintdef(k.oid)),
    format('ALTER DOMAIN %s DROP CONSTRAINT %I', t.full_name, k.conname), t.full_name, 'pg_constraint',
        k.oid, 0,
    NULL, NULL
FROM types t JOIN pg_constraint k ON k.contypid = t.oid AND k.contype = 'c'
UNION ALL SELECT 'grant', format('%s%s %s to %s', lower(word), part, of, receiver), privileges,
    concat_ws(E';\\n', 'GRANT ' || plain || format(' ON %s %s TO %s', word, of, receiver),
        'GRANT ' || giving || format(' ON %s %s TO %s WITH GRANT OPTION', word, of, receiver)),
    format('REVOKE %s ON %s %s FROM %s', listed, word, of, receiver),
    parent, 'grant', r.oid, sub, jsonb_build_object('to', receiver), NULL
FROM rights r, LATERAL (SELECT CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS
    receiver,
        string_agg(privilege || r.part, ', ' ORDER BY privilege) AS listed,
        string_agg(privilege || r.part, ', ' ORDER BY privilege) FILTER (WHERE NOT giving) AS plain,
        string_agg(privilege || r.part, ', ' ORDER BY privilege) FILTER (WHERE giving) AS giving,
        string_agg(privilege || CASE WHEN giving THEN ' with grant option' ELSE '' END, ', '
            ORDER BY privilege) AS privileges
    FROM (SELECT grantee, privilege_type AS privilege, bool_or(is_grantable) AS giving
        FROM aclexplode(r.acl) a WHERE grantee <> r.owner AND privilege_type
            IS DISTINCT FROM current_setting('tollbook.unknown_right', true) AND NOT EXISTS (
            SELECT FROM aclexplode(r.usual) u
            WHERE u.grantee = a.grantee AND u.privilege_type = a.privilege_type) GROUP BY 1, 2) a
    GROUP BY grantee) g
UNION ALL SELECT 'grant', format('%s %s withheld from PUBLIC', lower(word), of), u.privilege_type,
    format('REVOKE %s ON %s %s FROM PUBLIC', u.privilege_type, word, of),
    format('GRANT %s ON %s %s TO PUBLIC', u.privilege_type, word, of), parent, 'grant', r.oid, 0, NULL, NULL
FROM rights r, aclexplode(r.usual) u
WHERE u.grantee = 0 AND NOT EXISTS (SELECT FROM aclexplode(r.acl) a
    WHERE a.grantee = 0 AND a.privilege_type = u.privilege_type)
UNION ALL SELECT 'event trigger', quote_ident(evtname), concat_ws(' ', evtevent, evttags::text,
    evtfoid::regproc,
    evtenabled), format('CREATE EVENT TRIGGER %I ON %s%s EXECUTE FUNCTION %s()', evtname, evtevent,
    ' WHEN TAG IN (' || (SELECT string_agg(quote_literal(x), ', ') FROM unnest(evttags) x) || ')',
    evtfoid::regproc) || coalesce(format(E';\\nALTER EVENT TRIGGER %I ', evtname) || CASE evtenabled
    WHEN 'D' THEN 'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' END, ''),
    format('DROP EVENT TRIGGER %I', evtname), NULL, 'pg_event_trigger', oid, 0, NULL,
    evtowner::regrole::text
FROM pg_event_trigger e WHERE NOT EXISTS (SELECT FROM foreigners f
    WHERE f.classid = 'pg_event_trigger'::regclass AND f.objid = e.oid)
"""
    + BESIDE
    + VIEWS
    + """
UNION ALL SELECT 'parameters', 'index ' || r.full_name, o.given, format('ALTER INDEX %s SET (%s)',
    r.full_name, o.given), format('ALTER INDEX %s RESET (%s)', r.full_name, o.names), t.full_name,
    'parameters', r.oid, 0,
    jsonb_build_object('of', t.full_name || '.' || quote_ident(k.conname)), NULL
FROM relations r JOIN pg_constraint k ON k.conindid = r.oid AND k.contype IN ('p', 'u', 'x')
JOIN relations t ON t.oid = k.conrelid, LATERAL (SELECT string_agg(o, ', ') AS given,
    string_agg(split_part(o, '=', 1), ', ') AS names FROM unnest(r.reloptions) o) o
WHERE o.given IS NOT NULL AND NOT r.relispartition
UNION ALL SELECT 'parameters', 'order of ' || t.full_name, coalesce(pg_get_constraintdef(k.oid),
    quote_ident(r.relname)), format('ALTER TABLE %s CLUSTER ON %I', t.full_name, r.relname), format(
    'ALTER TABLE %s SET WITHOUT CLUSTER', t.full_name), t.full_name, 'parameters', i.indexrelid, 1,
    jsonb_build_object('of', coalesce(t.full_name || '.' || quote_ident(k.conname), r.full_name)), NULL
FROM pg_index i JOIN relations r ON r.oid = i.indexrelid JOIN relations t ON t.oid = i.indrelid
LEFT JOIN pg_constraint k ON k.conindid = r.oid AND k.contype IN ('p', 'u', 'x') WHERE i.indisclustered
UNION ALL SELECT 'parameters', 'toast of ' || r.full_name, o.given, format('ALTER TABLE %s SET (%s)',
    r.full_name, o.given), format('ALTER TABLE %s RESET (%s)', r.full_name, o.names), r.full_name,
    'parameters', x.oid, 0, NULL, NULL
FROM relations r JOIN pg_class x ON x.oid = r.reltoastrelid, LATERAL (SELECT string_agg('toast.' || o, ', ')
    AS given, string_agg('toast.' || split_part(o, '=', 1), ', ') AS names FROM unnest(x.reloptions) o) o
WHERE o.given IS NOT NULL AND r.relkind <> 'm'
UNION ALL SELECT 'parameters', 'column ' || c.full_name || '.' || c.name, s.given,
    format('ALTER TABLE %s %s', c.full_name, s.given), format('ALTER TABLE %s %s', c.full_name, s.taken),
    c.full_name, 'parameters', c.attrelid, c.attnum,
    jsonb_build_object('of', c.full_name || '.' || c.name), NULL
FROM columns c, LATERAL (SELECT string_agg(format('ALTER %s %s', c.name, x.given), ', ') AS given,
    string_agg(format('ALTER %s %s', c.name, x.taken), ', ') AS taken FROM (
    SELECT 'SET STORAGE ' || w.given AS given, 'SET STORAGE ' || w.taken AS taken FROM (SELECT
        CASE c.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN'
            ELSE 'EXTENDED' END AS given,
        CASE c.typstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN'
            ELSE 'EXTENDED' END AS taken) w WHERE w.given <> w.taken
    UNION ALL SELECT 'SET COMPRESSION ' || CASE c.attcompression WHEN 'l' THEN 'lz4' ELSE 'pglz' END,
        'SET COMPRESSION default' WHERE c.attcompression <> ''
    UNION ALL SELECT format('SET STATISTICS %s', c.attstattarget), 'SET STATISTICS -1'
        WHERE c.attstattarget >= 0
    UNION ALL SELECT format('SET (%s)', array_to_string(c.attoptions, ', ')), format('RESET (%s)', (SELECT
        string_agg(split_part(o, '=', 1), ', ') FROM unnest(c.attoptions) o)) WHERE c.attoptions IS NOT NULL
    UNION ALL SELECT format('OPTIONS (%s)', string_agg(format('ADD %I %L', option_name, option_value), ', '
        ORDER BY option_name)), format('OPTIONS (%s)', string_agg(format('DROP %I', option_name), ', '))
        FROM pg_options_to_table(c.attfdwoptions) HAVING count(*) > 0
    ) x) s
WHERE s.given IS NOT NULL AND c.relkind IN ('r', 'p', 'f')
UNION ALL SELECT 'access method', lower(w.word) || ' ' || r.full_name, quote_ident(m.amname),
    format('ALTER %s %s SET ACCESS METHOD %I', w.word, r.full_name, m.amname), format(
    'ALTER %s %s SET ACCESS METHOD %s', w.word, r.full_name, CASE r.relkind WHEN 'p' THEN 'DEFAULT' ELSE
        quote_ident(u.name) END),
    r.full_name, 'access method', r.oid, 0, NULL, NULL
FROM relations r JOIN pg_am m ON m.oid = r.relam
JOIN (SELECT reset_val AS name FROM pg_settings WHERE name = 'default_table_access_method') u
    ON m.amname <> u.name, LATERAL (SELECT CASE r.relkind WHEN 'm' THEN
    'MATERIALIZED VIEW' ELSE 'TABLE' END AS word) w
WHERE r.relkind IN ('r', 'p', 'm')
UNION ALL SELECT 'tablespace', lower(w.word) || ' ' || r.full_name, quote_ident(s.spcname),
    format('ALTER %s %s SET TABLESPACE %I', w.word, r.full_name, s.spcname), format(
    'ALTER %s %s SET TABLESPACE %I', w.word, r.full_name, (SELECT o.spcname FROM pg_database b
        JOIN pg_tablespace o ON o.oid = b.dattablespace WHERE b.datname = current_database())),
    coalesce(t.full_name, r.full_name), 'tablespace', r.oid, 0, jsonb_build_object('of', CASE WHEN t.oid
        IS NOT NULL THEN coalesce(t.full_name || '.' || quote_ident(k.conname), r.full_name) END), NULL
FROM relations r JOIN pg_tablespace s ON s.oid = r.reltablespace
LEFT JOIN pg_index i ON i.indexrelid = r.oid LEFT JOIN relations t ON t.oid = i.indrelid
LEFT JOIN pg_constraint k ON k.conindid = r.oid AND k.contype IN ('p', 'u', 'x'),
LATERAL (SELECT CASE WHEN t.oid IS NOT NULL THEN 'INDEX' WHEN r.relkind = 'm' THEN 'MATERIALIZED VIEW'
    ELSE 'TABLE' END AS word) w
WHERE NOT (r.relispartition AND t.oid IS NOT NULL)
UNION ALL SELECT 'default privileges', format('%s to %s', d.scope, receiver), privileges,
    concat_ws(E';\\n', format('ALTER DEFAULT PRIVILEGES %s GRANT ', d.for_whom) || plain
            || format(' ON %s TO %s', d.word, receiver),
        format('ALTER DEFAULT PRIVILEGES %s GRANT ', d.for_whom) || giving
            || format(' ON %s TO %s WITH GRANT OPTION', d.word, receiver)),
    format('ALTER DEFAULT PRIVILEGES %s REVOKE %s ON %s FROM %s', d.for_whom, listed, d.word, receiver),
    NULL, 'default privileges', d.oid, 0, jsonb_build_object('others', d.others, 'schema', d.schema, 'word',
        d.word, 'to', receiver, 'listed', listed, 'privileges', privileges), NULL
FROM defaults d, LATERAL (SELECT CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS
    receiver,
        string_agg(privilege || '', ', ' ORDER BY privilege) AS listed,
        string_agg(privilege || '', ', ' ORDER BY privilege) FILTER (WHERE NOT giving) AS plain,
        string_agg(privilege || '', ', ' ORDER BY privilege) FILTER (WHERE giving) AS giving,
        string_agg(privilege || CASE WHEN giving THEN ' with grant option' ELSE '' END, ', '
            ORDER BY privilege) AS privileges
    FROM (SELECT grantee, privilege_type AS privilege, bool_or(is_grantable) AS giving
        FROM aclexplode(d.defaclacl) a WHERE grantee <> d.defaclrole AND privilege_type
            IS DISTINCT FROM current_setting('tollbook.unknown_right', true) AND NOT EXISTS (
            SELECT FROM aclexplode(d.usual) u
            WHERE u.grantee = a.grantee AND u.privilege_type = a.privilege_type) GROUP BY 1, 2) a
    GROUP BY grantee) g
UNION ALL SELECT 'default privileges', format('%s withheld from PUBLIC', d.scope), u.privilege_type,
    format('ALTER DEFAULT PRIVILEGES %s REVOKE %s ON %s FROM PUBLIC', d.for_whom, u.privilege_type, d.word),
    format('ALTER DEFAULT PRIVILEGES %s GRANT %s ON %s TO PUBLIC', d.for_whom, u.privilege_type, d.word),
    NULL, 'default privileges', d.oid, 0, jsonb_build_object('others', d.others, 'schema', d.schema, 'word',
        d.word, 'listed', u.privilege_type), NULL
FROM defaults d, aclexplode(d.usual) u
WHERE u.grantee = 0 AND NOT EXISTS (SELECT FROM aclexplode(d.defaclacl) a
    WHERE a.grantee = 0 AND a.privilege_type = u.privilege_type)
"""
    + COMMENTS
    + """
) AS objects
"""
)
# (catalog, object, part) that needs another; what is a part of something stands for the whole.
EDGES: LiteralString = """
WITH rows AS (
    SELECT d.classid, d.objid, d.objsubid, d.refclassid, d.refobjid, d.refobjsubid, d.deptype FROM pg_depend d
    WHERE d.deptype IN ('n', 'a', 'i', 'P', 'S') AND (d.refobjid >= 16384 OR d.objid >= 16384)
      AND NOT (d.deptype = 'a' AND d.classid = 'pg_class'::regclass AND EXISTS ( -- owned, which is told later
        SELECT FROM pg_class s WHERE s.oid = d.objid AND s.relkind = 'S'))
)
SELECT DISTINCT * FROM (
SELECT CASE WHEN w.oid IS NOT NULL AND w.rulename = '_RETURN' THEN 'pg_class' WHEN a.oid IS NOT NULL THEN
    'column'
    ELSE r.classid::regclass::text END AS class,
    CASE WHEN w.oid IS NOT NULL AND w.rulename = '_RETURN' THEN w.ev_class WHEN a.oid IS NOT NULL THEN
        a.adrelid
    ELSE r.objid END AS oid,
    CASE WHEN a.oid IS NOT NULL THEN a.adnum ELSE 0 END AS sub,
    CASE WHEN t.oid IS NOT NULL THEN 'pg_class' WHEN e.oid IS NOT NULL THEN 'pg_type'
        WHEN c.oid IS NOT NULL THEN 'pg_constraint'
        WHEN r.refclassid = 'pg_class'::regclass AND r.refobjsubid > 0 THEN 'column'
        ELSE r.refclassid::regclass::text END AS needs_class,
    CASE WHEN t.oid IS NOT NULL THEN t.typrelid WHEN e.oid IS NOT NULL THEN e.oid
        WHEN c.oid IS NOT NULL THEN c.oid ELSE r.refobjid END AS needs_oid,
    CASE WHEN r.refclassid = 'pg_class'::regclass THEN r.refobjsubid ELSE 0 END AS needs_sub
FROM rows r
LEFT JOIN pg_rewrite w ON r.classid = 'pg_rewrite'::regclass AND w.oid = r.objid
LEFT JOIN pg_attrdef a ON r.classid = 'pg_attrdef'::regclass AND a.oid = r.objid
LEFT JOIN pg_type t ON r.refclassid = 'pg_type'::regclass AND t.oid = r.refobjid AND t.typrelid <> 0
    AND (SELECT k.relkind FROM pg_class k WHERE k.oid = t.typrelid) <> 'c'
LEFT JOIN pg_type e ON r.refclassid = 'pg_type'::regclass AND e.typarray = r.refobjid
LEFT JOIN pg_constraint c ON r.refclassid = 'pg_class'::regclass AND r.refobjsubid = 0 AND c.conindid =
    r.refobjid
    AND c.contype IN ('p', 'u', 'x')
) AS edges WHERE (class, oid, sub) <> (needs_class, needs_oid, needs_sub)
"""
