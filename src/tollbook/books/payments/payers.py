"""Payers: who paid most."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from tollbook.core.database import ReadTx


@dataclass(frozen=True, slots=True)
class TopPayer:
    """A payer, over all time; amounts in whole units, refunds taken off."""

    from_address: str
    payment_count: int
    total_spent_usdc: Decimal
    total_requests_used: int
    last_payment_at: datetime


async def top(tx: ReadTx) -> list[TopPayer]:
    """The hundred who paid most, the first first."""
    return await tx.all(
        """
        SELECT from_address, payment_count, total_spent_usdc, total_requests_used, last_payment_at
        FROM payments.v_x402_top_payers
        """,
        into=TopPayer,
    )
