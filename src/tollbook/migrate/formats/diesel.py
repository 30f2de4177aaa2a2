"""Diesel and Hasura: a folder a migration, with up.sql and down.sql in it."""

from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Folder, Migration, read_foreign, read_script
from tollbook.migrate.formats import strangers


def recognise(path: Path) -> bool:
    """Whether the folder has folders with up.sql in them."""
    return next(path.glob("[0-9]*/up.sql"), None) is not None


def read(folder: Folder) -> list[Migration]:
    """Return the folder's migrations, by what Diesel takes for their versions. Raises FolderRefused."""
    found: list[Migration] = []
    for path in sorted(filter(_is_migration, folder.path.iterdir()), key=_find_place):
        up, down = path / "up.sql", path / "down.sql"
        if (data := path / "up.yaml").is_file():  # Hasura's, of which only SQL concerns the database
            if strangers.name_tool(data):
                script = read_foreign(data, "written in YAML", "Hasura")
                found.append(Migration(folder.name, path.name, path.name, script))
                continue
            if not up.is_file():
                continue
        if not up.is_file():
            raise FolderRefused(
                "There is no up.sql in this folder. Add it, or take it away.", Place(str(path))
            )
        way_back = read_script(down) if down.is_file() else None
        found.append(Migration(folder.name, path.name, path.name, read_script(up), way_back))
    return found


def _is_migration(path: Path) -> bool:
    """Whether Diesel would run it, or somebody meant it to: what has no number is told by its up.sql."""
    if path.name.startswith(".") or not path.is_dir():
        return False
    return path.name[0].isdigit() or (path / "up.sql").is_file()


def _find_place(path: Path) -> tuple[str, str]:
    """Return what Diesel goes by: 2017-01-02-030405 and 20170102030405 are written side by side."""
    return path.name.partition("_")[0].replace("-", ""), path.name
