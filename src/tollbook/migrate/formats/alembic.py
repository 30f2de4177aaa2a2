"""Alembic: revisions in Python, found by its own library; what they do is in revisions.py.

env.py says how an application connects, which here is the engine's to say: it is only asked what it gives
`context.configure`, for the names that the application's naming convention gives to constraints.
"""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Folder, Migration

# Its modules are slow to load, and most folders are not Alembic's.
if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import Script as Revision
    from alembic.script import ScriptDirectory

    from tollbook.migrate.formats.revisions import Environment

INSTALL = "Alembic's folders need its library: pip install 'tollbook[alembic]'."
SETTINGS = "alembic.ini"
PROJECT = "pyproject.toml"
ABOVE_MAX = 4  # so many folders above it, an application's root is looked for
MARKS = re.compile(r"(?m)^(?:revision, *)?down_revision\b[^=\n]*=")
OURS = ("postgresql", "postgres", "pg")


def recognise(path: Path) -> bool:
    """Whether settings of Alembic lie here, an env.py beside versions, or revisions themselves."""
    return _says_so(path) or _find_environment(path) is not None or _holds_revisions(path)


def _says_so(path: Path) -> bool:
    project = path / PROJECT
    return (path / SETTINGS).is_file() or (
        project.is_file() and "[tool.alembic]" in project.read_text(errors="replace")
    )


def _find_environment(path: Path) -> Path | None:
    """Return the folder of env.py: this, or one in it."""
    for env in (path / "env.py", *sorted(path.glob("*/env.py"))):
        if env.is_file() and (
            (env.parent / "versions").is_dir() or "alembic" in env.read_text(errors="replace")
        ):
            return env.parent
    return None


def _holds_revisions(path: Path) -> bool:
    named = (one for one in sorted(path.glob("*.py")) if not one.name.startswith("__"))
    first = next(named, None)
    return first is not None and MARKS.search(first.read_text(errors="replace")) is not None


def read(folder: Folder) -> list[Migration]:
    """Return the revisions, each after those it builds on. Raises FolderRefused."""
    from tollbook.migrate.formats import revisions

    config, directory = _open(folder.path.resolve())
    try:
        with revisions.quiet(), revisions.glancing():
            found = list(directory.walk_revisions())
    except Exception as error:  # a revision is a program: importing it may raise anything
        raise revisions.explain(folder.path, error) from error
    below = sorted({one.parent for one in Path(directory.dir).rglob("*.py")}) if not found else []
    if hidden := next(filter(_holds_revisions, below), None):
        raise FolderRefused(
            "Alembic finds no revisions; these lie here. Give this folder by --dir.", Place(str(hidden))
        )
    environment = revisions.Environment(folder.path, config, directory)
    return [_make(folder, environment, revision) for revision in reversed(found)]


def _open(path: Path) -> "tuple[Config, ScriptDirectory]":
    from tollbook.migrate.formats import revisions

    try:
        from alembic.script import ScriptDirectory
    except ImportError:
        raise FolderRefused(INSTALL, Place(str(path))) from None
    # Revisions import the application they belong to, which lies where alembic.ini does, or above.
    for place in map(str, (path, *path.parents[:ABOVE_MAX])):
        if place not in sys.path:
            sys.path.append(place)
    try:
        config = _configure(path)
        return config, ScriptDirectory.from_config(config)
    except Exception as error:
        raise revisions.explain(path, error) from error


def _configure(path: Path) -> "Config":
    """Return the folder's settings, with every place in them found from the folder, not from where we are."""
    from alembic.config import Config

    if not _says_so(path) and _find_environment(path) is None and _holds_revisions(path):
        return _place(Config(), path.parent if (path.parent / "env.py").is_file() else path, [path])
    for above in (path, *path.parents[:ABOVE_MAX]):
        config = _read_settings(above)
        location = config and _find_scripts(above, config)
        if config and location and (above == path or location == path):
            return _place(config, location, _find_versions(above, location, config))
    location = _find_environment(path) or path
    return _place(Config(), location, _find_versions(path, location, Config()))


def _read_settings(path: Path) -> "Config | None":
    from alembic.config import Config

    if not _says_so(path):
        return None
    settings, project = (
        str(path / name) if (path / name).is_file() else None for name in (SETTINGS, PROJECT)
    )
    return Config(settings, toml_file=project)


def _find_scripts(path: Path, config: "Config") -> Path | None:
    """Return where env.py lies: where the settings say, seen from them or from a root above them, or here."""
    import configparser

    try:
        said = config.get_alembic_option("script_location")
    except configparser.InterpolationError:
        said = None
    return (_resolve(path, said) if said else None) or _find_environment(path)


def _resolve(path: Path, said: str) -> Path | None:
    """Return a folder of the settings: PACKAGE:FOLDER, or a path relative to nobody knows what."""
    relative = said if os.path.isabs(said) else said.replace(":", "/")
    places = (above / relative for above in (path, *path.parents[:ABOVE_MAX]))
    return next((one.resolve() for one in places if one.is_dir()), None)


def _find_versions(path: Path, location: Path, config: "Config") -> list[Path]:
    from tollbook.migrate.formats import revisions

    with revisions.quiet():
        said = config.get_version_locations_list() or []
    found = [one for one in (_resolve(path, text) for text in said) if one]
    if found or any((location / "versions").glob("*.py")):
        return found
    below = sorted((location / "versions").glob("*/"))
    # Some keep the revisions of several kinds of servers side by side.
    return [one for one in below if one.name in OURS] or below


def _place(config: "Config", location: Path, versions: list[Path]) -> "Config":
    config.set_main_option("script_location", str(location).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    if versions:
        config.set_main_option("version_locations", os.pathsep.join(map(str, versions)).replace("%", "%%"))
    return config


def _make(folder: Folder, environment: "Environment", revision: "Revision") -> Migration:
    from tollbook.migrate.formats import revisions

    up, down = revisions.defer(environment, revision)
    return Migration(
        folder.name,
        revision.revision,
        up.path.stem,
        up,
        down,
        # What it depends on may be said by a branch's label.
        after=tuple(revision._all_down_revisions),  # pyright: ignore[reportPrivateUsage]
    )
