"""Drizzle: numbered files, in the order and by the names that its journal gives them."""

import json
from pathlib import Path
from typing import Any

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Folder, Migration, read_script

JOURNAL = "meta/_journal.json"
OURS = ("pg", "postgresql", "postgres", "cockroach", "cockroachdb")


def recognise(path: Path) -> bool:
    """Whether Drizzle's journal lies here."""
    return (path / JOURNAL).is_file()


def read(folder: Folder) -> list[Migration]:
    """Return the migrations that the journal names, in its order. Raises FolderRefused."""
    journal = folder.path / JOURNAL
    try:
        said: dict[str, Any] = json.loads(journal.read_text(encoding="utf-8"))
        tags = [str(entry["tag"]) for entry in said["entries"]]
    except (ValueError, KeyError, TypeError) as error:
        raise FolderRefused(f"This journal cannot be read ({error}).", Place(str(journal))) from None
    if str(said.get("dialect", OURS[0])) not in OURS:
        raise FolderRefused(
            f"These migrations are for {said['dialect']}, not for PostgreSQL.", Place(str(journal))
        )
    found: list[Migration] = []
    for tag in tags:
        path = folder.path / f"{tag}.sql"
        if not path.is_file():
            raise FolderRefused("The journal names this file, which is not there.", Place(str(path)))
        found.append(Migration(folder.name, tag, tag, read_script(path)))
    return found


def read_times(path: Path) -> dict[str, int]:
    """Return the names of the migrations and when each was made, by which Drizzle knows it."""
    journal = path / JOURNAL
    try:
        said: dict[str, Any] = json.loads(journal.read_text(encoding="utf-8"))
        times = {str(entry["tag"]): int(entry["when"]) for entry in said["entries"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderRefused(f"This journal cannot be read ({error}).", Place(str(journal))) from None
    if said.get("dialect", OURS[0]) not in OURS:
        raise FolderRefused("These migrations are not for PostgreSQL.", Place(str(journal)))
    return times
