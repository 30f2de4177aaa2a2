"""Backups of a database: complete and proven readable, or not there at all."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import psycopg

from tollbook.migrate.errors import BackupFailed, ToolMissing
from tollbook.migrate.pg_tools import Target, find_tool, read_major, read_target, running

SUFFIX = ".dump"
PARTIAL = ".partial"  # what is being written; nobody takes it for a backup
DIGEST = ".sha256"  # beside each backup, for `sha256sum --check` and for restore
CHUNK_BYTES = 1 << 20
GZIP_LEVEL = 6  # gzip, because every pg_restore reads it
# A compressed dump has no indexes and no dead rows. Half the database is more than nearly all of them take.
DUMP_SHARE_OF_DATABASE = 2
SWEEP_MAX = 100  # left-over partial files looked at in one go
SWEEP_AGE_SECONDS = 60  # a younger one may be about to be locked by its writer


@dataclass(frozen=True, slots=True)
class Backup:
    """A finished backup: its file, the bytes in it, and the seconds it took."""

    path: Path
    size_bytes: int
    seconds: float


def default_dir() -> Path:
    """Return the folder for backups: TOLLBOOK_BACKUP_DIR, or one in the user's home."""
    given = os.environ.get("TOLLBOOK_BACKUP_DIR")
    return Path(given).expanduser() if given else Path.home() / ".local" / "share" / "tollbook" / "backups"


def check(url: str, backup_dir: Path | None = None) -> list[str]:
    """Return what would keep a backup from succeeding, each a sentence with what to do. Empty: nothing."""
    folder = backup_dir or default_dir()
    found = _check_folder(folder)
    target = read_target(url)
    try:
        major, size = _ask(target)
    except psycopg.Error as error:
        return [*found, f"{_say(target, error)}. Start the database or correct the address."]
    for name in ("pg_dump", "pg_restore"):
        try:
            find_tool(name, at_least=major)
        except ToolMissing as error:
            found.append(error.sentence)
    needed, free = size // DUMP_SHARE_OF_DATABASE, shutil.disk_usage(_nearest(folder)).free
    if free < needed:
        found.append(
            f"{folder} has {_megabytes(free)} free and the backup may take {_megabytes(needed)}. Free "
            "space there, or name another folder with TOLLBOOK_BACKUP_DIR."
        )
    return found


def backup(url: str, backup_dir: Path | None = None) -> Backup:
    """Write the whole database, as it is at one moment, into a new file of the folder.

    The file is pg_dump's custom format, only for its owner (0600); a folder we must make is too (0700). It
    gets its name when it is complete, on disk and pg_restore can read it, so what has the name is a backup;
    beside it lies its SHA-256. Nothing is left of one that fails. Raises BackupFailed, ToolMissing,
    WrongUsage. No time limit: it takes as long as the database is large.
    """
    began = time.monotonic()
    target, folder = read_target(url), backup_dir or default_dir()
    try:
        major, _ = _ask(target)
        dumper = find_tool("pg_dump", at_least=major)
        reader = find_tool("pg_restore", at_least=read_major(dumper) or major)
        _make_folder(folder)
        _sweep(folder)
        path = folder / _name(target.database)
        size = _write(dumper, reader, target, path)
    except (OSError, psycopg.Error) as error:
        raise BackupFailed(
            f"No backup was made: {_say(target, error)}. Correct that (`check` looks at database, folder and "
            f"free space), or name another folder than {folder} with TOLLBOOK_BACKUP_DIR; then try again."
        ) from None
    return Backup(path, size, time.monotonic() - began)


def _write(dumper: Path, reader: Path, target: Target, path: Path) -> int:
    partial, digest = path.with_name(path.name + PARTIAL), path.with_name(path.name + DIGEST)
    try:
        with _create(partial) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held: no sweep takes it
            checksum = _dump(dumper, target, file)
            size = file.tell()
            _prove(reader, partial, size)
            with _create(digest) as note:
                note.write(f"{checksum}  {path.name}\n".encode())
                _flush(note)
            os.rename(partial, path)
        _sync(path.parent)
    except BaseException:
        for left in (partial, digest, path):
            with suppress(OSError):
                left.unlink(missing_ok=True)
        raise
    return size


def _create(path: Path) -> BinaryIO:
    """Open a file that was not there, for us alone."""
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))


def _dump(dumper: Path, target: Target, file: BinaryIO) -> str:
    """Run pg_dump into the file, to disk. Return the SHA-256. Raises BackupFailed, OSError."""
    checksum = hashlib.sha256()
    with running([dumper, "--format=custom", f"--compress={GZIP_LEVEL}"], target) as dump:
        while chunk := dump.stdout.read(CHUNK_BYTES):
            file.write(chunk)
            checksum.update(chunk)
        if error := dump.finish():
            raise BackupFailed(
                f"No backup was made: {target.clean(error)}. Correct that and try again; this role must be "
                "able to read every table."
            )
    _flush(file)
    return checksum.hexdigest()


def _prove(reader: Path, partial: Path, size: int) -> None:
    """Refuse a dump that pg_restore cannot read or that has nothing in it."""
    # --create lists the database itself too, so that even an empty one has an entry.
    with running([reader, "--create", "--list", partial]) as listing:
        entries = sum(1 for line in listing.stdout if line.strip() and not line.startswith(b";"))
        error = listing.finish()
    if error or not entries or not size:
        raise BackupFailed(
            f"No backup was made: what pg_dump wrote cannot be read back ({error or 'it is empty'}). Check "
            f"the disk of {partial.parent} and that pg_dump and {reader} are of one version; then try again."
        )


def _name(database: str) -> str:
    plain = re.sub(r"[^\w.-]", "_", database).lstrip(".") or "database"
    return f"{plain}_{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}{SUFFIX}"


def _ask(target: Target) -> tuple[int, int]:
    """Return the server's major version and the size of the database in bytes."""
    with target.connect() as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert row is not None
        return connection.info.server_version // 10_000, int(str(row[0]))


def _check_folder(folder: Path) -> list[str]:
    place = _nearest(folder)
    if not place.is_dir():
        return [f"{place} is not a folder. Name another with TOLLBOOK_BACKUP_DIR."]
    if not os.access(place, os.W_OK | os.X_OK):
        return [
            f"{place} cannot be written by this user. Change that, or set TOLLBOOK_BACKUP_DIR to a folder."
        ]
    return []


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest of its parents that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _make_folder(folder: Path) -> None:
    """Make the folder and its missing parents, closed to others. What is there keeps its permissions."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what a killed backup left half written: partial files that nobody holds any more."""
    for left in itertools.islice(folder.glob(f"*{SUFFIX}{PARTIAL}"), SWEEP_MAX):
        with suppress(OSError), open(left, "rb") as file:  # another's, or just gone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file.fileno()).st_mtime > SWEEP_AGE_SECONDS:
                left.unlink()


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _say(target: Target, error: OSError | psycopg.Error) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return target.clean(" ".join(str(error).split())).rstrip(".")


def _megabytes(count: int) -> str:
    return f"{count / 1_000_000:,.1f} MB"
