"""The corpus: every hazard is found by its rule, its safe twin by none; and PostgreSQL runs the twins."""

import hashlib
from pathlib import Path

import psycopg
import pytest

from migrate.lint.corpus import BEFORE, CASES, Case
from tollbook.migrate.files import Migration, Script
from tollbook.migrate.lint import RULES, Finding, walk
from tollbook.migrate.lint.linting import lint_migrations

TWINS = [case for case in CASES if case.twin]
HAZARDS_MIN = 120
# About no table that could be new: a domain's are not named, a setting is the session's.
ABOUT_NO_TABLE = ("ALTER DOMAIN", "SET session_replication_role")


def migration(label: str, text: str) -> Migration:
    script = Script(Path(f"shop/{label}.up.sql"), text, hashlib.sha256(text.encode()).hexdigest())
    return Migration("shop", label[:4], label, script)


def find(text: str, before: str = BEFORE) -> list[Finding]:
    """Return what is found in a file that comes after the corpus' tables, which are in use."""
    pair = [migration("0001_before", before), migration("0002_change", text)]
    return list(lint_migrations(pair, pending={"shop/0002_change"}, ask_squawk=False).findings)


def number(case: Case) -> str:
    return f"{case.rule}-{CASES.index(case)}"


@pytest.mark.parametrize("case", CASES, ids=number)
def test_a_hazard_is_found_by_its_rule(case: Case) -> None:
    assert case.rule in {finding.rule for finding in find(case.hazard)}


@pytest.mark.parametrize("case", TWINS, ids=number)
def test_its_safe_twin_is_not(case: Case) -> None:
    found = find(case.twin)
    assert case.rule not in {finding.rule for finding in found}
    assert not [finding for finding in found if finding.severity == "error"]


def test_rules_that_are_not_asked_about_rows_have_nothing_to_say_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_rows = tuple(word.removesuffix("Stmt").upper() for word in (one.__name__ for one in walk.ON_ROWS))
    texts = {case.hazard for case in CASES if any(word in case.hazard for word in on_rows)}
    found = {text: find(text) for text in texts}
    monkeypatch.setattr(walk, "ON_ROWS", ())
    assert {text: find(text) for text in texts} == found


def test_the_corpus_has_hazards_enough_and_for_every_rule() -> None:
    assert len(CASES) >= HAZARDS_MIN
    about_files = {"missing-down", "allowance-without-reason", "unused-allowance"}
    assert {rule.id for rule in RULES} - {case.rule for case in CASES} == about_files


def test_every_twin_runs_on_the_corpus_tables(url: str) -> None:
    alone: list[str] = []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(BEFORE.encode())
        for case in TWINS:
            try:
                with connection.transaction(force_rollback=True):
                    connection.execute(case.twin.encode())
            except (psycopg.errors.ActiveSqlTransaction, psycopg.errors.FeatureNotSupported):
                alone.append(case.twin)  # it cannot run inside a transaction
        for twin in dict.fromkeys(alone):
            connection.execute(twin.encode())


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.hazard.startswith(ABOUT_NO_TABLE)], ids=number
)
def test_what_is_not_in_use_is_not_locked_nor_lost(case: Case) -> None:
    """With the tables made by an earlier pending file nobody waits: no lock is warned of, no rewrite."""
    both = [migration("0001_before", BEFORE), migration("0002_change", case.hazard)]
    found = lint_migrations(both, pending={one.id for one in both}, ask_squawk=False).findings
    locking = {rule.id for rule in RULES if rule.example.claim and rule.example.claim.lock}
    assert not {one.rule for one in found} & locking
