"""Renames, new types and NOT NULL while old and new programs write: no write is lost, both go on working."""

import json
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result

from fixtures.backups import await_

Apply = Callable[..., Result]

ROWS = 3_000
WRITERS = 3
TURNS = 20  # that each program takes at least
ORDERS = f"""CREATE TABLE customers (id int PRIMARY KEY); INSERT INTO customers VALUES (1), (2);
    CREATE TABLE orders (id int PRIMARY KEY, total int NOT NULL DEFAULT 7 CHECK (total > 0),
        customer int REFERENCES customers, note text);
    CREATE INDEX orders_total ON orders (total) WHERE total > 1;
    INSERT INTO orders SELECT n, n, 1 + n % 2, nullif('n' || n % 3, 'n0') FROM generate_series(1, {ROWS}) n;
    ANALYZE orders; SELECT 1"""
COLUMNS = (
    "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'orders'::regclass"
    " AND attnum > 0 AND NOT attisdropped"
)


def words(result: Result) -> str:
    return " ".join(result.output.split())


class Program:
    """A program that knows one name of a column. Each owns its rows and remembers what it wrote last."""

    def __init__(self, url: str, number: int, column: str) -> None:
        self.url, self.number, self.column = url, number, column
        self.wrote: dict[int, int] = {}
        self.wrong: list[str] = []
        self.turns = 0

    def work(self, ended: threading.Event) -> None:
        name = self.column
        with psycopg.connect(self.url, autocommit=True, prepare_threshold=None) as connection:
            while not ended.is_set():
                turn = self.turns + 1
                row = (turn * WRITERS * 2 + self.number) % (ROWS + 600) + 1
                if row % (WRITERS * 2) != self.number:
                    row += (self.number - row) % (WRITERS * 2)
                value = 10_000 * self.number + turn
                text = f"""INSERT INTO orders (id, {name}, customer) VALUES (%s, %s, 1)
                    ON CONFLICT (id) DO UPDATE SET {name} = excluded.{name}"""
                connection.execute(text.encode(), (row, value))
                self.wrote[row] = value
                found = connection.execute(
                    f"SELECT {name} FROM orders WHERE id = %s".encode(), (row,)
                ).fetchone()
                if found != (value,):
                    self.wrong.append(f"{name} of {row}: wrote {value}, read {found}")
                self.turns = turn
                time.sleep(0.005)  # six that never pause take the machine from the migration


@contextmanager
def working(programs: list[Program]) -> Generator[None]:
    ended = threading.Event()
    threads = [threading.Thread(target=one.work, args=(ended,)) for one in programs]
    for one in threads:
        one.start()
    try:
        yield
        before = [one.turns for one in programs]
        await_(lambda: all(now.turns > then + TURNS for now, then in zip(programs, before, strict=True)))
    finally:
        ended.set()
        for one in threads:
            one.join()


def check(programs: list[Program], ask: Any, column: str) -> None:
    for one in programs:
        assert not one.wrong
        assert len(one.wrote) >= TURNS
        for row, value in one.wrote.items():
            assert ask(f"SELECT {column} FROM orders WHERE id = {row}") == value


@pytest.fixture
def orders(ask: Any) -> None:
    ask(ORDERS)


@pytest.mark.usefixtures("orders")
def test_a_rename_loses_no_write_of_old_or_new_programs(url: str, run: Any, apply: Apply, ask: Any) -> None:
    made = run("expand", "rename-column", "orders", "total", "amount")
    assert made.exit_code == 0, words(made)
    assert "0001_orders_total_to_amount_expand.backfill.sql" in made.output
    old = [Program(url, number, "total") for number in range(WRITERS)]
    with working(old):
        result = apply()
        assert result.exit_code == 0, words(result)
    assert ask("SELECT count(*) FROM orders WHERE amount IS DISTINCT FROM total") == 0
    new = [Program(url, WRITERS + number, "amount") for number in range(WRITERS)]
    with working(old + new):
        pass
    check(old, ask, "amount")
    check(new, ask, "total")
    assert ask("SELECT count(*) FROM orders WHERE amount IS DISTINCT FROM total") == 0
    assert ask("SELECT pg_get_indexdef('orders_total_new'::regclass)").endswith("(amount) WHERE (amount > 1)")
    assert ask(
        "SELECT attnotnull FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attname = 'amount'"
    )
    made = run("expand", "contract", "orders", "total", "amount")
    assert made.exit_code == 0, words(made)
    with working(new):
        result = apply()
        assert result.exit_code == 0, words(result)
    check(new, ask, "amount")
    assert ask(COLUMNS) == "id customer note amount"
    assert ask("INSERT INTO orders (id) VALUES (-1) RETURNING amount") == 7


@pytest.mark.usefixtures("orders")
def test_a_rename_is_taken_back_while_old_programs_write(url: str, run: Any, apply: Apply, ask: Any) -> None:
    assert run("expand", "rename-column", "orders", "total", "amount").exit_code == 0
    old = [Program(url, number, "total") for number in range(WRITERS)]
    with working(old):
        assert apply().exit_code == 0
        result = run("revert", "--steps", "2", "--auto", "--skip-backup")
        assert result.exit_code == 0, words(result)
    check(old, ask, "total")
    assert ask(COLUMNS) == "id total customer note"
    assert apply().exit_code == 0
    assert ask("SELECT count(*) FROM orders WHERE amount IS DISTINCT FROM total") == 0


@pytest.mark.usefixtures("orders")
def test_a_new_type_under_the_same_name_loses_no_write(url: str, run: Any, apply: Apply, ask: Any) -> None:
    made = run("expand", "change-type", "orders", "total", "bigint")
    assert made.exit_code == 0, words(made)
    programs = [Program(url, number, "total") for number in range(WRITERS * 2)]
    with working(programs):
        result = apply()
        assert result.exit_code == 0, words(result)
    check(programs, ask, "total")
    assert ask("SELECT pg_typeof(total)::text FROM orders LIMIT 1") == "bigint"
    assert ask("SELECT count(*) FROM orders WHERE total IS DISTINCT FROM total_old") == 0
    assert ask("INSERT INTO orders (id, total) VALUES (-1, 5000000000) RETURNING total") == 5_000_000_000
    assert ask("INSERT INTO orders (id) VALUES (-2) RETURNING total") == 7
    assert run("expand", "contract", "orders", "total_old", "total").exit_code == 0
    with working(programs):
        result = apply()
        assert result.exit_code == 0, words(result)
    check(programs, ask, "total")
    assert ask(COLUMNS) == "id customer note total"


@pytest.mark.usefixtures("orders")
def test_a_new_type_by_an_expression(run: Any, apply: Apply, ask: Any) -> None:
    made = run(
        "expand", "change-type", "orders", "note", "jsonb", "--using", "jsonb_build_object('note', note)"
    )
    assert made.exit_code == 0, words(made)
    result = apply()
    assert result.exit_code == 0, words(result)
    assert ask("SELECT note ->> 'note' FROM orders WHERE id = 1") == "n1"


@pytest.mark.usefixtures("orders")
def test_not_null_while_a_program_still_writes_null(url: str, run: Any, apply: Apply, ask: Any) -> None:
    assert run("expand", "add-not-null", "orders", "note", "'none'").exit_code == 0
    programs = [Program(url, number, "total") for number in range(WRITERS)]  # they leave the note out
    with working(programs):
        result = apply()
        assert result.exit_code == 0, words(result)
    check(programs, ask, "total")
    assert ask("SELECT attnotnull FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attname = 'note'")
    assert ask("SELECT count(*) > 900 FROM orders WHERE note = 'none'")
    assert run("expand", "contract", "orders", "note", "note").exit_code == 0
    result = apply()
    assert result.exit_code == 0, words(result)
    with pytest.raises(psycopg.errors.NotNullViolation):
        ask("INSERT INTO orders (id, total, note) VALUES (-1, 1, NULL) RETURNING 1")


@pytest.mark.usefixtures("orders")
def test_a_contract_that_would_lose_a_value_is_not_carried_out(run: Any, apply: Apply, ask: Any) -> None:
    assert run("expand", "rename-column", "orders", "note", "remark").exit_code == 0
    assert apply().exit_code == 0
    assert run("expand", "contract", "orders", "note", "remark").exit_code == 0
    ask("ALTER TABLE orders DISABLE TRIGGER USER; UPDATE orders SET note = 'late' WHERE id = 1; SELECT 1")
    result = apply()
    assert result.exit_code == 1
    assert "have a value in note that remark has not" in words(result)
    assert ask("SELECT note FROM orders WHERE id = 1") == "late"


@pytest.mark.usefixtures("orders")
def test_what_the_steps_would_not_do_for_is_refused(run: Any, ask: Any) -> None:
    ask("CREATE TABLE bare (i int); SELECT 1")
    assert "is a key" in words(run("expand", "rename-column", "orders", "id", "number"))
    assert "no unique key" in words(run("expand", "rename-column", "bare", "i", "j"))
    ask("CREATE TABLE parent (i int PRIMARY KEY, j int); CREATE TABLE heir () INHERITS (parent); SELECT 1")
    assert "inherit from parent" in words(run("expand", "rename-column", "parent", "j", "k"))
    assert "no table nothing" in words(run("expand", "rename-column", "nothing", "i", "j"))
    assert "were not expanded here" in words(run("expand", "contract", "orders", "total", "amount"))


def test_what_a_type_takes_for_the_same_or_cannot_compare_is_kept_the_same_too(
    run: Any, apply: Apply, ask: Any
) -> None:
    ask("""CREATE TABLE kinds (id int PRIMARY KEY, j json, n numeric);
        INSERT INTO kinds VALUES (1, '[1]', '1'), (2, NULL, '2'); SELECT 1""")
    assert run("expand", "rename-column", "kinds", "j", "k").exit_code == 0
    assert run("expand", "rename-column", "kinds", "n", "m").exit_code == 0
    result = apply()
    assert result.exit_code == 0, words(result)
    assert ask("UPDATE kinds SET j = '[2]', n = '1.0' WHERE id = 1 RETURNING k::text || m") == "[2]1.0"
    assert ask("UPDATE kinds SET k = '[3]', m = '2.0' WHERE id = 2 RETURNING j::text || n") == "[3]2.0"


@pytest.mark.parametrize(
    ("using", "kind"),
    [(None, "date"), ("Date::date", "date"), ('days."date"::date', "date"), ("date(date)", "date")],
)
def test_a_column_that_is_named_as_its_type_changes_it(
    run: Any, apply: Apply, ask: Any, using: str | None, kind: str
) -> None:
    ask(
        "CREATE TABLE days (id int PRIMARY KEY, date text); INSERT INTO days VALUES (1, '2026-01-02');"
        " SELECT 1"
    )
    options = ("--using", using) if using else ()
    assert run("expand", "change-type", "days", "date", kind, *options).exit_code == 0
    result = apply()
    assert result.exit_code == 0, words(result)
    assert ask("INSERT INTO days VALUES (2, '2026-01-03') RETURNING pg_typeof(date)::text") == kind
    assert ask("SELECT date::text FROM days WHERE id = 1") == "2026-01-02"


def test_a_program_with_another_search_path_goes_on_writing(run: Any, apply: Apply, ask: Any) -> None:
    ask("""CREATE TYPE mood AS ENUM ('good'); CREATE TABLE days (id int PRIMARY KEY, mood text, n text);
        SELECT 1""")
    assert run("expand", "change-type", "days", "mood", "mood").exit_code == 0
    for to in ("1", "2"):
        assert apply("--to", to).exit_code == 0
        write = f"INSERT INTO public.days (id, mood) VALUES ({to}, 'good') RETURNING mood::text"
        assert ask(f"SET search_path = ''; {write}") == "good"
    assert ask("SELECT count(*) FROM days WHERE mood_old = 'good'") == 2


def test_a_trigger_that_would_fail_is_never_committed(run: Any, apply: Apply, ask: Any) -> None:
    ask("CREATE TABLE days (id int PRIMARY KEY, day text); INSERT INTO days VALUES (1, 'soon'); SELECT 1")
    assert run("expand", "change-type", "days", "day", "date").exit_code == 0
    assert apply().exit_code == 1
    assert ask("INSERT INTO days VALUES (2, 'later') RETURNING day") == "later"


def test_of_a_table_with_partitions_the_indexes_are_left_to_a_hand(run: Any, apply: Apply, ask: Any) -> None:
    ask("""CREATE TABLE events (id int, at date, what text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
        CREATE INDEX events_what ON events (what);
        CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
        INSERT INTO events VALUES (1, '2026-02-01', 'a'); SELECT 1""")
    made = run("expand", "rename-column", "events", "what", "kind", "--json")
    result = apply()
    assert result.exit_code == 0, words(result)
    ready = next(one for one in json.loads(made.output)["files"] if "ready.up" in one)
    assert "by hand" in Path(ready).read_text()
    assert ask("INSERT INTO events VALUES (2, '2026-03-01', 'b') RETURNING kind") == "b"
    assert ask("SELECT kind FROM events_1 WHERE id = 1") == "a"
