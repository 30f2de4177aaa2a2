"""Extensions that the embedded server lacks: stand-ins of the same names, so that a schema can be made.

A stand-in has the extension's functions, types, tables and operators by name and signature, as the catalog
of the target has them. Its types keep any text; its functions cannot be called, save the few below that
defaults use.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, LiteralString

from psycopg import sql

from tollbook.embedded import Server
from tollbook.migrate.session import Connection

FOLDER = "standins"
NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
# Relative to the server's own folder, which is closed to the user it runs as from above where we are root.
OWN_FOLDER = Path("/proc/self/cwd")
# What so many schemas name in defaults that it is known without asking the target.
UUID_OSSP = """
CREATE FUNCTION uuid_nil() RETURNS uuid IMMUTABLE LANGUAGE sql
    AS $$ SELECT '00000000-0000-0000-0000-000000000000'::uuid $$;
CREATE FUNCTION uuid_ns_dns() RETURNS uuid IMMUTABLE LANGUAGE sql
    AS $$ SELECT '6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid $$;
CREATE FUNCTION uuid_ns_url() RETURNS uuid IMMUTABLE LANGUAGE sql
    AS $$ SELECT '6ba7b811-9dad-11d1-80b4-00c04fd430c8'::uuid $$;
CREATE FUNCTION uuid_ns_oid() RETURNS uuid IMMUTABLE LANGUAGE sql
    AS $$ SELECT '6ba7b812-9dad-11d1-80b4-00c04fd430c8'::uuid $$;
CREATE FUNCTION uuid_ns_x500() RETURNS uuid IMMUTABLE LANGUAGE sql
    AS $$ SELECT '6ba7b814-9dad-11d1-80b4-00c04fd430c8'::uuid $$;
CREATE FUNCTION uuid_generate_v1() RETURNS uuid VOLATILE STRICT LANGUAGE internal AS 'gen_random_uuid';
CREATE FUNCTION uuid_generate_v1mc() RETURNS uuid VOLATILE STRICT LANGUAGE internal AS 'gen_random_uuid';
CREATE FUNCTION uuid_generate_v4() RETURNS uuid VOLATILE STRICT LANGUAGE internal AS 'gen_random_uuid';
CREATE FUNCTION uuid_generate_v3(namespace uuid, name text) RETURNS uuid IMMUTABLE STRICT LANGUAGE sql
    AS $$ SELECT md5(namespace::text || name)::uuid $$;
CREATE FUNCTION uuid_generate_v5(namespace uuid, name text) RETURNS uuid IMMUTABLE STRICT LANGUAGE sql
    AS $$ SELECT md5(name || namespace::text)::uuid $$;
"""
PGCRYPTO = """
CREATE FUNCTION gen_random_uuid() RETURNS uuid VOLATILE LANGUAGE internal AS 'gen_random_uuid';
CREATE FUNCTION gen_random_bytes(integer) RETURNS bytea VOLATILE STRICT LANGUAGE sql AS $$
    SELECT substring(string_agg(uuid_send(gen_random_uuid()), ''::bytea) FROM 1 FOR $1)
    FROM generate_series(0, $1 / 16) $$;
CREATE FUNCTION digest(bytea, text) RETURNS bytea IMMUTABLE STRICT LANGUAGE sql AS $$
    SELECT CASE lower($2) WHEN 'md5' THEN decode(md5($1), 'hex') WHEN 'sha224' THEN sha224($1)
        WHEN 'sha384' THEN sha384($1) WHEN 'sha512' THEN sha512($1) ELSE sha256($1) END $$;
CREATE FUNCTION digest(text, text) RETURNS bytea IMMUTABLE STRICT LANGUAGE sql AS $$
    SELECT CASE lower($2) WHEN 'md5' THEN decode(md5($1), 'hex') WHEN 'sha224' THEN sha224(b)
        WHEN 'sha384' THEN sha384(b) WHEN 'sha512' THEN sha512(b) ELSE sha256(b) END
    FROM convert_to($1, 'UTF8') AS b $$;
CREATE FUNCTION gen_salt(text) RETURNS text VOLATILE STRICT LANGUAGE sql AS $$ SELECT md5(random()::text) $$;
CREATE FUNCTION gen_salt(text, integer) RETURNS text VOLATILE STRICT LANGUAGE sql
    AS $$ SELECT md5(random()::text) $$;
CREATE FUNCTION crypt(text, text) RETURNS text IMMUTABLE STRICT LANGUAGE sql AS $$ SELECT md5($1 || $2) $$;
"""
# Called, they say that they cannot be.
MUTE = (
    "hmac(text, text, text) RETURNS bytea",
    "hmac(bytea, bytea, text) RETURNS bytea",
    "encrypt(bytea, bytea, text) RETURNS bytea",
    "decrypt(bytea, bytea, text) RETURNS bytea",
    "encrypt_iv(bytea, bytea, bytea, text) RETURNS bytea",
    "decrypt_iv(bytea, bytea, bytea, text) RETURNS bytea",
    "pgp_sym_encrypt(text, text) RETURNS bytea",
    "pgp_sym_encrypt(text, text, text) RETURNS bytea",
    "pgp_sym_encrypt_bytea(bytea, text) RETURNS bytea",
    "pgp_sym_encrypt_bytea(bytea, text, text) RETURNS bytea",
    "pgp_sym_decrypt(bytea, text) RETURNS text",
    "pgp_sym_decrypt(bytea, text, text) RETURNS text",
    "pgp_sym_decrypt_bytea(bytea, text) RETURNS bytea",
    "pgp_sym_decrypt_bytea(bytea, text, text) RETURNS bytea",
    "pgp_pub_encrypt(text, bytea) RETURNS bytea",
    "pgp_pub_encrypt(text, bytea, text) RETURNS bytea",
    "pgp_pub_decrypt(bytea, bytea) RETURNS text",
    "pgp_pub_decrypt(bytea, bytea, text) RETURNS text",
    "armor(bytea) RETURNS text",
    "dearmor(text) RETURNS bytea",
)
BODY = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'pgcrypto cannot do this on a shadow'; END $$;"
KNOWN = {
    "uuid-ossp": ("1.1", UUID_OSSP),
    "pgcrypto": ("1.3", PGCRYPTO + "".join(f"CREATE FUNCTION {one} {BODY}\n" for one in MUTE)),
}
LACKED = "Extension {0} is a stand-in on the shadow: its functions cannot be called, its types keep any text."


def offer(server: Server, admin: Connection, conn: Connection | None = None) -> list[str]:
    """Make stand-ins known to the server. Returns a sentence for each that the target has for real."""
    there = {name for (name,) in admin.execute("SELECT name::text FROM pg_available_extensions")}
    scripts = {name: known for name, known in KNOWN.items() if name not in there}
    lacks: list[str] = []
    installed = conn.execute("SELECT extname::text, extversion FROM pg_extension").fetchall() if conn else []
    for name, version in installed:
        if conn and name not in {*there, *KNOWN} and NAME.fullmatch(name):
            scripts[name] = (version, _imitate(conn, name))
            lacks.append(LACKED.format(name))
        elif name in scripts:
            scripts[name] = (version, scripts[name][1])
    folder = server.data_dir / "postgresql" / FOLDER / "extension"
    folder.mkdir(parents=True, mode=0o755)
    for name, (version, text) in scripts.items():
        if NAME.fullmatch(name) and re.fullmatch(r"[\w.+~-]+", version):
            _write(
                folder / f"{name}.control",
                f"default_version = '{version}'\nrelocatable = true\ntrusted = true\n",
            )
            _write(folder / f"{name}--{version}.sql", text)
    seen = OWN_FOLDER / FOLDER if OWN_FOLDER.exists() else folder.parent
    admin.execute(sql.SQL("ALTER SYSTEM SET extension_control_path = {}").format(f"$system:{seen}"))
    admin.execute("SELECT pg_reload_conf()")
    return lacks


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    os.chmod(path, 0o644)


def _imitate(conn: Connection, name: str) -> str:
    """Return a script that makes an extension's objects as the target's catalog has them."""
    parts: list[str] = []
    for query in (SCHEMAS, TYPES, RELATIONS, FUNCTIONS, OPERATORS):
        rows: Sequence[Any] = conn.execute(query, {"name": name}, prepare=False).fetchall()
        parts += [text for (text,) in rows if text]
    return "".join(_dare(part) for part in parts)


def _dare(text: str) -> str:
    """Wrap a statement so that one which cannot be imitated is left out."""
    tag = "$stand_in$"
    return f"DO {tag} BEGIN {text} EXCEPTION WHEN OTHERS THEN NULL; END {tag};\n"


SCHEMAS: LiteralString = """
SELECT format('CREATE SCHEMA IF NOT EXISTS %%I;', n.nspname)
FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
JOIN pg_namespace n ON d.classid = 'pg_namespace'::regclass AND n.oid = d.objid
WHERE e.extname = %(name)s AND d.deptype = 'e'
"""
# A base type keeps text; what stands in its brackets is kept as the number of its words.
TYPES: LiteralString = """
SELECT CASE t.typtype
    WHEN 'e' THEN format('CREATE TYPE %%I.%%I AS ENUM (%%s);', n.nspname, t.typname,
        (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder) FROM pg_enum
         WHERE enumtypid = t.oid))
    WHEN 'd' THEN format('CREATE DOMAIN %%I.%%I AS %%s;', n.nspname, t.typname,
        format_type(t.typbasetype, t.typtypmod))
    WHEN 'b' THEN format('CREATE TYPE %%1$I.%%2$I;
        CREATE FUNCTION %%1$I.%%3$I(cstring) RETURNS %%1$I.%%2$I IMMUTABLE STRICT LANGUAGE internal
            AS ''textin'';
        CREATE FUNCTION %%1$I.%%4$I(%%1$I.%%2$I) RETURNS cstring IMMUTABLE STRICT LANGUAGE internal
            AS ''textout'';
        CREATE FUNCTION %%1$I.%%5$I(cstring[]) RETURNS integer IMMUTABLE STRICT LANGUAGE internal
            AS ''array_cardinality'';
        CREATE TYPE %%1$I.%%2$I (INPUT = %%1$I.%%3$I, OUTPUT = %%1$I.%%4$I, TYPMOD_IN = %%1$I.%%5$I,
            INTERNALLENGTH = VARIABLE, STORAGE = extended);', n.nspname, t.typname,
        'stand_in_' || t.typname, 'stand_out_' || t.typname, 'stand_mod_' || t.typname)
    END
FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
JOIN pg_type t ON d.classid = 'pg_type'::regclass AND t.oid = d.objid
JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE e.extname = %(name)s AND d.deptype = 'e' AND t.typtype IN ('e', 'd', 'b')
  AND NOT EXISTS (SELECT FROM pg_type x WHERE x.typarray = t.oid)
ORDER BY t.typtype <> 'b', t.oid
"""
RELATIONS: LiteralString = """
SELECT CASE WHEN c.relkind = 'S' THEN format('CREATE SEQUENCE %%I.%%I;', n.nspname, c.relname)
    WHEN c.relkind = 'c' THEN format('CREATE TYPE %%I.%%I AS (%%s);', n.nspname, c.relname, a.columns)
    ELSE format('CREATE TABLE %%I.%%I (%%s);', n.nspname, c.relname, a.columns) END
FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (SELECT string_agg(format('%%I %%s', attname, format_type(atttypid, atttypmod)), ', '
    ORDER BY attnum) AS columns FROM pg_attribute
    WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS a ON true
WHERE e.extname = %(name)s AND d.deptype = 'e' AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'c', 'f')
ORDER BY c.oid
"""
FUNCTIONS: LiteralString = """
SELECT format('CREATE FUNCTION %%I.%%I(%%s) RETURNS %%s %%s%%s LANGUAGE plpgsql '
    'AS $body$ BEGIN RAISE EXCEPTION %%L; END $body$;',
    n.nspname, p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
    CASE p.provolatile WHEN 'i' THEN 'IMMUTABLE' WHEN 's' THEN 'STABLE' ELSE 'VOLATILE' END,
    CASE WHEN p.proisstrict THEN ' STRICT' ELSE '' END,
    replace(p.proname, '%%', '') || ' of ' || e.extname || ' cannot be called on a shadow')
FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE e.extname = %(name)s AND d.deptype = 'e' AND p.prokind = 'f'
ORDER BY p.oid
"""
OPERATORS: LiteralString = """
SELECT format('CREATE OPERATOR %%I.%%s (FUNCTION = %%s%%s%%s);', n.nspname, o.oprname, o.oprcode::regproc,
    CASE WHEN o.oprleft <> 0 THEN ', LEFTARG = ' || format_type(o.oprleft, NULL) ELSE '' END,
    ', RIGHTARG = ' || format_type(o.oprright, NULL))
FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
JOIN pg_operator o ON d.classid = 'pg_operator'::regclass AND o.oid = d.objid
JOIN pg_namespace n ON n.oid = o.oprnamespace
WHERE e.extname = %(name)s AND d.deptype = 'e'
ORDER BY o.oid
"""
