"""Databases copied from one that all migrations were applied to, for tests."""

import hashlib
import os
import secrets
import shutil
import warnings
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import conninfo, sql

from tollbook.migrate import application, beside, extensions, formats, history
from tollbook.migrate.files import Folder, parse_folder
from tollbook.migrate.session import Connection, connected, read_url

TEMPLATE = "tollbook_template_"
COPY = "tollbook_test_"
LOCK_KEY = 4_201_337_706_341_702  # whoever makes a template, on servers that several processes share
TEMPLATES_DROPPED_MAX = 20
MEMORY = Path("/dev/shm")  # noqa: S108 -- a folder of a random name is made in it
MEMORY_BYTES_MIN = 2 * 2**30  # a container often has 64 MiB of it
# For a server that lives as long as the tests do, nothing must outlive a crash of the machine.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1d",
}


class Templates:
    """A template on a server, the session that copies it, and a copy made ahead while a test runs."""

    def __init__(self, conn: Connection, url: str, template: str, strategy: LiteralString) -> None:
        self.conn = conn
        self.url = url
        self.template = template
        self.strategy: LiteralString = strategy
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="tollbook-templates")
        self.ahead: Future[str] | None = None

    def create(self) -> str:
        """Make a database with all migrations applied, and return its address."""
        name = f"{COPY}{os.getpid()}_{secrets.token_hex(4)}"
        self.conn.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}").format(
                sql.Identifier(name), sql.Identifier(self.template), sql.SQL(self.strategy)
            )
        )
        return _address(self.url, name)

    def drop(self, url: str) -> None:
        """Drop a database, and end whatever is still connected to it."""
        name = read_url(url)["dbname"]
        assert name.startswith(COPY)
        beside.drop(self.conn, name)

    @contextmanager
    def lent(self) -> Generator[str]:
        """Give a database for the length of a block; meanwhile the next one is made."""
        url = self.ahead.result() if self.ahead else self.create()
        self.ahead = self.worker.submit(self.create)
        try:
            yield url
        finally:
            self.worker.submit(self.drop, url)

    def close(self) -> None:
        """Drop what was made ahead."""
        if self.ahead is not None:
            self.worker.submit(self.drop, self.ahead.result())
        self.worker.shutdown()


def place(text: str, root: Path) -> Folder:
    """Read a folder given as [NAME=]PATH, its path from the root folder. Raises WrongUsage."""
    name, equals, path = text.rpartition("=")
    return parse_folder(f"{name}{equals}{root / path}")


@contextmanager
def opened(folders: Sequence[Folder], url: str | None, project: str) -> Generator[Templates]:
    """Give the template of the folders: on the server of `url`, or on one of our own that ends with it.

    On a server of others it stays for the next session, until the migrations change. Raises MigrateError.
    """
    if url is not None:
        with _copying(url, folders, project, "wal_log") as made:
            yield made
        return
    from tollbook.embedded import throwaway

    with throwaway(settings=SETTINGS, within=_find_memory()) as server:
        own = server.url("postgres", user="postgres")
        with connected(own) as admin:
            extensions.offer(server, admin)
        with _copying(own, folders, project, "file_copy") as made:
            yield made


@contextmanager
def _copying(
    url: str, folders: Sequence[Folder], project: str, strategy: LiteralString
) -> Generator[Templates]:
    # Of 50 tables, on a server of one's own, file_copy takes half the time; but each copy is two checkpoints,
    # which on a server that others use are not ours to ask for.
    with connected(url) as conn:
        made = Templates(conn, url, _make(conn, url, folders, project), strategy)
        try:
            yield made
        finally:
            made.close()


def _find_memory() -> Path | None:
    """Return a folder that lies in memory, where copies are made faster, if there is one with room."""
    with suppress(OSError):
        if shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN and os.access(MEMORY, os.W_OK | os.X_OK):
            return MEMORY
    return None


def _make(conn: Connection, url: str, folders: Sequence[Folder], project: str) -> str:
    """Make the template unless it is there; it gets its name only when it is complete."""
    name = TEMPLATE + _digest(folders)
    conn.execute("SELECT pg_advisory_lock(%(key)s)", {"key": LOCK_KEY})
    try:
        row = conn.execute("SELECT 1 FROM pg_database WHERE datname = %(name)s", {"name": name}).fetchone()
        if row is None:
            _drop_old(conn, project)
            _fill(conn, url, folders, name, project)
    finally:
        if not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(%(key)s)", {"key": LOCK_KEY})
    return name


def _digest(folders: Sequence[Folder]) -> str:
    said = [
        (one.id, one.version, *(part and part.checksum for part in (one.up, one.down, one.backfill)))
        for one in formats.read(folders)
    ]
    return hashlib.sha256(repr((history.engine_version(), said)).encode()).hexdigest()[:20]


def _fill(conn: Connection, url: str, folders: Sequence[Folder], name: str, project: str) -> None:
    begun = f"{COPY}new_{secrets.token_hex(4)}"
    conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(begun)))
    try:
        application.apply(_address(url, begun), folders, backup=False)
        _warn(_address(url, begun))
        conn.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(begun), sql.Literal(project))
        )
        conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(begun)))
        conn.execute(
            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(begun), sql.Identifier(name))
        )
    except BaseException:
        if not conn.closed:
            beside.drop(conn, begun)
        raise


def _warn(url: str) -> None:
    """Say which extensions are stand-ins, if any are."""
    with connected(url) as conn:
        names = ", ".join(extensions.list_imitated(conn))
    if names:
        warnings.warn(
            f"A server of Tollbook's own has stand-ins of {names}: their hashes are right, passwords and "
            "encryption keep nothing secret. --tollbook-database-url names a server that has the real ones.",
            stacklevel=1,
        )


def _drop_old(conn: Connection, project: str) -> None:
    """Drop the templates that this project's earlier migrations left on a server that stays."""
    rows = conn.execute(
        """SELECT datname FROM pg_database WHERE starts_with(datname, %(prefix)s)
          AND shobj_description(oid, 'pg_database') = %(project)s LIMIT %(most)s""",
        {"prefix": TEMPLATE, "project": project, "most": TEMPLATES_DROPPED_MAX},
    ).fetchall()
    for (old,) in rows:
        with suppress(psycopg.errors.ObjectInUse):  # other tests are copying it just now
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(old)))


def _address(url: str, database: str) -> str:
    """Return the address of another database of the same server."""
    return conninfo.make_conninfo(**read_url(url) | {"dbname": database})
