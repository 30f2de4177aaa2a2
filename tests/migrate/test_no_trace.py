"""A plan on the database itself leaves nothing, and each file there is tried as apply would run it."""

from pathlib import Path
from typing import Any

import pytest

from tollbook.migrate import Folder, plan
from tollbook.migrate.rehearsal import Plan


@pytest.fixture
def live(url: str, folder: Path) -> Any:
    def live() -> Plan:
        return plan(url, [Folder("shop", folder)], depth="live")

    return live


@pytest.mark.parametrize(
    "text",
    [
        "SELECT setval('orders_id_seq', 1)",
        "DO $$ BEGIN PERFORM setval('orders_id_seq', 1); END $$",
        "COPY orders TO '{tmp_path}/ran'",
        "COPY orders FROM PROGRAM 'touch {tmp_path}/ran'",
        "DELETE FROM orders; ANALYZE orders",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE false",
        "SELECT pg_create_physical_replication_slot('stays')",
    ],
)
def test_live_what_a_rollback_would_not_undo_is_not_run(
    write: Any, live: Any, ask: Any, tmp_path: Path, text: str
) -> None:
    ask(
        "CREATE TABLE orders (id serial); INSERT INTO orders SELECT FROM generate_series(1, 9);"
        "ANALYZE orders; SELECT 1"
    )
    write("0001_a", up=text.format(tmp_path=tmp_path))
    (step,) = live().steps
    assert step.statements[-1].untried
    assert not (tmp_path / "ran").exists()
    assert ask("SELECT last_value FROM orders_id_seq") == 9
    assert ask("SELECT reltuples FROM pg_class WHERE relname = 'orders'") == 9
    assert ask("SELECT count(*) FROM pg_replication_slots") == 0


def test_live_each_files_constraints_are_deferred_as_they_are_by_themselves(
    write: Any, live: Any, ask: Any
) -> None:
    ask(
        "CREATE TABLE a (i int PRIMARY KEY); SELECT 1;"
        "CREATE TABLE b (i int REFERENCES a DEFERRABLE INITIALLY DEFERRED); SELECT 1"
    )
    write("0001_a", up="SELECT 1")
    write("0002_b", up="INSERT INTO b VALUES (1); INSERT INTO a VALUES (1)")
    assert len(live().steps) == 2


def test_what_commits_itself_is_tried_on_a_shadow_and_left_out_live(
    write: Any, live: Any, url: str, folder: Path, ask: Any
) -> None:
    """A file before it sets what must not reach it when it is begun again."""
    ask("CREATE SCHEMA s; CREATE TYPE mood AS ENUM ('sad'); SELECT 1")
    write("0001_a", up="SET search_path = s; SELECT 1")
    write("0002_b", up="ALTER TYPE mood ADD VALUE 'glad'; CREATE TABLE m AS SELECT 'glad'::mood AS m")
    write("0003_c", up="CREATE TABLE n (); DO $$ BEGIN CREATE TABLE c (); COMMIT; END $$; CREATE TABLE d ()")
    made = plan(url, [Folder("shop", folder)])
    assert made.notes == ()
    assert "public.m" in {one.name for one in made.steps[1].changes}
    assert {one.name for one in made.steps[2].changes} == {"public.n", "public.c", "public.d"}
    (folder / "0002_b.up.sql").unlink()
    assert [bool(one.untried) for one in live().steps[1].statements] == [False, True, False]
    assert ask("SELECT to_regclass('n')") is None
