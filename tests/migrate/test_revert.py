"""The way back: newest first, one transaction each, proven to be back."""

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

Run = Callable[..., Result]


@pytest.fixture
def revert(run: Run) -> Run:
    return lambda *options, **more: run("revert", "--auto", "--skip-backup", *options, **more)


@pytest.fixture
def three(write: Any, apply: Run) -> None:
    for number in (1, 2, 3):
        write(f"{number:04}_t", up=f"CREATE TABLE t{number} (i int)", down=f"DROP TABLE t{number}")
    assert apply().exit_code == 0


def left(ask: Any) -> str:
    return ask("SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relname ~ '^t[123]$'")


def test_one_step_back_takes_the_newest(three: None, revert: Run, ask: Any) -> None:
    result = revert()
    assert result.exit_code == 0, result.output
    assert left(ask) == "t1 t2"


def test_steps_and_to_say_how_far(three: None, revert: Run, ask: Any, apply: Run) -> None:
    assert revert("--steps", "2").exit_code == 0
    assert left(ask) == "t1"
    assert apply().exit_code == 0
    assert left(ask) == "t1 t2 t3"
    assert revert("--to", "1").exit_code == 0
    assert left(ask) == "t1"


def test_there_and_back_and_there_again(three: None, revert: Run, apply: Run, run: Run) -> None:
    assert revert("--steps", "3").exit_code == 0
    assert run("status").exit_code == 3
    assert apply().exit_code == 0
    assert run("verify").exit_code == 0


def test_a_migration_without_a_way_back_is_refused_before_anything(
    three: None, write: Any, apply: Run, revert: Run, ask: Any
) -> None:
    write("0004_u", up="CREATE TABLE u (i int)")
    assert apply().exit_code == 0
    result = revert("--steps", "2")
    assert result.exit_code == 1
    assert "0004_u" in result.output
    assert left(ask) == "t1 t2 t3"


def test_the_way_back_works_when_the_file_is_gone(three: None, folder: Any, revert: Run, ask: Any) -> None:
    for file in folder.glob("0003_t.*"):
        file.unlink()
    result = revert()
    assert result.exit_code == 0, result.output
    assert left(ask) == "t1 t2"


def test_a_way_back_that_leaves_something_is_rolled_back(
    write: Any, apply: Run, revert: Run, ask: Any
) -> None:
    write("0001_t", up="CREATE TABLE t1 (i int); CREATE TABLE t2 (i int)", down="DROP TABLE t1")
    assert apply().exit_code == 0
    result = revert()
    assert result.exit_code == 4, result.output
    assert "t2" in result.output
    assert left(ask) == "t1 t2"


def test_a_function_replaced_by_a_later_migration_is_put_back_not_missed(
    write: Any, apply: Run, revert: Run, ask: Any
) -> None:
    one, two = (f"CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT {i}'" for i in (1, 2))
    write("0001_f", up=one, down="DROP FUNCTION f()")
    write("0002_f", up=two, down=one)
    assert apply().exit_code == 0
    result = revert()
    assert result.exit_code == 0, result.output
    assert ask("SELECT f()") == 1


def test_what_stopped_half_way_is_finished_before_another_is_taken_back(
    three: None, write: Any, apply: Run, revert: Run, ask: Any
) -> None:
    write("0004_u", up="CREATE TABLE u (); COMMIT; SELECT 1/0", down="SELECT 1")
    assert apply().exit_code == 1
    result = revert()
    assert result.exit_code == 1
    assert "0004_u" in result.output
    assert left(ask) == "t1 t2 t3"


def test_after_half_a_way_back_nothing_is_applied_on_top(
    three: None, write: Any, apply: Run, revert: Run, run: Run, ask: Any
) -> None:
    write("0003_t", down="DROP TABLE t3; COMMIT; SELECT 1/0")
    assert revert().exit_code == 1
    write("0004_u", up="CREATE TABLE u ()")
    result = apply()
    assert result.exit_code == 1
    assert "0003_t" in result.output
    assert "revert" in result.output
    assert "taken back in part" in " ".join(run("status").output.split())
    write("0003_t", down="DROP TABLE t3; COMMIT; SELECT 1")
    assert revert().exit_code == 0
    assert left(ask) == "t1 t2"


def test_a_way_back_from_the_history_keeps_its_header(
    write: Any, folder: Any, apply: Run, revert: Run, ask: Any
) -> None:
    write("0001_t", up="CREATE TABLE t1 (i int)", down="-- tollbook: role=nobody_at_all\nDROP TABLE t1")
    assert apply().exit_code == 0
    for file in folder.glob("0001_t.*"):
        file.unlink()
    assert "no role nobody_at_all" in " ".join(revert().output.split())
