"""The payments schema: what it promises to make, that it can be taken away, and that each index is used."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tollbook.books import payments

MIGRATION = Path(payments.__file__).parent / "migrations" / "0001_payments.up.sql"
TABLES = {"x402_payments", "x402_tokens", "x402_usage", "x402_analytics"}
VIEWS = {"v_x402_active_payments", "v_x402_stats_24h", "v_x402_top_payers", "v_x402_endpoint_stats"}
FUNCTIONS = {"cleanup_expired_x402_payments", "update_x402_analytics"}

# One query for each of the indexes, as the book asks it.
QUERIES = {
    "idx_x402_payments_nonce": """
        SELECT payment_id FROM payments.x402_payments WHERE network = 'a' AND asset = 'b'
        AND from_address = 'c' AND nonce = 'd' AND status <> 'failed'""",
    "idx_x402_payments_tx_hash": """
        SELECT payment_id FROM payments.x402_payments
        WHERE network = 'a' AND tx_hash = 'b' AND status <> 'failed'""",
    "idx_x402_payments_from_address": """
        SELECT payment_id FROM payments.x402_payments
        WHERE from_address = 'a' AND payment_id < 9 ORDER BY payment_id DESC LIMIT 5""",
    "idx_x402_payments_status": """
        SELECT payment_id FROM payments.x402_payments
        WHERE status = 'pending' ORDER BY payment_id DESC LIMIT 5""",
    "idx_x402_payments_active": "SELECT payment_id FROM payments.v_x402_active_payments",
    "idx_x402_payments_expiry": """
        SELECT payment_id FROM payments.x402_payments WHERE status IN ('verified', 'used')
        AND expires_at <= now() ORDER BY expires_at LIMIT 10000""",
    "idx_x402_payments_unheard": """
        SELECT payment_id FROM payments.x402_payments WHERE status = 'pending' AND settlement = 'pending'
        AND valid_before <= now() ORDER BY valid_before LIMIT 10000""",
    "idx_x402_payments_settled_at": "SELECT chain FROM payments.v_x402_stats_24h",
    "idx_x402_payments_settled_in": "SELECT settled_at FROM payments.x402_payments WHERE settled_in >= 7",
    "idx_x402_tokens_token_hash": "SELECT payment_id FROM payments.x402_tokens WHERE token_hash = 'a'",
    "idx_x402_tokens_payment": """
        SELECT token_id FROM payments.x402_tokens WHERE payment_id = 5 ORDER BY token_id DESC LIMIT 5""",
    "idx_x402_usage_time": "SELECT endpoint FROM payments.v_x402_endpoint_stats",
    "idx_x402_usage_payment": "SELECT created_at FROM payments.x402_usage WHERE payment_id = 5",
}


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url) as opened:
        yield opened


def read_names(connection: psycopg.Connection[Any], sql: str) -> set[str]:
    return {row[0] for row in connection.execute(sql.encode())}


def test_the_schema_has_its_four_tables_four_views_two_functions_and_thirteen_indexes(
    connection: psycopg.Connection[Any],
) -> None:
    relations = """
        SELECT relname FROM pg_class WHERE relnamespace = 'payments'::regnamespace AND NOT relispartition
        AND relkind = ANY('{%s}')
        """
    assert read_names(connection, relations % "r,p") >= TABLES
    assert read_names(connection, relations % "v") >= VIEWS
    functions = "SELECT proname FROM pg_proc WHERE pronamespace = 'payments'::regnamespace"
    assert read_names(connection, functions) >= FUNCTIONS
    indexes = """
        SELECT c.relname FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid
        WHERE relnamespace = 'payments'::regnamespace AND NOT relispartition AND NOT indisprimary
        """
    assert read_names(connection, indexes) >= set(QUERIES)
    assert len(QUERIES) == 13


def test_the_file_makes_each_object_by_one_statement() -> None:
    words = ("TABLE", "VIEW", "FUNCTION", r"(?:UNIQUE )?INDEX")
    sql = MIGRATION.read_text()
    assert [len(re.findall(rf"^CREATE {word} ", sql, re.MULTILINE)) for word in words] == [4, 4, 2, 13]


@pytest.mark.parametrize("index", QUERIES)
def test_each_index_serves_the_query_it_is_there_for(connection: psycopg.Connection[Any], index: str) -> None:
    # Empty tables are read whole by choice; without that choice, and the others, the index must serve.
    connection.execute("SET enable_seqscan = off")
    others = [name for name in QUERIES if name != index]
    connection.execute("SET LOCAL lock_timeout = '5s'")
    for name in others:
        connection.execute(f"DROP INDEX payments.{name}".encode())
    plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {QUERIES[index]}".encode()))
    usage = index.startswith("idx_x402_usage")
    column = {"idx_x402_usage_time": "created_at_transaction_id", "idx_x402_usage_payment": "payment_id"}
    wanted = rf"x402_usage_\d+t\d+_{column[index]}_idx" if usage else index
    assert re.search(rf"(?:using|on) {wanted}\b", plan), plan


def test_the_migrations_can_be_taken_back_and_made_again(connection: psycopg.Connection[Any]) -> None:
    ups = sorted(MIGRATION.parent.glob("*.up.sql"))
    for up in reversed(ups):
        connection.execute(up.with_name(up.name.replace(".up.", ".down.")).read_bytes())
    assert read_names(connection, "SELECT nspname FROM pg_namespace") >= {"core"}
    assert "payments" not in read_names(connection, "SELECT nspname FROM pg_namespace")
    for up in ups:
        connection.execute(up.read_bytes())
        connection.execute(up.with_name(up.name.replace(".up.", ".check.")).read_bytes())
