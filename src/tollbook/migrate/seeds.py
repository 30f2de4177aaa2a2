"""Seeds: data that a database begins with, in the files of `seeds/` beside the migrations.

NN_name.sql is for every environment, NN_name.dev.sql for one. Each file is one transaction, and runs again
when its text has changed; so it is written to be run twice (INSERT … ON CONFLICT).
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tollbook.migrate import execution, preflight, statements
from tollbook.migrate.application import LOCK_TIMEOUT_SECONDS
from tollbook.migrate.course import name_role, name_settings
from tollbook.migrate.errors import FolderRefused, MigrateError, Place, Problem, WrongUsage, point
from tollbook.migrate.events import Event, Listener, ignore
from tollbook.migrate.exchange import command, write
from tollbook.migrate.execution import BEGIN, RESET, RESET_COUNT, RESET_ROLE, Sql
from tollbook.migrate.files import Folder, Script, list_sql, read_script
from tollbook.migrate.session import (
    LEAVE_NOTHING,
    LOCK_WAIT_SECONDS_MAX,
    Connection,
    connected,
    locked,
    name_target,
    read_url,
)
from tollbook.migrate.statements import Reading

FOLDER = "seeds"
FILE_NAME = re.compile(r"(?P<number>[0-9]+)_(?P<name>[^.]+)(?:\.(?P<environment>[a-z0-9_-]+))?\.sql")
ENVIRONMENT = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")
ENVIRONMENT_DEFAULT = "dev"
PRODUCTION = ("production", "prod", "live")
LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "::1")
CLOUD_SOCKETS = "/cloudsql/"  # sockets that lead to another machine
SCHEMA_SQL = """
CREATE SCHEMA IF NOT EXISTS tollbook_migrate;
CREATE TABLE IF NOT EXISTS tollbook_migrate.environment (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    name text NOT NULL,
    marked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    marked_by text NOT NULL DEFAULT session_user
);
CREATE TABLE IF NOT EXISTS tollbook_migrate.seeds (
    folder text NOT NULL,
    file text NOT NULL,
    checksum text NOT NULL,
    environment text NOT NULL,
    seeded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seeded_by text NOT NULL DEFAULT session_user,
    duration interval NOT NULL,
    PRIMARY KEY (folder, file)
);
"""


class NotForSeeds(MigrateError):
    """The database is production, or nobody has said what it is."""

    reason = "not-for-seeds"
    status = 409


@dataclass(frozen=True, slots=True)
class Seed:
    """One file of seeds; environment is None for all."""

    folder: str
    environment: str | None
    script: Script

    @property
    def id(self) -> str:
        """The seed's full name, such as shop/10_goods.sql."""
        return f"{self.folder}/{self.script.path.name}"


@dataclass(frozen=True, slots=True)
class Seeded:
    """A seed that ran, and for how long."""

    seed: str
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class Seeding:
    """What a run did: the seeds that ran, in order, and those that are as they were when they last ran."""

    database: str
    environment: str
    ran: tuple[Seeded, ...]
    unchanged: tuple[str, ...]


def seed(
    url: str,
    folders: Sequence[Folder],
    *,
    env: str | None = None,
    force: bool = False,
    lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
    lock_wait_seconds_max: float = LOCK_WAIT_SECONDS_MAX,
    listen: Listener = ignore,
) -> Seeding:
    """Run the seeds that are new or changed, in order. env: else what the database is marked as, or dev.

    Raises NotForSeeds on production, on another environment than `env`, and on a server elsewhere that is not
    marked; not with `force`. A seed that fails is rolled back and ends the run; those before it stay.
    """
    with connected(url) as conn, locked(conn, url, listen, lock_wait_seconds_max):
        marked = read_mark(conn)
        environment = env or marked or ENVIRONMENT_DEFAULT
        if not force:
            _check_environment(conn, environment, marked)
        seeds = [one for one in read(folders) if one.environment in (None, environment)]
        readings = _prepare(seeds)
        _create(conn)
        known = {(row[0], row[1]): row[2] for row in conn.execute(_KNOWN)}
        ran: list[Seeded] = []
        unchanged: list[str] = []
        for one, reading in zip(seeds, readings, strict=True):
            if known.get((one.folder, one.script.path.name)) == one.script.checksum:
                unchanged.append(one.id)
                continue
            listen(Event("seeding", one.id))
            ran.append(_run(conn, one, reading, environment, lock_timeout_seconds))
            listen(Event("seeded", one.id, {"duration_seconds": ran[-1].duration_seconds}))
        return Seeding(name_target(read_url(url)), environment, tuple(ran), tuple(unchanged))


def mark(url: str, environment: str) -> str:
    """Write into the database which environment it is. Returns the database. Raises WrongUsage."""
    if not ENVIRONMENT.fullmatch(environment):
        raise WrongUsage(f"{environment!r} is no name of an environment: small letters, digits, - and _ .")
    with connected(url) as conn, conn.transaction():
        _create(conn)
        conn.execute(
            """INSERT INTO tollbook_migrate.environment (name) VALUES (%(name)s)
            ON CONFLICT (only_one) DO UPDATE SET name = excluded.name, marked_at = excluded.marked_at,
                marked_by = excluded.marked_by""",
            {"name": environment},
        )
    return name_target(read_url(url))


def read_mark(conn: Connection) -> str | None:
    """Return the environment that the database is marked as."""
    row = conn.execute("SELECT to_regclass('tollbook_migrate.environment') IS NOT NULL").fetchone()
    if not row or not row[0]:
        return None
    row = conn.execute("SELECT name FROM tollbook_migrate.environment").fetchone()
    return str(row[0]) if row else None


def find_place(folder: Folder) -> Path:
    """Return the folder that the seeds of a folder of migrations lie in."""
    return folder.path.resolve().parent / FOLDER


def read(folders: Sequence[Folder]) -> list[Seed]:
    """Return the seeds beside the folders, by folder, number and name. Raises FolderRefused.

    Folders that lie beside each other have the same seeds, which are the first one's.
    """
    found: list[Seed] = []
    places: set[Path] = set()
    for folder in folders:
        place = find_place(folder)
        if place in places or not place.is_dir():
            continue
        places.add(place)
        seeds: list[tuple[int, str, Seed]] = []
        for path in list_sql(place):
            match = FILE_NAME.fullmatch(path.name)
            if match is None:
                raise FolderRefused(
                    "This file is not named NUMBER_name.sql or NUMBER_name.ENVIRONMENT.sql, so it would "
                    "never run. Rename it, or move it out of the folder.",
                    Place(str(path)),
                )
            one = Seed(folder.name, match["environment"], read_script(path))
            seeds.append((int(match["number"]), path.name, one))
        found += [one for _, _, one in sorted(seeds, key=lambda each: each[:2])]
    return found


def _check_environment(conn: Connection, environment: str, marked: str | None) -> None:
    if marked in PRODUCTION:
        raise NotForSeeds(
            f"This database is marked as {marked}. Nothing was seeded; --force does it all the same."
        )
    if marked is not None and marked != environment:
        raise NotForSeeds(
            f"This database is marked as {marked}, not as {environment}. Nothing was seeded. Leave --env "
            f"out, or correct the mark: tollbook migrate seed --mark {environment}"
        )
    host = conn.info.host
    if marked is None and not is_local(host):
        raise NotForSeeds(
            f"The database on {host} does not say what it is, and it is not on this machine. Mark it "
            "(tollbook migrate seed --mark staging, or production, which is never seeded), or give --force."
        )


def is_local(host: str) -> bool:
    """Whether a host, or a socket's folder, is this machine's own."""
    return host in LOCAL_HOSTS or (host.startswith(("/", "@")) and not host.startswith(CLOUD_SOCKETS))


def _prepare(seeds: Sequence[Seed]) -> list[Reading]:
    readings = [statements.read(one.script) for one in seeds]
    problems = [problem for reading in readings for problem in reading.problems]
    problems += [
        Problem(
            f"{statement.alone or 'COMMIT'} cannot stand in a seed, which is one transaction.",
            "Take it out, or make it a migration.",
            point(str(one.script.path), one.script.text, statement.index, caret=False),
        )
        for one, reading in zip(seeds, readings, strict=True)
        for statement in reading.statements
        if statement.alone or statement.block
    ]
    preflight.refuse(problems)
    return readings


def _create(conn: Connection) -> None:
    row = conn.execute("SELECT to_regclass('tollbook_migrate.seeds') IS NULL").fetchone()
    if row and row[0]:
        conn.execute(SCHEMA_SQL)


def _run(
    conn: Connection, one: Seed, reading: Reading, environment: str, lock_timeout_seconds: float
) -> Seeded:
    """Run a seed and record it, in one transaction. Raises StatementFailed; it is rolled back then."""
    started = time.monotonic()
    settings = name_settings(lock_timeout_seconds, one.script.options)
    role = name_role(one.script.options)
    before = f"{RESET} {settings} {BEGIN} {role}"
    count = RESET_COUNT + settings.count(";") + 1 + bool(role)
    after = f"SET CONSTRAINTS ALL IMMEDIATE; {RESET_ROLE}"
    try:
        execution.run(conn, Sql(one.script, reading, reading.statements, before, count, after))
        values = {
            "folder": one.folder,
            "file": one.script.path.name,
            "checksum": one.script.checksum,
            "environment": environment,
            "duration": f"{time.monotonic() - started:.6f} s",
        }
        command(conn, f"{write(conn, [(_RECORD, values)])} {LEAVE_NOTHING}; COMMIT")
    except BaseException:
        if not conn.closed and not conn.broken:
            conn.execute("ROLLBACK")
        raise
    return Seeded(one.id, time.monotonic() - started)


_KNOWN = "SELECT folder, file, checksum FROM tollbook_migrate.seeds"
_RECORD = """INSERT INTO tollbook_migrate.seeds AS s (folder, file, checksum, environment, duration)
VALUES (%(folder)s, %(file)s, %(checksum)s, %(environment)s, %(duration)s)
ON CONFLICT (folder, file) DO UPDATE SET checksum = excluded.checksum, environment = excluded.environment,
    seeded_at = excluded.seeded_at, seeded_by = excluded.seeded_by, duration = excluded.duration"""
