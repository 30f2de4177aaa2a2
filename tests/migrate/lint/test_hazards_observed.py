"""What each rule says PostgreSQL does with its example, seen there; and that its safe SQL does not."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.errors import ActiveSqlTransaction

from migrate.lint.watching import find_table, set_up, split, watch, watch_alone
from tollbook.embedded import Server
from tollbook.migrate.lint import RULES, Rule, page

CLAIMED = [rule for rule in RULES if rule.example.claim]
LOCKING = [rule for rule in CLAIMED if rule.example.claim and rule.example.claim.lock]
CHANGING = [rule for rule in CLAIMED if rule.example.claim and rule.example.claim.changes]
FAILING = [rule for rule in CLAIMED if rule.example.claim and rule.example.claim.fails]
# Nothing of these can be run here: another database, a tablespace.
NOT_RUN = {"drop-database", "move-to-tablespace"}
# What these change is meant: their safe SQL does it too, but by name, or in steps.
MEANT = {"cascade", "update-without-where"}
# Only a superuser may.
POWERFUL = {"drop-owned", "drop-role", "system-catalog", "password-in-file"}
SAFE = {rule: found[0].safe_sql for rule in RULES if (found := page.find(rule))}


@pytest.fixture(scope="module")
def url(migrate_server: Server) -> str:
    """One database for all examples, emptied before each: there are hundreds."""
    with psycopg.connect(migrate_server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE examples")
    return migrate_server.url("examples")


def name(rule: Rule) -> str:
    return rule.id


@contextmanager
def connect(server: Server, url: str, rule: Rule) -> Iterator[psycopg.Connection[Any]]:
    """Connect to the test's database, as the superuser where the example needs that."""
    database = url.partition("///")[2].partition("?")[0]
    address = server.url(database, user="postgres") if rule.id in POWERFUL else url
    with psycopg.connect(address, autocommit=True) as connection:
        if rule.id == "system-catalog":
            connection.execute("SET allow_system_table_mods = on")
        yield connection
    with psycopg.connect(server.url(), autocommit=True) as looking:  # no other role may end its session
        while looking.execute("SELECT FROM pg_stat_activity WHERE datname = %s", [database]).fetchone():
            time.sleep(0.01)


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_a_rule_finds_its_own_example(rule: Rule) -> None:
    assert rule in SAFE


@pytest.mark.parametrize("rule", LOCKING, ids=name)
def test_the_lock_that_is_claimed_is_seen(url: str, rule: Rule) -> None:
    claim = rule.example.claim
    assert claim is not None
    with psycopg.connect(url, autocommit=True) as connection:
        set_up(connection, rule.example)
        seen = watch(connection, split(rule.example.sql), find_table(connection, claim.on))
    assert seen.lock == claim.lock
    assert seen.rewrite == claim.rewrite
    assert seen.scan or not claim.scan


@pytest.mark.parametrize("rule", [rule for rule in LOCKING if SAFE[rule]], ids=name)
def test_the_safe_sql_runs_and_does_not_do_what_is_claimed(url: str, rule: Rule) -> None:
    claim = rule.example.claim
    assert claim is not None
    with psycopg.connect(url, autocommit=True) as connection:
        set_up(connection, rule.example)
        table = find_table(connection, claim.on)
        for statement in [*split(rule.example.first), *split(SAFE[rule])]:
            try:
                seen = watch(connection, [statement], table)
            except (ActiveSqlTransaction, psycopg.errors.FeatureNotSupported):
                seen = watch_alone(connection, url, statement, table)
            assert not seen.is_as_bad_as(claim), statement


@pytest.mark.parametrize("rule", CHANGING, ids=name)
def test_what_is_said_to_change_changes(migrate_server: Server, url: str, rule: Rule) -> None:
    with connect(migrate_server, url, rule) as connection:
        set_up(connection, rule.example)
        before = ask(connection, rule)
        connection.execute(rule.example.sql.encode())
        assert ask(connection, rule) != before


@pytest.mark.parametrize("rule", [rule for rule in CHANGING if SAFE[rule]], ids=name)
def test_the_safe_sql_runs_and_does_not_lose_that(migrate_server: Server, url: str, rule: Rule) -> None:
    with connect(migrate_server, url, rule) as connection:
        set_up(connection, rule.example)
        if not rule.example.first:
            with connection.transaction(force_rollback=True):
                connection.execute(rule.example.sql.encode())
                lost = ask(connection, rule)
        else:
            connection.execute(rule.example.first.encode())
            lost = ask(connection, rule)
        for statement in split(SAFE[rule]):
            connection.execute(statement.encode())
        assert ask(connection, rule) != lost or rule.id in MEANT


def run_together(connection: psycopg.Connection[Any], text: str) -> None:
    with connection.transaction():
        for statement in split(text):
            connection.execute(statement.encode())


def ask(connection: psycopg.Connection[Any], rule: Rule) -> Any:
    assert rule.example.claim is not None
    row = connection.execute(rule.example.claim.changes.encode()).fetchone()
    return row and row[0]


@pytest.mark.parametrize("rule", FAILING, ids=name)
def test_what_is_said_to_fail_fails(url: str, rule: Rule) -> None:
    assert rule.example.claim is not None
    with psycopg.connect(url, autocommit=True) as connection:
        set_up(connection, rule.example)
        with pytest.raises(psycopg.Error) as caught:
            run_together(connection, rule.example.sql)
    assert caught.value.sqlstate == rule.example.claim.fails


REST = [rule for rule in RULES if rule not in LOCKING and rule not in CHANGING and rule.id not in NOT_RUN]


@pytest.mark.parametrize("rule", [rule for rule in REST if SAFE[rule]], ids=name)
def test_the_safe_sql_runs(migrate_server: Server, url: str, rule: Rule) -> None:
    with connect(migrate_server, url, rule) as connection:
        set_up(connection, rule.example)
        for statement in [*split(rule.example.first), *split(SAFE[rule])]:
            connection.execute(statement.encode())


def test_a_reserved_name_without_its_quotes_is_a_syntax_error(url: str) -> None:
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.SyntaxError):
        connection.execute("CREATE TABLE user (id bigint PRIMARY KEY)")
