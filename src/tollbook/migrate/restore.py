"""Backups put back: loaded and verified beside what is there, and only then in its place."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import psycopg
from psycopg import sql

from tollbook.migrate.backup import DIGEST
from tollbook.migrate.errors import RestoreFailed
from tollbook.migrate.pg_tools import Running, Target, find_tool, read_target, running

CHUNK_BYTES = 1 << 20
TAIL_BYTES = 4096  # the script's end, held back until all of it is known to be good; it has about 200
NAME_BYTES_MAX = 63
SESSIONS_SHOWN_MAX = 5
# Databases to stand in while another is made or renamed.
LOBBIES = ("postgres", "template1")
# pg_restore 17 and newer ask for it; servers before 17 do not know it.
NEW_SETTING, NEW_SETTING_MAJOR = b"SET transaction_timeout = 0;\n", 17
_NAME = rb'(?:"(?:[^"]|"")*"|[^".\s(]+)'
_COPY = re.compile(rb"COPY (" + _NAME + rb"\." + _NAME + rb") .*FROM stdin;\n")
_TABLE = re.compile(rb"^\d+; 1259 \d+ TABLE ")

# The counts of what is there against those of the file, in the session that loaded it.
_VERIFY = b"""
DO $verify$
DECLARE
    expected record;
    relation oid;
    found bigint;
BEGIN
    SELECT count(*) INTO found
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_depend AS d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e');
    IF found <> %(tables)d THEN
        RAISE EXCEPTION 'the file has %(tables)d tables, the database %%', found;
    END IF;
    FOR expected IN
        SELECT t.name, t.rows
        FROM unnest(ARRAY[%(names)b]::text[], ARRAY[%(rows)b]::bigint[]) AS t (name, rows)
    LOOP
        relation := expected.name::regclass;
        CONTINUE WHEN EXISTS (SELECT FROM pg_depend AS d  -- an extension adds rows of its own
                              WHERE d.classid = 'pg_class'::regclass AND d.objid = relation
                                AND d.deptype = 'e');
        EXECUTE 'SELECT count(*) FROM '
            || CASE (SELECT relkind FROM pg_class WHERE oid = relation) WHEN 'p' THEN '' ELSE 'ONLY ' END
            || expected.name INTO found;
        IF found <> expected.rows THEN
            RAISE EXCEPTION '%% has %% rows in the file and %% in the database',
                expected.name, expected.rows, found;
        END IF;
    END LOOP;
END
$verify$;
ANALYZE;
"""

# Everything of the database's users, so that what is restored is what the file has and no more. (pg_restore's
# own --clean cannot drop the primary key of a partition, and leaves what the file does not know.)
_CLEAR = b"""
BEGIN;
SET LOCAL client_min_messages = error;
DO $clear$
DECLARE
    thing record;
BEGIN
    FOR thing IN
        SELECT n.nspname FROM pg_namespace AS n
        WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'public')
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', thing.nspname);
    END LOOP;
    FOR thing IN
        SELECT format('%I.%I', n.nspname, c.relname) AS name,
               CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                              WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END AS kind
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('DROP %s IF EXISTS %s CASCADE', thing.kind, thing.name);
    END LOOP;
    FOR thing IN
        SELECT p.oid FROM pg_proc AS p
        WHERE p.pronamespace = 'public'::regnamespace
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                            AND d.deptype IN ('e', 'i'))
    LOOP
        IF EXISTS (SELECT FROM pg_proc WHERE oid = thing.oid) THEN
            EXECUTE format('DROP ROUTINE %s CASCADE', thing.oid::regprocedure);
        END IF;
    END LOOP;
    FOR thing IN
        SELECT format('%I.%I', 'public', t.typname) AS name FROM pg_type AS t
        WHERE t.typnamespace = 'public'::regnamespace AND t.typelem = 0
          AND (t.typrelid = 0 OR EXISTS (SELECT FROM pg_class WHERE oid = t.typrelid AND relkind = 'c'))
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid
                            AND d.deptype IN ('e', 'i'))
    LOOP
        EXECUTE format('DROP TYPE IF EXISTS %s CASCADE', thing.name);
    END LOOP;
    PERFORM lo_unlink(oid) FROM pg_largeobject_metadata;
END
$clear$;
"""


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put back and verified; `kept` names the database with what was there before, if any is."""

    database: str
    file: Path
    seconds: float
    tables: int
    rows: int
    kept: str | None


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a backup holds: how many tables, and the rows of each that has data, by its name in SQL."""

    tables: int
    rows: dict[bytes, int]


@dataclass(frozen=True, slots=True)
class _Situation:
    """What is at the target: the server's version, the database's owner if it is there, what we may do."""

    major: int
    owner: str | None
    may_create: bool


def restore(url: str, file: Path, *, into: str | None = None) -> Restored:
    """Put a backup back into the database of `url`, or `into` another: a name on that server, or an address.

    Before the server is touched, the file is read from end to end: its SHA-256 if that lies beside it, its
    list, all its data; the rows are counted on the way. Then, where our role may create databases:

    1. the backup is loaded into a new database `<name>_restore_<time>`, stopping at the first error;
    2. in there, the tables and the rows of every table are counted and compared with the file;
    3. two renames in one transaction put it in place; what was there stays as `<name>_before_<time>`. Owner,
       settings, connection limit and grants of the database itself are carried over.

    Until the third step the old database is as it was, however this ends. A kill leaves the new one behind,
    to be dropped by hand. Where the role may not create databases, all this happens inside the database in
    one transaction: everything in it that is not an extension's is dropped, the backup loaded and counted,
    then committed; a kill rolls it back.

    Nobody else may be connected: they would lose what they write meanwhile. We end nobody's session but
    refuse, naming them. Objects are owned by our role and have no grants (a backup works under any role):
    grant them again. Settings of single roles in this database are not carried over.
    Raises RestoreFailed, ToolMissing, WrongUsage.
    """
    began = time.monotonic()
    target = _aim(read_target(url), into)
    reader = find_tool("pg_restore")
    contents = _read(reader, file)
    try:
        kept = _put_back(target, reader, file, contents)
    except (OSError, psycopg.Error) as error:
        said = target.clean(" ".join(str(error).split())).rstrip(".")
        raise RestoreFailed(
            f"The database {target.database} is as it was: {said}. Correct that and try again."
        ) from None
    rows = sum(contents.rows.values())
    return Restored(target.database, file, time.monotonic() - began, contents.tables, rows, kept)


def _aim(target: Target, into: str | None) -> Target:
    if into is None:
        return target
    return read_target(into) if "://" in into else target.at(into)


def _read(reader: Path, file: Path) -> _Contents:
    """Read all of the file. Raises RestoreFailed where it is not a whole backup."""
    if not file.is_file():
        raise RestoreFailed(f"{file} is not there. Nothing was touched. Give the path that `backup` printed.")
    if error := _check_digest(file):
        raise _refused(file, error)
    with running([reader, "--list", file]) as listing:
        tables = sum(1 for line in listing.stdout if _TABLE.match(line))
        if error := listing.finish():
            raise _refused(file, error)
    with running([reader, "--data-only", "--file=-", file]) as data:
        rows = _count_rows(data.stdout)
        if error := data.finish():
            raise _refused(file, error)
    return _Contents(tables, rows)


def _refused(file: Path, error: str) -> RestoreFailed:
    return RestoreFailed(
        f"{file} is not a whole backup ({error}). Nothing was touched. Copy it again from where it was made, "
        "or take another one."
    )


def _check_digest(file: Path) -> str | None:
    beside = file.with_name(file.name + DIGEST)
    if not beside.is_file():
        return None
    expected = beside.read_text(errors="replace").split(maxsplit=1)[:1]
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    return None if expected == [found] else f"its SHA-256 is not the one in {beside.name}"


def _count_rows(script: Iterable[bytes]) -> dict[bytes, int]:
    """Count the rows of each table in a data-only script: the lines between COPY and its end."""
    rows: dict[bytes, int] = {}
    table, count = None, 0
    for line in script:
        if table is None:
            if match := _COPY.fullmatch(line) if line.startswith(b"COPY ") else None:
                table, count = match[1], 0
        elif line == b"\\.\n":
            rows[table] = rows.get(table, 0) + count
            table = None
        else:
            count += 1
    return rows


def _put_back(target: Target, reader: Path, file: Path, contents: _Contents) -> str | None:
    lobby = _find_lobby(target)
    now = _look(target, lobby)
    if now.owner is not None:
        _refuse_others(target, lobby)
    elif not now.may_create:
        raise RestoreFailed(
            f"The database {target.database} is not there and this role may not create it. Nothing was "
            "touched. As an administrator: CREATE DATABASE ... OWNER this role, or ALTER ROLE ... CREATEDB."
        )
    if not now.may_create:
        _load(target, reader, file, contents, now.major, in_place=True)
        return None
    return _put_beside(target, lobby, now, reader, file, contents)


def _find_lobby(target: Target) -> str:
    """Return a database that lets us in; the target itself where no other does."""
    for name in LOBBIES:
        if name != target.database:
            with suppress(psycopg.OperationalError), target.connect(name):
                return name
    return target.database


def _look(target: Target, lobby: str) -> _Situation:
    with target.connect(lobby) as connection:
        row = connection.execute(
            """
            SELECT (SELECT pg_get_userbyid(d.datdba) FROM pg_database AS d WHERE d.datname = %(name)s),
                   (r.rolcreatedb OR r.rolsuper) AND NOT EXISTS (
                       SELECT FROM pg_database AS d
                       WHERE d.datname = %(name)s AND NOT pg_has_role(d.datdba, 'USAGE'))
            FROM pg_roles AS r WHERE r.rolname = current_user
            """,
            {"name": target.database},
        ).fetchone()
        assert row is not None
        may_create = bool(row[1]) and lobby != target.database
        owner = None if row[0] is None else str(row[0])
        return _Situation(connection.info.server_version // 10_000, owner, may_create)


def _refuse_others(target: Target, lobby: str) -> None:
    """Raise RestoreFailed when somebody is connected to the target, saying who."""
    with target.connect(lobby) as connection:
        rows = connection.execute(
            """
            SELECT concat_ws(' ', usename, nullif(application_name, ''), 'from ' || host(client_addr),
                             '(process ' || pid || ')')
            FROM pg_stat_activity
            WHERE datname = %(name)s AND pid <> pg_backend_pid()
              AND backend_type IN ('client backend', 'walsender')
            ORDER BY backend_start
            """,
            {"name": target.database},
        ).fetchall()
    if rows:
        shown = ", ".join(str(row[0]) for row in rows[:SESSIONS_SHOWN_MAX])
        more = f" and {len(rows) - SESSIONS_SHOWN_MAX} more" if len(rows) > SESSIONS_SHOWN_MAX else ""
        raise RestoreFailed(
            f"The database {target.database} is as it was; others are connected to it: {shown}{more}. Stop "
            "them and try again, or restore into another database."
        )


def _put_beside(
    target: Target, lobby: str, now: _Situation, reader: Path, file: Path, contents: _Contents
) -> str | None:
    """Load into a new database and let it take the target's place. Return what the old one is called now."""
    scratch = target.at(_name_beside(target.database, "restore"))
    kept = _name_beside(target.database, "before") if now.owner is not None else None
    try:
        _create(target, lobby, scratch.database, now)
        _load(scratch, reader, file, contents, now.major, in_place=False)
        if kept:
            _refuse_others(target, lobby)
        _swap(target, lobby, scratch.database, kept)
    except BaseException:
        # After the swap no database has this name any more: what is dropped is only ever ours.
        with suppress(psycopg.Error), target.connect(lobby) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(scratch.database))
            )
        raise
    return kept


def _name_beside(database: str, why: str) -> str:
    end = f"_{why}_{datetime.now(UTC):%Y%m%d%H%M%S%f}"
    return database.encode()[: NAME_BYTES_MAX - len(end)].decode(errors="ignore") + end


def _create(target: Target, lobby: str, name: str, now: _Situation) -> None:
    """Create an empty database with the encoding, locale and owner of the target, or else of the lobby."""
    # PostgreSQL 17 renamed the column, and knows the provider "builtin" besides.
    locale = "datlocale" if now.major >= NEW_SETTING_MAJOR else "daticulocale"
    with target.connect(lobby) as connection:
        row = connection.execute(
            sql.SQL(
                """
                SELECT pg_encoding_to_char(encoding), datcollate, datctype, datlocprovider, {locale}
                FROM pg_database WHERE datname = %(name)s
                """
            ).format(locale=sql.Identifier(locale)),
            {"name": target.database if now.owner is not None else lobby},
        ).fetchone()
        assert row is not None
        encoding, collate, ctype, provider, other = row
        parts: list[sql.Composable] = [
            sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}").format(
                sql.Identifier(name), sql.Literal(encoding), sql.Literal(collate), sql.Literal(ctype)
            )
        ]
        if now.owner is not None:
            parts.append(sql.SQL("OWNER {}").format(sql.Identifier(now.owner)))
        if provider == "i":
            parts.append(sql.SQL("LOCALE_PROVIDER icu ICU_LOCALE {}").format(sql.Literal(other)))
        elif provider == "b":
            parts.append(sql.SQL("LOCALE_PROVIDER builtin BUILTIN_LOCALE {}").format(sql.Literal(other)))
        else:
            parts.append(sql.SQL("LOCALE_PROVIDER libc"))
        connection.execute(sql.SQL(" ").join(parts))


def _swap(target: Target, lobby: str, scratch: str, kept: str | None) -> None:
    """Rename the old database away and the new one into its place, in one transaction."""
    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
    with target.connect(lobby) as connection, connection.transaction():
        if kept:
            _carry_over(connection, target.database, scratch)
            connection.execute(rename.format(sql.Identifier(target.database), sql.Identifier(kept)))
        connection.execute(rename.format(sql.Identifier(scratch), sql.Identifier(target.database)))


def _carry_over(connection: psycopg.Connection[tuple[object, ...]], old: str, new: str) -> None:
    """Give the new database the connection limit, the settings and the grants of the old one."""
    row = connection.execute(
        "SELECT datconnlimit, datacl IS NOT NULL FROM pg_database WHERE datname = %(old)s", {"old": old}
    ).fetchone()
    assert row is not None
    limit, granted = row
    alter = sql.SQL("ALTER DATABASE {}").format(sql.Identifier(new))
    connection.execute(alter + sql.SQL(" CONNECTION LIMIT {}").format(sql.Literal(limit)))
    settings = connection.execute(
        """
        SELECT split_part(one, '=', 1), substr(one, strpos(one, '=') + 1)
        FROM pg_db_role_setting AS s JOIN pg_database AS d ON d.oid = s.setdatabase,
             unnest(s.setconfig) AS one
        WHERE d.datname = %(old)s AND s.setrole = 0
        """,
        {"old": old},
    ).fetchall()
    for name, value in settings:
        # Through our own session, for this transaction: so lists keep their quoting.
        connection.execute("SELECT set_config(%(name)s, %(value)s, true)", {"name": name, "value": value})
        connection.execute(alter + sql.SQL(" SET {} FROM CURRENT").format(sql.Identifier(str(name))))
    if granted:
        _carry_grants(connection, old, new)


def _carry_grants(connection: psycopg.Connection[tuple[object, ...]], old: str, new: str) -> None:
    connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(new)))
    grants = connection.execute(
        """
        SELECT format('GRANT %%s ON DATABASE %%I TO %%s %%s', a.privilege_type, %(new)s::text,
                      CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
                      CASE WHEN a.is_grantable THEN 'WITH GRANT OPTION' END)
        FROM pg_database AS d, aclexplode(d.datacl) AS a WHERE d.datname = %(old)s
        """,
        {"old": old, "new": new},
    ).fetchall()
    for (grant,) in grants:
        connection.execute(str(grant).encode())


def _load(
    target: Target, reader: Path, file: Path, contents: _Contents, major: int, *, in_place: bool
) -> None:
    """Load the file and verify it there, in one transaction when `in_place`. Raises RestoreFailed.

    psql gets pg_restore's script through us, and in place its COMMIT only when all of the rest has gone well:
    whichever of the three is killed, nothing is committed.
    """
    loader = [find_tool("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"]
    once = ["--single-transaction"] if in_place else []
    script = [reader, "--no-owner", "--no-acl", *once, "--file=-", file]
    with running(loader, target, feed=True) as psql, running(script) as source:
        failure = None
        with suppress(BrokenPipeError):  # psql has ended, and says why
            failure = _pour(source, psql.stdin, contents, major, in_place=in_place)
        failure = failure or psql.finish()
    if failure:
        raise RestoreFailed(
            f"{file} could not be restored: {target.clean(failure)}. Nothing that was there has changed. "
            "Correct that and try again."
        )


def _pour(source: Running, sink: IO[bytes], contents: _Contents, major: int, *, in_place: bool) -> str | None:
    """Give psql the script and the verification, and end its input. Return pg_restore's error, or None."""
    if in_place:
        sink.write(_CLEAR)
    tail = b""
    while chunk := source.stdout.read(CHUNK_BYTES):
        if not tail and major < NEW_SETTING_MAJOR:
            chunk = chunk.replace(NEW_SETTING, b"", 1)  # it stands at the head of the script
        tail += chunk
        sink.write(tail[:-TAIL_BYTES])
        tail = tail[-TAIL_BYTES:]
    if error := source.finish():
        return error
    head, commit, rest = tail.rpartition(b"COMMIT;\n") if in_place else (tail, b"", b"")
    assert bool(commit) == in_place
    sink.write(head + _write_verification(contents) + commit + rest)
    sink.close()
    return None


def _write_verification(contents: _Contents) -> bytes:
    names = (b"'%b'" % name.replace(b"'", b"''") for name in contents.rows)
    rows = (b"%d" % count for count in contents.rows.values())
    return _VERIFY % {b"tables": contents.tables, b"names": b",".join(names), b"rows": b",".join(rows)}
