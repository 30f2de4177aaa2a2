"""A live database beside what its applied files make: named, and mended by the SQL that is printed."""

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from click.testing import Result

Run = Callable[..., Result]


@pytest.fixture
def shop(write: Any, apply: Run) -> None:
    write(
        "0001_a",
        up="""CREATE TABLE a (i int PRIMARY KEY, n text); CREATE VIEW v AS SELECT i FROM a;
        CREATE INDEX a_n ON a (n);""",
        down="DROP VIEW v; DROP TABLE a",
    )
    write("0002_b", up="CREATE INDEX CONCURRENTLY a_both ON a (i, n); ALTER TABLE a ADD m int DEFAULT 3")
    assert apply().exit_code == 0


def test_a_database_as_its_files_make_it_has_no_drift(shop: None, run: Run) -> None:
    result = run("drift")
    assert result.exit_code == 0, result.output
    assert "Tables 1/1 · Views 1/1 · Indexes 2/2" in result.output


def test_the_sql_that_is_printed_ends_the_drift(shop: None, run: Run, ask: Any) -> None:
    ask("DROP VIEW v; ALTER TABLE a ALTER n TYPE varchar(9), ALTER m DROP DEFAULT; DROP INDEX a_n; SELECT 1")
    result = run("drift")
    assert result.exit_code == 3, result.output
    for word in ("missing  view public.v", "changed  column public.a.n", "Views 0/1 · Indexes 1/2"):
        assert word in result.output
    assert run("verify", "--quick").exit_code == 3
    printed = run("drift", "--sql")
    assert printed.exit_code == 3
    ask(f"{printed.stdout}; SELECT 1")
    assert run("drift").exit_code == 0


def test_what_is_not_of_the_files_is_dropped_in_a_comment_alone(shop: None, run: Run, ask: Any) -> None:
    ask("CREATE TABLE mine (i int); SELECT 1")
    printed = run("drift", "--sql")
    assert "-- DROP TABLE public.mine;" in printed.output
    found = json.loads(run("drift", "--json").stdout)
    assert [(one["kind"], one["name"], one["expected"]) for one in found["differences"]] == [
        ("table", "public.mine", None)
    ]
    verified = run("verify")
    assert verified.exit_code == 3
    assert "the table public.mine is not of the migrations" in verified.output


def test_a_trigger_that_is_disabled_and_a_constraint_without_proof_are_drift(
    shop: None, write: Any, apply: Run, run: Run, ask: Any
) -> None:
    write("0003_c", up="ALTER TABLE a ADD CONSTRAINT low CHECK (i < 9) NOT VALID")
    assert apply().exit_code == 0
    result = run("drift")
    assert result.exit_code == 3
    assert "public.a.low" in result.output


def test_files_that_are_gone_leave_the_promises(shop: None, run: Run, folder: Any) -> None:
    for path in folder.glob("0002*"):
        path.unlink()
    result = run("verify")
    assert result.exit_code == 3
    assert "There is no file any more" in result.output
    assert "Tables 1/1" in result.output
    assert run("drift").exit_code == 1


def test_a_file_that_only_runs_elsewhere_is_named(write: Any, run: Run, apply: Run) -> None:
    write("0001_a", up="CREATE TABLE a (i int)")
    assert apply().exit_code == 0
    write("0001_a", up="DO $$ BEGIN RAISE 'only here'; END $$; CREATE TABLE a (i int)")
    result = run("verify")
    assert "0001_a cannot be carried out on a throw-away server (up): only here" in result.output


def test_roles_and_search_path_are_the_databases(
    write: Any, run: Run, url: str, ask: Any, migrate_server: Any, apply: Run
) -> None:
    name = url.split("///")[1].split("?")[0]
    with psycopg.connect(migrate_server.url(name, user="postgres"), autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE ROLE reader")
        connection.execute("CREATE SCHEMA app AUTHORIZATION tollbook")
        connection.execute(f"ALTER DATABASE {name} SET search_path = app")  # pyright: ignore
    write("0001_a", up="CREATE TABLE a (i int); GRANT SELECT ON a TO reader")
    assert apply().exit_code == 0
    result = run("drift")
    assert result.exit_code == 0, result.output
    ask("REVOKE ALL ON a FROM reader; SELECT 1")
    assert "missing  grant table app.a to reader" in run("drift").output
    ask("DROP TABLE a; SELECT 1")
    with psycopg.connect(migrate_server.url("postgres", user="postgres"), autocommit=True) as connection:
        connection.execute("DROP ROLE reader")
