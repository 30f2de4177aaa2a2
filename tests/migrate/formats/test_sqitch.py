"""Projects of Sqitch as they are: reworked changes, several engines, variables, a registry of several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

from tollbook.migrate import Folder, formats

from .test_formats import Files, lay

Run = Callable[..., Result]
WHO = "2024-01-02T12:00:00Z Marge N. Ö. Vera <marge@example.com>"
HEAD = "%syntax-version=1.0.0\n%project=flipr\n%uri=https://example.com/flipr/\n\n"
MAKES = "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT {}';"
FLIPR: Files = {
    "sqitch.conf": "[core]\n\tengine = pg\n\t# top_dir = nowhere\n",
    "sqitch.plan": f"{HEAD}f {WHO} # First: f\n@v1 {WHO}\n@v2 {WHO}\n\nf [f@v2] {WHO} # Reworked\n",
    "deploy/f@v2.sql": MAKES.format(1),
    "revert/f@v2.sql": "DROP FUNCTION f();",
    "deploy/f.sql": MAKES.format(2),
    "revert/f.sql": MAKES.format(1),
}
REGISTRY = """CREATE SCHEMA sqitch; CREATE TABLE sqitch.changes (change_id text PRIMARY KEY, script_hash text,
    change text, project text, committed_at timestamptz DEFAULT clock_timestamp());
    INSERT INTO sqitch.changes VALUES ('a', NULL, 'f', 'flipr'), ('b', NULL, 'f', 'other'); SELECT 1"""


def test_a_reworked_change_is_taken_over_as_often_as_it_was_deployed(
    folder: Path, run: Run, apply: Run, ask: Any
) -> None:
    lay(folder, FLIPR)
    ask(f"{MAKES.format(1)}{REGISTRY}")
    assert "1 taken over" in run("baseline", "--auto").output
    assert "pending  shop/f\n" in run("status").output
    assert "applied shop/f " in apply().output
    assert ask("SELECT f()") == 2
    assert run("revert", "--auto", "--skip-backup").exit_code == 0
    assert ask("SELECT f()") == 1


def test_where_scripts_lie_is_said_by_the_settings_of_the_engine(folder: Path) -> None:
    files = {
        "sqitch.conf": '[core]\n\tengine = pg\n[engine "pg"]\n\tplan_file = pg/sqitch.plan ; ours\n'
        '\ttop_dir = pg\n\tdeploy_dir = "pg/up"\n\textension = ddl\n[engine "sqlite"]\n\ttop_dir = lite\n',
        "pg/sqitch.plan": f"{HEAD}+tables/t [x:y !z] {WHO} # a\n",
        "pg/up/tables/t.ddl": "CREATE TABLE t ();",
        "pg/revert/tables/t.ddl": "DROP TABLE t;",
        "lite/sqitch.plan": HEAD,
    }
    lay(folder, files)
    (one,) = formats.read([Folder("shop", folder)])
    assert one.label == "tables/t"
    assert one.down is not None


def test_variables_of_psql_are_those_of_the_settings(folder: Path, apply: Run, ask: Any) -> None:
    text = (
        "CREATE TABLE :\"schema\".t (a text DEFAULT :'who'); -- :schema\n"
        "INSERT INTO :schema.t VALUES (':schema'), ($$:who$$), ('a:'::text), (:'who');\n"
    )
    files = FLIPR | {
        "sqitch.conf": '[core "variables"]\n\tschema = other\n[deploy "variables"]\n\tschema = App\n'
        "\twho = it's\n",
        "deploy/f@v2.sql": 'CREATE SCHEMA app; CREATE SCHEMA :"schema"; CREATE VIEW :schema.v AS SELECT 1;',
        "deploy/f.sql": text.replace(":schema.t", ':"schema".t'),
    }
    lay(folder, files)
    result = apply()
    assert result.exit_code == 0, result.output
    assert ask('SELECT array_agg(a) FROM "App".t') == [":schema", ":who", "a:", "it's"]


def test_a_variable_without_a_value_is_named_with_where_it_belongs(folder: Path, apply: Run) -> None:
    lay(folder, FLIPR | {"deploy/f@v2.sql": 'SELECT (ARRAY[1, 2])[1:2];\nSET search_path TO :"schema";'})
    said = " ".join(apply().output.split())
    assert (
        'f@v2.sql:2:20: :"schema" has no value. Set schema in sqitch.conf, under [deploy "variables"]' in said
    )


def test_files_that_a_script_includes_are_part_of_it_from_where_psql_would_look(
    folder: Path, run: Run, apply: Run, ask: Any
) -> None:
    files = FLIPR | {
        "sqitch.conf": '[core]\n\tengine = pg\n\ttop_dir = db\n[deploy "variables"]\n\twho = me\n',
        "db/sqitch.plan": f"{HEAD}f [other:change !x] {WHO}\ng {WHO}\n",
        "db/deploy/f.sql": "BEGIN;\n\\i db/made/types.sql\n\\ir '../made/a b.sql' x\nSELECT 1;\nCOMMIT;\n",
        "db/deploy/g.sql": "SELECT '\n\\i no.sql', $$\n\\i no $$;\n/*\n\\i no\n*/\n\\ir ../made/wrong.sql",
        "db/made/types.sql": "CREATE TABLE t (a text DEFAULT :'who')",
        "db/made/a b.sql": "\\ir types2.sql\nINSERT INTO t DEFAULT VALUES;\n",
        "db/made/types2.sql": "CREATE TABLE u ();\n",
        "db/made/wrong.sql": "SELECT 1;\nSELECT nothing;\n",
    }
    lay(folder, files)
    assert "wrong.sql:2:8" in apply().output
    assert ask("SELECT a FROM t") == "me"
    assert ask("SELECT to_regclass('u') IS NOT NULL")
    lay(folder, {"db/made/types2.sql": "CREATE TABLE v ();\n"})
    assert "edited   shop/f" in run("status").output
    lay(folder, {"db/deploy/g.sql": "SELECT 1;\n\\i not_there.sql\n"})
    assert "g.sql:2:1: \\i is a command of psql" in apply().output


def test_a_numbered_file_has_what_lies_beside_it_included_and_not_itself(
    folder: Path, apply: Run, ask: Any
) -> None:
    lay(
        folder,
        {
            "1_a.up.sql": "\\ir parts/t.sql\n\\include_relative parts/v.sql",
            "1_a.down.sql": "\\ir parts/no.sql",
        },
    )
    lay(
        folder,
        {"parts/t.sql": "CREATE TABLE t ();", "parts/v.sql": "CREATE VIEW v AS TABLE t;", "parts/no.sql": ""},
    )
    assert apply().exit_code == 0
    assert ask("SELECT to_regclass('v') IS NOT NULL")
    lay(folder, {"2_b.up.sql": "\\ir 2_b.up.sql"})
    assert "\\ir is a command of psql" in apply().output
