"""Asking later: is what was applied still there?"""

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from click.testing import Result

from tollbook.embedded import Server

Run = Callable[..., Result]


@pytest.fixture
def shop(write: Any, apply: Run) -> None:
    write(
        "0001_a",
        up="""CREATE TABLE a (i int); CREATE VIEW v AS SELECT i FROM a; CREATE INDEX a_i ON a (i);
        CREATE TABLE p (i int) PARTITION BY LIST (i); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
        CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2);""",
        down="DROP TABLE p; DROP VIEW v; DROP TABLE a",
    )
    assert apply().exit_code == 0


def test_all_is_well_with_counts_and_rows(shop: None, run: Run, ask: Any) -> None:
    ask("INSERT INTO p VALUES (1), (1), (2) RETURNING 1")
    result = run("verify")
    assert result.exit_code == 0, result.output
    assert "Tables 2/2 · Views 1/1 · Indexes 1/1" in result.output
    assert "3" in json.dumps(json.loads(run("verify", "--json").stdout))


def test_rows_of_another_server_are_not_counted(
    write: Any, apply: Run, run: Run, migrate_server: Server
) -> None:
    write(
        "0001_a",
        up="""CREATE FOREIGN DATA WRAPPER away; CREATE SERVER there FOREIGN DATA WRAPPER away;
        CREATE FOREIGN TABLE f (i int) SERVER there""",
    )
    superuser = migrate_server.url("superuser_s", user="postgres")
    with psycopg.connect(migrate_server.url("postgres", user="postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE superuser_s STRATEGY file_copy")
    assert apply(to=superuser).exit_code == 0
    result = run("verify", "--quick", to=superuser)
    assert result.exit_code == 0, result.output
    assert "Tables 1/1" in result.output


@pytest.mark.parametrize(
    ("loss", "name"), [("DROP VIEW v", "v"), ("DROP INDEX a_i", "a_i"), ("DROP TABLE p", "public.p")]
)
def test_what_was_lost_is_named(shop: None, run: Run, ask: Any, loss: str, name: str) -> None:
    ask(f"{loss}; SELECT 1")
    result = run("verify")
    assert result.exit_code == 3, result.output
    assert name in result.output


def test_what_a_later_migration_dropped_is_not_missed(shop: None, write: Any, apply: Run, run: Run) -> None:
    write("0002_b", up="DROP TABLE a CASCADE")
    assert apply().exit_code == 0
    result = run("verify")
    assert result.exit_code == 0, result.output
    assert "Tables 1/1" in result.output


def test_an_invalid_index_is_named(shop: None, run: Run, migrate_server: Any, url: str) -> None:
    import psycopg

    name = url.split("///")[1].split("?")[0]
    with psycopg.connect(migrate_server.url(name, user="postgres"), autocommit=True) as connection:
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'a_i'::regclass")
    result = run("verify")
    assert result.exit_code == 3
    assert "a_i" in result.output
    assert "invalid" in result.output


def test_an_edited_file_and_a_pending_one_are_drift(shop: None, write: Any, run: Run) -> None:
    write("0002_b", up="SELECT 1")
    assert run("verify").exit_code == 3
    write("0001_a", up="SELECT 2")
    result = run("verify")
    assert result.exit_code == 3
    assert "0001_a" in result.output


def test_status_tells_applied_from_pending(shop: None, write: Any, run: Run) -> None:
    assert run("status").exit_code == 0
    write("0002_b", up="SELECT 1")
    result = run("status")
    assert result.exit_code == 3
    assert "applied" in result.output
    assert "pending" in result.output


def test_status_of_an_empty_database_makes_nothing(write: Any, run: Run, ask: Any) -> None:
    write("0001_a", up="SELECT 1")
    assert run("status").exit_code == 3
    assert ask("SELECT to_regnamespace('tollbook_migrate')") is None


def test_an_index_that_waits_for_its_partitions_is_no_fault(
    write: Any, apply: Run, run: Run, ask: Any
) -> None:
    write(
        "0001_p",
        up="CREATE TABLE p (i int) PARTITION BY RANGE (i); CREATE TABLE p1 PARTITION OF p DEFAULT;"
        "CREATE INDEX p_i ON ONLY p (i);",
    )
    assert apply().exit_code == 0
    assert run("verify", "--quick").exit_code == 0
    assert run("drift").exit_code == 0
    ask("CREATE INDEX p1_i ON p1 (i); ALTER INDEX p_i ATTACH PARTITION p1_i; SELECT 1")
    drifted = run("drift").output
    assert "p_i" in drifted
    assert "failed" not in drifted


def test_files_that_ask_which_extensions_there_are_are_answered_as_on_the_database(
    write: Any, apply: Run, run: Run
) -> None:
    for number, name in enumerate(("pgcrypto", "citext", "no_such_thing")):
        offered = f"EXISTS (SELECT FROM pg_available_extensions WHERE name = '{name}')"
        write(
            f"000{number + 1}_{name}",
            up=f"DO $$ BEGIN IF {offered} THEN CREATE TABLE {name} (i int); END IF; END $$",
        )
    assert apply().exit_code == 0
    verified = run("verify")
    assert verified.exit_code == 0, verified.output
