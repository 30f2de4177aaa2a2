"""What a comment allows: for a statement or a file, with a reason, and never more than there is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tollbook.migrate.files import Folder
from tollbook.migrate.lint import Lint, lint

Write = Callable[..., Path]
DROP = "DROP TABLE elsewhere;"
ALLOW = "-- tollbook: allow drop-table because nobody has read it since May"


def look(folder: Path, up: str, write: Write) -> Lint:
    write("0001_a", up=up, down="SELECT 1;")
    return lint([Folder("shop", folder)], ask_squawk=False)


def rules(found: Lint) -> list[str]:
    return [finding.rule for finding in found.findings]


@pytest.mark.parametrize(
    "up",
    [
        f"{ALLOW}\n{DROP}",
        f"SELECT 1;\n\n{ALLOW}\n-- another word\n{DROP}",
        f"{DROP} {ALLOW}",
        f"DROP TABLE\n  {ALLOW}\n  elsewhere;",
        f"/* {ALLOW.removeprefix('-- ')} */ {DROP}",
        "-- tollbook: allow cascade, drop-table because both are meant\nDROP TABLE elsewhere CASCADE;",
        f"-- tollbook: lock_timeout=2s\n{ALLOW}\n\nSELECT 1;\n{DROP}\nDROP TABLE another;",
        f"{ALLOW}\nDO $$BEGIN {DROP} END$$;",
    ],
)
def test_an_allowance_with_a_reason_silences(folder: Path, write: Write, up: str) -> None:
    found = look(folder, up, write)
    assert rules(found) == []
    assert found.allowed > 0


def test_it_silences_its_own_statement_alone(folder: Path, write: Write) -> None:
    found = look(folder, f"SELECT 1;\n{ALLOW}\n{DROP}\nDROP TABLE another;", write)
    assert [(one.rule, one.place.line) for one in found.findings] == [("drop-table", 4)]


def test_it_silences_its_own_rule_alone(folder: Path, write: Write) -> None:
    assert rules(look(folder, f"{ALLOW}\nDROP TABLE elsewhere CASCADE;", write)) == ["cascade"]


@pytest.mark.parametrize(
    "comment", ["-- tollbook: allow drop-table", "-- tollbook: allow drop-table because "]
)
def test_without_a_reason_it_allows_nothing(folder: Path, write: Write, comment: str) -> None:
    assert rules(look(folder, f"SELECT 1;\n{comment}\n{DROP}", write)) == [
        "allowance-without-reason",
        "drop-table",
    ]


def test_one_that_matches_nothing_is_found(folder: Path, write: Write) -> None:
    [finding] = look(folder, f"{ALLOW}\nSELECT 1;", write).findings
    assert (finding.rule, finding.place.line) == ("unused-allowance", 1)


def test_one_of_two_that_matches_nothing_is_found(folder: Path, write: Write) -> None:
    found = look(folder, f"-- tollbook: allow drop-table, truncate because so\n{DROP}", write)
    assert [one.sentence.split()[0] for one in found.findings] == ["truncate"]


def test_an_unknown_rule_is_named(folder: Path, write: Write) -> None:
    [finding] = look(folder, "SELECT 1;\n-- tollbook: allow drop-tabel because so\nSELECT 2;", write).findings
    assert "no rule drop-tabel" in finding.sentence


def test_a_string_is_no_comment(folder: Path, write: Write) -> None:
    assert rules(look(folder, f"SELECT '{ALLOW}';\n{DROP}", write)) == ["drop-table"]


@pytest.mark.parametrize(
    "comment",
    [
        "-- squawk-ignore ban-drop-table",
        "-- squawk-ignore",
        "-- squawk-ignore-file ban-drop-table, ban-drop-column",
    ],
)
def test_squawks_own_comments_count_for_rules_that_say_the_same(
    folder: Path, write: Write, comment: str
) -> None:
    assert rules(look(folder, f"{comment}\n{DROP}", write)) == []


def test_squawks_comment_for_another_rule_does_not(folder: Path, write: Write) -> None:
    assert rules(look(folder, f"-- squawk-ignore ban-drop-column\n{DROP}", write)) == ["drop-table"]


def test_what_is_of_the_file_is_allowed_anywhere_in_it(folder: Path, write: Write) -> None:
    write("0001_a", up="SELECT 1;\n-- tollbook: allow missing-down because nothing is made\nSELECT 2;")
    assert rules(lint([Folder("shop", folder)], ask_squawk=False)) == []
