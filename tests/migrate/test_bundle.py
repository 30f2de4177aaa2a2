"""A bundle is what `apply` does, in one file that psql runs."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tollbook.embedded import binaries

from .formats.test_formats import FOLDERS, REVERSIBLE, lay

Run = Write = Ask = Callable[..., Any]
Psql = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def psql(url: str) -> Psql:
    """Run a file by the psql that comes with Tollbook; it stops at the first error unless told not to."""

    def psql(file: Path, *options: str, stop: bool = True) -> subprocess.CompletedProcess[str]:
        stopping = ["-v", "ON_ERROR_STOP=1"] if stop else []
        command = [str(binaries() / "psql"), "-X", "-q", "-d", url, *stopping, *options, "-f", str(file)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return psql


@pytest.fixture
def bundle(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle by the command line, without a database unless one is given."""
    from click.testing import CliRunner

    from tollbook.migrate.cli import group

    def bundle(*options: str) -> Path:
        out = tmp_path / "bundle.sql"
        arguments = ["bundle", "--dir", str(folder), "--out", str(out), *options]
        result = CliRunner().invoke(group(list, lambda: ""), arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return out

    return bundle


@pytest.fixture
def shop(write: Write) -> None:
    write(
        "0001_goods",
        up="CREATE SCHEMA shop; SET search_path = shop;\n"
        "CREATE TABLE goods (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, note text);\n"
        "CREATE INDEX ON goods (name);\n"
        "COPY goods (id, name, note) FROM STDIN;\n"
        "1\tit's \\\\ a tab:\\t\t\\N\n2\ta line\\nend\t\n\\.\n"
        "CREATE FUNCTION price(good int, notes text[]) RETURNS int LANGUAGE sql RETURN 1; -- the end",
        down="DROP SCHEMA shop CASCADE;",
        check="SELECT count(*) = 2 FROM shop.goods; SELECT 1, 2; DELETE FROM shop.goods; SELECT pg_sleep(0);",
    )
    write(
        "0002_search",
        up="CREATE INDEX CONCURRENTLY goods_search ON shop.goods (id, name);\n"
        "CREATE VIEW shop.names AS SELECT name FROM shop.goods;",
        down="DROP VIEW shop.names; DROP INDEX CONCURRENTLY shop.goods_search;",
    )
    write(
        "0003_kinds",
        up="DROP VIEW shop.names; CREATE TYPE shop.kind AS ENUM ('new'); CREATE TABLE kinds (k shop.kind);",
        down="DROP TABLE kinds; DROP TYPE shop.kind; CREATE VIEW shop.names AS SELECT name FROM shop.goods;",
    )


def read_history(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            """SELECT folder, version, name, checksum, down_sql, promised, removed
            FROM tollbook_migrate.history WHERE reverted_at IS NULL ORDER BY id"""
        ).fetchall()


def test_a_bundle_runs_inside_psqls_own_transaction_too(
    shop: None, bundle: Any, psql: Psql, run: Run
) -> None:
    ran = psql(bundle(), "--single-transaction")
    assert ran.returncode == 0, ran.stderr
    assert run("status").exit_code == 0
    before = psql(bundle(), "--single-transaction", stop=False)
    assert "already applied" in before.stderr
    assert run("verify").exit_code == 0


@pytest.mark.parametrize("options", [(), ("--psql",)])
def test_a_bundle_leaves_what_apply_leaves(
    shop: None, bundle: Any, psql: Psql, run: Run, apply: Any, ask: Ask, url: str, options: tuple[str, ...]
) -> None:
    ran = psql(bundle(*options))
    assert ran.returncode == 0, ran.stderr
    assert run("status").exit_code == 0
    assert run("verify").exit_code == 0
    assert "Nothing to do" in apply().output
    goods = ask("SELECT array_agg((name, note) ORDER BY id)::text FROM shop.goods")
    by_bundle = read_history(url)

    assert run("revert", "--to", "0", "--auto", "--skip-backup").exit_code == 0
    assert apply().exit_code == 0
    assert read_history(url) == by_bundle
    assert ask("SELECT array_agg((name, note) ORDER BY id)::text FROM shop.goods") == goods
    assert ask("SELECT count(*) FROM tollbook_migrate.progress") == 0


@pytest.mark.parametrize("stop", [True, False])
def test_a_bundle_applied_twice_refuses_and_changes_nothing(
    shop: None, bundle: Any, psql: Psql, url: str, ask: Ask, stop: bool
) -> None:
    file = bundle()
    assert psql(file).returncode == 0
    before = _dump(url)
    again = psql(file, stop=stop)
    assert "already applied: shop/0001_goods, shop/0002_search, shop/0003_kinds" in again.stderr
    assert again.returncode == (3 if stop else 0)
    assert _dump(url) == before
    assert ask("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


def _dump(url: str) -> str:
    command = [str(binaries() / "pg_dump"), "--restrict-key=same", "-d", url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_undo_takes_all_of_it_back_once(shop: None, bundle: Any, psql: Psql, run: Run, ask: Ask) -> None:
    assert psql(bundle()).returncode == 0
    undo = bundle("--undo")
    ran = psql(undo)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(run("status", "--json").output)["lines"][0]["state"] == "pending"
    assert ask("SELECT to_regnamespace('shop') IS NULL")
    assert "is not applied here" in psql(undo).stderr


def test_what_is_pending_on_a_database_is_bundled_for_it_alone(
    shop: None, bundle: Any, psql: Psql, run: Run, apply: Any, url: str
) -> None:
    assert apply("--to", "0001_goods").exit_code == 0
    file = bundle("--database-url", url)
    assert "CREATE TABLE goods" not in file.read_text()
    assert psql(file).returncode == 0
    assert run("status").exit_code == 0


def test_where_nothing_is_pending_no_file_is_written(
    shop: None, run: Run, apply: Any, tmp_path: Path
) -> None:
    assert apply().exit_code == 0
    assert "Nothing is pending" in run("bundle", "--out", str(tmp_path / "none.sql")).output
    assert not (tmp_path / "none.sql").exists()


def test_a_bundle_that_begins_later_than_the_database_is_refused(
    shop: None, bundle: Any, psql: Psql, ask: Ask
) -> None:
    ran = psql(bundle("--from-version", "0002_search"), stop=False)
    assert "out of order: shop/0001_goods, shop/0002_search must be applied first" in ran.stderr
    assert ask("SELECT to_regnamespace('tollbook_migrate') IS NULL AND to_regclass('kinds') IS NULL")


@pytest.mark.parametrize("tool", [name for name in FOLDERS if name != "Alembic"])
def test_every_tools_folder_makes_a_bundle(
    tool: str, folder: Path, bundle: Any, psql: Psql, run: Run, apply: Any
) -> None:
    lay(folder, FOLDERS[tool][1])
    ran = psql(bundle())
    assert ran.returncode == 0, ran.stderr
    assert run("status").exit_code == 0
    assert "Nothing to do" in apply().output
    if tool in REVERSIBLE:
        ran = psql(bundle("--undo"))
        assert ran.returncode == 0, ran.stderr


def test_a_new_value_of_an_enum_is_committed_before_it_is_used(
    write: Write, bundle: Any, psql: Psql, run: Run, ask: Ask
) -> None:
    write("0001_a", up="CREATE TYPE e AS ENUM ('a'); CREATE TABLE t (e e);")
    write("0002_b", up="ALTER TYPE e ADD VALUE 'b'; INSERT INTO t VALUES ('b');")
    write("0003_c", up="ALTER TYPE e ADD VALUE 'c'; CREATE TABLE u (i int); SELECT 1/0;")
    assert "division by zero" in psql(bundle()).stderr
    assert ask("SELECT e::text FROM t") == "b"
    assert ask("SELECT enum_range(NULL::e)::text") == "{a,b}"


def test_a_bundle_refuses_where_a_part_of_it_or_more_is_applied(
    shop: None, bundle: Any, psql: Psql, apply: Any, write: Write
) -> None:
    file = bundle("--to", "0002_search")
    assert apply("--to", "0001_goods").exit_code == 0
    assert "already applied: shop/0001_goods." in psql(file).stderr
    assert apply("--to", "0002_search").exit_code == 0
    write("0004_more", up="CREATE TABLE more (n int);")
    file = bundle("--from-version", "0002_search", "--to", "0003_kinds")
    write("0005_yet_more", up="CREATE TABLE yet_more (n int);")
    assert apply().exit_code == 0
    assert "already applied: shop/0003_kinds" in psql(file).stderr


def test_an_undo_refuses_where_more_was_applied_since(
    shop: None, bundle: Any, psql: Psql, apply: Any, write: Write
) -> None:
    undo = bundle("--undo")
    write("0004_more", up="CREATE TABLE more (n int);")
    assert apply().exit_code == 0
    assert "shop/0004_more is applied here, which the bundle does not know" in psql(undo).stderr


@pytest.mark.parametrize("stop", [True, False])
def test_a_migration_that_fails_ends_a_bundle_and_what_went_before_stays(
    write: Write, bundle: Any, psql: Psql, run: Run, ask: Ask, stop: bool
) -> None:
    write("0001_a", up="CREATE TABLE a (n int);")
    write("0002_b", up="CREATE TABLE b (n int); SELECT 1/0;")
    write("0003_c", up="CREATE INDEX CONCURRENTLY a_n ON a (n);")
    write("0004_d", up="CREATE TABLE d (n int);")
    assert "division by zero" in psql(bundle(), stop=stop).stderr
    states = [line["state"] for line in json.loads(run("status", "--json").output)["lines"]]
    assert states == ["applied", "pending", "pending", "pending"]
    assert ask("SELECT to_regclass('b') IS NULL AND to_regclass('a_n') IS NULL AND to_regclass('d') IS NULL")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"up": "CREATE TABLE a (n int);", "check": "SELECT count(*) > 0 FROM a;"},
            "the check failed: 0001_a",
        ),
        ({"up": "CREATE TABLE a (n int);", "check": "SELECT NULL::boolean;"}, "returned false or NULL"),
        ({"up": "CREATE TABLE a (n int); DO $$ BEGIN EXECUTE 'DROP TABLE a'; END $$;"}, "the table a"),
    ],
)
def test_what_is_not_proven_is_rolled_back(
    write: Write, bundle: Any, psql: Psql, ask: Ask, parts: dict[str, str], said: str
) -> None:
    write("0001_a", **parts)
    ran = psql(bundle(), stop=False)
    assert said in ran.stderr
    assert ask("SELECT to_regclass('a') IS NULL AND NOT EXISTS (SELECT FROM tollbook_migrate.history)")


def test_a_bundle_that_is_killed_leaves_no_half_and_apply_goes_on(
    write: Write, bundle: Any, url: str, run: Run, apply: Any, ask: Ask
) -> None:
    write("0001_a", up="CREATE TABLE a (n int);")
    write(
        "0002_b",
        up="CREATE TABLE b (n int); SELECT pg_sleep(CASE WHEN to_regclass('c') IS NULL THEN 60 END);",
    )
    command = [str(binaries() / "psql"), "-X", "-q", "-d", url, "-f", str(bundle())]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as psql:
        while not (pid := ask("SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'")):
            time.sleep(0.05)
        psql.kill()
    ask(f"SELECT pg_terminate_backend({pid}, 5000)")  # the server would see it when the sleep is over
    assert ask("SELECT to_regclass('a') IS NOT NULL AND to_regclass('b') IS NULL")
    ask("CREATE TABLE c (n int); SELECT 1")
    result = apply()
    assert result.exit_code == 0, result.output
    assert "was interrupted" in result.output
    assert run("status").exit_code == 0


def test_what_a_file_alone_cannot_do_is_refused_by_name(write: Write, run: Run, folder: Path) -> None:
    write("0001_a", up="CREATE TABLE a (n int);\nVACUUM a;")
    result = run("bundle")
    assert result.exit_code == 1
    assert "0001_a.up.sql:2:1: VACUUM cannot run in a transaction" in result.output
    write("0001_a", up="CREATE TABLE a (n int);\nCOPY a FROM STDIN WITH (FORMAT csv);\n1\n\\.\n")
    assert "--psql" in run("bundle").output
    assert run("bundle", "--psql").exit_code == 0


def test_a_back_fill_is_refused_by_name(write: Write, run: Run) -> None:
    write(
        "0001_a",
        up="CREATE TABLE a (id int PRIMARY KEY, n int);",
        backfill="-- tollbook: table=a key=id\nUPDATE a SET n = 1 WHERE id BETWEEN :first AND :last",
    )
    assert "shop/0001_a has a back-fill" in run("bundle").output


def test_an_undo_without_a_down_file_is_refused_by_name(write: Write, run: Run) -> None:
    write("0001_a", up="CREATE TABLE a (n int);")
    result = run("bundle", "--undo")
    assert result.exit_code == 1
    assert "shop/0001_a: there is no down file" in result.output


def test_a_bundle_does_not_run_beside_another_run(
    shop: None, bundle: Any, psql: Psql, url: str, ask: Ask
) -> None:
    with psycopg.connect(url) as other:
        other.execute("SELECT pg_advisory_lock(7063417201337402)")
        assert "another run works on this database" in psql(bundle()).stderr
    assert ask("SELECT to_regnamespace('shop') IS NULL")


def test_nothing_in_a_file_ends_the_quotes_around_it(write: Write, bundle: Any, psql: Psql, run: Run) -> None:
    nested = "DO $tollbook$ BEGIN PERFORM 'it''s'; END $tollbook$;"
    write("0001_a", up=nested, down=nested, check=nested)
    ran = psql(bundle())
    assert ran.returncode == 0, ran.stderr
    assert run("status").exit_code == 0
    assert psql(bundle("--undo")).returncode == 0


def test_a_role_that_a_file_sets_lasts_beyond_its_own_commits(
    write: Write, bundle: Any, psql: Psql, ask: Ask
) -> None:
    write("0001_a", up="SET ROLE pg_database_owner; CREATE TABLE a (); COMMIT; CREATE TABLE b ()")
    ran = psql(bundle())
    assert ran.returncode == 0, ran.stderr
    owners = "SELECT count(*) FROM pg_class WHERE relname IN ('a', 'b') AND relowner = 6171"
    assert ask(owners) == 2
