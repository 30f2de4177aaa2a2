"""Backups are whole or not there."""

import os
import signal
import sys
from pathlib import Path

import psycopg
import pytest

from fixtures.backups import (
    WAIT_SECONDS_MAX,
    ask,
    await_,
    execute,
    refused,
    run_as_admin,
    start_python,
    write_program,
)
from tollbook.embedded import Server, binaries
from tollbook.migrate import pg_tools
from tollbook.migrate.backup import backup, check
from tollbook.migrate.errors import BackupFailed, MigrateError, WrongUsage
from tollbook.migrate.places import Folder
from tollbook.migrate.restore import restore

backups = sys.modules["tollbook.migrate.backup"]
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


class TestBackup:
    def test_a_backup_is_one_closed_file_in_a_closed_folder(self, books: str, tmp_path: Path) -> None:
        folder = tmp_path / "new" / "backups"
        made = backup(books, folder)
        assert made.path.parent == folder
        assert made.path.name.startswith("books_")
        assert made.path.stat().st_size == made.size_bytes > 0
        assert [oct(path.stat().st_mode & 0o777) for path in (made.path, folder, folder.parent)] == [
            "0o600",
            "0o700",
            "0o700",
        ]
        assert sorted(folder.iterdir()) == [made.path, made.path.with_name(f"{made.path.name}.json")]

    def test_a_folder_that_is_there_keeps_its_permissions(self, books: str, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        backup(books, tmp_path)
        assert tmp_path.stat().st_mode & 0o777 == 0o755

    def test_without_a_folder_it_goes_where_the_environment_says(
        self, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOLLBOOK_BACKUP_DIR", str(tmp_path / "here"))
        assert backup(books).path.parent == tmp_path / "here"

    def test_an_empty_database_has_a_backup_too(
        self, backup_server: Server, books: str, tmp_path: Path
    ) -> None:
        execute(backup_server.url(), "CREATE DATABASE books_empty")
        made = backup(backup_server.url("books_empty"), tmp_path)
        assert restore(backup_server.url("books_empty"), made.path).tables == 0

    def test_a_full_disk_is_said_and_leaves_no_file(self, books: str, full_disk: Path) -> None:
        execute(
            books, "INSERT INTO shop.buyers (name) SELECT gen_random_uuid() FROM generate_series(1, 80000)"
        )
        with refused(BackupFailed, "No space left on device", "TOLLBOOK_BACKUP_DIR"):
            backup(books, full_disk)
        assert list(full_disk.iterdir()) == []
        assert any("free" in finding for finding in check(books, full_disk))

    def test_a_file_that_may_not_grow_is_said_and_leaves_no_file(self, books: str, tmp_path: Path) -> None:
        code = """
import resource, sys
from pathlib import Path
from tollbook.migrate.backup import backup
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
backup(sys.argv[1], Path(sys.argv[2]))
"""
        ran = start_python(code, books, tmp_path)
        said, _ = ran.communicate(timeout=WAIT_SECONDS_MAX)
        assert b"BackupFailed: No backup was made: it was killed by signal 25" in said
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_is_said_before_and_then(self, books: str, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert "is not a folder" in check(books, tmp_path / "file" / "backups")[0]
        with refused(BackupFailed, "Not a directory", "another place"):
            backup(books, tmp_path / "file" / "backups")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_closed_to_us_is_said_before_and_then(self, books: str, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        assert "cannot be written" in check(books, tmp_path)[0]
        with refused(BackupFailed, "Permission denied"):
            backup(books, tmp_path)

    def test_the_tools_own_last_error_is_told_and_no_file_left(
        self, backup_server: Server, books: str, tmp_path: Path
    ) -> None:
        run_as_admin(backup_server, "ALTER ROLE tollbook RESET ALL")
        with psycopg.connect(backup_server.url("books", user="postgres"), autocommit=True) as connection:
            connection.execute("CREATE TABLE secret (id int)")
        with refused(BackupFailed, "permission denied for table secret", "try again"):
            backup(books, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_dump_that_ends_early_without_an_error_is_no_backup(
        self, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lies = 'case "$1" in --version) echo "pg_dump (PostgreSQL) 99.1";; *) printf "%s";; esac'
        for written in ("", "PGDMP"):
            write_program(tmp_path / "bin", "pg_dump", lies % written)
            monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
            monkeypatch.setattr(backups, "read_major", lambda _: 18)
            with refused(BackupFailed, "cannot be read back"):
                backup(books, tmp_path / "backups")
            assert list((tmp_path / "backups").iterdir()) == []

    def test_a_killed_pg_dump_leaves_no_file(
        self, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dies = 'case "$1" in --version) echo "pg_dump (PostgreSQL) 99.1";; *) printf PGDMP; kill -9 $$;; esac'
        write_program(tmp_path / "bin", "pg_dump", dies)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setattr(backups, "read_major", lambda _: 18)
        with refused(BackupFailed, "killed by signal 9"):
            backup(books, tmp_path / "backups")
        assert list((tmp_path / "backups").iterdir()) == []

    def test_a_killed_backup_has_no_name_and_is_swept_by_the_next(self, books: str, tmp_path: Path) -> None:
        code = """
import sys
from pathlib import Path
from tollbook.migrate.backup import backup
backup(sys.argv[1], Path(sys.argv[2]))
"""
        with psycopg.connect(books) as holder:
            holder.execute("LOCK TABLE shop.buyers")
            ran = start_python(code, books, tmp_path)
            await_(lambda: ask(books, WAITING))  # pg_dump
            ran.send_signal(signal.SIGKILL)
            ran.communicate()
        (left,) = tmp_path.iterdir()
        assert left.name.endswith(".dump.partial")
        os.utime(left, (0, 0))
        made = backup(books, tmp_path)
        assert not left.exists()
        assert made.path.exists()

    def test_a_partial_file_in_use_is_not_swept(self, books: str, tmp_path: Path) -> None:
        code = """
import sys
from pathlib import Path
from tollbook.migrate.backup import backup
print(backup(sys.argv[1], Path(sys.argv[2])).path)
"""
        with psycopg.connect(books) as holder:
            holder.execute("LOCK TABLE shop.buyers")
            ran = start_python(code, books, tmp_path)
            await_(lambda: ask(books, WAITING))
            os.utime(next(tmp_path.iterdir()), (0, 0))
            Folder(tmp_path).sweep()
        said, _ = ran.communicate(timeout=WAIT_SECONDS_MAX)
        assert Path(said.decode().strip()).exists()


class TestSecrets:
    PASSWORD = "pa ss%word"
    WRITTEN = "pa%20ss%25word"

    def assert_clean(self, text: str) -> None:
        assert self.PASSWORD not in text
        assert self.WRITTEN not in text

    def test_no_argument_shows_the_password_and_the_tools_have_it(
        self, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = f"{books}&password={self.WRITTEN}"
        for name in ("pg_dump", "psql", "pg_restore"):
            real = binaries() / name
            log = f'echo "$0 $@" >> {tmp_path}/arguments; echo "$PGPASSWORD" >> {tmp_path}/passwords'
            version = f'[ "$1" = --version ] && echo "{name} (PostgreSQL) 99.1" && exit'
            write_program(tmp_path / "bin", name, f'{version}\n{log}\nexec {real} "$@"')
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        made = backup(url, tmp_path / "backups")
        done = restore(url, made.path)
        arguments = (tmp_path / "arguments").read_text()
        assert "pg_dump --compress" in arguments
        assert "psql --no-psqlrc" in arguments
        self.assert_clean(arguments)
        self.assert_clean(repr((made, done, pg_tools.read_target(url))))
        assert (tmp_path / "passwords").read_text().split("\n").count(self.PASSWORD) == 3

    def test_no_message_shows_the_password(self, backup_server: Server, books: str, tmp_path: Path) -> None:
        (tmp_path / "no.dump").write_bytes(b"no")
        made = backup(books, tmp_path)
        location = f"nobody:{self.WRITTEN}@127.0.0.1:1/nothing"
        stranger = f"{backup_server.url('books', user='stranger')}&password={self.WRITTEN}"
        for url in (
            f"postgresql://{location}",
            stranger,
            f"http://{location}",
            f"postgresql://{location}?pa%zz=1",
        ):
            for act in (
                lambda url=url: backup(url, tmp_path),
                lambda url=url: restore(url, made.path),
                lambda url=url: restore(url, tmp_path / "no.dump"),
                lambda url=url: restore(books, made.path, into=url),
            ):
                with pytest.raises(MigrateError) as caught:
                    act()
                error: BaseException | None = caught.value
                while error is not None and not error.__suppress_context__:
                    self.assert_clean(f"{error} {error!r}")
                    error = error.__cause__ or error.__context__
                self.assert_clean(f"{caught.value} {caught.value!r}")
        self.assert_clean(" ".join(check(stranger, tmp_path)))

    def test_a_password_in_an_address_nobody_can_read_is_not_shown(self, tmp_path: Path) -> None:
        with pytest.raises(WrongUsage) as caught:
            backup("postgresql://me:100%secret@127.0.0.1/books", tmp_path)
        assert "secret" not in str(caught.value)

    def test_a_secret_that_would_be_an_argument_is_refused(self, tmp_path: Path) -> None:
        with refused(WrongUsage, "sslpassword", "service"):
            backup("postgresql://127.0.0.1/books?sslpassword=x", tmp_path)
