"""Cut off at random, crashed under, run by many at once: what is in the end is what one quiet run makes."""

import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from fixtures.tenfold import TEN, empty, lay_out, look
from tollbook.embedded import throwaway
from tollbook.migrate import Folder, MigrateError, apply

ENGINES = (2, 10)
CUTS = 6
RUN_SECONDS = 0.6  # about what a run takes: moments of cuts are spread over it
ENDED_SECONDS_MAX = 90.0
BACKENDS = """SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'tollbook migrate'"""

Cut = Callable[[str], None]


def begin(work: Callable[[], object]) -> int:
    """Do the work in a process of its own, which exits with 0 where it is done, 1 where it was refused."""
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            work()
            code = 0
        except MigrateError:
            code = 1
        finally:
            os._exit(code)
    return pid


def end(pid: int) -> int:
    until = time.monotonic() + ENDED_SECONDS_MAX
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("it hangs")


@pytest.fixture
def folders(tmp_path: Path) -> list[Folder]:
    return lay_out(tmp_path, TEN)


@pytest.fixture
def wanted(url: str, folders: list[Folder]) -> Any:
    apply(empty(url), folders, backup=False)
    found = look(url)
    empty(url)
    return found


@pytest.mark.parametrize("engines", ENGINES)
def test_of_many_at_once_each_migration_runs_once_and_all_end_well(
    url: str, folders: list[Folder], wanted: Any, engines: int
) -> None:
    pids = [begin(lambda: apply(url, folders, backup=False)) for _ in range(engines)]
    assert [end(pid) for pid in pids] == [0] * engines
    assert look(url) == wanted
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM tollbook_migrate.runs").fetchone() == (1,)


def test_two_behind_a_session_that_holds_a_lock_and_a_snapshot_wait_and_end_well(
    url: str, tmp_path: Path
) -> None:
    with psycopg.connect(url) as other:
        other.execute("CREATE TABLE outside (i int)")
        other.commit()
        other.execute("LOCK TABLE outside IN ROW EXCLUSIVE MODE")
        build = "CREATE INDEX CONCURRENTLY outside_i ON outside (i);"
        folders = lay_out(tmp_path, {"0001_a.up": build, "0002_b.up": "ALTER TABLE outside ADD j int;"})
        pids = [begin(lambda: apply(url, folders, backup=False)) for _ in range(2)]
        time.sleep(1)
        assert [os.waitpid(pid, os.WNOHANG)[0] for pid in pids] == [0, 0]
        other.rollback()
        assert [end(pid) for pid in pids] == [0, 0]
        found = "SELECT count(*) FROM pg_index WHERE indrelid = 'outside'::regclass AND indisvalid"
        assert other.execute(found).fetchone() == (1,)


def terminate(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SELECT pg_terminate_backend(pid) FROM ({BACKENDS}) AS b".encode())


def crash(url: str) -> None:
    """Kill a server process as the kernel would: all sessions end, and the server recovers from its log."""
    with psycopg.connect(url, autocommit=True) as connection:
        for (pid,) in connection.execute(BACKENDS.encode()).fetchall():
            with suppress(ProcessLookupError):  # it went with the first, or has done its work
                os.kill(pid, signal.SIGKILL)


def wait_for_server(url: str) -> None:
    until = time.monotonic() + ENDED_SECONDS_MAX
    while time.monotonic() < until:
        try:
            with psycopg.connect(url) as connection:
                connection.execute("SELECT 1")
                return
        except psycopg.OperationalError:
            time.sleep(0.05)
    raise AssertionError("the server does not come back")


def cut_at_random(url: str, folders: list[Folder], cut: Cut) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 -- shown where it fails
    chance = random.Random(seed)
    apply(empty(url), folders, backup=False)
    wanted = look(url)
    for _ in range(CUTS):
        empty(url)
        engine = begin(lambda: apply(url, folders, backup=False))
        time.sleep(chance.uniform(0, RUN_SECONDS))
        cut(url)
        assert end(engine) in (0, 1)
        wait_for_server(url)
        apply(url, folders, backup=False)
        assert look(url) == wanted


def test_ended_at_random_the_next_run_ends_as_one_that_was_not(url: str, folders: list[Folder]) -> None:
    cut_at_random(url, folders, terminate)


def test_with_the_server_crashed_at_random_the_next_run_ends_as_one_that_was_not(
    folders: list[Folder],
) -> None:
    with throwaway() as server:
        cut_at_random(server.url(), folders, crash)


@contextmanager
def resetting(url: str, after_bytes: int) -> Iterator[str]:
    """Give the address of a way to the server that is reset when so many bytes went to it."""
    parts = urlsplit(url)
    host = parse_qs(parts.query).get("host", [parts.hostname or ""])[0]
    port = int(parts.port or parse_qs(parts.query).get("port", ["5432"])[0])
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_relay, args=(listener, host, port, after_bytes), daemon=True)
    thread.start()
    with psycopg.connect(url) as connection:
        info = connection.info
        yield (
            f"host=127.0.0.1 port={listener.getsockname()[1]} user={info.user} dbname={info.dbname} "
            f"password='{info.password}' sslmode=disable gssencmode=disable"
        )
    listener.close()


def _relay(listener: socket.socket, host: str, port: int, after_bytes: int) -> None:
    client, _ = listener.accept()
    if host.startswith("/"):
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
    else:
        server = socket.create_connection((host, port))
    back = threading.Thread(target=_pour, args=(server, client, 1 << 62), daemon=True)
    back.start()
    _pour(client, server, after_bytes)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    with suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)  # a close alone would wait for the other thread's read
    server.close()


def _pour(source: socket.socket, target: socket.socket, most: int) -> None:
    try:
        while most > 0 and (data := source.recv(min(4096, most))):
            target.sendall(data)
            most -= len(data)
    except OSError:
        return


def test_reset_at_any_byte_the_next_run_ends_as_one_that_was_not(
    url: str, folders: list[Folder], wanted: Any
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 -- shown where it fails
    chance = random.Random(seed)
    for _ in range(CUTS):
        with resetting(url, chance.randrange(200, 20_000)) as address:
            assert end(begin(lambda address=address: apply(address, folders, backup=False))) in (0, 1)
        apply(url, folders, backup=False)
        assert look(url) == wanted
        empty(url)
