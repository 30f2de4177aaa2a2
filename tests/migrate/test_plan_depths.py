"""The three depths of a plan, as a user calls them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.rows import scalar_row

from tollbook.embedded import EmbeddedServerFailed
from tollbook.migrate import Folder, cli, impact, plan, shadow
from tollbook.migrate.observation import Lock, Observation, Scan, Touched, Written
from tollbook.migrate.rehearsal import Plan, plan_static
from tollbook.migrate.shadow import Size

Run = Callable[..., Result]
EVERYTHING = """
SELECT array_agg(x ORDER BY x) FROM (
    SELECT concat('class ', oid::regclass::text, relfilenode, xmin) FROM pg_class WHERE oid >= 16384
    UNION ALL SELECT 'proc ' || oid::regprocedure::text || xmin FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 'history ' || h::text FROM tollbook_migrate.history h
    UNION ALL SELECT 'run ' || r::text FROM tollbook_migrate.runs r
    UNION ALL SELECT 'sequence ' || s::text FROM pg_sequences s
    UNION ALL SELECT 'role ' || rolname FROM pg_roles) AS all_of_it (x)
"""


def picture(url: str) -> object:
    with psycopg.connect(url, row_factory=scalar_row) as connection:
        return connection.execute(EVERYTHING).fetchone()


@pytest.fixture
def shop(write: Any, apply: Run, url: str) -> None:
    """A database with one migration applied, whose table has rows."""
    write("0001_orders", up="CREATE TABLE orders (id serial PRIMARY KEY, n int, note text)")
    assert apply().exit_code == 0
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO orders (n, note) SELECT i, 'private' FROM generate_series(1, 1000) AS i"
        )


def plan_it(url: str, folder: Path, **options: Any) -> Plan:
    return plan(url, [Folder("shop", folder)], **options)


@pytest.mark.parametrize("depth", ["shadow", "live"])
def test_a_plan_shows_locks_rewrites_scans_and_rows_and_leaves_nothing(
    write: Any, run: Run, url: str, shop: None, depth: str
) -> None:
    write(
        "0002_b",
        up="""ALTER TABLE orders ALTER n TYPE bigint;
        INSERT INTO orders (n) SELECT 7 FROM generate_series(1, 5);
        CREATE INDEX orders_n ON orders (n);""",
    )
    before = picture(url)
    result = run("plan", f"--{depth}")
    assert result.exit_code == 3, result.output
    for words in (
        "locks ACCESS EXCLUSIVE: public.orders (reads and writes wait)",
        "rewritten: public.orders",
        "rebuilt: index public.orders_pkey",
        "reads all of public.orders",
        "rows public.orders +5",
        "built: index public.orders_n",
        "Indexes 1/1",
    ):
        assert words in result.output, result.output
    if depth == "shadow":  # live, as it says, sequences that were advanced stay advanced
        assert picture(url) == before


def test_a_plan_in_json_has_all_that_was_observed(write: Any, run: Run, shop: None) -> None:
    write("0002_b", up="SELECT 1;\nUPDATE orders SET n = 1 WHERE note = 'x'")
    answer = json.loads(run("plan", "--json").output)
    assert (answer["depth"], answer["pending"], answer["untried"]) == ("shadow", ["shop/0002_b"], [])
    first, second = answer["steps"][0]["statements"]
    assert (first["locks"], first["line"], second["line"]) == ([], 1, 2)
    assert second["tag"] == "UPDATE 0"
    assert second["locks"][0] == {
        "mode": "ROW EXCLUSIVE",
        "relation": "public.orders",
        "kind": "table",
        "of": "public.orders",
        "blocks": "most DDL waits",
    }
    assert [one["relation"] for one in second["scans"]] == ["public.orders"]


def test_on_a_shadow_a_full_scan_means_that_no_index_serves(
    url: str, write: Any, folder: Path, shop: None
) -> None:
    write("0002_b", up="UPDATE orders SET n = 1 WHERE id = 4; UPDATE orders SET n = 1 WHERE n = 4")
    by_key, by_value = plan_it(url, folder).steps[0].statements
    assert not by_key.scans
    assert [one.relation for one in by_value.scans] == ["public.orders"]


def test_a_sample_gives_the_shadow_rows_and_shows_none_of_them(write: Any, run: Run, shop: None) -> None:
    write("0002_b", up="UPDATE orders SET n = 0")
    result = run("plan", "--sample", "50")
    assert "rows public.orders ~50" in result.output, result.output
    assert "50 sampled rows" in result.output
    assert "private" not in result.output + run("plan", "--sample", "50", "--json").output


def test_what_cannot_run_in_a_transaction_really_runs_on_the_shadow(
    url: str, write: Any, folder: Path, shop: None
) -> None:
    write("0002_b", up="CREATE INDEX CONCURRENTLY orders_n ON orders (n);\nVACUUM orders;")
    write("0003_c", up="REINDEX TABLE CONCURRENTLY orders; DROP INDEX CONCURRENTLY orders_n")
    planned = plan_it(url, folder)
    build, vacuum = planned.steps[0].statements
    rebuild, drop = planned.steps[1].statements
    assert planned.untried == ()
    for one in (build, vacuum, rebuild, drop):
        modes = {lock.relation: lock.mode for lock in one.locks}
        assert modes["public.orders"] == "SHARE UPDATE EXCLUSIVE", one
        assert one.alone
    assert [(one.what, one.relation) for one in build.written] == [("built", "public.orders_n")]
    assert [one.relation for one in build.scans] == ["public.orders"]
    assert [one.name for one in drop.changes] == ["public.orders_n"]


def test_fifteen_files_with_new_enum_values_and_concurrent_indexes(
    url: str, write: Any, folder: Path, run: Run, shop: None
) -> None:
    write("0002_mood", up="CREATE TYPE mood AS ENUM ('a')")
    for number in range(3, 14):
        write(f"{number:04}_t", up=f"CREATE TABLE t{number} (i int); ALTER TYPE mood ADD VALUE 'v{number}'")
    write("0014_use", up="ALTER TYPE mood ADD VALUE 'last'; ALTER TABLE orders ADD mood mood DEFAULT 'last'")
    write("0015_cic", up="CREATE INDEX CONCURRENTLY orders_mood ON orders (mood)")
    write(
        "0016_end",
        up="ALTER TABLE orders ALTER mood SET DEFAULT 'v5'",
        check="SELECT count(*) >= 0 FROM orders",
    )
    before = picture(url)
    planned = plan_it(url, folder)
    assert (len(planned.steps), planned.untried, planned.notes) == (15, (), ())
    assert {one.name for one in planned.steps[12].changes} == {"public.mood", "public.orders.mood"}
    assert [one.what for one in planned.steps[12].changes] == ["gained", "changed"]
    assert picture(url) == before
    live = plan_it(url, folder, depth="live")
    assert live.untried[0] == "shop/0014_use"
    assert "cannot be tried live" in live.notes[0]
    assert run("apply", "--auto", "--skip-backup").exit_code == 0


def test_live_what_cannot_be_rolled_back_is_not_run_and_said(
    url: str, write: Any, folder: Path, shop: None
) -> None:
    write("0002_b", up="CREATE INDEX CONCURRENTLY orders_n ON orders (n); CREATE TABLE b (i int)")
    write("0003_c", up="DROP INDEX orders_n")
    write("0004_d", up="SELECT 1")
    before = picture(url)
    planned = plan_it(url, folder, depth="live")
    assert picture(url) == before
    build, table = planned.steps[0].statements
    assert build.untried == "it cannot be rolled back"
    assert [one.name for one in table.changes] == ["public.b"]
    assert planned.steps[0].unproven
    assert planned.untried == ("shop/0003_c", "shop/0004_d")
    assert "0003_c fails live" in planned.notes[0]


def test_apply_shows_the_plan_before_it_asks_and_says_if_it_is_live(
    write: Any, url: str, folder: Path, shop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("0002_b", up="CREATE TABLE b (i int)")
    monkeypatch.setattr(cli.Call, "require_terminal", lambda _: None)
    arguments = ["apply", "--dir", str(folder), "--database-url", url, "--skip-backup"]
    before = picture(url)

    def refuse(**_: Any) -> None:
        raise EmbeddedServerFailed("no server here.")

    shown = CliRunner().invoke(cli.group(list, str), arguments, input="n\n")
    assert shown.exit_code == 1
    assert "really ran on a shadow" in shown.output
    assert "+ table public.b" in shown.output
    monkeypatch.setattr(shadow, "throwaway", refuse)
    shown = CliRunner().invoke(cli.group(list, str), arguments, input="n\n")
    assert "Trying it live" in shown.output
    assert "+ table public.b" in shown.output
    assert picture(url) == before


def test_a_file_that_is_half_done_is_planned_from_where_it_stopped(
    url: str, write: Any, folder: Path, apply: Run, shop: None
) -> None:
    write("0002_b", up="CREATE TABLE a (i int);\nCOMMIT;\nSELECT 1/0;")
    assert apply().exit_code == 1
    write("0002_b", up="CREATE TABLE a (i int);\nCOMMIT;\nCREATE TABLE b (i int);")
    (step,) = plan_it(url, folder).steps
    assert [one.line for one in step.statements] == [3]
    assert [(one.what, one.name) for one in step.changes] == [("gained", "public.b")]


def test_many_inserts_are_looked_at_together_and_one_that_fails_is_named(
    url: str, write: Any, folder: Path, run: Run, shop: None
) -> None:
    lines = [f"INSERT INTO orders (n) VALUES ({number});" for number in range(50)]
    write("0002_b", up="\n".join(["SELECT 1;", *lines, "SELECT 2;"]))
    (step,) = plan_it(url, folder, depth="live").steps
    assert [(one.number, one.line) for one in step.statements] == [(1, 1), (2, 2), (52, 52)]
    assert step.statements[1].rows[0].inserted == 50
    write("0002_b", up="\n".join([*lines[:30], "INSERT INTO orders (n) VALUES ('x');", *lines]))
    assert "0002_b.up.sql:31" in run("plan", "--live").output


def test_a_failing_statement_is_named_with_its_line(write: Any, run: Run, shop: None) -> None:
    write("0002_b", up="SELECT 1;\nALTER TABLE orders ADD COLUMN n int;")
    result = run("plan")
    assert result.exit_code == 1
    assert "0002_b.up.sql:2" in result.output


def test_what_only_lacks_the_targets_rows_is_untried_and_not_failed(write: Any, run: Run, shop: None) -> None:
    write(
        "0002_b", up="DO $$ BEGIN IF NOT EXISTS (SELECT FROM orders) THEN RAISE 'no orders'; END IF; END $$"
    )
    result = run("plan")
    assert result.exit_code == 3, result.output
    assert "no orders" in result.output
    assert "--sample" in result.output
    assert "0002_b  not tried" in result.output
    assert "not tried" not in run("plan", "--sample", "5").output


def test_a_check_that_needs_rows_is_not_proven_on_a_bare_shadow(write: Any, run: Run, shop: None) -> None:
    write("0002_b", up="CREATE TABLE b (i int)", check="SELECT count(*) > 900 FROM orders")
    result = run("plan")
    assert result.exit_code == 3
    assert "not proven" in result.output
    assert "not proven" not in run("plan", "--live").output


def test_what_reaches_out_of_the_database_is_not_run_on_a_shadow(
    url: str, write: Any, folder: Path, tmp_path: Path, shop: None
) -> None:
    write("0002_b", up=f"COPY orders TO PROGRAM 'touch {tmp_path}/ran'; CREATE TABLE b (i int)")
    (step,) = plan_it(url, folder).steps
    assert "program of the server" in step.statements[0].untried
    assert step.unproven
    assert not (tmp_path / "ran").exists()


def test_a_static_plan_needs_no_database(write: Any, run: Run) -> None:
    write("0001_a", up="CREATE TABLE a (i int); CREATE INDEX a_i ON a (i)")
    write("0002_b", up="DROP TABLE a; CREATE VIEW v AS SELECT 1")
    result = run("plan", "--static", "--after", "0001", to="postgresql://nobody@nowhere.invalid/none")
    assert result.exit_code == 3, result.output
    assert "- table a" in result.output
    assert "Views 1/1" in result.output
    assert "0001_a" not in result.output
    assert "error" in result.output  # the lint's word for data lost
    assert run("plan", "--static", "--fail-on", "never").exit_code == 0
    assert run("plan", "--static", "--after", "0001", "--fail-on", "error").exit_code == 3


def test_a_static_plan_of_a_file_that_cannot_be_read_says_where(write: Any, run: Run) -> None:
    write("0001_a", up="CREATE TABLE;")
    result = run("plan", "--static")
    assert result.exit_code == 1
    assert "0001_a.up.sql:1" in result.output


def test_a_static_plan_lists_what_each_file_promises(write: Any, folder: Path) -> None:
    write("0001_a", up="CREATE TABLE a (i int)")
    planned = plan_static([Folder("shop", folder)])
    assert [one.name for one in planned.steps[0].changes] == ["a"]
    assert planned.depth == "static"


def test_markdown_is_a_comment_for_a_pull_request(write: Any, run: Run, shop: None) -> None:
    write("0002_b", up="ALTER TABLE orders ADD COLUMN x int; SELECT 'a|b'")
    result = run("plan", "--markdown")
    assert result.exit_code == 3
    assert result.output.startswith("### Migrations: 1 pending")
    assert "+ column public.orders.x" in result.output
    assert "| 1 | `ALTER TABLE orders ADD COLUMN x int` | locks ACCESS EXCLUSIVE" in result.output


def test_options_that_do_not_go_together_are_refused(run: Run, write: Any) -> None:
    write("0001_a", up="SELECT 1")
    assert run("plan", "--after", "0").exit_code == 2
    assert run("plan", "--live", "--sample", "3").exit_code == 2
    assert run("plan", "--static", "--after", "0", "--since", "main").exit_code == 2


def test_without_the_embedded_server_a_plan_names_the_way_out(
    write: Any, run: Run, shop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise EmbeddedServerFailed("no server here.")

    monkeypatch.setattr(shadow, "throwaway", refuse)
    write("0002_b", up="CREATE TABLE b (i int)")
    result = run("plan")
    assert result.exit_code == 1
    assert "--live" in result.output
    assert run("plan", "--live").exit_code == 3


LOCKED = Lock("ACCESS EXCLUSIVE", "public.orders", "table", "public.orders", "reads and writes wait")
BIG = {"public.orders": Size(1_100_000_000, 212 * 2**30), "public.small": Size(10, 8192)}


def judge(*observations: Observation, measured: bool = False) -> list[tuple[str, str]]:
    found = impact.judge(observations, BIG, measured=measured)
    return [(one.severity, one.sentence) for one in found]


def test_a_rewrite_of_a_huge_table_is_an_error_with_its_size_and_no_invented_time() -> None:
    rewrite = Written("rewritten", "public.orders", "table", "public.orders")
    one = Observation(1, 3, "ALTER", seconds=0.01, locks=(LOCKED,), written=(rewrite,))
    assert judge(one) == [
        (
            "error",
            "ACCESS EXCLUSIVE on public.orders (212 GB, 1.1e9 rows) is held while the table is rewritten: "
            "reads and writes wait. It needs that much free disk once more.",
        )
    ]
    assert "(it took 0.0 s)" in judge(one, measured=True)[0][1]


def test_a_scan_hurts_only_under_a_lock_that_stops_others() -> None:
    scan = Scan("public.orders", "public.orders", 0)
    quiet = Lock("SHARE UPDATE EXCLUSIVE", "public.orders", "table", "public.orders", "DDL waits")
    assert judge(Observation(1, 1, "VALIDATE", locks=(quiet,), scans=(scan,))) == []
    ((severity, sentence),) = judge(Observation(1, 1, "SET NOT NULL", locks=(LOCKED,), scans=(scan,)))
    assert severity == "error"
    assert "every row is read" in sentence


def test_a_lock_from_an_earlier_statement_is_told_once_for_all_that_follow() -> None:
    small = Lock("ACCESS EXCLUSIVE", "public.small", "table", "public.small", "reads and writes wait")
    writer = Lock("ROW EXCLUSIVE", "public.orders", "table", "public.orders", "most DDL waits")
    touched = Touched("public.orders", "public.orders", 0, 900_000, 0)
    later = [
        Observation(number, number, "UPDATE", locks=(writer,), held=(small,), rows=(touched,))
        for number in (2, 3)
    ]
    sentences = [sentence for _, sentence in judge(*later)]
    assert sum("small" in one for one in sentences) == 1
    assert "(line 2, 3)" in next(one for one in sentences if "small" in one)
    assert sum("back-fill" in one for one in sentences) == 2


def test_small_and_new_tables_are_not_warned_of() -> None:
    small = Lock("ACCESS EXCLUSIVE", "public.small", "table", "public.small", "reads and writes wait")
    rewrite = Written("rewritten", "public.small", "table", "public.small")
    unknown = Written("rewritten", "public.fresh", "table", "public.fresh")
    assert judge(Observation(1, 1, "ALTER", locks=(small,), written=(rewrite, unknown))) == []
