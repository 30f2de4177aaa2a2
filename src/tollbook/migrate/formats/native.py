"""Numbered files: NNNN_name.up.sql, .down.sql, .check.sql and .backfill.sql, or NNNN_name.sql alone.

So are our own folders, and those of golang-migrate, SQLx and all who just number their files, by date too.
"""

import re
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place, WrongUsage
from tollbook.migrate.files import Folder, Migration, list_sql, read_script, sort

DATE = r"[0-9]{4}(?P<dash>[-_])[0-9]{2}(?P=dash)[0-9]{2}(?:[-_T]?[0-9]{4,6}(?![0-9]))?"
NUMBER = r"[0-9]+(?:\.[0-9]+)*(?=[-_. ]|$)|[0-9]+"
PARTS = "up|down|check|backfill|undo|rollback"
FILE_NAME = re.compile(
    rf"(?P<label>(?P<version>{DATE}|{NUMBER})(?P<name>.*?))(?:\.(?P<part>{PARTS}))?\.sql", re.IGNORECASE
)
FORGOTTEN = re.compile(rf".*\.(?:{PARTS})\.sql", re.IGNORECASE)
SAME = {"undo": "down", "rollback": "down"}
VERSION_DIGITS_MAX = 40  # a timestamp has 14
NEW_VERSION_DIGITS = 4


def recognise(path: Path) -> bool:
    """Whether the folder holds such files."""
    return any(FILE_NAME.fullmatch(file.name) for file in path.glob("*.sql"))


def read(folder: Folder) -> list[Migration]:
    """Return one folder's migrations by version. Raises FolderRefused on any file it cannot place.

    Files without a number (a schema, seeds) are passed over, unless there are no others.
    """
    found = _read_numbered(folder)
    if not found:
        _refuse_unnumbered(folder.path)
    return found


def _read_numbered(folder: Folder) -> list[Migration]:
    parts: dict[tuple[str, str], dict[str, Path]] = {}
    for path in list_sql(folder.path):
        match = FILE_NAME.fullmatch(path.name)
        if match is None or len(match["version"]) > VERSION_DIGITS_MAX:
            if FORGOTTEN.fullmatch(path.name) or match is not None:
                raise FolderRefused(
                    "This file is not named NUMBER_name.up.sql, NUMBER_name.down.sql or "
                    "NUMBER_name.check.sql, so it would never run. Rename it, or move it out of the folder.",
                    Place(str(path)),
                )
            continue
        same = parts.setdefault((parse_version(match["version"]), match["label"]), {})
        part = (match["part"] or "up").lower()
        part = SAME.get(part, part)
        if part in same:
            raise FolderRefused(f"{same[part].name} is the same migration. Take one away.", Place(str(path)))
        same[part] = path
    return sort([_read_migration(folder.name, *key, files) for key, files in parts.items()])


def _refuse_unnumbered(path: Path) -> None:
    """Refuse a folder whose SQL would never run: better than nothing to do. An empty one may be filled."""
    first = next((one for one in sorted(path.rglob("*.[sS][qQ][lL]")) if not one.name.startswith(".")), None)
    if first is None:
        return
    raise FolderRefused(
        "No file of this folder begins with a number, so none would run. Name them NUMBER_name.sql, give the "
        "folder they lie in by --dir, or say whose format it is by --format.",
        Place(str(first)),
    )


def parse_version(text: str) -> str:
    """Return a number or date as the history keeps it: 0001 is 1, 2024-05-01 is 20240501."""
    if re.fullmatch(DATE, text):
        return re.sub(r"\D", "", text)
    return ".".join(str(int(part)) for part in text.split("."))


def _read_migration(folder: str, version: str, label: str, files: dict[str, Path]) -> Migration:
    if "up" not in files:
        path = next(iter(files.values()))
        raise FolderRefused(
            f"There is no {label}.up.sql beside this file. Add it, or rename this one.", Place(str(path))
        )
    scripts = {part: read_script(path) for part, path in files.items()}
    return Migration(
        folder,
        version,
        label,
        scripts["up"],
        scripts.get("down"),
        scripts.get("check"),
        backfill=scripts.get("backfill"),
    )


def create_pair(folder: Folder, name: str) -> tuple[Path, Path]:
    """Write the next numbered pair of files, each with one line of comment. Return up and down."""
    word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not word:
        raise WrongUsage("The name needs a letter or a digit: tollbook migrate new add_refunds")
    folder.path.mkdir(parents=True, exist_ok=True)
    last = _read_numbered(folder)[-1:]
    digits = len(re.split(r"\D", last[0].label)[0]) if last else NEW_VERSION_DIGITS
    label = f"{(int(last[0].version) if last else 0) + 1:0{digits}}_{word}"
    up, down = (folder.path / f"{label}.{part}.sql" for part in ("up", "down"))
    for path, line in (
        (up, "-- What this migration makes, and why.\n"),
        (down, "-- Undo it, newest first.\n"),
    ):
        with path.open("x", encoding="utf-8") as file:
            file.write(line)
    return up, down
