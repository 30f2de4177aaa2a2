"""A run waits for the replicas of its server, within bounds, and says so."""

import subprocess
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from fixtures.backups import ask, await_, execute
from fixtures.machines import Machine
from tollbook.embedded import binaries
from tollbook.migrate import Folder, Traffic, apply
from tollbook.migrate.errors import ReplicaBehind
from tollbook.migrate.events import Event

STANDBY_PORT = 5433


@pytest.fixture
def standby(machine: Machine) -> Iterator[str]:
    """The address of a streaming replica of the machine's first server."""
    old, new = machine.root / "data" / "old", machine.root / "data" / "new"
    machine.run(
        binaries() / "initdb", "-D", old, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"
    )
    first = machine.start(old)
    second = None
    try:
        machine.run(binaries() / "pg_basebackup", "-D", new, "-R", "-X", "stream", "-c", "fast")
        command = [binaries() / "postgres", "-D", new, "-k", machine.root / "s", "-p", str(STANDBY_PORT)]
        second = subprocess.Popen([*command, "--listen_addresses="], **machine.options())
        await_(lambda: ask(machine.url, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"))
        yield f"{machine.url}&port={STANDBY_PORT}"
    finally:
        for server in (second, first):
            if server:
                server.terminate()
                server.wait()


def write(folder: Path, number: int, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{number:04}_t.up.sql").write_text(text)


def test_a_run_waits_for_replicas_and_then_refuses(machine: Machine, standby: str, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    write(
        folder,
        1,
        "CREATE TABLE big AS SELECT repeat('x', 100) FROM generate_series(1, 50000); SELECT pg_sleep(0.2)",
    )
    write(folder, 2, "CREATE TABLE after_it (i int)")
    told: list[Event] = []
    traffic = Traffic(lag_bytes_max=2**20, lag_wait_seconds_max=2.0)
    await_(lambda: not is_late(standby))
    execute(standby, "SELECT pg_wal_replay_pause()")

    with pytest.raises(ReplicaBehind, match="Replicas stayed behind for 2 s"):
        apply(machine.url, [Folder("shop", folder)], backup=False, traffic=traffic, listen=told.append)

    assert any("Waiting for replicas" in event.text for event in told)
    assert ask(machine.url, "SELECT to_regclass('big')::text") == "big"
    assert ask(machine.url, "SELECT to_regclass('after_it')") is None
    execute(standby, "SELECT pg_wal_replay_resume()")
    apply(machine.url, [Folder("shop", folder)], backup=False, traffic=Traffic(lag_bytes_max=2**20))
    assert ask(machine.url, "SELECT to_regclass('after_it')::text") == "after_it"


def is_late(standby: str) -> bool:
    try:
        return bool(ask(standby, "SELECT pg_last_wal_replay_lsn() IS NULL"))
    except psycopg.OperationalError:
        return True


def test_lag_is_measured_in_time_too(machine: Machine, standby: str, tmp_path: Path) -> None:
    """A replica that is told to stay two seconds behind is further behind than half a second."""
    await_(lambda: not is_late(standby))
    execute(standby, "ALTER SYSTEM SET recovery_min_apply_delay = '2s'")
    execute(standby, "SELECT pg_reload_conf()")
    execute(machine.url, "CREATE TABLE seen (i int)")
    folder = tmp_path / "shop"
    write(folder, 1, "CREATE TABLE after_it (i int)")
    late = "SELECT coalesce(max(replay_lag) > interval '1 s', false) FROM pg_stat_replication"
    traffic = Traffic(lag_seconds_max=0.5, lag_wait_seconds_max=1.0)
    with busy(machine.url):
        await_(lambda: ask(machine.url, late))
        with pytest.raises(ReplicaBehind, match=r"behind for 1 s: .* by \d+\.\d s"):
            apply(machine.url, [Folder("shop", folder)], backup=False, traffic=traffic)
    assert ask(machine.url, "SELECT to_regclass('after_it')") is None


@contextmanager
def busy(url: str) -> Generator[None]:
    """A server on which somebody writes all the time."""
    ended = threading.Event()

    def insert() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not ended.wait(0.02):
                connection.execute("INSERT INTO seen VALUES (1)")

    writer = threading.Thread(target=insert)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()
