"""Back-fills: every range of keys once, whatever comes between; the migration counts when it is done."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result

from fixtures.backups import await_
from fixtures.leaving import leaving
from fixtures.walks import WHOLE
from tollbook import migrate

Apply = Callable[..., Result]

ROWS = 4_000
KILLS = 8 if WHOLE else 4
SEED = 4711
HEAD = "-- tollbook: table=accounts key=id batch=100"
ADD_ONE = "UPDATE accounts SET balance = balance + 1 WHERE id BETWEEN :first AND :last;"
UP = "ALTER TABLE accounts ADD COLUMN seen bool;"
APPLIED = "SELECT count(*) FROM tollbook_migrate.history WHERE reverted_at IS NULL"


def words(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture
def accounts(ask: Any) -> None:
    ask(f"""CREATE TABLE accounts (id bigint PRIMARY KEY, name text, balance bigint NOT NULL);
        INSERT INTO accounts SELECT n * 3, 'a', n FROM generate_series(1, {ROWS}) n; ANALYZE accounts;
        SELECT 1""")


@pytest.mark.usefixtures("accounts")
def test_every_row_is_changed_once_and_the_figures_are_told(
    write: Any, apply: Apply, run: Any, ask: Any
) -> None:
    before = ask("SELECT sum(balance) FROM accounts")
    write("0001_a", up=UP, backfill=f"{HEAD} pause=1ms\n{ADD_ONE}")
    result = apply()
    assert result.exit_code == 0, words(result)
    assert f"back-fill: {ROWS:,} of about {ROWS:,} rows" in words(result)
    assert f"{ROWS:,} changed" in words(result)
    assert ask("SELECT sum(balance) FROM accounts") == before + ROWS
    assert ask("SELECT ended_at IS NOT NULL FROM tollbook_migrate.backfills")
    assert run("status").exit_code == 0


@pytest.mark.usefixtures("accounts")
def test_killed_at_random_moments_every_range_is_changed_exactly_once(
    write: Any, url: str, folder: Path, ask: Any
) -> None:
    before = ask("SELECT sum(balance) FROM accounts")
    slow = ADD_ONE.replace(";", " AND pg_sleep(0.00002) IS NOT NULL;")
    write("0001_a", up=UP, backfill=f"{HEAD.replace('100', '20')} pause=5ms\n{slow}")
    write("0002_b", up="CREATE TABLE later (i int)")
    chance = random.Random(SEED)
    ask("""CREATE FUNCTION stand() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock_shared(NEW.id); RETURN NEW; END $$;
        CREATE TRIGGER stand BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION stand(); SELECT 1""")
    last = 0
    for life in range(1, KILLS + 1):
        with psycopg.connect(url) as other:
            mark = life * ROWS // (KILLS + 1)  # so far it comes in this life at most
            other.execute("SELECT pg_advisory_xact_lock(3 * %s)", [mark])
            engine = start(url, folder)
            wait_for_work(ask, last)
            time.sleep(chance.uniform(0, 0.05))
            engine.kill()
        finish(engine)
        wait_until_gone(ask)
        rows = ask("SELECT rows FROM tollbook_migrate.backfills")
        # What is noted is what is done, at whatever moment it was killed.
        assert ask("SELECT sum(balance) FROM accounts") == before + rows
        assert ask(APPLIED) == 0
        assert ask("SELECT to_regclass('later')") is None
        assert last < rows < ROWS
        last = rows
    output = finish(start(url, folder))
    assert "had committed a part" in output, output
    assert "the back-fill goes on behind" in output, output
    assert ask("SELECT sum(balance) FROM accounts") == before + ROWS
    assert ask("SELECT rows = changed FROM tollbook_migrate.backfills")
    assert ask(APPLIED) == 2


def start(url: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tollbook.migrate", "apply", "--dir", str(folder), "--auto", "--skip-backup"],
        env={**os.environ, "DATABASE_URL": url, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(engine: subprocess.Popen[str]) -> str:
    return engine.communicate(timeout=60)[0]


def wait_until_gone(ask: Any) -> None:
    await_(lambda: ask("SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database()"))


def wait_for_work(ask: Any, before: int) -> None:
    """Wait until the run has moved on from where the last one was."""
    await_(
        lambda: (
            ask("SELECT to_regclass('tollbook_migrate.backfills')")
            and ask(f"SELECT max(rows) > {before} FROM tollbook_migrate.backfills")
        )
    )


@pytest.mark.usefixtures("accounts")
def test_until_it_is_done_the_migration_is_pending_and_the_next_waits(
    write: Any, apply: Apply, run: Any, ask: Any
) -> None:
    ask("UPDATE accounts SET balance = 9223372036854775807 WHERE id = 3003; SELECT 1")
    write("0001_a", up=UP, backfill=f"{HEAD}\n{ADD_ONE}")
    write("0002_b", up="CREATE TABLE later (i int)")
    failed = apply()
    assert failed.exit_code == 1
    assert "0001_a.backfill.sql:2" in words(failed)
    assert "bigint out of range" in words(failed)
    assert "id from 3003 to 3300" in words(failed)
    assert "the 1,000 rows before it stay" in words(failed)
    assert ask("SELECT to_regclass('later')") is None
    status = run("status")
    assert status.exit_code == 3
    assert f"pending shop/0001_a back-fill: 1,000 of about {ROWS:,} rows" in words(status)
    ask("UPDATE accounts SET balance = 1 WHERE id = 3003; SELECT 1")
    assert apply().exit_code == 0
    assert ask("SELECT balance FROM accounts WHERE id = 3003") == 2
    assert ask("SELECT balance FROM accounts WHERE id = 3") == 2


@pytest.mark.usefixtures("accounts")
def test_its_pace_may_change_half_way_its_statement_may_not(write: Any, apply: Apply, ask: Any) -> None:
    ask("UPDATE accounts SET balance = 9223372036854775807 WHERE id = 3003; SELECT 1")
    write("0001_a", up=UP, backfill=f"{HEAD}\n{ADD_ONE}")
    assert apply().exit_code == 1
    write("0001_a", up=UP, backfill=f"{HEAD}\n{ADD_ONE.replace('+ 1', '+ 2')}")
    assert "was edited after it had gone through 1,000 rows" in words(apply())
    ask("UPDATE accounts SET balance = 1 WHERE id = 3003; SELECT 1")
    write("0001_a", up=UP, backfill=f"{HEAD.replace('100', '1000')}\n{ADD_ONE}")
    assert apply().exit_code == 0
    assert ask("SELECT rows = changed FROM tollbook_migrate.backfills")


def test_a_key_of_several_columns_of_any_type(write: Any, apply: Apply, ask: Any) -> None:
    ask("""CREATE TABLE "Odd t" ("The tenant" text, at timestamptz, v uuid DEFAULT gen_random_uuid(), n int,
            PRIMARY KEY ("The tenant", at));
        INSERT INTO "Odd t" SELECT 't%''' || n % 7, timestamptz '2026-01-01' + n * interval '1.000001 s',
            gen_random_uuid(), 0 FROM generate_series(1, 500) n; SELECT 1""")
    ask("""ALTER TABLE "Odd t" RENAME TO odd; ALTER TABLE odd RENAME "The tenant" TO tenant; SELECT 1""")
    fill = """-- tollbook: table=odd key=tenant,at batch=7
        /* ž :first */ UPDATE odd SET n = n + 1 WHERE (tenant, at) >= :first AND (tenant, at) <= :last"""
    write("0001_a", up="-- Only rows.", backfill=fill)
    result = apply()
    assert result.exit_code == 0, words(result)
    assert ask("SELECT min(n) = 1 AND max(n) = 1 FROM odd")


@pytest.mark.parametrize(("kind", "value"), [("char(4)", "to_char(n, 'FM0000')"), ("bit(9)", "n::bit(9)")])
def test_a_key_of_a_type_that_is_one_long_without_its_length(
    write: Any, apply: Apply, ask: Any, kind: str, value: str
) -> None:
    ask(f"""CREATE TABLE coded (code {kind} PRIMARY KEY, n int);
        INSERT INTO coded SELECT {value}, 0 FROM generate_series(1, 50) n; SELECT 1""")
    fill = """-- tollbook: table=coded key=code batch=7 statement_timeout=5s
        UPDATE coded SET n = n + 1 WHERE code BETWEEN :first AND :last"""
    write("0001_a", up="", backfill=fill)
    result = apply()
    assert result.exit_code == 0, words(result)
    assert ask("SELECT min(n) = 1 AND max(n) = 1 FROM coded")


def test_rows_that_come_later_are_not_waited_for_for_ever(write: Any, apply: Apply, ask: Any) -> None:
    ask("CREATE TABLE grows (id serial PRIMARY KEY); SELECT 1")
    ask("INSERT INTO grows SELECT FROM generate_series(1, 50); SELECT 1")
    fill = """-- tollbook: table=grows key=id batch=10
        INSERT INTO grows (id) SELECT id + 1000 FROM grows WHERE id BETWEEN :first AND :last"""
    write("0001_a", up="", backfill=fill)
    assert apply().exit_code == 0
    assert ask("SELECT count(*) FROM grows") == 100


def test_an_empty_table_has_nothing_to_fill(write: Any, apply: Apply, ask: Any) -> None:
    write(
        "0001_a", up="CREATE TABLE accounts (id int PRIMARY KEY, balance int)", backfill=f"{HEAD}\n{ADD_ONE}"
    )
    assert apply().exit_code == 0
    assert ask(APPLIED) == 1


@pytest.mark.usefixtures("accounts")
def test_taken_back_and_applied_again_it_runs_again(write: Any, apply: Apply, run: Any, ask: Any) -> None:
    write("0001_a", up=UP, down="ALTER TABLE accounts DROP COLUMN seen", backfill=f"{HEAD}\n{ADD_ONE}")
    assert apply().exit_code == 0
    assert run("revert", "--auto", "--skip-backup").exit_code == 0
    assert apply().exit_code == 0
    assert ask("SELECT sum(balance) - sum(id / 3) FROM accounts") == 2 * ROWS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ADD_ONE, "does not say its table and key"),
        (f"{HEAD}\nUPDATE accounts SET balance = 0", "does not say :first and :last"),
        (f"{HEAD}\n{ADD_ONE.replace('balance = balance', 'id = id')}", "changes its own key"),
        (f"{HEAD}\n{ADD_ONE} {ADD_ONE}", "is one UPDATE, INSERT, DELETE or MERGE"),
        (f"{HEAD}\nUPDATE accounts SET WHERE :first :last", "0001_a.backfill.sql:2"),
        (f"{HEAD} speed=9\n{ADD_ONE}", "speed=9 is no option"),
        (f"{HEAD.replace('key=id', 'key=name')}\n{ADD_ONE}", "name is no key of accounts"),
    ],
)
@pytest.mark.usefixtures("accounts")
def test_what_is_no_back_fill_is_refused(write: Any, apply: Apply, text: str, said: str) -> None:
    write("0001_a", up=UP, backfill=text)
    result = apply()
    assert result.exit_code == 1
    assert said in words(result)


@pytest.mark.usefixtures("accounts")
def test_a_row_that_another_session_holds_is_waited_for_and_tried_again(
    write: Any, url: str, folder: Path, ask: Any
) -> None:
    write("0001_a", up="", backfill=f"{HEAD} lock_timeout=100ms\n{ADD_ONE}")
    with psycopg.connect(url) as other:
        other.execute("UPDATE accounts SET balance = balance - 1 WHERE id = 3000")
        listen, told = leaving(other, "retrying")
        migrate.apply(url, [migrate.Folder("shop", folder)], backup=False, listen=listen)
    assert "attempt 2 of 5" in told[0]
    assert ask("SELECT balance FROM accounts WHERE id = 3000") == 1000
