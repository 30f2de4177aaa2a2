"""Analytics: what each hour brought and answered, kept up to date by update_x402_analytics()."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from tollbook.core.database import ReadTx, WriteTx

HOURS_MAX = 5_000  # rows a report gives at most


@dataclass(frozen=True, slots=True)
class Hour:
    """One hour of one endpoint in one asset. Payments are those settled in it, whatever became of them."""

    hour_bucket: datetime
    network: str
    asset: str
    endpoint: str
    chain: str
    total_payments: int
    refunded_payments: int
    unique_payers: int
    total_amount_usdc: Decimal
    average_payment_usdc: Decimal | None
    total_requests: int
    success_count: int
    error_count: int
    response_time_ms_total: int
    response_time_counts: list[int]


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """One endpoint's last 24 hours."""

    endpoint: str
    request_count: int
    avg_response_time_ms: Decimal
    unique_payers: int
    success_count: int
    error_count: int


async def update(tx: WriteTx) -> int:
    """Count what is new since the last time; how many hours were counted. Waits for another that runs."""
    return int(await tx.value("SELECT payments.update_x402_analytics()"))


async def hours(tx: ReadTx, *, since: datetime, until: datetime) -> list[Hour]:
    """The counted hours that begin in [since, until), oldest first, at most HOURS_MAX."""
    return await tx.all(
        """
        SELECT hour_bucket, network, asset, endpoint, chain, total_payments, refunded_payments, unique_payers,
               total_amount_usdc, average_payment_usdc, total_requests, success_count, error_count,
               response_time_ms_total, response_time_counts
        FROM payments.x402_analytics
        WHERE hour_bucket >= %(since)s AND hour_bucket < %(until)s AND watermark IS NULL
        ORDER BY hour_bucket, network, asset, endpoint LIMIT %(limit)s
        """,
        {"since": since, "until": until, "limit": HOURS_MAX},
        into=Hour,
    )


async def endpoints(tx: ReadTx) -> list[EndpointStats]:
    """Each endpoint's last 24 hours, up to this instant, the busiest first."""
    return await tx.all(
        """
        SELECT endpoint, request_count, avg_response_time_ms, unique_payers, success_count, error_count
        FROM payments.v_x402_endpoint_stats
        """,
        into=EndpointStats,
    )
