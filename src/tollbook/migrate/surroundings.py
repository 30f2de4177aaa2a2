"""The part of the catalog's query about what stands beside the tables: servers, collations, operators, …

Each kind has its definition (text), what makes it, and facts, where one that differs can be altered.
"""

from typing import LiteralString

# The options of foreign servers, their wrappers and tables. What opens doors is compared, and not shown.
OUTSIDE: LiteralString = """, outside AS MATERIALIZED (
    SELECT o.of_class, o.of_oid, o.server, o.fixed, coalesce(jsonb_object_agg(p.name, p.value)
            FILTER (WHERE p.name IS NOT NULL), '{}') AS options,
        ' OPTIONS (' || string_agg(p.name || ' ' || quote_literal(p.value), ', ' ORDER BY p.name) || ')'
            AS given,
        ' options (' || string_agg(p.name || ' ' || CASE WHEN p.name ~* 'pass|secret|key|token'
            THEN 'hidden-' || left(encode(sha256(convert_to(p.value, 'UTF8')), 'hex'), 4)
            ELSE quote_literal(p.value) END, ', ' ORDER BY p.name) || ')' AS shown
    FROM (SELECT 'pg_class' AS of_class, ftrelid AS of_oid, quote_ident(srvname) AS server, '' AS fixed,
            ftoptions AS options FROM pg_foreign_table t JOIN pg_foreign_server s ON s.oid = t.ftserver
        UNION ALL SELECT 'pg_foreign_server', s.oid, NULL, concat_ws(' ', 'TYPE ' || quote_literal(srvtype),
            'VERSION ' || quote_literal(srvversion), 'FOREIGN DATA WRAPPER ' || quote_ident(w.fdwname)),
            srvoptions FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
        UNION ALL SELECT 'pg_foreign_data_wrapper', oid, NULL, concat_ws(' ', 'HANDLER '
            || nullif(fdwhandler, 0)::regproc, 'VALIDATOR ' || nullif(fdwvalidator, 0)::regproc),
            fdwoptions FROM pg_foreign_data_wrapper) o
    LEFT JOIN LATERAL (SELECT quote_ident(option_name) AS name, coalesce(option_value, '') AS value
        FROM pg_options_to_table(o.options)) p ON true GROUP BY 1, 2, 3, 4
)
"""
AGGREGATES: LiteralString = """, aggregates AS MATERIALIZED (
    SELECT aggfnoid, concat_ws(', ', 'SFUNC = ' || aggtransfn, 'STYPE = ' || format_type(aggtranstype, NULL),
        'SSPACE = ' || nullif(aggtransspace, 0), 'FINALFUNC = ' || nullif(aggfinalfn, 0)::regproc,
        CASE WHEN aggfinalextra THEN 'FINALFUNC_EXTRA' END, 'COMBINEFUNC = ' || nullif(aggcombinefn,
            0)::regproc,
        'SERIALFUNC = ' || nullif(aggserialfn, 0)::regproc, 'DESERIALFUNC = ' || nullif(aggdeserialfn,
            0)::regproc, 'INITCOND = ' || quote_literal(agginitval),
        'MSFUNC = ' || nullif(aggmtransfn, 0)::regproc, 'MINVFUNC = ' || nullif(aggminvtransfn, 0)::regproc,
        'MSTYPE = ' || format_type(nullif(aggmtranstype, 0), NULL),
        'MSSPACE = ' || nullif(aggmtransspace, 0), 'MFINALFUNC = ' || nullif(aggmfinalfn, 0)::regproc,
        CASE WHEN aggmfinalextra THEN 'MFINALFUNC_EXTRA' END, 'MINITCOND = ' || quote_literal(aggminitval),
        'SORTOP = ' || (SELECT format('OPERATOR(%s.%s)', oprnamespace::regnamespace, oprname)
            FROM pg_operator WHERE oid = aggsortop),
        'PARALLEL = ' || CASE proparallel WHEN 's' THEN 'SAFE' WHEN 'r' THEN 'RESTRICTED' END,
        CASE WHEN aggkind = 'h' THEN 'HYPOTHETICAL' END) AS text
    FROM pg_aggregate JOIN routines ON oid = aggfnoid
)
"""
RIGHTS: LiteralString = """
    UNION ALL SELECT 'FOREIGN SERVER', quote_ident(srvname), quote_ident(srvname), srvowner, srvacl, NULL,
        oid, 0, '' FROM pg_foreign_server WHERE srvacl IS NOT NULL
    UNION ALL SELECT 'FOREIGN DATA WRAPPER', quote_ident(fdwname), quote_ident(fdwname), fdwowner, fdwacl,
        NULL, oid, 0, '' FROM pg_foreign_data_wrapper WHERE fdwacl IS NOT NULL AND oid >= 16384
"""
BESIDE: LiteralString = r"""
UNION ALL SELECT i.type, i.identity, o.text, o.make, coalesce(o.dropped, format('DROP %s %s',
    upper(replace(i.type, '-', ' ')), i.identity)), NULL, o.class::text, o.oid, 0, o.facts,
    o.owner::regrole::text
FROM (
SELECT 'pg_collation'::regclass AS class, c.oid, x.text, format('CREATE COLLATION %s (%s)',
    c.oid::regcollation, x.text) AS make, NULL AS dropped, NULL::jsonb AS facts, c.collowner AS owner
FROM pg_collation c, LATERAL (SELECT CASE WHEN c.collprovider = 'i' THEN replace(y, '_', '-') ELSE y END AS
    -- Named otherwise before PostgreSQL 17, and before 16 as it was written.
    locale FROM coalesce(to_jsonb(c) ->> 'colllocale', to_jsonb(c) ->> 'colliculocale') y) y,
LATERAL (SELECT concat_ws(', ', 'PROVIDER = ' || CASE c.collprovider WHEN 'i' THEN 'icu'
        WHEN 'b' THEN 'builtin' ELSE 'libc' END,
    'LOCALE = ' || quote_literal(y.locale),
    'LC_COLLATE = ' || quote_literal(c.collcollate), 'LC_CTYPE = ' || quote_literal(c.collctype),
    CASE WHEN NOT c.collisdeterministic THEN 'DETERMINISTIC = false' END,
    'RULES = ' || quote_literal(to_jsonb(c) ->> 'collicurules')) AS text) x
UNION ALL SELECT 'pg_operator'::regclass, o.oid, x.text, format('CREATE OPERATOR %s.%s (%s)',
    o.oprnamespace::regnamespace, o.oprname, x.text), NULL, NULL, o.oprowner
FROM pg_operator o, LATERAL (SELECT concat_ws(', ', 'FUNCTION = ' || o.oprcode::regproc,
    'LEFTARG = ' || format_type(nullif(o.oprleft, 0), NULL),
    'RIGHTARG = ' || format_type(nullif(o.oprright, 0), NULL),
    'COMMUTATOR = ' || (SELECT format('OPERATOR(%s.%s)', oprnamespace::regnamespace, oprname) FROM pg_operator
        WHERE oid = o.oprcom),
    'NEGATOR = ' || (SELECT format('OPERATOR(%s.%s)', oprnamespace::regnamespace, oprname) FROM pg_operator
        WHERE oid = o.oprnegate),
    'RESTRICT = ' || nullif(o.oprrest, 0)::regproc, 'JOIN = ' || nullif(o.oprjoin, 0)::regproc,
    CASE WHEN o.oprcanhash THEN 'HASHES' END, CASE WHEN o.oprcanmerge THEN 'MERGES' END) AS text) x
WHERE o.oprcode <> 0
UNION ALL SELECT 'pg_cast'::regclass, c.oid, x.text, format('CREATE CAST (%s AS %s) %s',
    format_type(c.castsource, NULL), format_type(c.casttarget, NULL), x.text), NULL, NULL, NULL
FROM (SELECT * FROM pg_cast c WHERE NOT EXISTS (SELECT FROM pg_depend d -- a range's own
    WHERE d.classid = 'pg_cast'::regclass AND d.objid = c.oid AND d.deptype = 'i')) c, LATERAL (SELECT
    concat_ws(' ', CASE c.castmethod WHEN 'f' THEN 'WITH FUNCTION '
        || c.castfunc::regprocedure WHEN 'i' THEN 'WITH INOUT' ELSE 'WITHOUT FUNCTION' END,
    CASE c.castcontext WHEN 'i' THEN 'AS IMPLICIT' WHEN 'a' THEN 'AS ASSIGNMENT' END) AS text) x
UNION ALL SELECT 'pg_opclass'::regclass, c.oid, x.text, format('CREATE OPERATOR CLASS %s.%I %s',
    c.opcnamespace::regnamespace, c.opcname, x.text),
    -- Its family was made with it, and goes with it.
    CASE WHEN x.family IS NULL AND NOT EXISTS (SELECT FROM pg_opclass b WHERE b.opcfamily = c.opcfamily
        AND b.oid <> c.oid) THEN format('DROP OPERATOR FAMILY %s.%I USING %I', c.opcnamespace::regnamespace,
        c.opcname, m.amname) END, NULL, c.opcowner
FROM pg_opclass c JOIN pg_am m ON m.oid = c.opcmethod JOIN pg_opfamily f ON f.oid = c.opcfamily,
LATERAL (SELECT CASE WHEN (f.opfname, f.opfnamespace) <> (c.opcname, c.opcnamespace) THEN
    format(' FAMILY %s.%I', f.opfnamespace::regnamespace, f.opfname) END AS family) y,
LATERAL (SELECT y.family, concat(CASE WHEN c.opcdefault THEN 'DEFAULT ' END, 'FOR TYPE ',
    format_type(c.opcintype, NULL), ' USING ', quote_ident(m.amname), y.family, ' AS ', concat_ws(', ',
    'STORAGE ' || format_type(nullif(c.opckeytype, 0), NULL),
    (SELECT string_agg(format('OPERATOR %s %s%s', amopstrategy, amopopr::regoperator, (SELECT format(
        ' FOR ORDER BY %s.%I', opfnamespace::regnamespace, opfname) FROM pg_opfamily
        WHERE oid = amopsortfamily)), ', ' ORDER BY amopstrategy, amopopr::regoperator::text)
        FROM pg_amop WHERE amopfamily = f.oid AND amoplefttype = c.opcintype),
    (SELECT string_agg(format('FUNCTION %s (%s, %s) %s', amprocnum, format_type(amproclefttype, NULL),
        format_type(amprocrighttype, NULL), amproc::regprocedure), ', ' ORDER BY amprocnum,
        amproc::regprocedure::text)
        FROM pg_amproc WHERE amprocfamily = f.oid AND amproclefttype = c.opcintype))) AS text) x
UNION ALL SELECT 'pg_opfamily'::regclass, f.oid, '', format('CREATE OPERATOR FAMILY %s.%I USING %I',
    f.opfnamespace::regnamespace, f.opfname, m.amname), NULL, NULL, f.opfowner
FROM pg_opfamily f JOIN pg_am m ON m.oid = f.opfmethod
WHERE NOT EXISTS (SELECT FROM pg_opclass c WHERE (c.opcfamily, c.opcname, c.opcnamespace) = (f.oid, f.opfname,
    f.opfnamespace))
UNION ALL SELECT 'pg_ts_dict'::regclass, d.oid, x.text, format('CREATE TEXT SEARCH DICTIONARY %s (%s)',
    d.oid::regdictionary, x.text), NULL, jsonb_build_object('fixed', d.dicttemplate::text, 'options',
    d.dictinitoption, 'names', (SELECT coalesce(jsonb_agg(m[1]), '[]') FROM regexp_matches(d.dictinitoption,
    '(?:^|, )("[^"]+"|[[:alnum:]_]+) = ', 'g') m)), d.dictowner
FROM pg_ts_dict d JOIN pg_ts_template t ON t.oid = d.dicttemplate, LATERAL (SELECT concat_ws(', ',
    format('TEMPLATE = %s.%I', t.tmplnamespace::regnamespace, t.tmplname), d.dictinitoption) AS text) x
UNION ALL SELECT 'pg_ts_config'::regclass, c.oid, concat_ws(', ', x.parser, array_to_string(x.added, ', ')),
    concat_ws(E';\n', format('CREATE TEXT SEARCH CONFIGURATION %s (%s)', c.oid::regconfig, x.parser),
        (SELECT string_agg(format('ALTER TEXT SEARCH CONFIGURATION %s %s', c.oid::regconfig, one), E';\n')
        FROM unnest(x.added) one)),
    NULL, jsonb_build_object('fixed', x.parser, 'added', coalesce(x.added, '{}'), 'tokens',
        coalesce(x.tokens, '{}')), c.cfgowner
FROM pg_ts_config c JOIN pg_ts_parser p ON p.oid = c.cfgparser, LATERAL (SELECT format('PARSER = %s.%I',
    p.prsnamespace::regnamespace, p.prsname) AS parser, array_agg(a.alias ORDER BY a.alias) AS tokens,
    array_agg(format('ADD MAPPING FOR %s WITH %s', a.alias, a.dictionaries) ORDER BY a.alias) AS added
    FROM (SELECT quote_ident(t.alias) AS alias, string_agg(m.mapdict::regdictionary::text, ', ' ORDER BY
            m.mapseqno) AS dictionaries
        FROM pg_ts_config_map m JOIN ts_token_type(c.cfgparser) t ON t.tokid = m.maptokentype
        WHERE m.mapcfg = c.oid GROUP BY 1) a) x
UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, w.oid, concat_ws(' ', nullif(o.fixed, ''), o.shown),
    concat_ws(' ', format('CREATE FOREIGN DATA WRAPPER %I', w.fdwname), nullif(o.fixed, ''), o.given), NULL,
    jsonb_build_object('fixed', o.fixed, 'options', o.options), w.fdwowner
FROM pg_foreign_data_wrapper w JOIN outside o ON (o.of_class, o.of_oid) = ('pg_foreign_data_wrapper', w.oid)
UNION ALL SELECT 'pg_foreign_server'::regclass, s.oid, concat_ws(' ', o.fixed, o.shown), concat_ws(' ',
    format('CREATE SERVER %I', s.srvname), o.fixed, o.given), NULL,
    jsonb_build_object('fixed', o.fixed, 'options', o.options), s.srvowner
FROM pg_foreign_server s JOIN outside o ON (o.of_class, o.of_oid) = ('pg_foreign_server', s.oid)
-- Their options are passwords, and not for everybody to read.
UNION ALL SELECT 'pg_user_mapping'::regclass, u.umid, '', NULL, format('DROP USER MAPPING FOR %s SERVER %I',
    CASE WHEN u.umuser = 0 THEN 'PUBLIC' ELSE u.umuser::regrole::text END, u.srvname),
    jsonb_build_object('server', u.srvname, 'ours', u.umuser::regrole::text = coalesce((SELECT
        nspowner::regrole::text FROM pg_namespace WHERE nspname = 'tollbook_migrate'),
        quote_ident(current_user))), NULL
FROM pg_user_mappings u
UNION ALL SELECT 'pg_language'::regclass, l.oid, x.text, format('CREATE %sLANGUAGE %I %s', CASE WHEN
    l.lanpltrusted THEN 'TRUSTED ' END, l.lanname, x.text), NULL, NULL, l.lanowner
FROM pg_language l, LATERAL (SELECT concat_ws(' ', 'HANDLER ' || nullif(l.lanplcallfoid, 0)::regproc,
    'INLINE ' || nullif(l.laninline, 0)::regproc,
    'VALIDATOR ' || nullif(l.lanvalidator, 0)::regproc) AS text) x
UNION ALL SELECT 'pg_conversion'::regclass, c.oid, x.text, format('CREATE %sCONVERSION %s.%I %s', CASE WHEN
    c.condefault THEN 'DEFAULT ' END, c.connamespace::regnamespace, c.conname, x.text), NULL, NULL, c.conowner
FROM pg_conversion c, LATERAL (SELECT format('FOR %L TO %L FROM %s', pg_encoding_to_char(c.conforencoding),
    pg_encoding_to_char(c.contoencoding), c.conproc::regproc) AS text) x
UNION ALL SELECT 'pg_transform'::regclass, t.oid, x.text, format('CREATE TRANSFORM %s (%s)', x.name, x.text),
    'DROP TRANSFORM ' || x.name, NULL, NULL
FROM pg_transform t, LATERAL (SELECT format('FOR %s LANGUAGE %I', format_type(t.trftype, NULL), (SELECT
        lanname FROM pg_language WHERE oid = t.trflang)) AS name, concat_ws(', ',
    'FROM SQL WITH FUNCTION ' || nullif(t.trffromsql, 0)::regprocedure,
    'TO SQL WITH FUNCTION ' || nullif(t.trftosql, 0)::regprocedure) AS text) x
UNION ALL SELECT 'pg_ts_parser'::regclass, p.oid, x.text, format('CREATE TEXT SEARCH PARSER %s.%I (%s)',
    p.prsnamespace::regnamespace, p.prsname, x.text), NULL, NULL, NULL
FROM pg_ts_parser p, LATERAL (SELECT concat_ws(', ', 'START = ' || p.prsstart, 'GETTOKEN = ' || p.prstoken,
    'END = ' || p.prsend, 'LEXTYPES = ' || p.prslextype, 'HEADLINE = ' || nullif(p.prsheadline, 0)::regproc)
    AS text) x
UNION ALL SELECT 'pg_ts_template'::regclass, t.oid, x.text, format('CREATE TEXT SEARCH TEMPLATE %s.%I (%s)',
    t.tmplnamespace::regnamespace, t.tmplname, x.text), NULL, NULL, NULL
FROM pg_ts_template t, LATERAL (SELECT concat_ws(', ', 'INIT = ' || nullif(t.tmplinit, 0)::regproc,
    'LEXIZE = ' || t.tmpllexize) AS text) x
UNION ALL SELECT 'pg_am'::regclass, m.oid, x.text, format('CREATE ACCESS METHOD %I %s', m.amname, x.text),
    NULL, NULL, NULL
FROM pg_am m, LATERAL (SELECT format('TYPE %s HANDLER %s', CASE m.amtype WHEN 't' THEN 'TABLE' ELSE 'INDEX'
    END, m.amhandler) AS text) x
UNION ALL SELECT 'pg_publication'::regclass, p.oid, concat_ws(' ', x.objects, x.options),
    concat_ws(' ', format('CREATE PUBLICATION %I', p.pubname), 'FOR ' || x.objects,
        format('WITH (%s)', x.options)), NULL,
    jsonb_build_object('all', p.puballtables, 'objects', x.objects, 'options', x.options), p.pubowner
FROM pg_publication p, LATERAL (SELECT concat_ws(', ',
    format('publish = %L', concat_ws(', ', CASE WHEN pubinsert THEN 'insert' END,
        CASE WHEN pubupdate THEN 'update' END, CASE WHEN pubdelete THEN 'delete' END,
        CASE WHEN pubtruncate THEN 'truncate' END)),
    'publish_via_partition_root = ' || pubviaroot,
    CASE WHEN to_jsonb(p) ->> 'pubgencols' = 's' THEN 'publish_generated_columns = stored' END) AS options,
    CASE WHEN p.puballtables THEN 'ALL TABLES' ELSE nullif(concat_ws(', ',
        (SELECT string_agg(concat('TABLE ONLY ', r.prrelid::regclass, ' (' || (SELECT string_agg(
                quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
                WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs)) || ')',
            ' WHERE (' || pg_get_expr(r.prqual, r.prrelid) || ')'), ', ' ORDER BY r.prrelid::regclass::text)
            FROM pg_publication_rel r WHERE r.prpubid = p.oid),
        (SELECT string_agg(format('TABLES IN SCHEMA %s', pnnspid::regnamespace), ', '
            ORDER BY pnnspid::regnamespace::text) FROM pg_publication_namespace WHERE pnpubid = p.oid)), '')
        END AS objects) x
) o, LATERAL pg_identify_object(o.class, o.oid, 0) i
WHERE o.oid >= 16384
  AND NOT EXISTS (SELECT FROM foreigners f WHERE f.classid = o.class AND f.objid = o.oid)
"""

VIEWS: LiteralString = """
UNION ALL SELECT 'parameters', format('default of %s.%I', r.full_name, a.attname), x.text,
    format('ALTER VIEW %s ALTER %I SET DEFAULT %s', r.full_name, a.attname, x.text),
    format('ALTER VIEW %s ALTER %I DROP DEFAULT', r.full_name, a.attname), r.full_name, 'pg_attrdef', d.oid,
    0, NULL, NULL
FROM relations r JOIN pg_attrdef d ON d.adrelid = r.oid
JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum = d.adnum,
LATERAL (SELECT pg_get_expr(d.adbin, d.adrelid) AS text) x
WHERE r.relkind = 'v'
"""
# What an extension says of itself is another in each of its versions.
COMMENTS: LiteralString = """
UNION ALL SELECT 'comment', w.word || ' ' || w.name, d.description,
    format('COMMENT ON %s %s IS %L', w.word, w.name, d.description),
    format('COMMENT ON %s %s IS NULL', w.word, w.name),
    coalesce(r.full_name, k.full_name, u.full_name, i.identity), 'comment', d.objoid, d.objsubid,
    jsonb_build_object('of', k.full_name || '.' || k.name), NULL
FROM pg_description d
LEFT JOIN relations r ON d.classoid = 'pg_class'::regclass AND r.oid = d.objoid
LEFT JOIN LATERAL (SELECT coalesce(x.full_name, y.full_name) AS full_name, quote_ident(p.name) AS name FROM (
        SELECT conrelid, contypid, conname FROM pg_constraint WHERE d.classoid = 'pg_constraint'::regclass
            AND oid = d.objoid
        UNION ALL SELECT tgrelid, 0, tgname FROM pg_trigger WHERE d.classoid = 'pg_trigger'::regclass
            AND oid = d.objoid
        UNION ALL SELECT ev_class, 0, rulename FROM pg_rewrite WHERE d.classoid = 'pg_rewrite'::regclass
            AND oid = d.objoid
        UNION ALL SELECT polrelid, 0, polname FROM pg_policy WHERE d.classoid = 'pg_policy'::regclass
            AND oid = d.objoid) p (oid, type, name)
    LEFT JOIN relations x ON x.oid = p.oid LEFT JOIN types y ON y.oid = p.type) k ON true
LEFT JOIN routines u ON d.classoid = 'pg_proc'::regclass AND u.oid = d.objoid,
LATERAL pg_identify_object(d.classoid, d.objoid, d.objsubid) i,
LATERAL (SELECT upper(CASE WHEN i.type LIKE '% column' THEN 'column' WHEN i.type LIKE '% constraint' THEN
        'constraint' WHEN i.type = 'statistics object' THEN 'statistics' ELSE replace(i.type, '-', ' ') END)
        AS word,
    CASE i.type WHEN 'domain constraint' THEN format('%s ON DOMAIN %s', k.name, k.full_name)
        WHEN 'transform' THEN replace(i.identity, ' on language ', ' LANGUAGE ') ELSE i.identity END
        AS name) w
WHERE d.objoid >= 16384 AND d.classoid NOT IN ('pg_extension'::regclass, 'pg_largeobject'::regclass,
        'pg_subscription'::regclass)
    AND NOT EXISTS (SELECT FROM foreigners f WHERE f.classid = d.classoid AND f.objid = d.objoid)
    AND CASE WHEN d.classoid = 'pg_class'::regclass THEN r.oid IS NOT NULL
        WHEN d.classoid IN ('pg_constraint'::regclass, 'pg_trigger'::regclass, 'pg_rewrite'::regclass,
            'pg_policy'::regclass) THEN k.full_name IS NOT NULL
        WHEN d.classoid = 'pg_namespace'::regclass THEN i.identity IN (SELECT name FROM spaces)
        ELSE i.schema IS NULL OR i.schema IN (SELECT name FROM spaces) END
"""
