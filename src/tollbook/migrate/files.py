"""What a folder of migrations comes to, whichever tool it was written for: migrations and their scripts."""

import codecs
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tollbook.migrate import headers
from tollbook.migrate.errors import FolderRefused, MigrateError, Place, Problem, WrongUsage, point
from tollbook.migrate.headers import Options

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
FILE_BYTES_MAX = 64 * 2**20
MIGRATIONS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of migrations and the name under which the history knows it, wherever it lies.

    format is one of tollbook.migrate.formats, or auto.
    """

    name: str
    path: Path
    format: str = "auto"


@dataclass(frozen=True, slots=True)
class Piece:
    """Where in a script's text that of a file begins: scripts may be put together. offset: in the file's."""

    start: int
    path: Path
    text: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Script:
    """SQL of a file: its text with LF line ends, the SHA-256 of what it stands for, and how it is to be run.

    Of a file with several parts the text is as long as the file, the other parts blanked out: an index of
    the text is an index of the file. options are those of the header, or what the file's tool means.
    program, of what is no SQL, is called with the session inside the migration's transaction, and with
    whether it may commit: only where it failed for want of that. refusal says why it cannot be run here at
    all, which matters only while it is pending. pieces: of which files the text is, where of several.
    """

    path: Path
    text: str
    checksum: str
    options: Options = field(default_factory=Options)
    program: Callable[[Any, bool], None] | None = field(default=None, compare=False)
    refusal: Problem | None = None
    pieces: tuple[Piece, ...] = field(default=(), compare=False)

    def point(self, index: int, *, caret: bool = True) -> Place:
        """Return the place of a character of the text, in the file that it comes from."""
        pieces = (one for one in reversed(self.pieces) if one.start <= index)
        piece = next(pieces, None) or Piece(0, self.path, self.text)
        return point(str(piece.path), piece.text, piece.offset + index - piece.start, caret=caret)


@dataclass(frozen=True, slots=True)
class Migration:
    """A step: its version in its tool's own notation, and its label, such as 0001_start.

    A repeatable one is applied again whenever its text changes.
    """

    folder: str
    version: str
    label: str
    up: Script
    down: Script | None = None
    check: Script | None = None
    repeatable: bool = False
    late: bool = False  # whether its tool is told to run it after later ones too
    kept: bool = True  # whether its tool keeps it in its history: not what it only calls back
    ahead_of: tuple[str, ...] = ()  # a repeatable one that is run whenever one of these versions is about to
    after: tuple[str, ...] = ()  # the versions it builds on, where its tool keeps a graph
    backfill: Script | None = (
        None  # run in batches after up is committed, before the migration counts as applied
    )

    @property
    def id(self) -> str:
        """The migration's full name, such as payments/0001_start."""
        return f"{self.folder}/{self.label}"


def parse_folder(text: str, format: str = "auto") -> Folder:  # noqa: A002 -- what everybody calls it
    """Read a folder given as `name=path` or as a path, whose last part is then its name."""
    name, equals, path = text.partition("=")
    if equals and FOLDER_NAME.fullmatch(name):
        return Folder(name, Path(path).expanduser(), format)
    folder = Path(text).expanduser()
    if not FOLDER_NAME.fullmatch(folder.resolve().name):
        raise WrongUsage(
            f"The folder {text} has no usable name of its own. Give it one that stays: --dir NAME={text}"
        )
    return Folder(folder.resolve().name, folder, format)


def find_schema(folders: Sequence[Folder]) -> str | None:
    """Return the schema that a fleet's folders are applied to, out of FOLDER@SCHEMA; None: the database."""
    return next((one.name.partition("@")[2] for one in folders if "@" in one.name), None)


def list_sql(path: Path) -> list[Path]:
    """Return the SQL files of a folder, by name. Raises FolderRefused."""
    try:
        names = sorted(os.listdir(path))  # as text: to sort paths takes as long as to read them
    except OSError as error:
        raise FolderRefused(
            f"The folder {path} cannot be read ({error.strerror}). Check --dir; paths are relative to "
            "the current folder."
        ) from None
    # Editors and other systems leave hidden files behind (.0001_a.up.sql.swp, ._0001_a.up.sql).
    return [path / name for name in names if name.lower().endswith(".sql") and not name.startswith(".")]


def sort(migrations: Sequence[Migration]) -> list[Migration]:
    """Return migrations by their numbers, 9 before 10. Raises FolderRefused where two have the same."""
    if len(migrations) > MIGRATIONS_MAX:
        raise FolderRefused(f"There are more than {MIGRATIONS_MAX} migrations. Split the folder.")
    found = sorted(migrations, key=lambda one: (_find_numbers(one.version), one.up.path.name))
    for one, other in itertools.pairwise(found):
        if one.version == other.version:
            raise FolderRefused(
                f"{one.label} and {other.label} have the same number. Give one of them the next free number, "
                "in all of its files (up, down and check must share one name)."
            )
    return found


def _find_numbers(version: str) -> list[int]:
    """Return the numbers that a version begins with: of 1.10, and of 12_name where several have the 12."""
    return [int(part) for part in re.split(r"[^0-9.]", version)[0].split(".") if part]


def read_script(path: Path) -> Script:
    """Read one SQL file. Raises FolderRefused where it is too big, not UTF-8 or holds a NUL character."""
    content = _read_bytes(path)
    text = _decode(path, content).replace("\r\n", "\n")
    # The checksum is of the LF text: a checkout with CRLF line ends is the same migration, and runs the same.
    plain = content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")
    return Script(path, text, hashlib.sha256(plain).hexdigest(), headers.read(path, text))


def read_foreign(path: Path, kind: str, tool: str) -> Script:
    """Return a migration of a kind that only its tool can run, a program: refused when it is pending."""
    refusal = Problem(
        f"This migration is {kind}, which only {tool} can run.",
        f"Write what it does as SQL under the same number, or run it by {tool} and `baseline` the folder.",
        Place(str(path)),
    )
    return Script(path, "", hashlib.sha256(_read_bytes(path)).hexdigest(), refusal=refusal)


def _read_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            # Asked for first: to read up to so many bytes takes room for them all, for every file anew.
            large = os.fstat(file.fileno()).st_size > FILE_BYTES_MAX
            content = b"" if large else file.read()
    except OSError as error:
        raise FolderRefused(f"This file cannot be read ({error.strerror}).", Place(str(path))) from None
    if large:
        raise FolderRefused(
            f"This file is larger than {FILE_BYTES_MAX // 2**20} MiB. Load data with COPY from a program, "
            "and keep migrations to statements.",
            Place(str(path)),
        )
    return content


def _decode(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = content[error.start]
        hint = " (it looks like UTF-16)" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise _unreadable(path, content[: error.start], f"is not UTF-8: byte 0x{bad:02x}{hint}") from None
    if "\0" in text:
        raise _unreadable(path, content[: content.index(b"\0")], "holds a NUL character")
    return text


def _unreadable(path: Path, before: bytes, what: str) -> MigrateError:
    line = before.count(b"\n") + 1
    column = len(before) - (before.rfind(b"\n") + 1) + 1
    return FolderRefused(f"This file {what}. Save it as UTF-8.", Place(str(path), line, column))
