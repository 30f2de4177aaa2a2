"""Up, down and up again on a throw-away server: the same catalog, the same rows."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from psycopg.conninfo import conninfo_to_dict

from tollbook.migrate import Folder, formats, replay
from tollbook.migrate.check import check
from tollbook.migrate.pg_tools import find_tool

Run = Callable[..., Result]
SHOP = """CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE people (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, mood mood,
    country char(2) NOT NULL CHECK (country IN ('DE', 'FR')), code text CHECK (code ~ '^[0-9a-f]{64}$'));
CREATE TABLE orders (
    id uuid PRIMARY KEY, person bigint NOT NULL REFERENCES people, total numeric(10, 2),
    tags text[] NOT NULL, more jsonb NOT NULL, at timestamptz NOT NULL,
    part int NOT NULL CHECK (part > 2));"""


def test_a_faultless_folder_is_proved(write: Any, run: Run) -> None:
    write("0001_a", up=SHOP, down="DROP TABLE orders, people; DROP TYPE mood")
    write(
        "0002_b",
        up="ALTER TABLE orders ADD note text; CREATE VIEW v AS SELECT note FROM orders",
        down="DROP VIEW v; ALTER TABLE orders DROP note",
    )
    write("0003_c", up="CREATE TABLE IF NOT EXISTS x (i int); CREATE OR REPLACE VIEW w AS SELECT 1 AS one")
    result = run("check", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(one["round_trip"], one["again"]) for one in found["trips"]] == [
        ("proved", "does not claim it"),
        ("proved", "does not claim it"),
        ("no down file", "proved"),
    ]
    assert found["unfilled"] == []
    assert all(not one["notes"] for one in found["trips"])


def test_what_a_down_file_leaves_or_forgets_is_named(write: Any, run: Run) -> None:
    write("0001_a", up="CREATE TABLE a (i int PRIMARY KEY); CREATE INDEX a_i ON a (i)", down="DROP TABLE a")
    write("0002_b", up="DROP INDEX a_i; CREATE TABLE b (i int)", down="DROP TABLE b")
    result = run("check")
    assert result.exit_code == 3, result.output
    assert "after down, the index public.a_i is lacking" in result.output
    assert "✓ shop/0001_a" in result.output


def test_files_that_are_run_elsewhere_reach_nothing_from_there(
    write: Any, run: Run, url: str, ask: Any, folder: Path
) -> None:
    """The rows of a foreign table are somebody's real ones, and a subscription leaves a slot behind there."""
    ask("CREATE TABLE ours (i int); SELECT 1")
    to = conninfo_to_dict(url)
    options = ", ".join(f"{name} '{to[name]}'" for name in ("host", "port", "dbname"))
    link = f"""CREATE EXTENSION postgres_fdw;
        CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({options});
        CREATE USER MAPPING FOR CURRENT_USER SERVER far OPTIONS (user 'tollbook');
        CREATE FOREIGN TABLE theirs (i int) SERVER far OPTIONS (table_name 'ours');
        INSERT INTO theirs VALUES (1)"""
    write("0001_a", up=link)
    assert 'could not parse network address "nowhere"' in " ".join(run("check").output.split())
    assert ask("SELECT count(*) FROM ours") == 0
    for text in ("COPY (SELECT 1) TO PROGRAM 'mail me'", "COPY (SELECT 1) TO '/etc/passwd'"):
        write("0001_a", up=text, down=text)
        (one,) = formats.read([Folder("shop", folder)])
        for play in (lambda one=one: replay.play("", [one]), lambda one=one: replay.take_back("", one)):
            with pytest.raises(replay.NotReplayable, match="reaches out of the throw-away server"):
                play()


def test_a_claim_to_run_twice_is_tried(write: Any, run: Run) -> None:
    write(
        "0001_a",
        up="-- tollbook: rerunnable=on\nCREATE TABLE IF NOT EXISTS a (i int); ALTER TABLE a ADD j int",
    )
    result = run("check")
    assert result.exit_code == 3
    assert "claims that it may be run twice" in result.output
    assert "up, down, up: no down file, does not run twice" in result.output


def test_a_block_that_nobody_can_see_into_claims_nothing(write: Any, folder: Path) -> None:
    rename = "DO $$ BEGIN ALTER TABLE a RENAME i TO j; END $$; ALTER TABLE a ADD COLUMN IF NOT EXISTS i int"
    write("0001_a", up="CREATE TABLE a (i int)")
    write("0002_b", up=rename)
    assert [trip.again for trip in check([Folder("shop", folder)]).trips] == ["does not claim it"] * 2


def test_rows_that_a_down_loses_are_named(write: Any, folder: Path) -> None:
    write("0001_a", up="CREATE TABLE a (i int PRIMARY KEY, n text)", down="DROP TABLE a")
    write("0002_b", up="ALTER TABLE a ADD m int", down="ALTER TABLE a DROP m; DELETE FROM a WHERE i > 1")
    found = check([Folder("shop", folder)])
    assert found.trips[0].wrong == ()
    assert found.trips[1].wrong == (
        "shop/0002_b: down and up again, the rows of public.a are not what they were (3 before, 1 after).",
    )


def test_a_file_that_rows_stop_is_noted(write: Any, folder: Path) -> None:
    write("0001_a", up="CREATE TABLE a (i int)", down="DROP TABLE a")
    write("0002_b", up="ALTER TABLE a ADD m int NOT NULL", down="ALTER TABLE a DROP m")
    found = check([Folder("shop", folder)])
    assert found.sound
    assert "contains null values" in found.trips[1].notes[0]


def test_a_missing_down_file_is_drafted_proved_and_never_overwritten(
    write: Any, run: Run, folder: Path, ask: Any
) -> None:
    write("0001_a", up=SHOP)
    write(
        "0002_b",
        up="""ALTER TABLE orders DROP part, ADD note text NOT NULL; CREATE TABLE x (i int PRIMARY KEY);
        CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; """,
    )
    result = run("check", "--draft-down", "2")
    assert result.exit_code == 0, result.output
    assert "It leads back" in result.output
    text = (folder / "0002_b.down.sql").read_text()
    assert "DROP TABLE public.x;" in text
    assert run("check", "--draft-down", "2").exit_code == 1
    assert (folder / "0002_b.down.sql").read_text() == text


def test_the_schema_file_is_written_compared_and_loads(
    write: Any, run: Run, tmp_path: Path, url: str
) -> None:
    out = tmp_path / "schema.sql"
    write("0001_a", up=SHOP)
    function = "CREATE FUNCTION f(p people) RETURNS text LANGUAGE sql AS 'SELECT p.name'"
    write("0002_b", up=f"{function}; COMMENT ON TABLE people IS 'Größe'; CREATE VIEW v AS SELECT 'ß'")
    assert run("schema", "--out", str(out)).exit_code == 0
    text = out.read_text()
    assert "restrict" not in text
    assert "pg_dump" not in text
    assert text.count("SET ") == 1
    assert run("schema", "--out", str(out), "--check").exit_code == 0
    assert run("check", "--schema", str(out)).exit_code == 0
    psql = [find_tool("psql"), "-q", "-X", "-v", "ON_ERROR_STOP=1", "-d", url, "-f", out]
    assert subprocess.run(psql, capture_output=True, check=False).stderr == b""
    write("0001_a", up=SHOP)
    assert run("baseline", "--auto", "--to", "2").exit_code == 0
    result = run("drift")
    assert result.exit_code == 0, result.output
    write("0003_c", up="ALTER TABLE people ADD age int")
    result = run("schema", "--out", str(out), "--check")
    assert result.exit_code == 3
    assert "+    age integer" in result.output


def test_a_down_may_leave_what_others_may_use(write: Any, run: Run) -> None:
    write(
        "0001_a",
        up="CREATE EXTENSION IF NOT EXISTS citext; CREATE SCHEMA IF NOT EXISTS s; CREATE TABLE s.a ()",
        down="DROP TABLE s.a",
    )
    result = run("check")
    assert result.exit_code == 0, result.output


def test_what_is_another_servers_or_the_servers_own_is_no_failure(write: Any, run: Run) -> None:
    link = """CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw;
        CREATE FOREIGN TABLE there (i int) SERVER far; CREATE TABLE old (i int);"""
    write("0001_a", up=link, down="DROP EXTENSION postgres_fdw CASCADE; DROP TABLE old")
    role = "CREATE ROLE check_reader; CREATE TABLE a (i int); GRANT SELECT ON a TO check_reader"
    write("0002_b", up=role, down="DROP TABLE a; DROP ROLE check_reader")
    tables = "CREATE TABLE c (r daterange PRIMARY KEY, m int4multirange); CREATE TABLE k () INHERITS (old)"
    write("0003_c", up=tables, down="DROP TABLE c, k")
    result = run("check")
    assert result.exit_code == 0, result.output
    assert "0002_b  up, down, up: not tried, as it makes or drops roles" in result.output
    assert "No rows" not in result.output
