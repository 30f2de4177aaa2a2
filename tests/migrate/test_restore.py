"""A restore gives back what was there, or leaves everything as it was."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from fixtures.backups import (
    NOBODY_THERE,
    SHOP_ROWS,
    SHOP_TABLES,
    ask,
    await_,
    execute,
    read_all,
    read_databases,
    refused,
    run_as_admin,
    start_python,
    write_program,
)
from tollbook.embedded import Server, binaries
from tollbook.migrate.backup import backup
from tollbook.migrate.errors import RestoreFailed
from tollbook.migrate.restore import restore

restores = sys.modules["tollbook.migrate.restore"]
LEAVING_SECONDS = 2.0


class TestRestore:
    def test_what_was_there_comes_back_and_what_came_later_is_kept_aside(
        self, backup_server: Server, books: str, tmp_path: Path
    ) -> None:
        before = read_all(books)
        made = backup(books, tmp_path)
        execute(books, "DELETE FROM shop.sales; DROP VIEW shop.per_buyer; CREATE TABLE later (id int)")
        after = read_all(books)
        done = restore(books, made.path)
        assert (done.database, done.file, done.tables, done.rows) == (
            "books",
            made.location,
            SHOP_TABLES,
            SHOP_ROWS,
        )
        assert read_all(books) == before
        assert ask(books, "SELECT nextval('shop.numbers')") == 42
        assert done.kept is not None
        assert read_all(backup_server.url(done.kept)) == after
        assert read_databases(backup_server) == {"books", done.kept}

    @pytest.mark.usefixtures("may_not_create")
    def test_a_role_that_may_not_create_databases_gets_it_back_in_place(
        self, backup_server: Server, books: str, tmp_path: Path
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
        assert read_databases(backup_server) == {"books"}

    def test_a_backup_goes_into_another_database_that_is_made(
        self, backup_server: Server, books: str, tmp_path: Path
    ) -> None:
        made = backup(books, tmp_path)
        done = restore(books, made.path, into="books copy")
        assert (done.database, done.kept) == ("books copy", None)
        assert read_all(backup_server.url("books copy")) == read_all(books)

    def test_a_backup_goes_into_another_address_and_keeps_what_was_there(
        self, backup_server: Server, books: str, tmp_path: Path
    ) -> None:
        made = backup(books, tmp_path)
        execute(backup_server.url(), "CREATE DATABASE books_two")
        execute(backup_server.url("books_two"), "CREATE TABLE mine (id int)")
        done = restore(NOBODY_THERE, made.path, into=backup_server.url("books_two"))
        assert read_all(backup_server.url("books_two")) == read_all(books)
        assert done.kept is not None
        assert ask(backup_server.url(done.kept), "SELECT count(*) FROM mine") == 0

    @pytest.mark.usefixtures("may_not_create")
    def test_a_database_that_is_not_there_and_may_not_be_made_is_refused(
        self, backup_server: Server, books: str, tmp_path: Path
    ) -> None:
        made = backup(books, tmp_path)
        with refused(RestoreFailed, "books_two is not there", "CREATEDB"):
            restore(books, made.path, into="books_two")
        assert read_databases(backup_server) == {"books"}

    def test_the_databases_own_settings_and_grants_stay(
        self, backup_server: Server, books: str, tmp_path: Path
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

    def test_who_is_just_leaving_is_waited_for(
        self, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, waited = backup(books, tmp_path), list[float]()
        with psycopg.connect(books) as other:
            leaving = other.info.backend_pid
            os.kill(leaving, signal.SIGSTOP)

        def wait(seconds: float) -> None:
            waited.append(seconds)
            if sum(waited) > LEAVING_SECONDS:
                with suppress(ProcessLookupError):
                    os.kill(leaving, signal.SIGCONT)
                time.sleep(seconds)

        monkeypatch.setattr(restores, "time", SimpleNamespace(sleep=wait, monotonic=time.monotonic))
        try:
            assert restore(books, made.path).rows == SHOP_ROWS
        finally:
            with suppress(ProcessLookupError):
                os.kill(leaving, signal.SIGCONT)

    @pytest.mark.parametrize("way", ["beside", "in place"])
    def test_nobody_else_may_be_connected(
        self, backup_server: Server, books: str, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(restores, "LEAVE_ATTEMPTS_MAX", 1)
        if way == "in place":
            run_as_admin(backup_server, "ALTER ROLE tollbook NOCREATEDB")
        made = backup(books, tmp_path)
        with (
            psycopg.connect(books, application_name="the-shop") as other,
            refused(RestoreFailed, "tollbook the-shop", "Stop them"),
        ):
            restore(books, made.path)
        assert other.closed
        assert read_databases(backup_server) == {"books"}

    @pytest.mark.parametrize("way", ["beside", "in place"])
    def test_a_row_too_few_is_noticed_and_changes_nothing(
        self, backup_server: Server, books: str, tmp_path: Path, way: str
    ) -> None:
        if way == "in place":
            run_as_admin(backup_server, "ALTER ROLE tollbook NOCREATEDB")
        made = backup(books, tmp_path)
        execute(books, "CREATE TABLE later (id int)")
        before = read_all(books)
        beside = made.path.with_name(f"{made.path.name}.json")
        told = beside.read_text()
        beside.write_text(told.replace('"shop.sales_2026": 1257', '"shop.sales_2026": 1258'))
        with refused(RestoreFailed, "shop.sales_2026 has 1258 rows in the backup and 1257", "try again"):
            restore(books, made.path)
        beside.write_text(told.replace('"trigger": 1', '"trigger": 2'))
        with refused(RestoreFailed, "the backup has 2 of kind trigger, the database 1"):
            restore(books, made.path)
        assert read_all(books) == before
        assert read_databases(backup_server) == {"books"}

    @pytest.mark.parametrize("way", ["beside", "in place"])
    def test_a_statement_that_fails_is_told_and_changes_nothing(
        self, backup_server: Server, books: str, tmp_path: Path, way: str
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
        run_as_admin(backup_server, "ALTER ROLE tollbook SET shop.fail = 'on'")
        if way == "in place":
            run_as_admin(backup_server, "ALTER ROLE tollbook NOCREATEDB")
        with refused(RestoreFailed, "no, no", "try again"):
            restore(books, made.path)
        assert read_all(books) == before
        assert read_databases(backup_server) == {"books"}

    @pytest.mark.parametrize("way", ["beside", "in place"])
    def test_a_killed_restore_leaves_the_database_as_it_was(
        self, backup_server: Server, books: str, tmp_path: Path, way: str
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
        run_as_admin(backup_server, "ALTER ROLE tollbook SET shop.slow = 'on'")
        if way == "in place":
            run_as_admin(backup_server, "ALTER ROLE tollbook NOCREATEDB")
        code = """
import sys
from pathlib import Path
from tollbook.migrate.restore import restore
restore(sys.argv[1], Path(sys.argv[2]))
"""
        loading = "SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('psql', 'pg_restore')"
        sleeping = f"{loading} AND wait_event = 'PgSleep'"
        ran = start_python(code, books, made.path)
        await_(lambda: ask(backup_server.url("postgres"), sleeping) == 1)
        ran.send_signal(signal.SIGKILL)
        ran.communicate()
        await_(lambda: ask(backup_server.url("postgres"), loading) == 0)
        assert read_all(books) == before
        run_as_admin(backup_server, "ALTER ROLE tollbook RESET ALL")
        assert restore(books, made.path).tables == SHOP_TABLES + 1

    @pytest.mark.parametrize("way", ["beside", "in place"])
    def test_a_pg_restore_killed_half_way_commits_nothing(
        self, backup_server: Server, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
    ) -> None:
        made = backup(books, tmp_path)
        execute(books, "CREATE TABLE later (id int)")
        before = read_all(books)
        if way == "in place":
            run_as_admin(backup_server, "ALTER ROLE tollbook NOCREATEDB")
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
        assert read_databases(backup_server) == {"books"}

    def test_a_file_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with refused(RestoreFailed, "is not there", "Nothing was touched"):
            restore(NOBODY_THERE, tmp_path / "none.dump")
