"""`tollbook migrate lint` as a user runs it: gates, forms of the answer, what is pending."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tollbook.migrate.lint import RULES

Write = Callable[..., Path]
Run = Callable[..., Result]
ERROR = "DROP TABLE elsewhere;"
WARNING = "DROP VIEW elsewhere;"
NOTICE = "CREATE TABLE x (a int);"


@pytest.fixture(autouse=True)
def without_squawk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is installed on this machine changes no answer here; git and the server are found as ever."""
    monkeypatch.setattr("tollbook.migrate.lint.squawk.PROGRAM", "no-such-program")


@pytest.mark.parametrize(
    ("up", "gate", "code"),
    [
        (ERROR, "error", 3), (WARNING, "error", 0), (WARNING, "warning", 3), (NOTICE, "warning", 0),
        (NOTICE, "notice", 3), (ERROR, "never", 0), ("SELECT 1;", "notice", 0),
    ],
)  # fmt: skip
def test_the_gate_decides_the_exit_code(run: Run, write: Write, up: str, gate: str, code: int) -> None:
    write("0001_a", up=up, down="SELECT 1;")
    assert run("lint", "--fail-on", gate).exit_code == code


def test_it_says_where_what_and_the_safe_way(run: Run, write: Write) -> None:
    path = write("0001_a", up="SELECT 1;\nCREATE INDEX i ON elsewhere (a);", down="SELECT 1;")
    result = run("lint")
    assert f"{path}:2:1: error create-index" in result.output
    assert "CREATE INDEX CONCURRENTLY i ON elsewhere (a);" in result.output
    assert result.output.splitlines()[-1] == "1 error in 2 files (3 statements)."


def test_json_is_the_result(run: Run, write: Write) -> None:
    write("0001_a", up=ERROR, down="SELECT 1;")
    answer = json.loads(run("lint", "--json").output)
    assert answer["statements"] == 2
    [finding] = answer["findings"]
    assert (finding["rule"], finding["severity"], finding["place"]["line"]) == ("drop-table", "error", 1)
    assert finding["safe_sql"].endswith("RENAME TO elsewhere_dropped;")


def test_markdown_is_a_comment_for_a_pull_request(run: Run, write: Write) -> None:
    write("0001_a", up=ERROR, down="SELECT 1;")
    lines = run("lint", "--markdown").output.splitlines()
    assert lines[0] == "### Migrations: 1 error in 2 files (2 statements)."
    assert lines[2].startswith("- **error** `drop-table` at `")
    assert "  ```sql" in lines


def test_sarif_names_rule_level_and_region(
    run: Run, write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    write("0001_a", up=f"{NOTICE}\n{ERROR}", down="SELECT 1;")
    [scan] = json.loads(run("lint", "--sarif").output)["runs"]
    assert {rule["id"] for rule in scan["tool"]["driver"]["rules"]} == {"no-primary-key", "drop-table"}
    result = scan["results"][-1]
    assert (result["ruleId"], result["level"]) == ("drop-table", "error")
    where = result["locations"][0]["physicalLocation"]
    assert where["artifactLocation"]["uri"] == "shop/0001_a.up.sql"
    assert where["region"] == {"startLine": 2, "startColumn": 1}


def test_one_rule_can_be_asked_alone(run: Run, write: Write) -> None:
    write("0001_a", up=f"{ERROR} {WARNING}")
    output = run("lint", "--rule", "drop-view").output
    assert "drop-view" in output
    assert "drop-table" not in output


def test_an_unknown_rule_is_wrong_usage(run: Run, write: Write) -> None:
    write("0001_a", up=ERROR)
    assert run("lint", "--rule", "drop-tabel").exit_code == 2


def test_the_rules_are_listed(run: Run) -> None:
    assert len(run("lint", "--rules").output.splitlines()) == len(RULES)
    assert len(json.loads(run("lint", "--rules", "--json").output)) == len(RULES)


def test_after_a_version_only_later_files_are_looked_at(run: Run, write: Write) -> None:
    write("0001_a", up=f"{ERROR} CREATE TABLE t (id bigint PRIMARY KEY, n int);", down="SELECT 1;")
    write("0002_b", up="CREATE INDEX i ON t (n);", down="SELECT 1;")
    assert "create-index" in run("lint", "--after", "1").output
    assert "drop-table" not in run("lint", "--after", "1").output
    everything = run("lint", "--after", "0").output
    assert "create-index" not in everything
    assert "drop-table" in everything


def test_what_the_database_has_is_not_looked_at(run: Run, write: Write) -> None:
    write(
        "0001_a",
        up="CREATE TABLE t (id bigint PRIMARY KEY, n int); CREATE VIEW v AS SELECT n FROM t;",
        down="SELECT 1;",
    )
    assert run("apply", "--auto", "--skip-backup").exit_code == 0
    write("0002_b", up="CREATE INDEX i ON t (n);", down="SELECT 1;")
    output = run("lint", "--pending").output
    assert "0002_b.up.sql:1:1: error create-index" in output
    assert "0001_a" not in output


def test_what_a_branch_has_is_not_looked_at(run: Run, write: Write, folder: Path) -> None:
    write("0001_a", up=ERROR, down="SELECT 1;")
    own = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
           "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}  # fmt: skip
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=folder, env=own, check=True)
    write("0002_b", up=WARNING, down="SELECT 1;")
    output = run("lint", "--since", "main").output
    assert "drop-view" in output
    assert "drop-table" not in output
    assert run("lint", "--since", "no-such-branch").exit_code == 2


def test_two_ways_to_say_what_is_pending_are_wrong_usage(run: Run, write: Write) -> None:
    write("0001_a", up=ERROR)
    assert run("lint", "--after", "1", "--since", "main").exit_code == 2


def test_the_databases_schema_says_what_no_file_does(
    run: Run, write: Write, ask: Callable[[str], object]
) -> None:
    ask(
        "CREATE TABLE elsewhere (id bigint PRIMARY KEY, code varchar(10), n int, "
        "size int CHECK (size IS NOT NULL));"
        "CREATE TYPE mood AS ENUM ('sad'); CREATE DOMAIN age AS int CHECK (VALUE > 0); CREATE SEQUENCE s;"
        "CREATE VIEW v AS SELECT id, n FROM elsewhere; CREATE MATERIALIZED VIEW m AS SELECT 1 AS a;"
        "CREATE FUNCTION f(a int) RETURNS int LANGUAGE sql AS 'SELECT 1';"
        "CREATE TABLE parts (at date NOT NULL) PARTITION BY RANGE (at);"
        "ALTER TABLE elsewhere ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON elsewhere USING (true);"
        "ALTER TABLE elsewhere ADD CONSTRAINT later CHECK (n > 0) NOT VALID; SELECT 1"
    )
    free = "ALTER TABLE elsewhere ALTER code TYPE varchar(20); ALTER TABLE elsewhere ALTER size SET NOT NULL;"
    bad = {
        "replace-view": "CREATE OR REPLACE VIEW v AS SELECT n, id FROM elsewhere;",
        "replace-function": "CREATE OR REPLACE FUNCTION f(b int) RETURNS int LANGUAGE sql AS 'SELECT 1';",
        "add-column-domain": "ALTER TABLE elsewhere ADD COLUMN x age;",
        "narrow-column-type": "ALTER TABLE elsewhere ALTER n TYPE smallint;",
        "redundant-index": "CREATE INDEX CONCURRENTLY i ON elsewhere (id);",
    }
    write("0001_a", up=free, down="SELECT 1;")
    assert run("lint", "--pending", "--fail-on", "notice").exit_code == 0
    write("0001_a", up="\n".join(bad.values()), down="SELECT 1;")
    found = {one["rule"] for one in json.loads(run("lint", "--pending", "--json").output)["findings"]}
    assert {*bad} <= found
