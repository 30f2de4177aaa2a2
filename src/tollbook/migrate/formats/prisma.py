"""Prisma Migrate: a folder a migration, with migration.sql in it."""

from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Folder, Migration, read_script

FILE = "migration.sql"
PROVIDERS = ('"postgresql"', '"postgres"', '"cockroachdb"')


def recognise(path: Path) -> bool:
    """Whether the folder, or `migrations` in it, has folders with migration.sql in them."""
    return next(_find(path).glob(f"*/{FILE}"), None) is not None


def _find(path: Path) -> Path:
    return path / "migrations" if (path / "migrations" / "migration_lock.toml").is_file() else path


def read(folder: Folder) -> list[Migration]:
    """Return the folder's migrations. Raises FolderRefused."""
    root = _find(folder.path)
    lock = root / "migration_lock.toml"
    if lock.is_file() and not any(word in lock.read_text() for word in PROVIDERS):
        raise FolderRefused("These migrations are not for PostgreSQL.", Place(str(lock)))
    found: list[Migration] = []
    for path in sorted(one for one in root.iterdir() if one.is_dir() and not one.name.startswith(".")):
        if not (path / FILE).is_file():
            raise FolderRefused(
                f"There is no {FILE} in this folder. Add it, or take the folder away.", Place(str(path))
            )
        up, down = path / FILE, path / "down.sql"
        found.append(
            Migration(
                folder.name,
                path.name,
                path.name,
                read_script(up),
                read_script(down) if down.is_file() else None,
            )
        )
    return found
