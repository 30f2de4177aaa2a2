"""A database in use: our statement gives way to those behind it, says and says whom it waits for."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from click.testing import Result

from fixtures.backups import await_
from fixtures.leaving import leaving
from tollbook.migrate import Folder, Traffic, cli, plan
from tollbook.migrate import apply as apply_migrations
from tollbook.migrate.errors import InTheWay, LockHeld
from tollbook.migrate.events import Event
from tollbook.migrate.shadow import ShadowUnavailable

Apply = Callable[..., Result]
CROWD = 25
AT_ONCE = "true"
AS_IT_WORKS = """EXISTS (SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event = 'PgSleep')"""


def words(result: Result) -> str:
    return " ".join(result.output.split())


@contextmanager
def holding(url: str, statement: str, name: str = "report") -> Generator[psycopg.Connection[Any]]:
    """A session that did something in a transaction, and then went to lunch."""
    with psycopg.connect(url, application_name=name) as connection:
        connection.execute(statement.encode())
        yield connection


@contextmanager
def crowd(url: str, number: int, come: str = AT_ONCE) -> Generator[list[Any]]:
    """Sessions that from some moment on read the table again and again, as a live site does."""
    seen: list[Any] = []
    ended = threading.Event()

    def read() -> None:
        with psycopg.connect(url, autocommit=True, application_name="site") as connection:
            while connection.execute(f"SELECT {come}".encode()).fetchone() != (True,):
                ended.wait(0.05)
            while not ended.wait(0.02):
                row = connection.execute("SELECT count(*) FROM orders").fetchone()
                seen.append(row and row[0])

    threads = [threading.Thread(target=read) for _ in range(number)]
    for one in threads:
        one.start()
    try:
        yield seen
    finally:
        ended.set()
        for one in threads:
            one.join()


@pytest.fixture
def orders(ask: Any) -> None:
    ask("CREATE TABLE orders (i int); INSERT INTO orders VALUES (1); SELECT 1")


@pytest.mark.usefixtures("orders")
def test_a_statement_gives_way_when_too_many_wait_behind_it(write: Any, url: str, apply: Apply) -> None:
    write("0001_a", up="ALTER TABLE orders ADD COLUMN total int")
    with holding(url, "SELECT * FROM orders"), crowd(url, CROWD) as seen:
        result = apply("--lock-timeout", "60s", "--queue-max", "10")
        await_(lambda: len(seen) > CROWD)  # none of them was ended, all went on
    assert result.exit_code == LockHeld.exit_code
    assert "sessions waited behind it" in words(result)
    assert "report" in words(result)
    assert "idle in transaction" in words(result)
    assert "SELECT * FROM orders" in words(result)


@pytest.mark.usefixtures("orders")
def test_nobody_waits_behind_it_for_the_sum_of_its_waits(
    write: Any, url: str, apply: Apply, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lock may be waited for that long; who is behind the first is not to wait for the second too."""
    monkeypatch.setattr("tollbook.migrate.retrying.ATTEMPTS_MAX", 2)
    ask("CREATE TABLE items (i int); SELECT 1")
    until_they_waited = """DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM pg_locks
        WHERE NOT granted AND clock_timestamp() - waitstart > '1.5 s') LOOP PERFORM pg_sleep(0.05);
        END LOOP; END $$"""
    first, second = "ALTER TABLE orders ADD COLUMN total int", "ALTER TABLE items ADD COLUMN j int"
    write("0001_a", up=f"{first}; {until_they_waited}; {second}")
    with holding(url, "SELECT * FROM items"), crowd(url, 2):
        result = apply("--lock-timeout", "2s")
    assert result.exit_code == LockHeld.exit_code
    assert "sessions waited behind it" in words(result)
    assert "SELECT * FROM items" in words(result)


@pytest.mark.usefixtures("orders")
def test_it_is_done_as_soon_as_the_way_is_free(write: Any, url: str, folder: Any, ask: Any) -> None:
    write("0001_a", up="ALTER TABLE orders ADD COLUMN total int")
    folders, patience = [Folder("shop", folder)], Traffic(queue_max=10)
    with holding(url, "SELECT * FROM orders") as holder, crowd(url, CROWD):
        listen, told = leaving(holder, "retrying")
        apply_migrations(
            url, folders, backup=False, lock_timeout_seconds=60.0, traffic=patience, listen=listen
        )
    assert "attempt 2 of 5" in told[0]
    assert ask("SELECT count(*) FROM pg_attribute WHERE attname = 'total'") == 1


@pytest.mark.usefixtures("orders")
def test_a_long_statement_that_holds_many_up_is_stopped_and_not_tried_again(
    write: Any, url: str, folder: Any, ask: Any
) -> None:
    write("0001_a", up="ALTER TABLE orders ADD COLUMN total int; SELECT pg_sleep(60);")
    told: list[Event] = []
    with crowd(url, CROWD, AS_IT_WORKS), pytest.raises(InTheWay, match="while it worked"):
        apply_migrations(
            url,
            [Folder("shop", folder)],
            backup=False,
            lock_timeout_seconds=1.0,
            traffic=Traffic(queue_max=10),
            listen=told.append,
        )
    assert not any(event.kind == "retrying" for event in told)
    assert ask("SELECT count(*) FROM pg_attribute WHERE attname = 'total'") == 0


@pytest.mark.usefixtures("orders")
def test_a_live_plan_that_holds_many_up_is_stopped(write: Any, url: str, folder: Any, run: Any) -> None:
    write("0001_a", up="ALTER TABLE orders ADD COLUMN total int; SELECT pg_sleep(60);")
    patience = {"lock_timeout_seconds": 0.3, "traffic": Traffic(queue_max=10)}
    with crowd(url, CROWD, AS_IT_WORKS) as seen:
        with pytest.raises(InTheWay, match="The live plan was stopped"):
            plan(url, [Folder("shop", folder)], depth="live", **patience)
        await_(lambda: len(seen) > CROWD)


@pytest.mark.usefixtures("orders")
def test_a_live_plan_that_waits_gives_way_and_says_for_whom(write: Any, url: str, run: Any) -> None:
    write("0001_a", up="ALTER TABLE orders ADD COLUMN total int")
    with holding(url, "SELECT * FROM orders"), crowd(url, CROWD):
        result = run("plan", "--live", "--lock-timeout", "60s", "--queue-max", "10")
    assert result.exit_code == LockHeld.exit_code
    assert "sessions waited behind it" in words(result)
    assert "SELECT * FROM orders" in words(result)
    assert "without --live" in words(result)


@pytest.mark.usefixtures("orders")
def test_the_plan_that_apply_asks_about_gives_way_by_the_same_options(
    write: Any, url: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise ShadowUnavailable("No shadow starts here.")

    monkeypatch.setattr("tollbook.migrate.shadow.shadow", none)
    monkeypatch.setattr(cli.Call, "require_terminal", lambda _: None)
    write("0001_a", up="ALTER TABLE orders ADD COLUMN total int")
    with holding(url, "SELECT * FROM orders"), crowd(url, 5):
        result = run("apply", "--skip-backup", "--lock-timeout", "60s", "--queue-max", "2")
    assert result.exit_code == LockHeld.exit_code
    assert "The live plan gave way to other sessions" in words(result)
    assert "sessions waited behind it" in words(result)


@pytest.mark.usefixtures("orders")
def test_a_few_who_wait_for_a_long_statement_do_not_stop_it(write: Any, url: str, apply: Apply) -> None:
    write("0001_a", up="ALTER TABLE orders ADD COLUMN total int; SELECT pg_sleep(2);")
    with crowd(url, 3):
        assert apply("--lock-timeout", "500ms").exit_code == 0


@pytest.mark.usefixtures("orders")
def test_who_is_waited_for_is_named_while_it_is(write: Any, url: str, folder: Any) -> None:
    write("0001_a", up="ALTER TABLE orders ADD COLUMN total int")
    with holding(url, "INSERT INTO orders VALUES (2)", name="billing") as holder:
        listen, told = leaving(holder, "waiting")
        folders = [Folder("shop", folder)]
        apply_migrations(url, folders, backup=False, lock_timeout_seconds=60.0, listen=listen)
    assert told[0].startswith("shop/0001_a waits for process")
    assert "(billing), idle in transaction since" in told[0]
    assert "INSERT INTO orders VALUES (2)" in told[0]


def test_a_statement_is_bounded_for_the_whole_run_or_by_its_file(write: Any, apply: Apply) -> None:
    write("0001_a", up="-- tollbook: statement_timeout=10s\nSELECT pg_sleep(0.5);")
    write("0002_b", up="SELECT pg_sleep(600);")
    result = apply("--statement-timeout", "200ms")
    assert result.exit_code == 1
    assert "0002_b.up.sql" in words(result)
    assert "statement timeout" in words(result)
