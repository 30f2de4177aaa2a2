"""The core's migrations: each goes up, keeps its promises, goes down without a trace, and up again."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import tollbook
from tollbook.embedded import Server
from tollbook.migrate import beside

FOLDER = Path(tollbook.__file__).parent / "core" / "migrations"
NAMES = sorted(file.name.removesuffix(".up.sql") for file in FOLDER.glob("*.up.sql"))


@pytest.fixture
def empty(postgres: Server) -> Iterator[psycopg.Connection]:
    """A connection to a database with nothing in it."""
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE test_core_migrations")
    with psycopg.connect(postgres.url("test_core_migrations"), autocommit=True) as connection:
        yield connection
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        beside.drop(connection, "test_core_migrations")


def run(connection: psycopg.Connection, name: str, part: str) -> None:
    with connection.transaction():
        connection.execute((FOLDER / f"{name}.{part}.sql").read_bytes())


def read_schemas(connection: psycopg.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT nspname::text FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$' ORDER BY 1"
    )
    return [row[0] for row in rows]


def test_each_goes_up_and_down_and_leaves_nothing(empty: psycopg.Connection) -> None:
    assert NAMES == [
        "0001_core",
        "0002_jobs",
        "0003_lanes",
        "0004_lanes_lost",
        "0005_webhooks",
        "0006_lanes_barred",
        "0007_webhook_secrets",
        "0008_lanes_dropped",
        "0009_lanes_own_nonce",
    ]
    for _ in range(2):
        for name in NAMES:
            run(empty, name, "up")
            run(empty, name, "check")
        assert read_schemas(empty) == ["core", "jobs", "public", "settlement"]
        for name in reversed(NAMES):
            run(empty, name, "down")
        assert read_schemas(empty) == ["public"]
    left = empty.execute(
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    ).fetchone()
    assert left == (0,)


@pytest.mark.parametrize(
    ("name", "breakage"),
    [
        ("0001_core", "DROP TRIGGER journal_refuses_change ON core.journal"),
        ("0001_core", "TRUNCATE core.journal_epochs"),
        ("0001_core", "ALTER TABLE core.api_keys DROP COLUMN scopes"),
        ("0002_jobs", "DROP FUNCTION jobs.procrastinate_fetch_job_v2"),
        ("0003_lanes", "DROP INDEX core.transactions_nonce"),
        ("0003_lanes", "DROP FUNCTION core.take_nonces"),
        ("0005_webhooks", "ALTER TABLE settlement.webhook_subscriptions DROP COLUMN began_in"),
        ("0006_lanes_barred", "ALTER TABLE core.transactions DROP COLUMN barred"),
    ],
)
def test_a_check_sees_what_is_missing(empty: psycopg.Connection, name: str, breakage: str) -> None:
    for each in NAMES:
        run(empty, each, "up")
    empty.execute(breakage.encode())
    with pytest.raises(psycopg.Error):
        run(empty, name, "check")
