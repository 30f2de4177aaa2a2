"""Killed, cut off or run twice at once: the database is before a migration or after it, never between."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fixtures.walks import WHOLE

MIGRATIONS = 10
GATES = ("begin", "middle", "end", "check")
SEEN_SECONDS_MAX = 30.0
POLL_SECONDS = 0.01
RANDOM_KILLS = 12 if WHOLE else 6
SEED = 8402
CONNECTED = """SELECT EXISTS (SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid())"""

Engine = subprocess.Popen[str]


def gate(number: int, place: str) -> str:
    """A statement that stands still while a test holds the gate."""
    return f"SELECT pg_advisory_xact_lock({number}, {GATES.index(place)});\n"


@pytest.fixture
def ten(write: Any) -> None:
    for n in range(1, MIGRATIONS + 1):
        write(
            f"{n:04}_t",
            up=f"{gate(n, 'begin')}CREATE TABLE t{n} (i int);\n{gate(n, 'middle')}"
            f"CREATE INDEX t{n}_i ON t{n} (i);\nINSERT INTO t{n} VALUES (1);\n{gate(n, 'end')}",
            down=f"DROP TABLE t{n};\n{gate(n, 'middle')}",
            check=f"{gate(n, 'check')}SELECT count(*) = 1 FROM t{n};",
        )


def start(url: str, folder: Path, command: str = "apply", *options: str) -> Engine:
    arguments = ["--dir", str(folder), "--auto", "--skip-backup", "--lock-timeout", "60s", *options]
    environment = {**os.environ, "DATABASE_URL": url, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "tollbook.migrate", command, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(engine: Engine) -> str:
    output, _ = engine.communicate(timeout=60)
    return output


@contextmanager
def held(url: str, number: int, place: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s, %s)", (number, GATES.index(place)))
        yield connection


def wait_for(connection: psycopg.Connection[Any], query: str) -> Any:
    until = time.monotonic() + SEEN_SECONDS_MAX
    while time.monotonic() < until:
        row = connection.execute(query.encode()).fetchone()
        if row and row[0]:
            return row[0]
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"never seen: {query}")


def wait_at_the_gate(connection: psycopg.Connection[Any]) -> int:
    """Wait until the engine stands at the gate; return its backend's pid."""
    return wait_for(
        connection,
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objsubid = 2"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )


def wait_until_gone(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        wait_for(
            connection,
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database()",
        )


def standing(ask: Any) -> int:
    """The number of migrations in force, having made sure that tables, rows, indexes and history agree."""
    tables = ask("SELECT count(*) FROM pg_class WHERE relname ~ '^t[0-9]+$'")
    indexes = ask("SELECT count(*) FROM pg_class WHERE relname ~ '^t[0-9]+_i$'")
    highest = ask(
        "SELECT coalesce(max(substr(relname, 2)::int), 0) FROM pg_class WHERE relname ~ '^t[0-9]+$'"
    )
    history = 0
    if ask("SELECT to_regclass('tollbook_migrate.history')"):
        history = ask("SELECT count(*) FROM tollbook_migrate.history WHERE reverted_at IS NULL")
    assert tables == indexes == highest == history
    return history


@pytest.mark.parametrize("place", GATES)
def test_a_kill_at_any_place_leaves_before_or_after_and_the_next_run_says_which(
    ten: None, url: str, folder: Path, ask: Any, place: str
) -> None:
    killed_at = ""
    for number in range(1, MIGRATIONS + 1):
        with held(url, number, place) as connection:
            engine = start(url, folder)
            wait_at_the_gate(connection)
            engine.send_signal(signal.SIGKILL)
            output = finish(engine)
        wait_until_gone(url)
        assert standing(ask) == number - 1
        if killed_at:
            assert "interrupted" in output, output
            assert killed_at in output
        killed_at = f"{number:04}_t"
    output = finish(start(url, folder))
    assert "interrupted" in output, output
    assert killed_at in output
    assert standing(ask) == MIGRATIONS
    assert "interrupted" not in finish(start(url, folder))


def test_kills_at_random_moments_leave_whole_migrations_only(
    write: Any, url: str, folder: Path, ask: Any
) -> None:
    for n in range(1, MIGRATIONS * 5 + 1):
        write(f"{n:04}_t", up=f"CREATE TABLE t{n} (i int); CREATE INDEX t{n}_i ON t{n} (i);")
    chance = random.Random(SEED)
    before = 0
    for _ in range(RANDOM_KILLS):
        engine = start(url, folder)
        until = time.monotonic() + SEEN_SECONDS_MAX
        while engine.poll() is None and not ask(CONNECTED) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        time.sleep(chance.uniform(0, 0.15))
        engine.kill()
        finish(engine)
        wait_until_gone(url)
        after = standing(ask)
        assert after >= before
        before = after
    finish(start(url, folder))
    assert standing(ask) == MIGRATIONS * 5


@pytest.mark.parametrize("place", GATES)
def test_a_cut_connection_leaves_before_and_is_told(
    ten: None, url: str, folder: Path, ask: Any, place: str
) -> None:
    with held(url, 3, place) as connection:
        engine = start(url, folder)
        pid = wait_at_the_gate(connection)
        connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        output = finish(engine)
    assert engine.returncode == 1, output
    assert "lost" in output, output
    assert standing(ask) == 2
    output = finish(start(url, folder))
    assert "0003_t" in output
    assert standing(ask) == MIGRATIONS


def test_of_two_runs_at_once_one_works_and_the_other_waits_and_finds_nothing_to_do(
    ten: None, url: str, folder: Path, ask: Any
) -> None:
    with held(url, 1, "middle") as connection:
        first = start(url, folder)
        pid = wait_at_the_gate(connection)
        second = start(url, folder)
        assert second.stdout is not None
        said = next((line for line in second.stdout if str(pid) in line), "")
        assert "Waiting for another run" in said
    outputs = finish(first), finish(second)
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert standing(ask) == MIGRATIONS
    assert ask("SELECT count(*) FROM tollbook_migrate.runs") == 1


def test_a_killed_revert_leaves_before_or_after(ten: None, url: str, folder: Path, ask: Any) -> None:
    finish(start(url, folder))
    for number in (10, 9, 8):
        with held(url, number, "middle") as connection:
            engine = start(url, folder, "revert", "--steps", "5")
            wait_at_the_gate(connection)
            engine.kill()
            finish(engine)
        wait_until_gone(url)
        assert standing(ask) == number
        output = finish(start(url, folder, "revert", "--steps", "1"))
        assert "interrupted" in output, output
        assert standing(ask) == number - 1
