"""What the reports cost the server: 100,000 payments over 30 days, 1,000,000 usage rows."""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg

sys.path.insert(0, str(Path(__file__).parent))

from tollbook.embedded import throwaway
from usage import migrate

RUNS = 15
LOOKUPS = 200

PARTITIONS = """
DO $$
BEGIN
    FOR week IN 1..6 LOOP
        EXECUTE format('CREATE TABLE payments.x402_usage_old_%s PARTITION OF payments.x402_usage
                        FOR VALUES FROM (%L) TO (%L)', week,
                       date_bin('7 days', now(), '2024-01-01 00:00+00') - week * interval '7 days',
                       date_bin('7 days', now(), '2024-01-01 00:00+00') - (week - 1) * interval '7 days');
    END LOOP;
END
$$
"""
# One in six still buys requests; the others are used up, some of them expired, as in a book that has aged.
PAYMENTS = """
INSERT INTO payments.x402_payments (
    payment_id, created_at, updated_at, verified_at, settled_at, expires_at, settled_in, requests_allocated,
    requests_used, decimals, amount, lifetime, status, settlement, network, chain, asset, scheme,
    from_address, to_address, endpoint, nonce, tx_hash)
SELECT n, at, at, at, at, at + interval '1 day', 1, 20,
       CASE WHEN at > now() - interval '20 hours' THEN 10 ELSE 20 END, 6, 1000 + n, '1 day',
       CASE
           WHEN at < now() - interval '1 day' THEN 'expired'
           WHEN at > now() - interval '20 hours' THEN 'verified'
           ELSE 'used'
       END,
       'settled', CASE n % 3 WHEN 0 THEN 'eip155:8453' ELSE 'eip155:84532' END,
       CASE n % 3 WHEN 0 THEN 'base' ELSE 'base-sepolia' END, '0x' || repeat('11', 20), 'exact',
       '0x' || lpad(to_hex(n % 5000), 40, '0'), '0x' || repeat('33', 20), 'GET /a',
       '0x' || lpad(to_hex(n), 64, '0'), '0x' || lpad(to_hex(n * 7919), 64, '0')
FROM generate_series(1, 100000) AS n,
     LATERAL (SELECT now() - (100000 - n) * interval '25.92 seconds') AS t (at)
"""
# A payment's requests come soon after it, among those of others: as rows arrive.
USAGE = """
INSERT INTO payments.x402_usage (payment_id, created_at, response_time_ms, endpoint_id, status_code)
SELECT greatest(1, least(100000, n / 10 - (random() * 300)::int)),
       now() - (1000000 - n) * interval '2.592 seconds', (random() * 200)::int, 1 + n % 5, 200
FROM generate_series(1, 1000000) AS n
"""
RECENT = """
INSERT INTO payments.x402_usage (payment_id, created_at, response_time_ms, endpoint_id, status_code)
SELECT 95000 + n / 10, date_trunc('hour', now()), 7, 1 + n % 5, 200 FROM generate_series(1, 5000) AS n
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement, in its unit, and the goal it must stay under."""

    name: str
    value: float
    unit: str
    goal: float | None


def fill(connection: psycopg.Connection[Any]) -> None:
    """An aged book, vacuumed as autovacuum would have it."""
    connection.execute(PARTITIONS)
    connection.execute(
        "INSERT INTO core.labels SELECT 'payments.endpoint', n, 'GET /' || n FROM generate_series(1, 5) n"
    )
    connection.execute(PAYMENTS)
    connection.execute(USAGE)
    connection.execute("VACUUM (ANALYZE)")


def explain(
    connection: psycopg.Connection[Any], sql: LiteralString, params: dict[str, Any] | None = None
) -> float:
    """The server's time for one run: planning and execution, in milliseconds."""
    row = connection.execute("EXPLAIN (ANALYZE, TIMING off, FORMAT json) " + sql, params).fetchone()
    assert row is not None
    plan = row[0][0]
    return plan["Planning Time"] + plan["Execution Time"]


def measure_reports(connection: psycopg.Connection[Any]) -> list[Figure]:
    """Lookup, views and endpoint stats."""
    lookup = """
        SELECT payment_id FROM payments.x402_payments
        WHERE network = %(n)s AND tx_hash = %(h)s AND status <> 'failed'
        """
    times = [
        explain(connection, lookup, {"n": "eip155:8453", "h": f"0x{nth * 3 * 7919:064x}"})
        for nth in range(LOOKUPS)
    ]
    figures = [Figure("lookup by tx hash", statistics.median(times), "ms", 0.5)]
    views: list[tuple[str, LiteralString, float | None]] = [
        ("active view, a page of 100", "SELECT * FROM payments.v_x402_active_payments LIMIT 100", 5),
        ("active view, whole", "SELECT * FROM payments.v_x402_active_payments", 5),
        ("24 h stats", "SELECT * FROM payments.v_x402_stats_24h", 5),
        ("endpoint stats, 24 h", "SELECT * FROM payments.v_x402_endpoint_stats", None),
        ("top payers", "SELECT * FROM payments.v_x402_top_payers", None),
    ]
    for name, sql, goal in views:
        figures.append(
            Figure(name, statistics.median(explain(connection, sql) for _ in range(RUNS)), "ms", goal)
        )
    return figures


def measure_analytics(connection: psycopg.Connection[Any]) -> list[Figure]:
    """The first roll-up of all, then hours of 5,000 new rows."""
    run = "SELECT payments.update_x402_analytics()"
    whole = explain(connection, run)
    times: list[float] = []
    for _ in range(5):
        connection.execute("DELETE FROM payments.x402_usage WHERE created_at >= date_trunc('hour', now())")
        connection.execute("VACUUM payments.x402_usage")
        explain(connection, run)
        connection.execute(RECENT)
        times.append(explain(connection, run))
    return [
        Figure("analytics, an hour of 5,000 rows", statistics.median(times), "ms", 20),
        Figure("analytics, all 30 days anew", whole, "ms", None),
    ]


def measure_bytes(connection: psycopg.Connection[Any]) -> Figure:
    """Disk of the usage table with its indexes, for each row."""
    row = connection.execute(
        """
        SELECT sum(pg_total_relation_size(inhrelid))
               / (SELECT count(*) FROM payments.x402_usage)
        FROM pg_inherits WHERE inhparent = 'payments.x402_usage'::regclass
          AND pg_relation_size(inhrelid) > 0
        """
    ).fetchone()
    assert row is not None
    return Figure("one usage row with its indexes", float(row[0]), "bytes", 70)


def main() -> None:
    """Measure on a throw-away server."""
    with throwaway() as server:
        migrate(server.url())
        with psycopg.connect(server.url(), autocommit=True) as connection:
            fill(connection)
            figures = [
                *measure_reports(connection),
                measure_bytes(connection),
                *measure_analytics(connection),
            ]
    print(f"{'':36}{'value':>12}{'goal':>10}{'of goal':>9}")
    for figure in figures:
        goal = f"< {figure.goal:g}" if figure.goal else ""
        of_goal = f"{figure.value / figure.goal:.2f}" if figure.goal else ""
        print(f"{figure.name:36}{figure.value:>9.2f} {figure.unit:5}{goal:>7}{of_goal:>9}")


if __name__ == "__main__":
    main()
