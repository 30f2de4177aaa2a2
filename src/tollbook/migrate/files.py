"""Reading a folder of numbered SQL files: NNNN_name.up.sql, NNNN_name.down.sql, NNNN_name.check.sql."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, MigrateError, Place, WrongUsage

FILE_NAME = re.compile(r"(?P<label>(?P<version>[0-9]+)_(?P<name>[^.]+))\.(?P<part>up|down|check)\.sql")
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
FILE_BYTES_MAX = 64 * 2**20
MIGRATIONS_MAX = 100_000
VERSION_DIGITS_MAX = 40  # a timestamp has 14; the history keeps them as numeric
NEW_VERSION_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of migrations and the name under which the history knows it, wherever it lies."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Script:
    """One SQL file: its text with LF line ends and without a byte order mark, and that text's SHA-256."""

    path: Path
    text: str
    checksum: str


@dataclass(frozen=True, slots=True)
class Migration:
    """A numbered step: its label is the file name without the ending, such as 0001_start."""

    folder: str
    version: int
    label: str
    up: Script
    down: Script | None
    check: Script | None

    @property
    def id(self) -> str:
        """The migration's full name, such as payments/0001_start."""
        return f"{self.folder}/{self.label}"


def parse_folder(text: str) -> Folder:
    """Read a folder given as `name=path` or as a path, whose last part is then its name."""
    name, equals, path = text.partition("=")
    if equals and FOLDER_NAME.fullmatch(name):
        return Folder(name, Path(path).expanduser())
    folder = Path(text).expanduser()
    if not FOLDER_NAME.fullmatch(folder.resolve().name):
        raise WrongUsage(
            f"The folder {text} has no usable name of its own. Give it one that stays: --dir NAME={text}"
        )
    return Folder(folder.resolve().name, folder)


def read(folders: Sequence[Folder]) -> list[Migration]:
    """Return all migrations of the folders, in the order they are applied. Raises FolderRefused."""
    names = [folder.name for folder in folders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise WrongUsage(f"Two folders are called {twice[0]}. Name them apart: --dir NAME=PATH")
    for name in names:
        if not FOLDER_NAME.fullmatch(name):
            raise WrongUsage(
                f"{name!r} is no name for a folder. Use up to 63 letters, digits, - and _ : --dir NAME=PATH"
            )
    return [migration for folder in folders for migration in read_folder(folder)]


def read_folder(folder: Folder) -> list[Migration]:
    """Return one folder's migrations by version. Raises FolderRefused on any file it cannot place."""
    parts: dict[tuple[int, str], dict[str, Path]] = {}
    for path in _list_sql(folder):
        match = FILE_NAME.fullmatch(path.name)
        if match is None or len(match["version"]) > VERSION_DIGITS_MAX:
            raise FolderRefused(
                "This file is not named NUMBER_name.up.sql, NUMBER_name.down.sql or NUMBER_name.check.sql, "
                "so it would never run. Rename it, or move it out of the folder.",
                Place(str(path)),
            )
        same = parts.setdefault((int(match["version"]), match["label"]), {})
        if match["part"] in same:  # 0001_a and 01_a have different labels, so this cannot be two spellings
            raise AssertionError(path)
        same[match["part"]] = path
    _refuse_duplicates(parts)
    if len(parts) > MIGRATIONS_MAX:
        raise FolderRefused(f"{folder.path} holds more than {MIGRATIONS_MAX} migrations. Split the folder.")
    return [_read_migration(folder.name, key, files) for key, files in sorted(parts.items())]


def _list_sql(folder: Folder) -> list[Path]:
    try:
        names = sorted(folder.path.iterdir())
    except OSError as error:
        raise FolderRefused(
            f"The folder {folder.path} cannot be read ({error.strerror}). Check --dir; paths are relative to "
            "the current folder."
        ) from None
    # Editors and other systems leave hidden files behind (.0001_a.up.sql.swp, ._0001_a.up.sql).
    return [path for path in names if path.name.lower().endswith(".sql") and not path.name.startswith(".")]


def _refuse_duplicates(parts: Iterable[tuple[int, str]]) -> None:
    labels: dict[int, str] = {}
    for version, label in sorted(parts):
        if version in labels:
            raise FolderRefused(
                f"{labels[version]} and {label} have the same number. Give one of them the next free number, "
                "in all of its files (up, down and check must share one name)."
            )
        labels[version] = label


def _read_migration(folder: str, key: tuple[int, str], files: dict[str, Path]) -> Migration:
    version, label = key
    if "up" not in files:
        path = next(iter(files.values()))
        raise FolderRefused(
            f"There is no {label}.up.sql beside this file. Add it, or rename this one.", Place(str(path))
        )
    scripts = {part: read_script(path) for part, path in files.items()}
    return Migration(folder, version, label, scripts["up"], scripts.get("down"), scripts.get("check"))


def read_script(path: Path) -> Script:
    """Read one SQL file. Raises FolderRefused where it is too big, not UTF-8 or holds a NUL character."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise FolderRefused(f"This file cannot be read ({error.strerror}).", Place(str(path))) from None
    if len(content) > FILE_BYTES_MAX:
        raise FolderRefused(
            f"This file is larger than {FILE_BYTES_MAX // 2**20} MiB. Load data with COPY from a program, "
            "and keep migrations to statements.",
            Place(str(path)),
        )
    text = _decode(path, content).replace("\r\n", "\n")
    # The checksum is of the LF text: a checkout with CRLF line ends is the same migration, and runs the same.
    return Script(path, text, hashlib.sha256(text.encode()).hexdigest())


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


def create_pair(folder: Folder, name: str) -> tuple[Path, Path]:
    """Write the next numbered pair of files, each with one line of comment. Return up and down."""
    word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not word:
        raise WrongUsage("The name needs a letter or a digit: tollbook migrate new add_refunds")
    folder.path.mkdir(parents=True, exist_ok=True)
    last = read_folder(folder)[-1:]
    digits = len(last[0].label.partition("_")[0]) if last else NEW_VERSION_DIGITS
    label = f"{(last[0].version if last else 0) + 1:0{digits}}_{word}"
    up, down = (folder.path / f"{label}.{part}.sql" for part in ("up", "down"))
    for path, line in (
        (up, "-- What this migration makes, and why.\n"),
        (down, "-- Undo it, newest first.\n"),
    ):
        with path.open("x", encoding="utf-8") as file:
            file.write(line)
    return up, down
