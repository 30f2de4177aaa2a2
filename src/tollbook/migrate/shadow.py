"""A shadow: a throw-away server that has a database's schema, history and, if wanted, some of its rows."""

import re
import subprocess
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, LiteralString
from urllib.parse import quote

import psycopg
from psycopg import sql

from tollbook.embedded import Server, throwaway
from tollbook.embedded.errors import EmbeddedServerFailed
from tollbook.migrate import extensions, sampling
from tollbook.migrate.errors import MigrateError
from tollbook.migrate.events import Event, Listener, ignore
from tollbook.migrate.pg_tools import Target, find_tool, read_target, running
from tollbook.migrate.relay import reached
from tollbook.migrate.session import Connection, connected, name_target, read_url

ADMIN = "postgres"
DATABASE = "shadow"  # of an empty one
LOCK_WAIT_SECONDS_MAX = 5  # for another's lock on a table that is to be read
RESTORE_SECONDS_MAX = 1800
SHOWN_MAX = 20
# Nothing that libpq connects from there (foreign servers, dblink, subscriptions) gets anywhere: by a name it
# finds no address, and by an address of its own nobody who can say what it asks for.
SHUT = {"PGHOSTADDR": "nowhere", "PGREQUIREAUTH": "gss"}
# It holds nothing that must outlive a power cut, and few sessions.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "max_connections": "20",
    "max_prepared_transactions": "4",
    "max_locks_per_transaction": "1024",
    "shared_buffers": "64MB",
}
ENTRY = re.compile(r"from TOC entry \d+; \d+ \d+ (?P<what>.+) \S+$")


class ShadowFailed(MigrateError):
    """No shadow could be made; the database was only read."""

    reason = "shadow-failed"


class ShadowUnavailable(ShadowFailed):
    """The embedded server, which a shadow stands on, cannot start here."""

    reason = "shadow-unavailable"


@dataclass(frozen=True, slots=True)
class Size:
    """What a table of the target takes: rows as its planner knows them (None: never counted), and bytes."""

    rows: int | None
    bytes: int


@dataclass(frozen=True, slots=True)
class Shadow:
    """A shadow: its address as the target's role and as a superuser, and what is known of the target.

    target names the database it is a shadow of, sizes are those of its tables by their full name, rows is
    how many were sampled in all. lacks: a sentence for everything that is not as it is on the target.
    """

    url: str
    admin_url: str
    target: str
    sizes: Mapping[str, Size] = field(default_factory=dict[str, Size])
    rows: int = 0
    lacks: tuple[str, ...] = ()


@contextmanager
def empty(listen: Listener = ignore, like: Connection | None = None) -> Generator[Shadow]:
    """Give a shadow without a target: an empty database. Raises ShadowUnavailable.

    like: a session on a server whose extensions it is to offer.
    """
    with _served(listen) as server:
        with _admin(server) as admin:
            lacks = extensions.offer(server, admin, like)
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        url = server.url(DATABASE, user=ADMIN)
        yield Shadow(url, url, "", lacks=tuple(lacks))


@contextmanager
def shadow(url: str, *, rows: int = 0, listen: Listener = ignore) -> Generator[Shadow]:
    """Give a shadow of a database, which is only read; `rows` are sampled of each table.

    It has the target's roles (none but the shadow's own user may log in anywhere), the schema by pg_dump,
    the engine's history, and the places of its sequences. Raises ShadowFailed, MigrateError.
    """
    with _served(listen) as server:
        with connected(url) as conn:
            built = _build(conn, url, server, rows, listen)
        yield built


@contextmanager
def _served(listen: Listener) -> Generator[Server]:
    listen(Event("shadow", "Starting a throw-away server."))
    try:
        server = throwaway(settings=SETTINGS, environment=SHUT)
    except EmbeddedServerFailed as error:
        raise ShadowUnavailable(
            f"No shadow: {str(error).splitlines()[0]} Or try the change on the database itself, rolled back: "
            "--live."
        ) from error
    with server:
        yield server


def _admin(server: Server, database: str = "postgres") -> Connection:
    return psycopg.connect(server.url(database, user=ADMIN), autocommit=True)


def _build(conn: Connection, url: str, server: Server, rows: int, listen: Listener) -> Shadow:
    # A moment of the target: read-only, and no lock is waited for long.
    conn.execute(
        f"SET lock_timeout = '{LOCK_WAIT_SECONDS_MAX}s'; SET default_transaction_read_only = on".encode()
    )
    row = conn.execute(
        """SELECT current_database()::text, pg_get_userbyid(datdba)::text, session_user::text
        FROM pg_database WHERE datname = current_database()"""
    ).fetchone()
    assert row is not None
    database, owner, user = row
    with _admin(server) as admin:
        _copy_roles(conn, admin)
        make_tablespaces(admin, (name for (name,) in conn.execute("SELECT spcname::text FROM pg_tablespace")))
        lacks = extensions.offer(server, admin, conn)
        for text in ("DROP DATABASE IF EXISTS {}", "CREATE DATABASE {} TEMPLATE template0 OWNER {}"):
            if database != "postgres":
                admin.execute(sql.SQL(text).format(sql.Identifier(database), sql.Identifier(owner)))  # pyright: ignore[reportArgumentType]
    with _admin(server, database) as admin:
        listen(Event("shadow", "Copying the schema."))
        lacks += _copy_schema(url, server.url(database, user=ADMIN))
        taken = sampling.copy(conn, admin, rows, listen)
        lacks += taken.lacks
        _copy_settings(conn, admin, database, user)
    options = read_url(url).get("options")  # a search path, often
    own = server.url(database, user=user) + (f"&options={quote(options)}" if options else "")
    return Shadow(
        own,
        server.url(database, user=ADMIN),
        name_target(read_url(url)),
        read_sizes(conn),
        taken.rows,
        tuple(lacks),
    )


def _copy_roles(conn: Connection, admin: Connection) -> None:
    """Make the target's roles, all of them: a pending file may grant to one that owns nothing yet.

    Nobody but the target's own user can log in; passwords are not read.
    """
    there = {name for (name,) in admin.execute("SELECT rolname::text FROM pg_roles")}
    rows = conn.execute(
        """SELECT rolname::text, rolname = session_user, rolsuper, rolinherit, rolcreaterole, rolcreatedb,
            rolreplication, rolbypassrls
        FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY rolname"""
    ).fetchall()
    words = ("LOGIN", "SUPERUSER", "INHERIT", "CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS")
    for name, *flags in rows:
        if name != ADMIN:
            verb = "ALTER" if name in there else "CREATE"
            given = " ".join(word if flag else f"NO{word}" for word, flag in zip(words, flags, strict=True))
            admin.execute(sql.SQL(f"{verb} ROLE {{}} {given}").format(sql.Identifier(name)))  # pyright: ignore[reportArgumentType]
    known = {name for name, *_ in rows} | there
    members = conn.execute(
        # Each of several may have granted it; whether it is inherited is told from PostgreSQL 16 on.
        """SELECT pg_get_userbyid(roleid)::text, pg_get_userbyid(member)::text, bool_or(admin_option),
            bool_or((to_jsonb(m) ->> 'inherit_option')::boolean),
            bool_or((to_jsonb(m) ->> 'set_option')::boolean)
        FROM pg_auth_members m GROUP BY 1, 2 ORDER BY 1, 2"""
    ).fetchall()
    for role, member, *flags in members:
        if {role, member} <= known and member != ADMIN:
            given = zip(("ADMIN", "INHERIT", "SET"), flags, strict=True)
            words = ", ".join(f"{word} {flag}" for word, flag in given if flag is not None)
            text = f"GRANT {{}} TO {{}} WITH {words}"
            admin.execute(sql.SQL(text).format(sql.Identifier(role), sql.Identifier(member)))  # pyright: ignore[reportArgumentType]


def make_tablespaces(admin: Connection, names: Iterable[str]) -> None:
    """Make the tablespaces that are not there yet, in the throw-away server's own folder."""
    there = {name for (name,) in admin.execute("SELECT spcname::text FROM pg_tablespace")}
    for name in sorted({*names} - there):
        admin.execute("SET allow_in_place_tablespaces = on")
        for text in ("CREATE TABLESPACE {} LOCATION ''", "GRANT CREATE ON TABLESPACE {} TO PUBLIC"):
            admin.execute(sql.SQL(text).format(sql.Identifier(name)))  # pyright: ignore[reportArgumentType]


def _copy_schema(url: str, to: str) -> list[str]:
    """Copy every definition. Returns a sentence for each that the shadow cannot have. Raises ShadowFailed."""
    target = read_target(url)
    with target.connect() as probe:
        major = probe.info.server_version // 10_000
    dumper = find_tool("pg_dump", at_least=major)
    command: list[Any] = [
        dumper,
        "--schema-only",
        "--format=custom",
        "--compress=0",
        "--no-security-labels",
        "--no-subscriptions",
        f"--lock-wait-timeout={LOCK_WAIT_SECONDS_MAX}s",
    ]
    # A file without a name: nothing of it is left, however this process ends.
    with tempfile.TemporaryFile() as file:
        with reached(target) as near, running(command, near, into=file) as dump:
            if error := dump.finish():
                raise ShadowFailed(
                    f"No shadow: the schema cannot be read ({_clean(target, error)}). This role must be able "
                    "to read every table; or try the change on the database itself, rolled back: --live."
                )
        file.seek(0)
        restored = subprocess.run(
            [find_tool("pg_restore"), f"--dbname={to}"],
            stdin=file,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=RESTORE_SECONDS_MAX,
        )
    return _explain(restored.stderr) if restored.returncode else []


def _clean(target: Target, text: str) -> str:
    return target.clean(text).rstrip(".")


def _explain(said: str) -> list[str]:
    """Read what pg_restore could not make: each entry with the server's reason."""
    found: list[str] = []
    what = ""
    for line in said.splitlines():
        if match := ENTRY.search(line):
            what = match["what"]
        elif "error:" in line:
            reason = line.partition("error:")[2].removeprefix(" could not execute query: ERROR: ").strip()
            found.append(f"The shadow lacks {what}: {reason}." if what else f"The shadow: {reason}.")
    more = len(found) - SHOWN_MAX
    return found[:SHOWN_MAX] + ([f"The shadow lacks {more} more."] if more > 0 else [])


def _copy_settings(conn: Connection, admin: Connection, database: str, user: str) -> None:
    """Give the database and the role their own settings, such as a search_path."""
    rows = conn.execute(
        """SELECT setdatabase <> 0, setrole <> 0, setting FROM pg_db_role_setting, unnest(setconfig) setting
        WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
          AND setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))
          AND NOT starts_with(setting, 'extension_control_path=')"""
    ).fetchall()
    for of_database, of_role, setting in rows:
        name, _, value = setting.partition("=")
        where = f" IN DATABASE {_quote(database)}" if of_role and of_database else ""
        whose = f"ROLE {_quote(user)}{where}" if of_role else f"DATABASE {_quote(database)}"
        shown = value if name in LISTS else sql.Literal(value).as_string(admin)
        try:
            admin.execute(f"ALTER {whose} SET {_quote(name)} = {shown}".encode())
        except psycopg.Error:  # one that only the target's server knows
            continue


# Settings that are lists: kept quoted as they were given, and taken as one name if they are quoted again.
LISTS = ("search_path", "session_preload_libraries", "temp_tablespaces", "local_preload_libraries")


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def read_sizes(conn: Connection) -> dict[str, Size]:
    """Return the sizes of all tables; a partitioned one has its own by its partitions' sum."""
    rows: Sequence[tuple[Any, ...]] = conn.execute(SIZES, prepare=False).fetchall()
    return {name: Size(None if count is None else int(count), int(size)) for name, count, size in rows}


# By what the last VACUUM or ANALYZE wrote down, if any did: to ask for a file's size waits for other locks.
SIZES: LiteralString = """
WITH RECURSIVE tree AS (
    SELECT oid AS top, oid FROM pg_class WHERE relkind IN ('r', 'p', 'm')
    UNION ALL
    SELECT tree.top, i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
    JOIN pg_class p ON p.oid = tree.oid AND p.relkind = 'p'
)
SELECT quote_ident(n.nspname) || '.' || quote_ident(t.relname),
    sum(CASE WHEN c.relkind = 'p' THEN NULL
        ELSE coalesce(nullif(greatest(c.reltuples, 0), 0), pg_stat_get_live_tuples(c.oid)) END),
    sum(CASE WHEN c.relkind = 'p' THEN 0 ELSE
        CASE WHEN c.relpages > 0 THEN c.relpages * 8192::numeric ELSE pg_relation_size(c.oid) END
        + CASE WHEN o.relpages > 0 THEN o.relpages * 8192::numeric
            ELSE coalesce(pg_relation_size(o.oid), 0) END
    END)
FROM tree JOIN pg_class t ON t.oid = tree.top JOIN pg_namespace n ON n.oid = t.relnamespace
JOIN pg_class c ON c.oid = tree.oid LEFT JOIN pg_class o ON o.oid = c.reltoastrelid
WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'tollbook_migrate')
GROUP BY 1
"""
