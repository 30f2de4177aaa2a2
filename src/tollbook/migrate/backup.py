"""Backups of a database: complete and proven readable, or not there at all."""

from __future__ import annotations

import hashlib
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import psycopg

from tollbook.migrate import age, contents, keys, places, retention
from tollbook.migrate.contents import Moment
from tollbook.migrate.errors import BackupFailed, ToolMissing, WrongUsage
from tollbook.migrate.manifest import Contents, Manifest
from tollbook.migrate.pg_tools import Running, Target, find_tool, read_major, read_target, running
from tollbook.migrate.places import Draft
from tollbook.migrate.relay import reached

DUMP, TAR, AGE = ".dump", ".tar", ".age"  # how a backup's name says its form: custom, directory, encrypted
CHUNK_BYTES = 1 << 20
GZIP_LEVEL = 6  # gzip, because every pg_restore reads it
# A compressed dump has no indexes and no dead rows. Half the database is more than nearly all of them take.
DUMP_SHARE_OF_DATABASE = 2
JOBS_MAX = 64
# Taken where no restore of this database was measured yet: bytes of database made anew in a second, by one
# core of a small machine, indexes and the counting included.
RESTORE_BYTES_PER_SECOND = 20_000_000
RESTORE_SECONDS_MIN = 1.0


@dataclass(frozen=True, slots=True)
class Backup:
    """A finished backup: where it is, what it holds, the seconds it took, and older ones it let us remove."""

    location: str
    manifest: Manifest
    seconds: float
    removed: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file, where it lies in a folder."""
        return Path(self.location)

    @property
    def size_bytes(self) -> int:
        """The bytes in the file."""
        return self.manifest.size_bytes


def check(url: str, backup_dir: str | Path | None = None) -> list[str]:
    """Return what would keep a backup from succeeding, each a sentence with what to do. Empty: nothing."""
    place, target = places.find(backup_dir), read_target(url)
    try:
        major, size = _ask(target)
    except psycopg.Error as error:
        said = f"{_say(target, error)}. Start the database or correct the address."
        return [*place.check(0), said]
    found = place.check(size // DUMP_SHARE_OF_DATABASE)
    for name in ("pg_dump", "pg_restore"):
        try:
            find_tool(name, at_least=major)
        except ToolMissing as error:
            found.append(error.sentence)
    return found


def backup(
    url: str,
    backup_dir: str | Path | None = None,
    *,
    jobs: int = 1,
    key: age.Key | None = None,
    keep: int | None = None,
) -> Backup:
    """Write the whole database, as it is at one moment, into a new file of a folder or a bucket.

    `backup_dir` is a folder or s3://BUCKET/PREFIX; without one, what TOLLBOOK_BACKUP_DIR says. One job writes
    pg_dump's custom format; more write its directory format in parallel, on disk first, and make one tar of
    it. With a `key` (or what the environment has: keys.py) the file is encrypted in the age format. `keep`
    leaves so many good backups of this database in the place and removes older ones.

    Rows and objects are counted in the dump's own snapshot and written, with the checksum, into a manifest
    beside the file. A file gets its name when it is complete, on disk, read back, and pg_restore can list it:
    so what has the name is a backup. Only its owner may read it (0600; a folder we must make, 0700). Nothing
    is left of one that fails. Raises BackupFailed, ToolMissing, WrongUsage. No time limit.
    """
    began = time.monotonic()
    if not 1 <= jobs <= JOBS_MAX or (keep is not None and keep < 1):
        raise WrongUsage(f"Jobs are from 1 to {JOBS_MAX}, and at least 1 backup is kept.")
    target, place, key = read_target(url), places.find(backup_dir), key or keys.find()
    try:
        major, size = _ask(target)
        dumper = find_tool("pg_dump", at_least=major)
        tools = _Tools(dumper, find_tool("pg_restore", at_least=read_major(dumper) or major))
        name = _name(target.database, jobs, key)
        with place.draft(name, size) as draft:
            manifest = _write(tools, target, draft, name, jobs=jobs, key=key, began=began)
            manifest = retention.estimate(place, manifest, RESTORE_BYTES_PER_SECOND, RESTORE_SECONDS_MIN)
            draft.publish(manifest.write())
    except (OSError, psycopg.Error) as error:
        raise BackupFailed(
            f"No backup was made: {_say(target, error)}. Correct that (`check` looks at database, place and "
            f"free space), or name another place than {place.locate('')} with TOLLBOOK_BACKUP_DIR; then try "
            "again. This role must be able to read every table."
        ) from None
    try:
        removed = retention.prune(place, manifest, keep) if keep else ()
    except OSError as error:
        raise BackupFailed(
            f"The backup {place.locate(name)} is made and good, but older ones could not be removed: "
            f"{_say(target, error)}. Remove them by hand, or correct that and back up again."
        ) from None
    return Backup(place.locate(name), manifest, time.monotonic() - began, removed)


@dataclass(frozen=True, slots=True)
class _Tools:
    dumper: Path
    reader: Path


def _write(
    tools: _Tools, target: Target, draft: Draft, name: str, *, jobs: int, key: age.Key | None, began: float
) -> Manifest:
    """Dump and count the same moment, then read back what was stored."""
    made_at = datetime.now(UTC)
    with reached(target) as near, contents.held(target) as moment, _counting(moment) as counted:
        _dump(tools, near, moment.snapshot, draft, jobs=jobs, key=key)
        found = counted()
    digest, size = _digest(draft.read())
    if draft.file is not None and jobs == 1 and key is None:
        _prove(tools.reader, Path(draft.file.name))
    return Manifest(
        file=name,
        size_bytes=size,
        sha256=digest,
        encryption=None if key is None else "passphrase" if isinstance(key, age.Passphrase) else "key",
        database=target.database,
        system=moment.system,
        server=moment.server,
        made_at=made_at,
        seconds=time.monotonic() - began,
        database_bytes=moment.database_bytes,
        contents=found,
        restore_seconds=0,
    )


@contextmanager
def _counting(moment: Moment) -> Generator[Callable[[], Contents]]:
    """Count beside the dump; left early, the counting is ended too."""
    with ThreadPoolExecutor(1) as pool:
        counted = pool.submit(moment.count)
        try:
            yield counted.result
        except BaseException:
            with suppress(psycopg.Error):
                moment.connection.cancel_safe()
            raise


def _dump(
    tools: _Tools, near: Target, snapshot: str, draft: Draft, *, jobs: int, key: age.Key | None
) -> None:
    """Run pg_dump into the draft. Raises BackupFailed, OSError."""
    command = [tools.dumper, f"--compress={GZIP_LEVEL}", f"--snapshot={snapshot}"]
    if jobs > 1:
        with draft.parts() as folder:
            parts = folder / "dump"
            _run([*command, "--format=directory", f"--jobs={jobs}", f"--file={parts}"], near)
            _prove(tools.reader, parts)
            draft.write(_encrypt(_pack(parts), key))
    elif key is None and draft.file is not None:
        # By itself: pg_dump goes back and notes where each table is, which a parallel restore uses.
        _run([*command, "--format=custom", f"--file={draft.file.name}"], near)
    else:
        with running([*command, "--format=custom"], near) as dump, _listing(tools.reader) as listing:
            draft.write(_encrypt(_copy(dump, near, listing), key))
            _judge(listing, tools.reader)


def _run(command: list[str | Path], near: Target) -> None:
    with running(command, near) as dump:
        if error := dump.finish():
            raise _refused(near, error)


def _refused(near: Target, error: str) -> BackupFailed:
    return BackupFailed(
        f"No backup was made: {near.clean(error)}. Correct that, or name another place with "
        "TOLLBOOK_BACKUP_DIR, and try again; this role must be able to read every table."
    )


def _encrypt(chunks: Iterable[bytes], key: age.Key | None) -> Iterable[bytes]:
    return chunks if key is None else age.encrypt(chunks, key)


def _copy(dump: Running, near: Target, listing: _Listing) -> Iterator[bytes]:
    """Pass on what pg_dump writes; pg_restore looks at it on the way. Raises BackupFailed at its end."""
    while chunk := dump.stdout.read(CHUNK_BYTES):
        listing.show(chunk)
        yield chunk
    if error := dump.finish():
        raise _refused(near, error)


def _pack(folder: Path) -> Iterator[bytes]:
    """Return a folder of files as a tar, its table of contents first; each file goes when it is packed."""
    files = sorted(folder.iterdir(), key=lambda path: (path.name != "toc.dat", path.name))
    for path in files:
        head = tarfile.TarInfo(path.name)
        head.size, head.mode = path.stat().st_size, 0o600
        yield head.tobuf(tarfile.PAX_FORMAT)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
        yield bytes(-head.size % tarfile.BLOCKSIZE)
        path.unlink()
    yield bytes(tarfile.BLOCKSIZE * 2)


@dataclass(frozen=True, slots=True)
class _Listing:
    """pg_restore, that lists a dump which passes by; it stops listening once it has seen the list."""

    process: Running
    out: IO[bytes]

    def show(self, chunk: bytes) -> None:
        with suppress(BrokenPipeError, ValueError):  # it has ended, or its pipe is closed already
            self.process.stdin.write(chunk)


@contextmanager
def _listing(reader: Path) -> Generator[_Listing]:
    # --create lists the database itself too, so that even an empty one has an entry.
    command = [reader, "--create", "--list"]
    with tempfile.TemporaryFile() as out, running(command, feed=True, into=out) as process:
        yield _Listing(process, out)


def _judge(listing: _Listing, reader: Path) -> None:
    """Refuse a dump that pg_restore cannot read or that has nothing in it."""
    with suppress(BrokenPipeError):
        listing.process.stdin.close()
    error = listing.process.finish()
    listing.out.seek(0)
    if error or not _count_entries(listing.out):
        raise _unreadable(reader, error)


def _prove(reader: Path, path: Path) -> None:
    """Refuse a dump on disk that pg_restore cannot read or that has nothing in it."""
    with running([reader, "--create", "--list", path]) as listing:
        entries = _count_entries(listing.stdout)
        error = listing.finish()
    if error or not entries:
        raise _unreadable(reader, error)


def _count_entries(listing: Iterable[bytes]) -> int:
    return sum(1 for line in listing if line.strip() and not line.startswith(b";"))


def _unreadable(reader: Path, error: str | None) -> BackupFailed:
    return BackupFailed(
        f"No backup was made: what pg_dump wrote cannot be read back ({error or 'it is empty'}). Check the "
        f"disk and that pg_dump and {reader} are of one version; then try again."
    )


def _digest(chunks: Iterable[bytes]) -> tuple[str, int]:
    checksum, size = hashlib.sha256(), 0
    for chunk in chunks:
        checksum.update(chunk)
        size += len(chunk)
    return checksum.hexdigest(), size


def _name(database: str, jobs: int, key: age.Key | None) -> str:
    plain = re.sub(r"[^\w.-]", "_", database).lstrip(".") or "database"
    form = DUMP if jobs == 1 else TAR
    return f"{plain}_{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}{form}{AGE if key else ''}"


def _ask(target: Target) -> tuple[int, int]:
    """Return the server's major version and the size of the database in bytes."""
    with target.connect() as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert row is not None
        return connection.info.server_version // 10_000, int(str(row[0]))


def _say(target: Target, error: OSError | psycopg.Error) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return target.clean(" ".join(str(error).split())).rstrip(".")
