"""Alembic: revisions in Python, rendered to SQL by its own library, or run by it where they ask questions.

env.py is not run: it says how an application connects, which here is the engine's to say.
"""

import hashlib
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Folder, Migration, Script, read_script

if TYPE_CHECKING:
    from alembic.script import Script as Revision
    from alembic.script import ScriptDirectory

INSTALL = "Alembic's folders need its library: pip install 'tollbook[alembic]'."


def recognise(path: Path) -> bool:
    """Whether an alembic.ini lies here, or an env.py beside versions."""
    return (path / "alembic.ini").is_file() or ((path / "env.py").is_file() and (path / "versions").is_dir())


def read(folder: Folder) -> list[Migration]:
    """Return the revisions, each after those it builds on. Raises FolderRefused."""
    directory = _open(folder.path)
    try:
        revisions = list(directory.walk_revisions())
    except Exception as error:  # a revision is a program: importing it may raise anything
        raise FolderRefused(f"Alembic cannot read this folder: {error}", Place(str(folder.path))) from error
    return [_make(folder, revision) for revision in reversed(revisions)]


def _open(path: Path) -> "ScriptDirectory":
    try:
        from alembic.config import Config
        from alembic.script import ScriptDirectory
        from alembic.util import CommandError
    except ImportError:
        raise FolderRefused(INSTALL, Place(str(path))) from None
    settings = path / "alembic.ini"
    config = Config(str(settings)) if settings.is_file() else Config()
    if not settings.is_file():
        config.set_main_option("script_location", str(path).replace("%", "%%"))
    # Revisions import the application they belong to, which lies where alembic.ini does, or above.
    for place in (path, path.parent):
        if str(place.resolve()) not in sys.path:
            sys.path.append(str(place.resolve()))
    try:
        return ScriptDirectory.from_config(config)
    except CommandError as error:
        raise FolderRefused(f"Alembic cannot read this folder: {error}", Place(str(path))) from error


def _make(folder: Folder, revision: "Revision") -> Migration:
    path = Path(revision.path)
    after = revision.down_revision or ()
    needs = revision.dependencies or ()
    return Migration(
        folder.name,
        revision.revision,
        path.stem,
        _render(path, revision, "upgrade"),
        _render(path, revision, "downgrade"),
        after=tuple([after] if isinstance(after, str) else after)
        + tuple([needs] if isinstance(needs, str) else needs),
    )


def _render(path: Path, revision: "Revision", direction: str) -> Script:
    """Return a direction as SQL; where it cannot be told without a database, as a program."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    source = read_script(path)
    function: Callable[[], None] = getattr(revision.module, direction, _nothing)
    buffer = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "literal_binds": True, "output_buffer": buffer}
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # The checksum is of the program: what is rendered may change with the library.
    checksum = hashlib.sha256(source.text.encode()).hexdigest()
    try:
        with Operations.context(context):
            function()
    except Exception:  # it asked the database, which is not there to answer while it is rendered
        return Script(path, "", checksum, source.options, program=lambda conn: _run(conn, function))
    return Script(path, buffer.getvalue(), checksum, source.options)


def _nothing() -> None:
    return None


def _run(conn: Any, function: Callable[[], None]) -> None:
    """Run a direction on the engine's own session, inside its open transaction."""
    import sqlalchemy
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from sqlalchemy.pool import StaticPool

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: _Lent(conn), poolclass=StaticPool, use_native_hstore=False
    )
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        with Operations.context(context):
            function()


class _Lent:
    """The engine's session as SQLAlchemy sees it: it may run statements, and neither commit nor end it."""

    def __init__(self, conn: Any) -> None:
        self.__dict__["_conn"] = conn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "autocommit":
            setattr(self._conn, name, value)

    def commit(self) -> None:
        """Leave that to the engine."""

    def rollback(self) -> None:
        """Leave that to the engine."""

    def close(self) -> None:
        """Leave that to the engine."""
