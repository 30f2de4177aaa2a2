"""Folders as the tools of the field lay them out, each read by its own module into the same migrations."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place, WrongUsage
from tollbook.migrate.files import FOLDER_NAME, Folder, Migration
from tollbook.migrate.formats import (
    alembic,
    dbmate,
    diesel,
    drizzle,
    flyway,
    goose,
    graphile,
    native,
    prisma,
    sqitch,
)

LEVELS_MAX = 3  # so deep below a folder that holds none, migrations are looked for
FOLDERS_MAX = 100
NOT_IN = re.compile(r"[._]|(?:node_modules|venv|down|rollbacks?|undo|seeds?|tests?|testdata|fixtures)$")

# In this order a folder is asked what it is: the most particular first.
FORMATS = {
    "alembic": alembic,
    "sqitch": sqitch,
    "graphile": graphile,
    "drizzle": drizzle,
    "prisma": prisma,
    "diesel": diesel,
    "flyway": flyway,
    "goose": goose,
    "dbmate": dbmate,
    "native": native,
}


def read(folders: Sequence[Folder]) -> list[Migration]:
    """Return all migrations of the folders, in the order they are applied. Raises FolderRefused."""
    names = [folder.name for folder in folders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise WrongUsage(f"Two folders are called {twice[0]}. Name them apart: --dir NAME=PATH")
    for name in names:
        if not FOLDER_NAME.fullmatch(name.partition("@")[0]):  # FOLDER@SCHEMA, of a fleet
            raise WrongUsage(
                f"{name!r} is no name for a folder. Use up to 63 letters, digits, - and _ : --dir NAME=PATH"
            )
    return [migration for folder in folders for migration in _read_folder(folder)]


def _read_folder(folder: Folder) -> list[Migration]:
    name = recognise(folder.path) if folder.format == "auto" else folder.format
    if name not in FORMATS:
        raise WrongUsage(f"There is no format {name}. There are: auto, {', '.join(FORMATS)}.")
    if name == "native" and folder.format == "auto" and (below := _find_below(folder.path)):
        raise FolderRefused(
            f"No file of this folder itself is a migration, so none would run. Some lie in {below}: give "
            "that by --dir.",
            Place(str(folder.path)),
        )
    return FORMATS[name].read(folder)


def _find_below(path: Path) -> Path | None:
    """Return the first folder below that holds migrations, where this one holds none."""
    if native.recognise(path):
        return None
    level = [path]
    for _ in range(LEVELS_MAX):
        folders = (one for above in level for one in sorted(above.iterdir()) if one.is_dir())
        known = (one for one in folders if not (NOT_IN.match(one.name) or flyway.OTHERS.fullmatch(one.name)))
        level = list(itertools.islice(known, FOLDERS_MAX))
        for one in level:
            # Flyway's would have been found from here, at any depth.
            if any(module.recognise(one) for module in FORMATS.values() if module is not flyway):
                return one
    return None


def recognise(path: Path) -> str:
    """Return the format of the folder by what lies in it; native where nothing says otherwise."""
    if not path.is_dir():
        raise FolderRefused(
            f"The folder {path} cannot be read. Check --dir; paths are relative to the current folder."
        )
    return next((name for name, module in FORMATS.items() if module.recognise(path)), "native")


def create_pair(folder: Folder, name: str) -> tuple[Path, Path]:
    """Write the next pair of files. Raises WrongUsage in a folder of another tool's: it would not run."""
    known = recognise(folder.path) if folder.format == "auto" and folder.path.is_dir() else folder.format
    if known not in ("auto", "native"):
        raise WrongUsage(
            f"The files of {folder.path} are written as {known} has them: an up and a down would not run "
            f"there. Make the next one as {known} does."
        )
    return native.create_pair(folder, name)


def find_version(folders: Sequence[Folder], folder: str, text: str) -> str:
    """Return the version that a user's text names: itself, its label, or a number's short form."""
    if text.isdecimal() and int(text) == 0:
        return "0"
    for one in read([one for one in folders if one.name == folder]):
        short = one.version.isdecimal() and text.isdecimal() and int(one.version) == int(text)
        if short or text in (one.version, one.label):
            return one.version
    raise WrongUsage(f"There is no migration {folder}/{text}; `tollbook migrate status` lists them.")
