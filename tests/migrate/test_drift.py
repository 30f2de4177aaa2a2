"""A live database beside what its applied files make: named, and mended by the SQL that is printed."""

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from click.testing import Result

from tollbook.migrate import Folder, formats, replay
from tollbook.migrate.shadow import make_tablespaces

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
    assert "Rolled back" not in result.output
    assert result.output.count("only here'; END") == 1, "said once"


def test_roles_search_path_and_tablespaces_are_the_databases(
    write: Any, run: Run, url: str, ask: Any, migrate_server: Any, apply: Run
) -> None:
    name = url.split("///")[1].split("?")[0]
    with psycopg.connect(migrate_server.url(name, user="postgres"), autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE ROLE reader")
        connection.execute("CREATE SCHEMA tollbook AUTHORIZATION tollbook")
        make_tablespaces(connection, ["cold", "warm"])
        connection.execute(f"ALTER DATABASE {name} SET default_tablespace = warm".encode())
        connection.execute(f"""ALTER DATABASE {name} SET search_path = "$user", app""")  # pyright: ignore
    write("0001_a", up="CREATE SCHEMA app; CREATE TABLE a (i int); GRANT SELECT ON a TO reader, tollbook")
    write("0002_b", up="CREATE TABLE b (i int PRIMARY KEY USING INDEX TABLESPACE cold) TABLESPACE cold")
    assert apply().exit_code == 0
    result = run("drift")
    assert result.exit_code == 0, result.output
    ask("REVOKE ALL ON a FROM reader; ALTER TABLE b SET TABLESPACE pg_default; SELECT 1")
    output = run("drift").output
    assert "missing  grant table tollbook.a to reader" in output
    assert "missing  tablespace table tollbook.b" in output
    ask("DROP TABLE a; SELECT 1")
    with psycopg.connect(migrate_server.url("postgres", user="postgres"), autocommit=True) as connection:
        connection.execute("DROP ROLE reader")


def test_what_differs_honestly_is_no_drift(write: Any, apply: Run, run: Run, ask: Any, tmp_path: Any) -> None:
    write(
        "0001_a",
        up="""CREATE TABLE a (i int CHECK (i > 0), at date NOT NULL) PARTITION BY RANGE (at);
        CREATE TABLE a_1 PARTITION OF a FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
        CREATE INDEX a_i ON a (i)""",
    )
    assert apply().exit_code == 0
    other = tmp_path / "other"
    write(
        "0001_o",
        at=other,
        up="""CREATE SCHEMA o; CREATE TABLE o.t (i serial); CREATE INDEX t_i ON o.t (i);
        CREATE FUNCTION o.f(n int) RETURNS int LANGUAGE sql AS 'SELECT 1'""",
    )
    assert apply(folders=(str(other),)).exit_code == 0
    ask("""CREATE TABLE a_2 PARTITION OF a FOR VALUES FROM ('2021-01-01') TO ('2022-01-01')
        PARTITION BY LIST (i); CREATE TABLE a_2_1 PARTITION OF a_2 FOR VALUES IN (1); DROP TABLE a_1;
        ALTER TABLE a RENAME CONSTRAINT a_i_check TO a_i_check1;
        CREATE TABLE schema_migrations (version text PRIMARY KEY); SELECT 1""")
    result = run("drift")
    assert result.exit_code == 0, result.output
    assert "Partitions only live: 2." in result.output
    assert "what they made is left out" in result.output
    ask("ALTER TABLE o.t ADD j int; CREATE INDEX a_both ON a (i, at); SELECT 1")
    assert [one["name"] for one in json.loads(run("drift", "--json").stdout)["differences"]] == [
        "public.a_both"
    ]


def test_the_order_of_columns_is_told(write: Any, apply: Run, run: Run, ask: Any) -> None:
    write("0001_a", up="CREATE TABLE a (i int, j int, k int)")
    assert apply().exit_code == 0
    ask("ALTER TABLE a DROP j; ALTER TABLE a ADD j int; SELECT 1")
    result = run("drift")
    assert result.exit_code == 3
    assert "column order public.a" in result.output


def test_a_disabled_trigger_is_told_and_mended(write: Any, apply: Run, run: Run, ask: Any) -> None:
    write(
        "0001_a",
        up="""CREATE TABLE a (i int); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END';
        CREATE TRIGGER a_f BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION f()""",
    )
    assert apply().exit_code == 0
    ask("ALTER TABLE a DISABLE TRIGGER a_f; SELECT 1")
    assert "the trigger public.a.a_f is disabled" in run("verify").output
    assert "ALTER TABLE public.a ENABLE TRIGGER a_f;" in run("drift", "--sql").output


def test_the_tablespaces_that_files_name_are_found(write: Any, folder: Any) -> None:
    write(
        "0001_a",
        up="""CREATE TABLE a (i int UNIQUE USING INDEX TABLESPACE a1) TABLESPACE a2;
        ALTER TABLE a SET (fillfactor=9); CREATE INDEX ON a (i) TABLESPACE a3;
        CREATE MATERIALIZED VIEW v TABLESPACE a4 AS SELECT 1;
        SET default_tablespace = a5; ALTER TABLE ALL IN TABLESPACE pg_default SET TABLESPACE a6""",
        down="SET default_tablespace = ''; RESET default_tablespace; ALTER INDEX a_i_idx SET TABLESPACE a7",
    )
    found = replay.find_tablespaces(formats.read([Folder("shop", folder)]))
    assert found == {f"a{number}" for number in range(1, 8)}
