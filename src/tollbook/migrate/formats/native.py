"""Our own folders, and all in the same manner: NNNN_name.up.sql, NNNN_name.down.sql, NNNN_name.check.sql.

golang-migrate and SQLx (reversible) name their files so too.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place, WrongUsage
from tollbook.migrate.files import MIGRATIONS_MAX, Folder, Migration, read_script

FILE_NAME = re.compile(r"(?P<label>(?P<version>[0-9]+)_(?P<name>[^.]+))\.(?P<part>up|down|check)\.sql")
VERSION_DIGITS_MAX = 40  # a timestamp has 14
NEW_VERSION_DIGITS = 4


def recognise(path: Path) -> bool:
    """Whether the folder holds such files."""
    return any(FILE_NAME.fullmatch(file.name) for file in path.glob("*.sql"))


def read(folder: Folder) -> list[Migration]:
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
    return Migration(folder, str(version), label, scripts["up"], scripts.get("down"), scripts.get("check"))


def create_pair(folder: Folder, name: str) -> tuple[Path, Path]:
    """Write the next numbered pair of files, each with one line of comment. Return up and down."""
    word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not word:
        raise WrongUsage("The name needs a letter or a digit: tollbook migrate new add_refunds")
    folder.path.mkdir(parents=True, exist_ok=True)
    last = read(folder)[-1:]
    digits = len(last[0].label.partition("_")[0]) if last else NEW_VERSION_DIGITS
    label = f"{(int(last[0].version) if last else 0) + 1:0{digits}}_{word}"
    up, down = (folder.path / f"{label}.{part}.sql" for part in ("up", "down"))
    for path, line in (
        (up, "-- What this migration makes, and why.\n"),
        (down, "-- Undo it, newest first.\n"),
    ):
        with path.open("x", encoding="utf-8") as file:
            file.write(line)
    return up, down
