"""Drizzle: numbered files, in the order and by the names that its journal gives them."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Folder, Migration, read_script

JOURNAL = "meta/_journal.json"
SNAPSHOT = "snapshot.json"
STAMP = re.compile(r"[0-9]{14}(?=_|$)")
OURS = ("pg", "postgresql", "postgres", "cockroach", "cockroachdb")


def recognise(path: Path) -> bool:
    """Whether Drizzle's journal lies here."""
    return (path / JOURNAL).is_file()


def read(folder: Folder) -> list[Migration]:
    """Return the migrations that the journal names, in its order. Raises FolderRefused."""
    said = _read_journal(folder.path / JOURNAL)
    found: list[Migration] = []
    for tag in (str(entry["tag"]) for entry in said["entries"]):
        path = folder.path / f"{tag}.sql"
        if not path.is_file():
            raise FolderRefused("The journal names this file, which is not there.", Place(str(path)))
        found.append(Migration(folder.name, tag, tag, read_script(path)))
    return found


def _read_journal(path: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        [(str(entry["tag"]), int(entry["when"])) for entry in said["entries"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderRefused(f"This journal cannot be read ({error}).", Place(str(path))) from None
    if str(said.get("dialect", OURS[0])) not in OURS:
        raise FolderRefused(
            f"These migrations are for {said['dialect']}, not for PostgreSQL.", Place(str(path))
        )
    return said


def find_time(migration: Migration) -> int | None:
    """Return when a migration was made, in milliseconds, by which Drizzle knows it; None for no such file.

    Its journal says it, or since its version 1 the name of the migration's own folder.
    """
    path = migration.up.path.parent
    if recognise(path):
        times = {str(entry["tag"]): int(entry["when"]) for entry in _read_journal(path / JOURNAL)["entries"]}
        return times.get(migration.label)
    stamp = STAMP.match(migration.label) if (path / SNAPSHOT).is_file() else None
    return int(datetime.strptime(f"{stamp[0]}+0000", "%Y%m%d%H%M%S%z").timestamp()) * 1000 if stamp else None
