"""squawk beside our own rules: what only it says is added, what both know is said once."""

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tollbook.migrate.files import Folder
from tollbook.migrate.lint import Lint, lint
from tollbook.migrate.lint.squawk import SquawkFailed, find_index

Write = Callable[..., Path]
UP = "CREATE TABLE é (id bigint PRIMARY KEY, name varchar(20));\nDROP TABLE elsewhere;\n"
# As squawk 2.70 answers for this file: columns in bytes, lines from 0.
ROWS = [
    {"line": line, "column": column, "level": "Warning", "rule_name": name, "message": text, "help": "Or so."}
    for line, column, name, text in (
        (0, 0, "prefer-robust-stmts", "Missing."),
        (0, 45, "prefer-text-field", "Long."),
        (1, 0, "ban-drop-table", "Dropped."),
    )
]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a program called squawk first on PATH, that answers what the real one did."""

    def put(answer: str) -> None:
        program = tmp_path / "bin" / "squawk"
        program.parent.mkdir(exist_ok=True)
        (tmp_path / "answer.json").write_text(answer)
        program.write_text(
            '#!/bin/sh\n[ "$1" = --version ] && echo "squawk 2.70.0" && exit 0\n'
            f"cat {tmp_path}/answer.json; exit 1\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return put


def look(folder: Path) -> Lint:
    return lint([Folder("shop", folder)])


def answer_for(path: Path) -> str:
    return json.dumps([{**row, "file": str(path)} for row in ROWS])


def test_what_only_squawk_says_is_added(folder: Path, write: Write, stand_in: Callable[[str], None]) -> None:
    stand_in(answer_for(write("0001_a", up=UP, down="SELECT 1;")))
    found = look(folder)
    assert found.squawk == "2.70.0"
    assert [one.rule for one in found.findings] == ["squawk:prefer-text-field", "drop-table"]
    assert (found.findings[0].sentence, found.findings[0].severity) == ("Long. Or so.", "notice")
    assert (found.findings[0].place.line, found.findings[0].place.column) == (1, 45)


def test_it_can_be_allowed_too(folder: Path, write: Write, stand_in: Callable[[str], None]) -> None:
    comment = "-- tollbook: allow squawk:prefer-text-field because the form has twenty boxes\n"
    rows = [{**row, "line": int(str(row["line"])) + 1, "file": str(folder / "0001_a.up.sql")} for row in ROWS]
    stand_in(json.dumps(rows))
    write("0001_a", up=comment + UP, down="SELECT 1;")
    assert [one.rule for one in look(folder).findings] == ["drop-table"]


def test_one_that_does_not_answer_is_an_error(
    folder: Path, write: Write, stand_in: Callable[[str], None]
) -> None:
    stand_in("no JSON")
    write("0001_a", up=UP, down="SELECT 1;")
    with pytest.raises(SquawkFailed):
        look(folder)


def test_columns_are_counted_in_bytes() -> None:
    assert find_index("é b\nçd", 1, 2) == 5


@pytest.mark.skipif(shutil.which("squawk") is None, reason="squawk is not installed")
def test_the_real_one_is_understood(folder: Path, write: Write) -> None:
    write("0001_a", up=UP, down="SELECT 1;")
    found = look(folder)
    assert [one.rule for one in found.findings] == ["squawk:prefer-text-field", "drop-table"]
    assert found.findings[0].place.line == 1
