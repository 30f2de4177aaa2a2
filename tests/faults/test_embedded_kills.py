"""The embedded server after kill -9: of its owner, of itself, of its making. Nothing committed is lost."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollbook import embedded
from tollbook.embedded import account, cluster

WAIT_SECONDS_MAX = 120
OWNER = """if True:
    import sys
    from pathlib import Path
    from tollbook import embedded
    server = embedded.start(Path(sys.argv[1]))
    try:
        print("ready", flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.stdin.read()
    server.stop()
"""


@contextmanager
def run_owner(data: Path, program: str = OWNER) -> Iterator[subprocess.Popen[str]]:
    """Another process that starts the server, in a session of its own as a terminal's would be."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(data)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def await_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"


def await_true(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def read_pid(data: Path) -> int:
    return int((data / "postgresql/postmaster.pid").read_text().split()[0])


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def connect(data: Path) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(embedded.Server(data, data / "postgresql/socket", 5432, owner=False).url())


@pytest.fixture
def data() -> Iterator[Path]:
    """A data folder with a short path."""
    folder = Path(tempfile.mkdtemp(prefix="tollbook-test-"))
    yield folder
    embedded.stop(folder)
    shutil.rmtree(folder)


def test_the_server_ends_with_its_killed_owner_and_keeps_what_was_committed(data: Path) -> None:
    with run_owner(data) as owner:
        await_line(owner, "ready")
        pid = read_pid(data)
        with connect(data) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
        unfinished = connect(data)
        unfinished.execute("INSERT INTO kept VALUES (43)")
        owner.kill()
        await_true(lambda: not is_running(pid))
        with pytest.raises(psycopg.OperationalError):
            unfinished.execute("SELECT 1")
    with embedded.start(data) as server, psycopg.connect(server.url()) as connection:
        assert server.owner
        assert connection.execute("SELECT n FROM kept").fetchall() == [(42,)]


def test_who_was_attached_takes_over_when_the_owner_is_killed(data: Path) -> None:
    with run_owner(data) as owner:
        await_line(owner, "ready")
        attached = embedded.start(data)
        assert not attached.owner
        owner.kill()
        owner.wait()
        await_true(lambda: not is_running_here(data))
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(attached.url())
        with embedded.start(data) as server:
            assert server.owner
            psycopg.connect(attached.url()).close()  # the address is the same


def is_running_here(data: Path) -> bool:
    return (data / "postgresql/postmaster.pid").exists()


def test_a_start_while_the_old_server_is_shutting_down_waits_for_its_end(data: Path) -> None:
    with run_owner(data) as owner:
        await_line(owner, "ready")
        owner.kill()
    with embedded.start(data) as server:  # at once, or attached to the dying one and told so by it
        await_true(lambda: server.owner or not is_running_here(data))


def test_ctrl_c_reaches_the_owner_and_not_the_server(data: Path) -> None:
    with run_owner(data) as owner:
        await_line(owner, "ready")
        os.killpg(owner.pid, signal.SIGINT)
        await_line(owner, "interrupted")
        with connect(data) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        owner.communicate("")
        assert not is_running_here(data)


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are found in /proc")
def test_a_killed_server_is_recovered_although_its_processes_compute_on(data: Path) -> None:
    first = embedded.start(data)
    with psycopg.connect(first.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
        busy = subprocess.Popen(
            [
                str(embedded.binaries() / "psql"),
                "-Xc",
                "SELECT count(*) FROM generate_series(1, 1e12)",
                first.url(),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        count = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%1e12%' AND state = 'active'"
        await_true(lambda: connection.execute(count).fetchone() == (2,))  # and this query itself
    os.kill(read_pid(data), signal.SIGKILL)
    with embedded.start(data) as second, psycopg.connect(second.url()) as connection:
        assert second.owner
        assert connection.execute("SELECT n FROM kept").fetchone() == (42,)
        first.stop()  # whose server is gone: the new one is not its to stop
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert busy.wait(WAIT_SECONDS_MAX) != 0


@pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by /proc")
def test_a_pid_that_another_program_has_by_now_proves_nothing(data: Path) -> None:
    server = embedded.start(data)
    pid_file = data / "postgresql/postmaster.pid"
    left = pid_file.read_text().splitlines()
    os.kill(read_pid(data), signal.SIGKILL)
    user = account.choose(data, data / "postgresql")
    stranger = subprocess.Popen(["sleep", "60"], user=user.uid, cwd="/")
    try:
        server.stop()  # returns when the killed one is gone
        pid_file.write_text("\n".join([str(stranger.pid), *left[1:]]) + "\n")
        with embedded.start(data) as second:
            assert second.owner
            assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_killed_making_is_made_again(data: Path) -> None:
    never = f"import os, time; os.rename = lambda *_: time.sleep(600)\n{OWNER}"
    with run_owner(data, never):
        await_true(lambda: any(data.glob(f"{cluster.NEW}*/PG_VERSION")))
    assert not (data / "postgresql").exists()
    with embedded.start(data) as server:
        psycopg.connect(server.url()).close()
    assert [path.name for path in data.iterdir()] == ["postgresql"]


def test_a_making_that_dies_after_the_cluster_and_before_the_database_is_completed(data: Path) -> None:
    user = account.choose(data, data / "postgresql")
    cluster.create(data, user, sync=False)
    with embedded.start(data) as server:
        psycopg.connect(server.url()).close()


def test_a_short_socket_folder_left_by_a_kill_is_used_again(data: Path) -> None:
    deep = data / ("d" * 60) / ("e" * 60)
    with run_owner(deep) as owner:
        await_line(owner, "ready")
        left = embedded.start(deep).socket_dir
        owner.kill()
        await_true(lambda: not is_running_here(deep))
    with embedded.start(deep) as server:
        assert server.socket_dir == left
    assert not left.exists()


@given(delays=st.lists(st.floats(0, 1.2), min_size=2, max_size=3))
@settings(max_examples=5, deadline=None)
def test_kills_at_any_moment_leave_a_folder_that_starts(delays: list[float]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="tollbook-test-"))
    try:
        for delay in delays:
            with run_owner(folder):
                time.sleep(delay)
        with embedded.start(folder) as server:
            psycopg.connect(server.url()).close()
        assert [path.name for path in folder.iterdir()] == ["postgresql"]
    finally:
        shutil.rmtree(folder)
