"""Extensions that the embedded server lacks: stand-ins of the same names, so that a schema can be made.

A stand-in has the extension's functions, types, tables and operators by name and signature, as the catalog
of the target has them. Its types keep any text; its functions cannot be called. Those of `standins` can.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, LiteralString

from psycopg import sql

from tollbook.embedded import Server
from tollbook.migrate.session import Connection
from tollbook.migrate.standins import KNOWN

FOLDER = "standins"
NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
VERSION = re.compile(r"[\w.+~-]+")
CONTROL = "default_version = '{0}'\nrelocatable = true\ntrusted = true\n"
# Relative to the server's own folder, which is closed to the user it runs as from above where we are root.
OWN_FOLDER = Path("/proc/self/cwd")
# What a stand-in raises: no fault of the file that calls it.
CANNOT = "TB001"
LACKED = "Extension {0} is a stand-in on the shadow: its functions cannot be called, its types keep any text."
# Offered by the target, which has not got it: nothing there says what is in it.
UNKNOWN = """DO $$ BEGIN RAISE EXCEPTION 'of {0} nothing is known here, as the database does not have it yet'
    USING ERRCODE = 'TB001'; END $$;"""
# With these a provider lets its customers make every extension that it offers.
MASTERS = ("alloydbsuperuser", "azure_pg_admin", "cloudsqlsuperuser", "neon_superuser", "rds_superuser")


def offer(server: Server, admin: Connection, conn: Connection | None = None) -> list[str]:
    """Have the server offer what `conn`'s does, or all that is known: its own extensions, and stand-ins.

    So a file that asks what is offered is answered as there. Returns a sentence for each that the database
    has and that is a stand-in here.
    """
    folder = server.data_dir / "postgresql" / FOLDER / "extension"
    folder.mkdir(parents=True, mode=0o755)
    own = {name for (name,) in admin.execute("SELECT name::text FROM pg_available_extensions")}
    offered = _read_offered(conn) if conn else {name: (KNOWN[name][0], None) for name in KNOWN}
    lacks: list[str] = []
    for name, (version, installed) in offered.items():
        if name in own or not NAME.fullmatch(name) or not VERSION.fullmatch(installed or version):
            continue
        _write(folder / f"{name}.control", CONTROL.format(installed or version))
        text = (
            KNOWN[name][1]
            if name in KNOWN
            else _imitate(conn, name)
            if conn and installed
            else UNKNOWN.format(name)
        )
        _write(folder / f"{name}--{installed or version}.sql", text)
        lacks += [LACKED.format(name)] if installed and name not in KNOWN else []
    if conn:
        _lend(admin, folder, own & offered.keys(), trusted=_is_master(conn))
    seen = OWN_FOLDER / FOLDER if OWN_FOLDER.exists() else folder.parent
    path = str(seen) if conn else f"$system:{seen}"
    admin.execute(sql.SQL("ALTER SYSTEM SET extension_control_path = {}").format(path))
    admin.execute("SELECT pg_reload_conf()")
    return lacks


def _read_offered(conn: Connection) -> dict[str, tuple[str, str | None]]:
    """Return the version that each extension would have, and that it has where it is made."""
    rows = conn.execute(
        """SELECT name::text, coalesce(default_version, '1'), installed_version FROM pg_available_extensions
        UNION ALL SELECT extname::text, extversion, extversion FROM pg_extension
        WHERE NOT EXISTS (SELECT FROM pg_available_extensions WHERE name = extname)"""
    )
    return {name: (version, installed) for name, version, installed in rows}


def list_imitated(conn: Connection) -> list[str]:
    """Return the extensions of a database that are stand-ins: the real ones are written in C."""
    rows = conn.execute(
        """SELECT extname::text FROM pg_extension AS e WHERE extname = ANY(%(names)s) AND NOT EXISTS (
            SELECT FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid JOIN pg_language l ON l.oid = prolang
            WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
              AND d.classid = 'pg_proc'::regclass AND l.lanname = 'c')
        ORDER BY 1""",
        {"names": list(KNOWN)},
    )
    return [name for (name,) in rows]


def _lend(admin: Connection, folder: Path, names: set[str], *, trusted: bool) -> None:
    """Put the server's own extensions of these names into the folder."""
    row = admin.execute("SELECT setting FROM pg_config WHERE name = 'SHAREDIR'").fetchone()
    assert row is not None
    source = Path(row[0]) / "extension"
    for name in names:
        text = (source / f"{name}.control").read_text(encoding="utf-8")
        _write(folder / f"{name}.control", f"{text}\ntrusted = true\n" if trusted else text)
        for script in source.glob(f"{name}--*"):
            (folder / script.name).symlink_to(script)


def _is_master(conn: Connection) -> bool:
    row = conn.execute(
        """SELECT coalesce(bool_or(pg_has_role(oid, 'member')), false) FROM pg_roles
        WHERE rolname = ANY(%(names)s)""",
        {"names": list(MASTERS)},
    ).fetchone()
    return bool(row and row[0])


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)


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
    'AS $body$ BEGIN RAISE EXCEPTION %%L USING ERRCODE = ''TB001''; END $body$;',
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
