"""The embedded server: started, attached to, stopped."""

import errno
import itertools
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode

import psycopg

from tollbook.embedded import account, cluster, tuning
from tollbook.embedded.child import STOP_SECONDS_MAX, Child
from tollbook.embedded.cluster import ADMIN, PORT, Cluster
from tollbook.embedded.errors import EmbeddedServerFailed, NoAccess, NoSpaceLeft
from tollbook.embedded.lock import locked, try_lock

START_SECONDS_MAX = 300  # recovery replays at most max_wal_size, and then some
CONNECT_SECONDS_MAX = 5
POLL_SECONDS = 0.01
THROWAWAY = "tollbook-throwaway-"
SWEEP_MAX = 100  # left-over folders looked at in one go
SWEEP_AGE_SECONDS = 60  # a younger one may be about to be locked by its maker


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `data_dir` is the folder given to start(); the cluster is its folder `postgresql`.

    `port` only names the socket file. `owner` is true when this process started it and must stop it.
    """

    data_dir: Path
    socket_dir: Path
    port: int
    owner: bool
    _child: Child | None = field(default=None, repr=False, compare=False)
    _held: int | None = field(default=None, repr=False, compare=False)  # a throwaway's lock

    def url(self, database: str = "tollbook", *, user: str = "tollbook") -> str:
        """Return the libpq address of a database. The user `postgres` is the superuser."""
        query = urlencode({"host": str(self.socket_dir), "port": self.port, "user": user}, quote_via=quote)
        return f"postgresql:///{quote(database, safe='')}?{query}"

    def stop(self) -> None:
        """Shut the server down cleanly; its clients' connections end. Not ours, or stopped: nothing."""
        if self._child is None or not self.owner or not self._child.is_ours():
            return
        self._child.stop()
        self.remove_socket_dir()
        if self._held is not None and self.data_dir.is_dir():
            _remove_throwaway(self.data_dir.parent, self._held)

    def remove_socket_dir(self) -> None:
        """Remove the folder that a stopped server's socket was in, if it is not in the cluster."""
        if not self.socket_dir.is_relative_to(self.data_dir):
            with suppress(OSError):
                self.socket_dir.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(data_dir: Path, *, stay: bool = False, settings: Mapping[str, str] | None = None) -> Server:
    """Start the server whose data live in `data_dir`, or attach to it where it runs already.

    The first start makes the cluster, with the database `tollbook` owned by the role `tollbook`. The server
    ends with this process, unless it shall `stay`: then it runs until stop(data_dir). When an owner ends,
    the connections of the processes that attached end too; whoever calls start() next owns the next server.
    `settings` are PostgreSQL's, for this run; where the server runs already they change nothing.
    Raises EmbeddedServerFailed and its kinds.
    """
    home = _make_home(data_dir)
    with _explained(home):
        return _start(home, stay=stay, settings=settings or {})


def stop(data_dir: Path) -> bool:
    """Stop this folder's server, whoever started it. False when none runs. Raises EmbeddedServerFailed."""
    home = Path(os.path.abspath(data_dir.expanduser()))
    folder = home / cluster.FOLDER
    if not folder.exists():
        return False
    with _explained(home), locked(home):
        ours = Cluster(folder, account.choose(home, folder))
        note, running = ours.read_note(), _attach(home, ours)
        if note is None or running is None:
            return False
        os.kill(note.pid, signal.SIGINT)
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while ours.runs(note.pid):
            if time.monotonic() > deadline:
                raise EmbeddedServerFailed(
                    f"PostgreSQL in {home} (process {note.pid}) has not stopped within {STOP_SECONDS_MAX} "
                    f"seconds. Wait, or end it with `kill -QUIT {note.pid}`; nothing committed is lost."
                )
            time.sleep(POLL_SECONDS)
        running.remove_socket_dir()
    return True


def throwaway(
    *,
    settings: Mapping[str, str] | None = None,
    within: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Server:
    """Start a new server in a temporary folder, which goes when it stops. Raises EmbeddedServerFailed.

    `within` is where that folder is made, if not where temporary files go. Its `environment` is its own.
    """
    _sweep_throwaways(within or Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=THROWAWAY, dir=within))
    held = os.open(folder, os.O_RDONLY)
    try_lock(held)
    try:
        home = _make_home(folder / "data")
        with _explained(home):
            return _start(home, stay=False, settings=settings or {}, held=held, environment=environment)
    except BaseException:
        _remove_throwaway(folder, held)
        raise


def _sweep_throwaways(within: Path) -> None:
    """Remove what killed owners left behind: folders that nobody holds any more."""
    found = within.glob(f"{THROWAWAY}*")
    for folder in itertools.islice(found, SWEEP_MAX):
        with suppress(OSError):  # another user's, or another sweeper was faster
            if time.time() - folder.lstat().st_mtime > SWEEP_AGE_SECONDS and not folder.is_symlink():
                held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                if os.fstat(held).st_uid == os.geteuid() and try_lock(held):
                    shutil.rmtree(folder, ignore_errors=True)
                os.close(held)


def _remove_throwaway(folder: Path, held: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(held)


def _start(
    home: Path,
    *,
    stay: bool,
    settings: Mapping[str, str],
    held: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Server:
    with locked(home):
        folder = home / cluster.FOLDER
        user = account.choose(home, folder)
        if not folder.exists():
            ours = cluster.create(home, user, sync=held is None)
        else:
            ours = Cluster(folder, user)
            cluster.check(folder)
            if running := _attach(home, ours):
                return running
        return _launch(home, ours, stay=stay, settings=settings, held=held, environment=environment)


def _make_home(data_dir: Path) -> Path:
    home = Path(os.path.abspath(data_dir.expanduser()))
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NoAccess(
            f"The data folder {home} cannot be made: {error.strerror}. Choose another with --data-dir."
        ) from None
    return home


@contextmanager
def _explained(home: Path) -> Generator[None]:
    try:
        yield
    except PermissionError as error:
        raise NoAccess(
            f"{error.filename} is closed to this user ({error.strerror}). Run as the user who made {home}, "
            "or choose another folder with --data-dir."
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoSpaceLeft(home, shutil.disk_usage(home).free) from error
        raise EmbeddedServerFailed(
            f"The embedded server in {home} cannot be used: {error}. Mend that and try again."
        ) from error


def _attach(home: Path, ours: Cluster) -> Server | None:
    """Return the running server, or None once none runs; waits for one that is starting or stopping."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while note := ours.read_note():
        server = Server(home, ours.folder / note.socket_dir, PORT, owner=False)
        if note.status == "ready" and _greet(server, ours):
            ours.rotate_log()
            return server
        if not ours.runs(note.pid):
            ours.clear_after_kill()
            return None
        if time.monotonic() > deadline:
            raise EmbeddedServerFailed(
                f"The server in {home} (process {note.pid}) says {note.status!r} but does not answer. See "
                f"{ours.folder / cluster.LOG}; if it is stuck, end it with `kill -INT {note.pid}`."
            )
        time.sleep(POLL_SECONDS)
    return None


def _launch(
    home: Path,
    ours: Cluster,
    *,
    stay: bool,
    settings: Mapping[str, str],
    held: int | None,
    environment: Mapping[str, str] | None,
) -> Server:
    ours.configure(tuning.read_memory_bytes())
    ours.rotate_log()
    socket_dir, socket_setting = ours.choose_socket_dir()
    closed = {  # after the caller's: nothing opens these
        "listen_addresses": "",
        "unix_socket_directories": socket_setting,
        "unix_socket_permissions": "0700",
        "port": str(PORT),
    }
    program = [f"{name}={value}" for name, value in (environment or {}).items()]
    program += [ours.program("postgres"), "-D", ours.locate()]
    for name, value in {**settings, **closed}.items():
        program += ["-c", f"{name}={value}"]
    log_start = ours.measure_log()
    child = Child(program, ours.account, ours.folder, cluster.LOG, stay=stay, tend=ours.rotate_log)
    server = Server(home, socket_dir, PORT, owner=not stay, _child=child, _held=held)
    try:
        _await_ready(server, ours, child, log_start)
    except BaseException:
        child.stop()
        server.remove_socket_dir()
        raise
    return server


def _await_ready(server: Server, ours: Cluster, child: Child, log_start: int) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        if child.ended.wait(POLL_SECONDS):
            what = f"PostgreSQL did not start in {server.data_dir}"
            raise cluster.explain(what, ours.folder, ours.read_log(log_start))
        note = ours.read_note()
        if note and note.pid == child.process.pid and note.status == "ready" and _greet(server, ours):
            return
    raise EmbeddedServerFailed(
        f"PostgreSQL in {server.data_dir} was not ready after {START_SECONDS_MAX} seconds and was stopped. "
        f"It may have much to recover on a slow disk: try again. {ours.folder / cluster.LOG} tells more."
    )


def _greet(server: Server, ours: Cluster) -> bool:
    """Whether the socket answers and the data are ours; makes Tollbook's role and database if missing."""
    greeting = _leave_greeting(server, ours)
    try:
        with psycopg.connect(
            server.url("postgres", user=ADMIN), autocommit=True, connect_timeout=CONNECT_SECONDS_MAX
        ) as connection:
            row = connection.execute(
                """
                SELECT pg_read_file('greeting', true) AS greeting,
                       EXISTS (SELECT FROM pg_roles WHERE rolname = 'tollbook') AS has_role,
                       EXISTS (SELECT FROM pg_database WHERE datname = 'tollbook') AS has_database
                """
            ).fetchone()
            assert row is not None
            if greeting and row[0] != greeting:
                return False
            if not row[1]:
                connection.execute("CREATE ROLE tollbook LOGIN CREATEDB")
            if not row[2]:
                connection.execute("CREATE DATABASE tollbook OWNER tollbook")
    except psycopg.errors.DiskFull:
        raise NoSpaceLeft(ours.folder, shutil.disk_usage(ours.folder).free) from None
    except psycopg.OperationalError:
        return False
    return True


def _leave_greeting(server: Server, ours: Cluster) -> str | None:
    """Write a word that only a server of this folder can read, where the socket's place proves nothing.

    A copied cluster's postmaster.pid names the original's socket, if that is outside of the cluster. Inside,
    nothing is written: with a full disk one must still be able to attach.
    """
    if server.socket_dir.is_relative_to(ours.folder):
        return None
    greeting = secrets.token_hex(16)
    ours.write("greeting", greeting.encode())
    return greeting
