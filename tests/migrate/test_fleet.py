"""Many databases and many schemas at once: a broken one holds up no other, running again resumes."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql

from tollbook.embedded import Server
from tollbook.migrate import Folder, apply, beside, history
from tollbook.migrate.cli import group
from tollbook.migrate.fleet import Done, Target, aim, read_databases, run
from tollbook.migrate.session import connected, name_target

DATABASES = 30
SCHEMAS = 50
SECRET = "hunter-two"
UP = ("CREATE TABLE orders (i int)", "CREATE INDEX orders_i ON orders (i); INSERT INTO orders VALUES (1)")


def words(result: Result) -> str:
    return " ".join(result.output.split())


def migrate(command: str, folder: Path, *options: str, typed: str | None = None) -> Result:
    arguments = [command, "--dir", str(folder), *options]
    return CliRunner().invoke(group(list, lambda: ""), arguments, input=typed, catch_exceptions=False)


@pytest.fixture
def two(write: Any) -> None:
    for number, text in enumerate(UP, 1):
        write(f"{number:04}_t", up=text, down="SELECT 1")


@pytest.fixture
def many(migrate_server: Server) -> Iterator[list[str]]:
    """The addresses of thirty empty databases."""
    names = [f"many_{number}" for number in range(DATABASES)]
    with psycopg.connect(migrate_server.url(), autocommit=True) as connection:
        for name in names:
            connection.execute(sql.SQL("CREATE DATABASE {} STRATEGY file_copy").format(sql.Identifier(name)))
        yield [migrate_server.url(name) for name in names]
        for name in names:
            beside.drop(connection, name)


def do(url: str, statement: str) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


@pytest.mark.usefixtures("two")
def test_of_thirty_databases_one_is_broken_and_run_again_when_it_is_mended(
    many: list[str], folder: Path, tmp_path: Path
) -> None:
    do(many[7], "CREATE TABLE orders (mine text)")
    file = tmp_path / "databases"
    file.write_text("# All of them.\n\n" + "\n".join(many))
    options = ("--databases", str(file), "--auto", "--skip-backup", "--jobs", "3")
    result = migrate("apply", folder, *options, "--json")
    assert result.exit_code == 1
    lines = json.loads(result.output)["lines"]
    assert [line["state"] for line in lines].count("applied") == DATABASES - 1
    assert lines[7]["state"] == "failed"
    assert "orders, which is there already" in lines[7]["message"]
    checked = ("--databases", str(file))
    assert migrate("status", folder, *checked).exit_code == 3
    do(many[7], "DROP TABLE orders")
    result = migrate("apply", folder, *options)
    assert result.exit_code == 0, words(result)
    assert "1 applied" in words(result)
    assert all(do(url, "SELECT count(*) FROM orders") == 1 for url in many)
    assert migrate("status", folder, *checked).exit_code == 0


@pytest.mark.usefixtures("two")
def test_it_stops_at_the_first_failure_where_that_is_asked_for(many: list[str], folder: Path) -> None:
    do(many[0], "CREATE TABLE orders (mine text)")
    options = ("--databases", "-", "--auto", "--skip-backup", "--jobs", "1", "--stop-on-failure", "--json")
    result = migrate("apply", folder, *options, typed="\n".join(many[:5]))
    assert result.exit_code == 1
    assert [line["state"] for line in json.loads(result.output)["lines"]] == ["failed"] + ["skipped"] * 4


@pytest.fixture
def tenants(ask: Any) -> list[str]:
    names = [f"tenant_{number:02}" for number in range(SCHEMAS - 1)] + ['tenant_"odd" Name']
    ask("; ".join(f"""CREATE SCHEMA "{name.replace('"', '""')}\"""" for name in names) + "; SELECT 1")
    return names


@pytest.mark.usefixtures("two")
def test_of_fifty_schemas_one_is_broken_and_each_has_a_history_of_its_own(
    tenants: list[str], url: str, folder: Path, ask: Any
) -> None:
    ask("CREATE TABLE tenant_11.orders (mine text); CREATE TABLE public.orders (untouched text); SELECT 1")
    options = ("--database-url", url, "--schemas", "tenant_*", "--auto", "--skip-backup")
    result = migrate("apply", folder, *options)
    assert result.exit_code == 1
    assert f"{SCHEMAS} targets" in words(result)
    assert "1 failed" in words(result)
    assert "tenant_11" in words(result)
    assert ask("SELECT count(*) FROM pg_class WHERE relname = 'orders_i'") == SCHEMAS - 1
    assert ask("SELECT count(DISTINCT folder) FROM tollbook_migrate.history") == SCHEMAS - 1
    assert ask("SELECT count(*) FROM tollbook_migrate.history WHERE folder = 'shop@tenant_03'") == 2
    assert ask("SELECT count(*) FROM public.orders") == 0
    assert migrate("status", folder, *options[:4]).exit_code == 3
    assert migrate("plan", folder, *options[:4]).exit_code == 1
    ask("DROP TABLE tenant_11.orders; SELECT 1")
    assert migrate("plan", folder, *options[:4]).exit_code == 3
    result = migrate("apply", folder, *options)
    assert result.exit_code == 0, words(result)
    assert "1 applied" in words(result)
    assert ask("""SELECT count(*) FROM "tenant_""odd"" Name".orders""") == 1
    for command in ("status", "verify", "plan"):
        result = migrate(command, folder, *options[:4])
        assert result.exit_code == 0, words(result)


@pytest.mark.usefixtures("two")
def test_up_to_a_version_in_every_schema(tenants: list[str], url: str, folder: Path, ask: Any) -> None:
    options = ("--database-url", url, "--schemas", "tenant_0[0-3]", "--auto", "--skip-backup", "--to", "1")
    assert migrate("apply", folder, *options).exit_code == 0
    assert ask("SELECT count(*) FROM tollbook_migrate.history WHERE version = '1'") == 4
    assert ask("SELECT count(*) FROM tollbook_migrate.history") == 4


@pytest.mark.usefixtures("two")
def test_no_schema_is_a_failure_and_says_so(url: str, folder: Path) -> None:
    result = migrate("status", folder, "--database-url", url, "--schemas", "nobody_*")
    assert result.exit_code == 1
    assert "matches nobody_*" in words(result)


@pytest.mark.usefixtures("two")
def test_no_password_is_ever_shown(many: list[str], folder: Path) -> None:
    broken = f"postgresql://me:{SECRET}@127.0.0.1:1/app"
    result = migrate("status", folder, "--databases", "-", typed=f"{many[0]}\n{broken}\n")
    assert result.exit_code == 1
    assert "me@127.0.0.1:1/app" in words(result)
    assert SECRET not in result.output
    result = migrate(
        "status", folder, "--databases", "-", typed=f"{many[0]}\npostgresql://me:{SECRET}@x@y/app\n"
    )
    assert result.exit_code == 2
    assert "Line 2" in words(result)
    assert SECRET not in result.output


def test_a_fault_of_ours_on_one_is_its_line_and_shows_nothing(url: str) -> None:
    def work(target: Target) -> Done:
        if target.url != url:
            raise ValueError(SECRET)
        return Done("applied", 1)

    lines = run(["postgresql:///other", url], work).lines
    assert [line.state for line in lines] == ["failed", "applied"]
    assert "ValueError" in lines[0].message
    assert SECRET not in lines[0].message


def test_databases_of_one_service_are_told_apart() -> None:
    assert name_target({"service": "prod", "dbname": "a"}) != name_target({"service": "prod", "dbname": "b"})


def test_a_run_is_interrupted_in_its_own_schema_alone(url: str) -> None:
    with connected(url) as conn:
        history.create(conn)
        history.start(conn, "apply", ["shop@a/b/0001_t"])
        assert not history.find_interrupted(conn, "a")
        assert len(history.find_interrupted(conn, "a/b")) == 1


def test_a_schema_is_all_that_its_sessions_search(url: str, ask: Any) -> None:
    ask('CREATE SCHEMA "a b\\c"; SELECT 1')
    assert do(aim(url, "a b\\c"), "SELECT current_schemas(false)::text[]") == ["a b\\c"]
    assert read_databases(f"# x\n{url}\n") == [url]


@pytest.mark.usefixtures("two")
def test_two_fleets_and_a_plain_run_at_once_apply_each_schema_once(
    tenants: list[str], url: str, folder: Path, ask: Any
) -> None:
    folders = [Folder("shop", folder)]

    def work(target: Target) -> Done:
        result = apply(target.url, target.place(folders), backup=False)
        return Done("applied", len(result.steps))

    with ThreadPoolExecutor(3) as pool:
        fleets = [pool.submit(run, [url], work, schemas="tenant_*", jobs=4) for _ in range(2)]
        plain = pool.submit(apply, url, folders, backup=False)
        lines = [line for one in fleets for line in one.result().lines]
        assert len(plain.result().steps) == len(UP)
    assert not [line for line in lines if line.failed]
    assert sum(line.migrations for line in lines) == SCHEMAS * len(UP)
    assert ask("SELECT count(*) FROM tollbook_migrate.history") == (SCHEMAS + 1) * len(UP)
    assert ask("SELECT count(*) FROM tollbook_migrate.runs WHERE outcome <> 'done'") == 0


@pytest.mark.usefixtures("two")
def test_one_backup_does_for_all_schemas(
    tenants: list[str], url: str, folder: Path, tmp_path: Path, ask: Any
) -> None:
    ask("CREATE TABLE something (i int); SELECT 1")
    place = tmp_path / "kept"
    options = ("--database-url", url, "--schemas", "tenant_0*", "--auto", "--backup-dir", str(place))
    result = migrate("apply", folder, *options)
    assert result.exit_code == 0, words(result)
    assert len(list(place.glob("*.dump"))) == 1


@pytest.mark.parametrize(
    "option", ["--static", "--sample=3", "--fail-on=error", "--markdown", "--since=main"]
)
def test_a_plan_of_many_refuses_what_it_would_not_do(folder: Path, tmp_path: Path, option: str) -> None:
    (tmp_path / "all").write_text("postgresql://127.0.0.1:1/a")
    assert migrate("plan", folder, "--databases", str(tmp_path / "all"), option).exit_code == 2


@pytest.mark.usefixtures("two")
def test_a_live_plan_of_many_is_live(folder: Path, tmp_path: Path, url: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("tollbook.migrate.shadow.shadow", None)
    (tmp_path / "all").write_text(url)
    result = migrate("plan", folder, "--databases", str(tmp_path / "all"), "--live")
    assert result.exit_code == 3, result.output
