"""What other tools alone can run is refused by the tool's name, and what they read otherwise is read so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tollbook.migrate import Folder, formats
from tollbook.migrate.errors import FolderRefused

from .test_formats import TABLE, Files, lay

Run = Callable[..., Result]
RUN_SQL = "- args:\n    sql: DROP TABLE a\n  type: run_sql\n"
TRACK = "- args: {name: a, schema: public}\n  type: add_existing_table_or_view\n"


@pytest.mark.parametrize(
    ("name", "text", "tool"),
    [
        ("01_a.json", '{\n  "name": "01_a",\n  "operations": [{"sql": {"up": ""}}]\n}', "pgroll"),
        ("01_a.yaml", "operations:\n  - sql:\n      up: SELECT 1\n", "pgroll"),
        ("1700140427984-a.ts", "import { MigrationInterface } from 'typeorm';", "TypeORM"),
        ("CreateUsers1700140427984.ts", "import { MigrationInterface } from 'typeorm';", "TypeORM"),
        ("20231127072734_a.ts", 'import { Knex } from "knex";', "Knex"),
        ("1538_a.up.yaml", RUN_SQL, "Hasura"),
        ("20240101000000_a.exs", "defmodule A do\n  use Ecto.Migration\n", "Ecto"),
        ("changes.xml", "<databaseChangeLog/>", "Liquibase"),
    ],
)
def test_a_folder_of_another_tools_programs_is_refused_by_its_name(
    folder: Path, name: str, text: str, tool: str
) -> None:
    lay(folder, {name: text})
    with pytest.raises(FolderRefused, match=f"only {tool} can run"):
        formats.read([Folder("shop", folder)])


@pytest.mark.parametrize(
    ("files", "tool"),
    [
        ({"1_a.up.sql": TABLE, "2_b.up.yaml": RUN_SQL, "2_b.down.yaml": RUN_SQL}, "Hasura"),
        ({"1_a/up.sql": TABLE, "2_b/up.yaml": RUN_SQL}, "Hasura"),
        ({"1_a.sql": TABLE, "2_b.sql": "--liquibase formatted sql\n--changeset a:1 dbms:h2\n"}, "Liquibase"),
    ],
)
def test_what_another_tool_would_run_between_the_files_is_not_passed_over(
    folder: Path, files: Files, tool: str
) -> None:
    lay(folder, files)
    _, two = formats.read([Folder("shop", folder)])
    assert two.up.refusal is not None
    assert tool in two.up.refusal.what


@pytest.mark.parametrize(
    "files",
    [
        {"1_a.up.sql": TABLE, "2_b.up.yaml": TRACK, "1_a.json": "{}"},
        {"1_a/up.sql": TABLE, "2_b/up.yaml": TRACK},
    ],
)
def test_what_says_nothing_to_the_database_stands_in_nobodys_way(folder: Path, files: Files) -> None:
    lay(folder, files)
    assert len(formats.read([Folder("shop", folder)])) == 1


def test_a_checkpoint_of_atlas_runs_only_where_what_it_stands_for_is_gone(
    folder: Path, apply: Run, ask: Any
) -> None:
    files = {
        "1_a.sql": TABLE,
        "2_all.sql": f"-- atlas:checkpoint\n\n{TABLE}",
        "3_b.sql": "ALTER TABLE a ADD j int",
    }
    lay(folder, files)
    assert len(formats.read([Folder("shop", folder)])) == 2
    (folder / "1_a.sql").unlink()
    assert apply().exit_code == 0
    assert ask("SELECT count(j) FROM a") == 0


def test_supabase_goes_by_the_names_of_the_files(folder: Path) -> None:
    path = folder / "supabase" / "migrations"
    path.mkdir(parents=True)
    lay(path, {"20240101_b.sql": "", "20230101000000_a.sql": "", "20250101000000_c.sql": ""})
    assert [one.label[-1] for one in formats.read([Folder("shop", path)])] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "below", ["supabase/migrations/1_a.sql", "migrations/default/1_a/up.sql", "db/1_a.sql"]
)
def test_a_folder_above_says_where_the_migrations_lie(folder: Path, below: str) -> None:
    lay(folder, {below: TABLE, "seed.sql": "", "config.toml": ""})
    where = (folder / below).parent.parent if below.endswith("up.sql") else (folder / below).parent
    with pytest.raises(FolderRefused, match=f"{where}: give that by"):
        formats.read([Folder("shop", folder)])


def test_atlas_own_words_in_a_file_are_heeded(folder: Path, apply: Run, ask: Any) -> None:
    files = {
        "1_a.sql": "-- atlas:txmode none\n\nCREATE TABLE a ();\nSELECT nothing;",
        "2_b.sql": "-- atlas:delimiter \\n\\n\\n\nCREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$\n"
        "SELECT '\n\n\n'\n$$\n\n\nCREATE VIEW v AS SELECT f()\n",
        "3_c.sql": "-- x\n-- atlas:delimiter -- end\n\nCREATE TABLE c (t text DEFAULT '-- end')\n"
        "-- end\nTABLE c\n-- end\n",
    }
    lay(folder, files)
    assert "stays (1 of 2 statements)" in apply().output
    lay(folder, {"1_a.sql": "-- atlas:txmode none\n\nCREATE TABLE a ();\nSELECT 1;"})
    result = apply()
    assert result.exit_code == 0, result.output
    assert ask("SELECT f = e'\\n\\n\\n' FROM v") is True
