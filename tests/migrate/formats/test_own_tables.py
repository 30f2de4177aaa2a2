"""Histories that lie where the settings of their tools say, and not where those keep them otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tollbook.migrate import Folder, formats, whereabouts

from .test_baseline import MADE, TOOLS
from .test_formats import Files, lay

Run = Callable[..., Result]
ENV = "import alembic\nTABLE = 'alembic_history'\ncontext.configure(version_table=TABLE, {})\n"
# By the tool: files beside those of the folder, what the environment says, and the table that is meant.
SAYS: dict[str, tuple[Files, tuple[str, str], tuple[str, str]]] = {
    "Flyway": (
        {"flyway.conf": "flyway.table=schema_version\nflyway.defaultSchema=Kept\n"},
        ("FLYWAY_X", ""),
        ("flyway_schema_history", '"Kept".schema_version'),
    ),
    "Sqitch": (
        {"sqitch.conf": '[core]\nengine=pg\n[engine "pg"]\ntarget=db\n[target "db"]\nregistry = Kept'},
        ("SQITCH_X", ""),
        ("sqitch.changes", '"Kept".changes'),
    ),
    "goose": ({}, ("GOOSE_TABLE", "goose_history"), ("goose_db_version", "goose_history")),
    "dbmate": ({}, ("DBMATE_MIGRATIONS_TABLE", "dbmate_history"), ("schema_migrations", "dbmate_history")),
    "Alembic": (
        {"db/env.py": ENV.format("version_table_schema='Kept'")},
        ("ALEMBIC_X", ""),
        ("alembic_version", '"Kept".alembic_history'),
    ),
}  # fmt: skip


@pytest.mark.parametrize("tool", SAYS)
def test_a_history_is_found_and_written_where_its_tools_settings_say(
    tool: str, folder: Path, run: Run, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, variable, (usual, table) = SAYS[tool]
    files, history = TOOLS[tool]
    lay(folder, files | said)
    monkeypatch.setenv(*variable)
    text = history(folder).replace("CREATE SCHEMA sqitch", "SELECT 1").replace(usual, table)
    ask(f'{MADE} CREATE SCHEMA "Kept"; {text}; SELECT 1')
    refused = run("apply", "--auto", "--skip-backup")
    assert f"{tool} has applied" in refused.output
    taken = run("baseline", "--auto")
    assert f"1 taken over from {tool}" in taken.output, taken.output
    assert run("apply", "--auto", "--skip-backup").exit_code == 0
    told = run("baseline", "--back", "--auto")
    assert "sqitch deploy --log-only" in told.output or "0 told" not in told.output, told.output
    histories = whereabouts.list_all(formats.read([Folder("shop", folder)]))
    assert table in histories.tables  # which drift leaves out
