"""Every kind of object, with awkward names, is promised, found, missed when gone, and taken back."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

Run = Callable[..., Result]

AWKWARD = """
CREATE SCHEMA "Odd.Name";
SET LOCAL search_path = "Odd.Name", public;
CREATE TYPE mood AS ENUM ('gut', 'schön');
CREATE DOMAIN "Cents" AS bigint CHECK (VALUE >= 0);
CREATE TYPE pair AS (a int, b "Cents");
CREATE TYPE span AS RANGE (subtype = int);
CREATE SEQUENCE counter;
CREATE TABLE "Order ""A"" x" (id int PRIMARY KEY, m mood, c "Cents", tags text[]);
CREATE TABLE parts (LIKE "Order ""A"" x") PARTITION BY HASH (id);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0);
CREATE INDEX ON parts (id, lower(tags[1]));
CREATE INDEX ON parts (id);
CREATE UNIQUE INDEX "By Mood" ON "Order ""A"" x" (m) INCLUDE (c) WHERE m IS NOT NULL;
CREATE VIEW "V" AS SELECT * FROM parts;
CREATE MATERIALIZED VIEW mv AS SELECT count(*) AS n FROM parts;
CREATE UNIQUE INDEX ON mv (n);
CREATE FUNCTION f(a int, b text[] DEFAULT '{}', OUT c int, VARIADIC d numeric[] DEFAULT '{}')
    LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION f(a mood) RETURNS TABLE (x int) LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION f(a parts.id%TYPE, b timestamptz, c character varying(3), d double precision, e pair[])
    RETURNS SETOF int LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE p(INOUT a int) LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE total(int) (sfunc = int4pl, stype = int, initcond = '0');
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER "On Insert" BEFORE INSERT ON parts FOR EACH ROW EXECUTE FUNCTION touch();
CREATE TEMP TABLE scratch (i int) ON COMMIT DROP;
SELECT 1 AS one INTO kept;
"""
COUNTS = {
    "schema": 1,
    "type": 4,
    "sequence": 1,
    "table": 3,
    "view": 1,
    "materialized view": 1,
    "function": 6,
    "index": 4,
    "trigger": 1,
}


@pytest.fixture
def awkward(write: Any, apply: Run) -> Run:
    write("0001_all", up=AWKWARD, down='DROP SCHEMA "Odd.Name" CASCADE')
    assert (result := apply()).exit_code == 0, result.output
    return apply


def test_every_kind_is_counted_and_found_again(awkward: Run, run: Run) -> None:
    result = run("verify", "--json")
    assert result.exit_code == 0, result.output
    assert {one["kind"]: (one["found"], one["promised"]) for one in json.loads(result.stdout)["counts"]} == {
        kind: (number, number) for kind, number in COUNTS.items()
    }


@pytest.mark.parametrize(
    "loss",
    [
        'DROP INDEX "By Mood"',
        "DROP SEQUENCE counter",
        "DROP TYPE span",
        "DROP FUNCTION f(mood)",
        "DROP PROCEDURE p",
        "DROP AGGREGATE total(int)",
        'DROP TRIGGER "On Insert" ON parts',
        "DROP MATERIALIZED VIEW mv",
        'DROP VIEW "V"',
        "DROP TABLE kept",
        "ALTER TYPE mood RENAME TO temper",
        'ALTER TABLE "Order ""A"" x" SET SCHEMA public',
    ],
)
def test_each_loss_is_noticed(awkward: Run, run: Run, ask: Any, loss: str) -> None:
    ask(f'SET search_path = "Odd.Name"; {loss}; SELECT 1')
    assert run("verify").exit_code == 3


def test_all_of_it_can_be_taken_back_and_made_again(awkward: Run, run: Run) -> None:
    result = run("revert", "--auto", "--skip-backup")
    assert result.exit_code == 0, result.output
    assert awkward().exit_code == 0


def test_what_a_later_migration_renames_moves_or_drops_is_expected_under_its_new_name(
    write: Any, apply: Run, run: Run, ask: Any
) -> None:
    made = (
        "CREATE TABLE a (i int); CREATE TABLE b (i int); CREATE INDEX b_i ON b (i); CREATE VIEW v AS TABLE a"
    )
    write("0001_a", up=made)
    write("0002_b", up="ALTER TABLE a RENAME TO z; CREATE SCHEMA s; ALTER TABLE b SET SCHEMA s; DROP VIEW v")
    assert apply().exit_code == 0
    assert (result := run("verify")).exit_code == 0, result.output
    ask("DROP TABLE z; SELECT 1")
    assert run("verify").exit_code == 3


def test_a_value_added_to_an_enum_can_be_used_by_the_next_file(write: Any, apply: Run, run: Run) -> None:
    write("0001_a", up="CREATE TYPE e AS ENUM ('x')")
    assert apply().exit_code == 0
    write("0002_b", up="ALTER TYPE e ADD VALUE 'y'")
    write("0003_c", up="CREATE TABLE t (e e DEFAULT 'y')")
    assert (result := run("plan")).exit_code == 3, result.output
    assert "0003_c" in result.output
    assert apply().exit_code == 0


@pytest.mark.parametrize("text", ["", "-- nothing\n", ";;", "SELECT 1 -- no newline, no semicolon"])
def test_a_file_that_does_little_is_applied_all_the_same(write: Any, apply: Run, text: str) -> None:
    write("0001_a", up=text, check=text)
    assert (result := apply()).exit_code == 0, result.output


@pytest.mark.parametrize(
    "text",
    [
        "SET SESSION default_transaction_read_only = on",
        "SET SESSION lock_timeout = 1; SET row_security = off; SET client_min_messages = error",
        "SELECT pg_catalog.set_config('search_path', '', false)",
        "SET standard_conforming_strings = off",
        "CREATE TEMP TABLE history (i int); CREATE TEMP TABLE runs (i int)",
    ],
)
def test_nothing_a_file_sets_disturbs_the_record_or_the_next_file(
    write: Any, apply: Run, ask: Any, text: str
) -> None:
    write("0001_a", up=text)
    write("0002_b", up=r"CREATE TABLE b (i text DEFAULT '\d')")
    assert (result := apply()).exit_code == 0, result.output
    assert ask("SELECT count(*) FROM tollbook_migrate.history") == 2
    assert ask("SELECT to_regclass('public.b') IS NOT NULL") is True


def test_an_index_on_the_parent_alone_is_kept_as_made(write: Any, run: Run) -> None:
    write(
        "0001_a",
        up="CREATE TABLE p (i int) PARTITION BY LIST (i); CREATE TABLE p1 PARTITION OF p DEFAULT;\n"
        "CREATE INDEX p_i ON ONLY p (i); CREATE INDEX ON ONLY p (i);",
    )
    write("0002_b", up="CREATE INDEX CONCURRENTLY p1_i ON p1 (i);\nALTER INDEX p_i ATTACH PARTITION p1_i;")
    result = run("apply", "--auto", "--skip-backup")
    assert result.exit_code == 0, result.output


def test_a_lost_constraint_takes_its_index_along(write: Any, run: Run, ask: Any) -> None:
    write("0001_a", up="CREATE TABLE t (i int); CREATE UNIQUE INDEX u ON t (i);")
    write("0002_b", up="ALTER TABLE t ADD CONSTRAINT c UNIQUE USING INDEX u;")
    write("0003_c", up="ALTER TABLE t ADD COLUMN j int;")
    assert run("apply", "--auto", "--skip-backup").exit_code == 0
    assert ask("SELECT removed ->> 0 FROM tollbook_migrate.history WHERE name = '0002_b'") is not None
    assert run("verify").exit_code == 0
