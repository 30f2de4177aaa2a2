"""The dry run: the run itself, rolled back."""

from collections.abc import Callable
from typing import Any

import psycopg
from click.testing import Result
from psycopg.rows import scalar_row

Run = Callable[..., Result]
EVERYTHING = """
SELECT array_agg(x ORDER BY x) FROM (
    SELECT 'class ' || oid::regclass::text || relfilenode FROM pg_class WHERE oid >= 16384
    UNION ALL SELECT 'proc ' || oid::regprocedure::text || xmin FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 'schema ' || nspname FROM pg_namespace
    UNION ALL SELECT 'extension ' || extname FROM pg_extension) AS all_of_it (x)
"""


def picture(url: str) -> object:
    with psycopg.connect(url, row_factory=scalar_row) as connection:
        return connection.execute(EVERYTHING).fetchone()


def test_a_plan_says_what_would_be_gained_lost_and_changed_and_leaves_nothing(
    write: Any, run: Run, apply: Run, url: str
) -> None:
    write("0001_a", up="CREATE TABLE a (i int); CREATE TABLE old (i int); CREATE VIEW v AS SELECT i FROM a")
    assert apply().exit_code == 0
    write(
        "0002_b",
        up="""CREATE TABLE b (i int PRIMARY KEY); CREATE SEQUENCE s; CREATE TYPE e AS ENUM ('x');
        DROP TABLE old; ALTER TABLE a ADD COLUMN j int;
        CREATE OR REPLACE VIEW v AS SELECT i FROM a WHERE i > 0""",
    )
    before = picture(url)
    result = run("plan")
    assert result.exit_code == 3, result.output
    text = " ".join(result.output.split())
    for word in ("0002_b", "public.b", "public.s", "public.e", "public.old", "public.a.j", "public.v"):
        assert word in text, text
    assert picture(url) == before


def test_a_plan_on_an_empty_database_leaves_not_even_a_history(write: Any, run: Run, url: str) -> None:
    write("0001_a", up="CREATE SCHEMA s; CREATE TABLE s.a (i int)", check="SELECT count(*) = 0 FROM s.a")
    before = picture(url)
    assert run("plan").exit_code == 3
    assert picture(url) == before


def test_a_plan_with_nothing_pending_is_done(write: Any, run: Run, apply: Run) -> None:
    write("0001_a", up="CREATE TABLE a (i int)")
    apply()
    assert run("plan").exit_code == 0


def test_a_plan_runs_each_file_on_what_the_one_before_it_left(write: Any, run: Run) -> None:
    write("0001_a", up="CREATE TABLE a (i int); INSERT INTO a VALUES (1)")
    write("0002_b", up="ALTER TABLE a ADD COLUMN j int; UPDATE a SET j = 1")
    assert run("plan").exit_code == 3


def test_a_plan_of_a_broken_file_says_where_it_breaks(write: Any, run: Run, url: str) -> None:
    write("0001_a", up="CREATE TABLE a (i int)")
    write("0002_b", up="SELECT 1;\nSELECT j FROM a;")
    before = picture(url)
    result = run("plan")
    assert result.exit_code == 1
    assert "0002_b.up.sql:2:8" in result.output
    assert picture(url) == before


def test_a_plan_runs_the_checks_too(write: Any, run: Run) -> None:
    write("0001_a", up="CREATE TABLE a (i int)", check="SELECT count(*) = 1 FROM a")
    assert run("plan").exit_code == 4
