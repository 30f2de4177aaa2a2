"""The embedded server: started, attached to, stopped."""

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql

from tollbook.core.embedded import account, cluster, tuning
from tollbook.core.embedded.child import Child
from tollbook.core.embedded.cluster import ADMIN, PORT, ROLE, Cluster
from tollbook.core.embedded.errors import EmbeddedServerFailed, NoAccess
from tollbook.core.embedded.lock import locked

START_SECONDS_MAX = 300  # recovery replays at most max_wal_size, and then some
CONNECT_SECONDS_MAX = 5
POLL_SECONDS = 0.01


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
    _temporary: bool = field(default=False, repr=False, compare=False)

    def url(self, database: str = "tollbook", *, user: str = "tollbook") -> str:
        """Return the libpq address of a database. The user `postgres` is the superuser."""
        query = urlencode({"host": str(self.socket_dir), "port": self.port, "user": user}, quote_via=quote)
        return f"postgresql:///{quote(database, safe='')}?{query}"

    def stop(self) -> None:
        """Shut the server down cleanly; its clients' connections end. Not ours, or stopped: nothing."""
        if self._child is None or not self.owner:
            return
        self._child.stop()
        if self._temporary:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(data_dir: Path, *, stay: bool = False, settings: Mapping[str, str] | None = None) -> Server:
    """Start the server whose data live in `data_dir`, or attach to it where it runs already."""
    return _start(data_dir, stay=stay, settings=settings or {}, temporary=False)


def throwaway(*, settings: Mapping[str, str] | None = None) -> Server:
    """Start a new server in a temporary folder, which goes when it stops."""
    folder = Path(tempfile.mkdtemp(prefix="tollbook-throwaway-"))
    try:
        return _start(folder, stay=False, settings=settings or {}, temporary=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _start(data_dir: Path, *, stay: bool, settings: Mapping[str, str], temporary: bool) -> Server:
    home = _make_home(data_dir)
    with locked(home):
        folder = home / cluster.FOLDER
        user = account.choose(home, folder)
        if not folder.exists():
            ours = cluster.create(home, user, sync=not temporary)
        else:
            ours = Cluster(folder, user)
            cluster.check(folder)
            if running := _attach(home, ours):
                return running
        return _launch(home, ours, stay=stay, settings=settings, temporary=temporary)


def _make_home(data_dir: Path) -> Path:
    home = Path(os.path.abspath(data_dir.expanduser()))
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NoAccess(
            f"The data folder {home} cannot be made: {error.strerror}. Choose another with --data-dir."
        ) from None
    return home


def _attach(home: Path, ours: Cluster) -> Server | None:
    """Return the running server, or None once none runs; waits for one that is starting or stopping."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while note := ours.read_note():
        server = Server(home, ours.resolve_socket_dir(note), PORT, owner=False)
        if note.status == "ready" and _answers(server, ours):
            _prepare(server)
            ours.prune_logs()
            return server
        if not ours.runs(note.pid):
            ours.clear_after_kill()
            return None
        if time.monotonic() > deadline:
            raise EmbeddedServerFailed(
                f"The server in {home} (process {note.pid}) runs but does not answer: it says "
                f"{note.status!r}. Its log is in {ours.folder / 'log'}; if it is stuck, end it with `kill -INT {note.pid}`."
            )
        time.sleep(POLL_SECONDS)
    return None


def _launch(home: Path, ours: Cluster, *, stay: bool, settings: Mapping[str, str], temporary: bool) -> Server:
    ours.configure(tuning.read_memory_bytes())
    ours.prune_logs()
    socket_dir, socket_setting = ours.choose_socket_dir()
    closed = {  # after the caller's: nothing opens these
        "listen_addresses": "",
        "unix_socket_directories": socket_setting,
        "unix_socket_permissions": "0700",
        "port": str(PORT),
    }
    program = [ours.program("postgres"), "-D", ours.locate()]
    for name, value in {**settings, **closed}.items():
        program += ["-c", f"{name}={value}"]
    with ours.start_log().open("wb") as output:
        child = Child(program, ours.account, ours.folder, output, stay=stay, tend=ours.prune_logs)
    server = Server(home, socket_dir, PORT, owner=not stay, _child=child, _temporary=temporary)
    try:
        _await_ready(server, ours, child)
        _prepare(server)
    except BaseException:
        child.stop()
        raise
    return server


def _await_ready(server: Server, ours: Cluster, child: Child) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        if child.ended.wait(POLL_SECONDS):
            raise cluster.explain(
                f"PostgreSQL did not start in {server.data_dir}", ours.folder, ours.read_log_tail()
            )
        note = ours.read_note()
        if note and note.pid == child.process.pid and note.status == "ready" and _answers(server, ours):
            return
    raise EmbeddedServerFailed(
        f"PostgreSQL in {server.data_dir} was not ready after {START_SECONDS_MAX} seconds and was stopped. "
        f"It may have much to recover on a slow disk: try again.\n{ours.read_log_tail()}"
    )


def _answers(server: Server, ours: Cluster) -> bool:
    """Whether the socket answers, and with our data: a copied cluster names the original's socket."""
    try:
        with _connect(server) as connection:
            row = connection.execute(
                "SELECT extract(epoch FROM (pg_stat_file('PG_VERSION')).change)::bigint"
            ).fetchone()
    except psycopg.OperationalError:
        return False
    # No copy has its original's time of change, and nobody can set it.
    return row is not None and row[0] == int((ours.folder / "PG_VERSION").stat().st_ctime)


def _prepare(server: Server) -> None:
    """Make Tollbook's role and database where they are not there yet."""
    with _connect(server) as connection:
        if not connection.execute("SELECT FROM pg_roles WHERE rolname = %(name)s", {"name": ROLE}).rowcount:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEDB").format(sql.Identifier(ROLE)))
        if not connection.execute(
            "SELECT FROM pg_database WHERE datname = %(name)s", {"name": ROLE}
        ).rowcount:
            name = sql.Identifier(ROLE)
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, name))


def _connect(server: Server) -> "psycopg.Connection[tuple[int]]":
    return psycopg.connect(
        server.url("postgres", user=ADMIN), autocommit=True, connect_timeout=CONNECT_SECONDS_MAX
    )
