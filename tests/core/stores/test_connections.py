"""The stores' tables and connections: made once by whoever comes first, found again by everybody."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import tollbook
from fixtures.stores import end
from tollbook import migrate
from tollbook.core.errors import DatabaseUnreachable
from tollbook.core.stores import Connections, PostgresPendingSettlementStore
from tollbook.core.stores.connections import make_tables
from tollbook.entrypoints.migrations import find_folders

FOLDER = Path(tollbook.__file__).parent / "core" / "stores" / "migrations"


def test_eight_processes_that_start_at_once_make_the_tables_once(
    empty_url: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    processes = [start(empty_url, "settle_once", "5") for _ in range(8)]
    assert sum(int(end(process)) for process in processes) == 5


def test_tollbooks_own_migration_finds_what_a_store_has_made(empty_url: str) -> None:
    make_tables(empty_url)
    migrate.apply(empty_url, find_folders(), backup=False)
    verified = migrate.verify(empty_url, find_folders())
    assert (verified.pending, verified.wrong, verified.drift) == ((), (), ())
    make_tables(empty_url)


def test_a_role_that_may_not_make_tables_can_use_them(empty_url: str) -> None:
    make_tables(empty_url)
    read_only = make_conninfo(empty_url, options="-c default_transaction_read_only=on")
    assert PostgresPendingSettlementStore(read_only).get("key") is None


def test_the_migration_goes_up_and_down_and_leaves_nothing(empty_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as connection:
        for _ in range(2):
            for part in ("up", "check", "down"):
                connection.execute((FOLDER / f"0001_stores.{part}.sql").read_bytes())
        row = connection.execute("SELECT to_regnamespace('stores') IS NULL").fetchone()
    assert row == (True,)


def test_a_database_that_is_not_there_is_named_so_without_its_address() -> None:
    store = PostgresPendingSettlementStore("postgresql://user:0ddba11@127.0.0.1:9/none")
    with pytest.raises(DatabaseUnreachable) as refusal:
        store.get("key")
    assert "0ddba11" not in repr(refusal.value)
    assert refusal.value.__cause__ is None


def test_a_store_does_not_notice_that_its_connections_were_cut(
    connections: Connections, database_url: str
) -> None:
    store = PostgresPendingSettlementStore(connections)
    store.set("key", "0x01")
    with psycopg.connect(database_url, autocommit=True) as connection:
        cut = connection.execute(
            """
            SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
            WHERE application_name = 'tollbook-stores' AND datname = current_database()
            """
        )
        assert cut.rowcount > 0
    assert store.get("key") == "0x01"


def test_a_forked_process_has_connections_of_its_own(database_url: str) -> None:
    connections = Connections(database_url, connections_max=1)
    mine = connections.fetch("SELECT pg_backend_pid()", {})
    child = os.fork()
    if child == 0:
        os._exit(0 if connections.fetch("SELECT pg_backend_pid()", {}) != mine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert connections.fetch("SELECT pg_backend_pid()", {}) == mine
    connections.close()


def test_closed_connections_open_again(connections: Connections) -> None:
    store = PostgresPendingSettlementStore(connections)
    store.set("key", "0x01")
    connections.close()
    assert store.get("key") == "0x01"
