"""Applying: all of a migration or nothing of it, proven before it is committed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result

Apply = Callable[..., Result]
SHOP = """
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id int PRIMARY KEY, paid bool NOT NULL);
CREATE TABLE shop.lines (order_id int NOT NULL, at timestamptz NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE shop.lines_old PARTITION OF shop.lines DEFAULT;
CREATE VIEW shop.v_paid AS SELECT id FROM shop.orders WHERE paid;
CREATE FUNCTION shop.count_paid() RETURNS bigint LANGUAGE sql
    AS 'SELECT count(*) FROM shop.orders WHERE paid';
CREATE INDEX orders_paid ON shop.orders (paid);
CREATE INDEX ON shop.lines (order_id);
"""
FOREIGN_KEY = """
CREATE TABLE a (i int PRIMARY KEY);
CREATE TABLE b (i int REFERENCES a DEFERRABLE INITIALLY DEFERRED);
INSERT INTO b VALUES (1);
"""


def tables(ask: Callable[..., Any]) -> list[str]:
    found = ask(
        """SELECT coalesce(array_agg(relname::text ORDER BY relname), '{}') FROM pg_class
        WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace::regnamespace::text
              NOT IN ('pg_catalog', 'information_schema', 'tollbook_migrate', 'pg_toast')"""
    )
    return list(found)


def test_what_was_promised_is_counted_before_it_is_committed(write: Any, apply: Apply) -> None:
    write("0001_shop", up=SHOP)
    result = apply()
    assert result.exit_code == 0, result.output
    assert "Tables 2/2 · Views 1/1 · Functions 1/1 · Indexes 2/2" in result.output


def test_a_second_apply_finds_nothing_to_do(write: Any, apply: Apply, ask: Any) -> None:
    write("0001_shop", up=SHOP)
    assert apply().exit_code == 0
    runs = ask("SELECT count(*) FROM tollbook_migrate.runs")
    assert apply().exit_code == 0
    assert ask("SELECT count(*) FROM tollbook_migrate.history") == 1
    assert ask("SELECT count(*) FROM tollbook_migrate.runs") == runs


def test_nothing_to_do_on_an_empty_folder_leaves_the_database_untouched(apply: Apply, ask: Any) -> None:
    assert apply().exit_code == 0
    assert ask("SELECT to_regnamespace('tollbook_migrate')") is None


def test_the_history_keeps_checksum_duration_and_the_way_back(write: Any, apply: Apply, ask: Any) -> None:
    write("0001_a", up="CREATE TABLE a (i int)", down="DROP TABLE a")
    assert apply().exit_code == 0
    kept = ask(
        "SELECT (length(checksum) = 64) AND duration > interval '0' AND down_sql = 'DROP TABLE a'"
        " AND applied_by = session_user FROM tollbook_migrate.history"
    )
    assert kept is True


def test_folders_are_applied_in_order_and_kept_apart_by_name(
    write: Any, apply: Apply, ask: Any, tmp_path: Path
) -> None:
    write("0001_start", up="CREATE TABLE a (i int)", at=tmp_path / "first")
    write("0001_start", up="CREATE TABLE b AS SELECT * FROM a", at=tmp_path / "second")
    result = apply(folders=(f"one={tmp_path / 'first'}", str(tmp_path / "second")))
    assert result.exit_code == 0, result.output
    assert ask(
        "SELECT string_agg(folder || '/' || version, ' ' ORDER BY folder) FROM tollbook_migrate.history"
    ) == ("one/1 second/1")


def test_to_stops_at_the_version_named(write: Any, apply: Apply, ask: Any) -> None:
    for number in (1, 2, 3):
        write(f"{number:04}_t", up=f"CREATE TABLE t{number} (i int)")
    assert apply("--to", "2").exit_code == 0
    assert tables(ask) == ["t1", "t2"]


def test_an_error_is_shown_with_file_line_caret_and_sqlstate_and_earlier_files_stay(
    write: Any, apply: Apply, ask: Any
) -> None:
    write("0001_good", up="CREATE TABLE good (i int)")
    write("0002_bad", up="CREATE TABLE half (i int);\n\nINSERT INTO half SELECT nothing FROM good;\n")
    write("0003_later", up="CREATE TABLE later (i int)")
    result = apply()
    assert result.exit_code == 1
    assert "0002_bad.up.sql:3:25" in result.output
    assert "42703" in result.output
    line, caret = result.output.split("INSERT INTO half", 1)[1].splitlines()[:2]
    assert line == " SELECT nothing FROM good;"
    assert caret.strip() == "^"
    assert tables(ask) == ["good"]


def test_an_error_without_a_position_is_shown_at_its_statement(write: Any, apply: Apply) -> None:
    write("0001_bad", up="SELECT 1;\nCREATE TABLE t (i int PRIMARY KEY);\n\nINSERT INTO t VALUES (1), (1);")
    result = apply()
    assert result.exit_code == 1
    assert "0001_bad.up.sql:4" in result.output
    assert "23505" in result.output


def test_after_a_failure_the_corrected_file_is_simply_applied(write: Any, apply: Apply, ask: Any) -> None:
    write("0001_bad", up="CREATE TABLE t (i int); SELECT 1/0;")
    assert apply().exit_code == 1
    write("0001_bad", up="CREATE TABLE t (i int);")
    assert apply().exit_code == 0
    assert tables(ask) == ["t"]


def test_deferred_constraints_are_checked_before_the_commit(write: Any, apply: Apply, ask: Any) -> None:
    write("0001_a", up=FOREIGN_KEY)
    result = apply()
    assert result.exit_code == 1
    assert "23503" in result.output
    assert tables(ask) == []


def test_a_check_that_returns_false_rolls_the_migration_back(write: Any, apply: Apply, ask: Any) -> None:
    write("0001_a", up="CREATE TABLE a (i int)", check="SELECT true;\nSELECT count(*) = 1 FROM a;")
    result = apply()
    assert result.exit_code == 4, result.output
    assert "0001_a.check.sql:2" in result.output
    assert tables(ask) == []


@pytest.mark.parametrize(
    "check", ["SELECT NULL::bool", "SELECT 1/0", "INSERT INTO a VALUES ('x')", "SELECT tru"]
)
def test_any_way_a_check_fails_rolls_the_migration_back(
    write: Any, apply: Apply, ask: Any, check: str
) -> None:
    write("0001_a", up="CREATE TABLE a (i int)", check=check)
    assert apply().exit_code == 4
    assert tables(ask) == []


def test_what_a_check_inserts_is_gone_afterwards(write: Any, apply: Apply, ask: Any) -> None:
    write(
        "0001_a", up="CREATE TABLE a (i int)", check="INSERT INTO a VALUES (1); SELECT count(*) = 1 FROM a;"
    )
    assert apply().exit_code == 0
    assert ask("SELECT count(*) FROM a") == 0


def test_a_promise_that_is_not_kept_rolls_the_migration_back_and_is_named(
    write: Any, apply: Apply, ask: Any
) -> None:
    write("0001_a", up="CREATE TABLE a (i int); CREATE TABLE b (i int); DO $$ BEGIN DROP TABLE b; END $$")
    result = apply()
    assert result.exit_code == 4, result.output
    assert "table b" in result.output
    assert tables(ask) == []


def test_an_object_of_another_kind_does_not_keep_a_promise(write: Any, apply: Apply, ask: Any) -> None:
    ask("CREATE VIEW a AS SELECT 1; SELECT 1")
    write("0001_a", up="CREATE TABLE IF NOT EXISTS a (i int)")
    result = apply()
    assert result.exit_code == 4, result.output


def test_settings_roles_and_search_paths_of_a_file_do_not_reach_the_next(
    write: Any, apply: Apply, ask: Any
) -> None:
    write("0001_a", up="CREATE SCHEMA s; SET search_path = s; CREATE TABLE a (i int); SET work_mem = '64kB'")
    write("0002_b", up="CREATE TABLE b AS SELECT current_setting('work_mem') AS w")
    assert apply().exit_code == 0
    assert ask("SELECT to_regclass('public.b') IS NOT NULL AND to_regclass('s.a') IS NOT NULL") is True
    assert ask("SELECT w FROM b") != "64kB"


def test_a_lock_that_is_held_is_waited_for_briefly_and_tried_again(
    write: Any, apply: Apply, ask: Any, url: str
) -> None:
    ask("CREATE TABLE busy (i int); SELECT 1")
    write("0001_a", up="ALTER TABLE busy ADD COLUMN j int")
    with psycopg.connect(url) as holder:
        holder.execute("SELECT * FROM busy")
        result = apply("--lock-timeout", "50ms")
        assert result.exit_code == 1, result.output
        assert "55P03" in result.output
    assert apply().exit_code == 0


def test_without_a_terminal_nothing_is_applied_unasked(write: Any, run: Any, ask: Any) -> None:
    write("0001_a", up="CREATE TABLE a (i int)")
    result = run("apply", "--skip-backup")
    assert result.exit_code == 2
    assert "--auto" in result.output
    assert tables(ask) == []


def test_a_backup_is_made_before_a_database_with_tables_is_changed(
    write: Any, run: Any, ask: Any, tmp_path: Path
) -> None:
    write("0001_a", up="CREATE TABLE a (i int)")
    backups = tmp_path / "kept"
    assert run("apply", "--auto", "--backup-dir", str(backups)).exit_code == 0
    assert not list(backups.glob("*.dump"))
    write("0002_b", up="CREATE TABLE b (i int)")
    result = run("apply", "--auto", "--backup-dir", str(backups))
    assert result.exit_code == 0, result.output
    (file,) = backups.glob("*.dump")
    assert file.name in result.output.replace("\n", "")


def test_when_no_backup_can_be_written_nothing_is_applied(
    write: Any, run: Any, ask: Any, tmp_path: Path
) -> None:
    ask("CREATE TABLE here (i int); SELECT 1")
    write("0001_a", up="CREATE TABLE a (i int)")
    (tmp_path / "file").write_text("not a folder")
    result = run("apply", "--auto", "--backup-dir", str(tmp_path / "file" / "sub"))
    assert result.exit_code == 1
    assert tables(ask) == ["here"]


def test_with_json_the_answer_is_one_object(write: Any, apply: Apply) -> None:
    write("0001_a", up="CREATE TABLE a (i int); CREATE INDEX a_i ON a (i)")
    answer = json.loads(apply("--json").stdout)
    assert "0001_a" in json.dumps(answer)
    assert "a_i" in json.dumps(answer)
    write("0002_b", up="SELECT 1/0")
    result = apply("--json")
    assert result.exit_code == 1
    assert "22012" in json.dumps(json.loads(result.stdout))


def test_each_run_leaves_a_log_without_secrets(write: Any, apply: Apply, url: str, tmp_path: Path) -> None:
    write("0001_a", up="CREATE TABLE a (i int)")
    result = apply(to=f"{url}&password=hunter2secret")
    assert result.exit_code == 0, result.output
    (log,) = (tmp_path / "logs").glob("*.log")
    assert log.name in result.output.replace("\n", "")
    assert "0001_a" in log.read_text()
    assert "hunter2secret" not in log.read_text() + result.output
