"""Where backups lie: a folder here, or a bucket of an S3-compatible store (bucket.py)."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from tollbook.migrate.manifest import MANIFEST
from tollbook.migrate.scratch import hold, sweep

PARTIAL = ".partial"  # what is being written; nobody takes it for a backup
PARTS = ".parts" + PARTIAL  # a folder of pg_dump's directory format, until it is one file
OURS = re.compile(r"_\d{8}T\d{6}\.\d{6}Z\.(dump|tar)(\.age)?(\.json|\.parts)?\.partial$")
CHUNK_BYTES = 1 << 20
FILES_MAX = 100_000  # looked at in one place
BUCKET = "s3://"


class Draft(Protocol):
    """A backup that is being written. It becomes one by publish(); left without, nothing of it stays."""

    @property
    def file(self) -> BinaryIO | None:
        """The open file, where there is one that a program can write to by itself."""
        ...

    def write(self, chunks: Iterable[bytes]) -> None:
        """Write all of it, to where it lasts."""
        ...

    def read(self) -> Iterator[bytes]:
        """Read back what is stored."""
        ...

    def publish(self, manifest: bytes) -> None:
        """Give it its name, with its manifest beside it."""
        ...

    def parts(self) -> AbstractContextManager[Path]:
        """Give a folder on disk for as long as it is needed."""
        ...


class Place(Protocol):
    """A place that backups lie in. All raise OSError."""

    def draft(self, name: str, size_bytes: int) -> AbstractContextManager[Draft]:
        """Begin a backup of at most so many bytes."""
        ...

    def names(self) -> list[str]:
        """Return the names of all that lies here."""
        ...

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None where there is none."""
        ...

    def read(self, name: str) -> Iterator[bytes]:
        """Read a file from end to end."""
        ...

    def write(self, name: str, text: bytes) -> None:
        """Write a small file, whole or not at all."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; none there is no error."""
        ...

    def locate(self, name: str) -> str:
        """Return where a file is, for people and for restore."""
        ...

    def check(self, size_bytes: int) -> list[str]:
        """Return what would keep a backup of so many bytes from being written, each with what to do."""
        ...


def default_dir() -> str:
    """Return the place for backups: TOLLBOOK_BACKUP_DIR, or a folder in the user's home."""
    given = os.environ.get("TOLLBOOK_BACKUP_DIR")
    return given or str(Path.home() / ".local" / "share" / "tollbook" / "backups")


def find(given: str | Path | None) -> Place:
    """Return the place of a path or an s3://BUCKET/PREFIX. Raises WrongUsage, ToolMissing."""
    text = str(given or default_dir())
    if text.startswith(BUCKET):
        from tollbook.migrate import bucket

        return bucket.find(text)
    return Folder(Path(text).expanduser())


def split(file: str | Path) -> tuple[Place, str]:
    """Return the place of a backup and its name there."""
    text = str(file)
    if text.startswith(BUCKET):
        head, _, name = text.rpartition("/")
        return find(head), name
    path = Path(text).expanduser()
    return Folder(path.parent), path.name


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of backups. One that we make is closed to others, and so is every file in it."""

    path: Path

    @contextmanager
    def draft(self, name: str, size_bytes: int) -> Generator[FileDraft]:
        """Begin a backup, in a file that nobody takes for one yet."""
        _make_folder(self.path)
        self.sweep()
        partial = self.path / (name + PARTIAL)
        try:
            with _create(partial) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held: no sweep takes it
                draft = FileDraft(self, name, file)
                yield draft
        finally:  # published, it has another name
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Return the names of the files here."""
        if not self.path.is_dir():
            return []
        return [one.name for one in itertools.islice(os.scandir(self.path), FILES_MAX) if one.is_file()]

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None where there is none."""
        path = self.path / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> Iterator[bytes]:
        """Read a file from end to end."""
        return _read(self.path / name)

    def write(self, name: str, text: bytes) -> None:
        """Write a small file, whole or not at all."""
        partial = self.path / (name + PARTIAL)
        partial.unlink(missing_ok=True)
        with _create(partial) as file:
            file.write(text)
            _flush(file)
        os.rename(partial, self.path / name)
        _sync(self.path)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self.path / name).unlink(missing_ok=True)

    def locate(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.path / name)

    def check(self, size_bytes: int) -> list[str]:
        """Return what is wrong with the folder, or with the room in it."""
        place = next(at for at in (self.path.absolute(), *self.path.absolute().parents) if at.exists())
        if not place.is_dir():
            return [f"{place} is not a folder. Name another with TOLLBOOK_BACKUP_DIR."]
        found: list[str] = []
        if not os.access(place, os.W_OK | os.X_OK):
            found.append(f"{place} cannot be written by this user. Change that, or set TOLLBOOK_BACKUP_DIR.")
        free = shutil.disk_usage(place).free
        if free < size_bytes:
            found.append(
                f"{self.path} has {_megabytes(free)} free and the backup may take {_megabytes(size_bytes)}. "
                "Free space there, or name another folder with TOLLBOOK_BACKUP_DIR."
            )
        return found

    def sweep(self) -> None:
        """Remove what a killed backup left half written: partial files that nobody holds any more."""
        ours = (path for path in self.path.glob(f"*{PARTIAL}") if OURS.search(path.name))
        sweep(ours)


@dataclass(frozen=True, slots=True)
class FileDraft:
    """A backup that is being written into a folder, under a name that says so."""

    folder: Folder
    name: str
    file: BinaryIO

    def write(self, chunks: Iterable[bytes]) -> None:
        """Write all of it."""
        for chunk in chunks:
            self.file.write(chunk)

    def read(self) -> Iterator[bytes]:
        """Read back what is on disk."""
        _flush(self.file)
        return _read(self.folder.path / (self.name + PARTIAL))

    def publish(self, manifest: bytes) -> None:
        """Write the manifest, then give the file its name: so what has the name has its manifest."""
        beside = self.name + MANIFEST
        path = self.folder.path / self.name
        try:
            self.folder.write(beside, manifest)
            os.rename(self.folder.path / (self.name + PARTIAL), path)
            _sync(self.folder.path)
        except BaseException:
            for left in (self.name, beside, beside + PARTIAL):
                with suppress(OSError):
                    self.folder.remove(left)
            raise

    @contextmanager
    def parts(self) -> Generator[Path]:
        """Give a folder beside the file."""
        path = self.folder.path / (self.name + PARTS)
        path.mkdir(mode=0o700)
        with hold(path):
            yield path


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _create(path: Path) -> BinaryIO:
    """Open a file that was not there, for us alone."""
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))


def _make_folder(folder: Path) -> None:
    """Make the folder and its missing parents, closed to others. What is there keeps its permissions."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _megabytes(count: int) -> str:
    return f"{count / 1_000_000:,.1f} MB"
