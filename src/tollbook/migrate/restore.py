"""Backups put back: loaded and verified beside what is there, and only then in its place."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from tollbook.migrate import age, archive, beside, keys, loading
from tollbook.migrate.archive import Archive
from tollbook.migrate.errors import RestoreFailed
from tollbook.migrate.loading import Loaded
from tollbook.migrate.pg_tools import Target, read_target

SESSIONS_SHOWN_MAX = 5
# A session that was just closed is listed a moment longer: as long as PostgreSQL waits for one, we do.
LEAVE_ATTEMPTS_MAX, LEAVE_WAIT_SECONDS = 50, 0.1
# Databases to stand in while another is made or renamed.
LOBBIES = ("postgres", "template1")
JOBS_DEFAULT_MAX = 4


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put back and verified; `kept` names the database with what was there before, if any is.

    `rows` is None for a file without a manifest: nobody knows how many there should be. `missing_roles` are
    named in grants and not on this server; `lost_grants` are those that the server refused.
    """

    database: str
    file: str
    seconds: float
    tables: int
    rows: int | None
    kept: str | None
    missing_roles: tuple[str, ...] = ()
    lost_grants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Situation:
    """What is at the target: the server's version, the database's owner if it is there, what we may do."""

    major: int
    owner: str | None
    may_create: bool


def restore(
    url: str,
    file: str | Path,
    *,
    into: str | None = None,
    jobs: int | None = None,
    key: age.Key | None = None,
) -> Restored:
    """Put a backup back into the database of `url`, or `into` another: a name on that server, or an address.

    `file` is a path or s3://BUCKET/PREFIX/NAME; its `key` may come from the environment (keys.py). `jobs`
    load in parallel: up to four where the file lies here and is not encrypted, else one, as several need a
    copy among the temporary files. Before the server is touched, a file that lies here is compared with its
    checksum, and any file is listed. Then, where our role may create databases:

    1. the backup is loaded into a new database `<name>_restore_<time>`, stopping at the first error; grants
       inside it are given where their roles are on the server, and the others are named;
    2. in there, tables, rows of every table, objects by kind and migrations in force are compared with the
       manifest (without one: the number of tables with the file's list);
    3. two renames in one transaction put it in place; what was there stays as `<name>_before_<time>`. Owner,
       settings, connection limit and grants of the database itself are carried over.

    Until the third step the old database is as it was, however this ends. A kill leaves the new one behind,
    to be dropped by hand. Where the role may not create databases, all this happens inside the database in
    one transaction: everything in it that is not an extension's is dropped, the backup loaded and counted,
    then committed; a kill rolls it back.

    Nobody else may be connected: they would lose what they write meanwhile. We end nobody's session but
    refuse, naming them. Objects are owned by our role. Settings of single roles in this database are not
    carried over. Raises RestoreFailed, ToolMissing, WrongUsage.
    """
    began = time.monotonic()
    target = _aim(read_target(url), into)
    try:
        whole = archive.read(file, key or keys.find())
        kept, loaded = _put_back(target, whole, jobs or choose_jobs(whole))
    except (OSError, psycopg.Error) as error:
        raise RestoreFailed(
            f"The database {target.database} is as it was: {say(target, error)}. Correct that and try again."
        ) from None
    return Restored(
        target.database,
        whole.location,
        time.monotonic() - began,
        whole.tables,
        whole.manifest.contents.rows if whole.manifest else None,
        kept,
        loaded.missing_roles,
        loaded.lost_grants,
    )


def say(target: Target, error: Exception) -> str:
    """Return an error in one line, without secrets."""
    return target.clean(" ".join(str(error).split())).rstrip(".")


def choose_jobs(whole: Archive) -> int:
    """Return how many jobs load it without a copy made first."""
    return min(JOBS_DEFAULT_MAX, os.cpu_count() or 1) if whole.path or whole.is_tar else 1


def _aim(target: Target, into: str | None) -> Target:
    if into is None:
        return target
    return read_target(into) if "://" in into else target.at(into)


def _put_back(target: Target, whole: Archive, jobs: int) -> tuple[str | None, Loaded]:
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
        return None, loading.load(whole, target, now.major, in_place=True, jobs=1)
    return _put_beside(target, lobby, now, whole, jobs)


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
    others: list[str] = []
    for _ in range(LEAVE_ATTEMPTS_MAX):
        others = _list_others(target, lobby)
        if not others:
            return
        time.sleep(LEAVE_WAIT_SECONDS)
    shown = ", ".join(others[:SESSIONS_SHOWN_MAX])
    more = f" and {len(others) - SESSIONS_SHOWN_MAX} more" if len(others) > SESSIONS_SHOWN_MAX else ""
    raise RestoreFailed(
        f"The database {target.database} is as it was; others are connected to it: {shown}{more}. Stop them "
        "and try again, or restore into another database."
    )


def _list_others(target: Target, lobby: str) -> list[str]:
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
    return [target.clean(str(row[0])) for row in rows]


def _put_beside(
    target: Target, lobby: str, now: _Situation, whole: Archive, jobs: int
) -> tuple[str | None, Loaded]:
    """Load into a new database and let it take the target's place. Return what the old one is called now."""
    scratch = target.at(beside.name(target.database, "restore"))
    kept = beside.name(target.database, "before") if now.owner is not None else None
    try:
        _create(target, lobby, scratch.database, now)
        loaded = loading.load(whole, scratch, now.major, in_place=False, jobs=jobs)
        if kept:
            _refuse_others(target, lobby)
        _swap(target, lobby, scratch.database, kept)
    except BaseException:
        # After the swap no database has this name any more: what is dropped is only ever ours.
        with suppress(psycopg.Error), target.connect(lobby) as connection:
            beside.drop(connection, scratch.database)
        raise
    return kept, loaded


def _create(target: Target, lobby: str, name: str, now: _Situation) -> None:
    """Create an empty database with the encoding, locale and owner of the target, or else of the lobby."""
    # PostgreSQL 17 renamed the column, and knows the provider "builtin" besides.
    locale = "datlocale" if now.major >= 17 else "daticulocale"
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
