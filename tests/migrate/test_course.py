"""Scripts that are no single transaction: they go on where they stopped, and leave nothing broken behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result

from tollbook.migrate import segments, statements
from tollbook.migrate.errors import StatementFailed
from tollbook.migrate.files import Script

Apply = Callable[..., Result]

VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'orders_i'::regclass"
SPLIT = """
CREATE TABLE orders (i int);
INSERT INTO orders VALUES (1), (1);
CREATE UNIQUE INDEX CONCURRENTLY orders_i ON orders (i);
CREATE TABLE after_it (i int);
"""


def words(result: Result) -> str:
    return " ".join(result.output.split())


def test_an_index_is_built_concurrently_between_other_statements(write: Any, apply: Apply, ask: Any) -> None:
    write("0001_a", up=SPLIT.replace("(1), (1)", "(1), (2)"))
    assert apply().exit_code == 0
    assert ask(VALID) is True
    assert ask("SELECT to_regclass('after_it')::text") == "after_it"
    assert ask("SELECT count(*) FROM tollbook_migrate.progress") == 0


def test_a_broken_build_leaves_no_index_and_is_begun_again(
    write: Any, apply: Apply, run: Any, ask: Any
) -> None:
    write("0001_a", up=SPLIT)
    failed = apply()
    assert failed.exit_code == StatementFailed.exit_code
    assert "0001_a.up.sql:4" in words(failed)
    assert "2 of 4 statements" in words(failed)
    assert ask("SELECT to_regclass('orders_i')") is None
    assert "Rolled back" not in words(failed)
    assert ask("SELECT statements FROM tollbook_migrate.progress") == 2
    assert "stopped, 2 of its statements committed" in words(run("status"))
    ask("DELETE FROM orders WHERE ctid = '(0,1)'; SELECT 1")
    assert apply().exit_code == 0
    assert ask(VALID) is True
    assert ask("SELECT count(*) FROM orders") == 1


def test_what_follows_may_be_corrected_what_is_committed_may_not(write: Any, apply: Apply, ask: Any) -> None:
    write("0001_a", up=SPLIT)
    apply()
    write("0001_a", up=SPLIT.replace("(i int)", "(i int, j int)", 1))
    assert "Put those statements back" in words(apply())
    write("0001_a", up=SPLIT.replace("UNIQUE ", ""))
    assert apply().exit_code == 0
    assert ask(VALID) is True


def test_an_invalid_index_of_a_killed_build_is_built_anew(write: Any, apply: Apply, ask: Any) -> None:
    ask("CREATE TABLE orders (i int); INSERT INTO orders VALUES (1), (1); SELECT 1")
    with pytest.raises(psycopg.errors.UniqueViolation):  # left behind invalid, as a kill leaves it
        ask("CREATE UNIQUE INDEX CONCURRENTLY orders_i ON orders (i)")
    assert ask(VALID) is False
    ask("DELETE FROM orders WHERE ctid = '(0,1)'; SELECT 1")
    write("0001_a", up="CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS orders_i ON orders (i)")
    assert apply().exit_code == 0
    assert ask(VALID) is True


def test_a_new_enum_value_is_used_in_the_same_file(write: Any, apply: Apply, ask: Any) -> None:
    ask("CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE people (m mood); SELECT 1")
    write("0001_a", up="ALTER TYPE mood ADD VALUE 'glad';\nINSERT INTO people VALUES ('glad');")
    result = apply()
    assert result.exit_code == 0, words(result)
    assert ask("SELECT m::text FROM people") == "glad"


def test_rows_of_a_copy_are_loaded(write: Any, apply: Apply, ask: Any) -> None:
    rows = "".join(f"{number}\tname {number}\n" for number in range(20_000))
    write("0001_a", up=f"CREATE TABLE t (i int, s text);\nCOPY t FROM stdin;\n{rows}\\.\nANALYZE t;")
    result = apply()
    assert result.exit_code == 0, words(result)
    assert ask("SELECT count(*) || max(s) FROM t") == "20000name 9999"


def test_a_bad_row_of_a_copy_rolls_the_file_back(write: Any, apply: Apply, ask: Any) -> None:
    write("0001_a", up="CREATE TABLE t (i int);\nCOPY t FROM stdin;\n1\nx\n\\.\nSELECT 1;")
    result = apply()
    assert result.exit_code == 1
    assert "0001_a.up.sql:2" in words(result)
    assert ask("SELECT to_regclass('t')") is None


def test_a_header_sets_timeouts_and_transaction(write: Any, apply: Apply, ask: Any) -> None:
    head = "-- Why.\n-- tollbook: lock_timeout=2s statement_timeout=10min"
    show = "current_setting('lock_timeout') || ' ' || current_setting('statement_timeout')"
    write("0001_a", up=f"{head}\nCREATE TABLE seen AS SELECT {show} AS s;")
    write("0002_b", up=f"{head} transaction=off\nCREATE TABLE x ();\nVACUUM seen;\nCREATE TABLE y (i no);")
    result = apply()
    assert "2 of 3 statements" in words(result)
    assert ask("SELECT s FROM seen") == "2s 10min"
    assert ask("SELECT to_regclass('x')::text") == "x"


def test_a_file_that_goes_on_has_the_settings_it_made(write: Any, apply: Apply, ask: Any) -> None:
    ask("CREATE SCHEMA inner_one; CREATE TABLE inner_one.t (i int); SELECT 1")
    text = "SET search_path = inner_one;\nVACUUM t;\nINSERT INTO t VALUES ({});"
    write("0001_a", up=text.format("'x'"))
    assert apply().exit_code == 1
    write("0001_a", up=text.format("1"))
    result = apply()
    assert result.exit_code == 0, words(result)
    assert ask("SELECT count(*) FROM inner_one.t") == 1


def test_an_unknown_option_is_named(write: Any, apply: Apply) -> None:
    write("0001_a", up="-- tollbook: transactions=off\nSELECT 1")
    assert "transactions=off is no option" in words(apply())
    write("0001_a", up="SELECT 1", check="-- tollbook: role=owner\nSELECT true")
    assert "role=owner is no option of a check" in words(apply())


def test_a_live_plan_says_what_it_cannot_try_and_leaves_nothing(write: Any, run: Any, ask: Any) -> None:
    write("0001_a", up=f"BEGIN; CREATE TABLE own (i int); COMMIT;{SPLIT}")
    assert "it cannot be rolled back" in words(run("plan", "--live"))
    assert ask("SELECT to_regclass('own') IS NULL AND to_regclass('orders') IS NULL") is True


def test_a_fingerprint_that_grows_is_that_of_the_statements_so_far() -> None:
    """Also where it is asked for fewer again, as after a script was cut finer."""
    text = "SELECT 1; SELECT 'ü';\nSELECT 3;"
    found = statements.read(Script(Path("a.sql"), text, "")).statements
    growing = segments.Fingerprints(text, found)
    counts = (0, 1, 3, 2, 3)
    assert [growing.take(n) for n in counts] == [segments.fingerprint(text, found[:n]) for n in counts]
    assert len({growing.take(n) for n in range(4)}) == 4
