"""Partitions of the usage table: made weeks ahead, by the worker daily and by every paywall at its start."""

from typing import cast

from tollbook.core.database import Database

WEEKS_AHEAD = 8


async def make_partitions(database: Database) -> int:
    """Make the usage partitions of the weeks to come; how many were missing."""
    async with database.write() as tx:
        return cast(
            int,
            await tx.value(
                "SELECT core.ensure_partitions('payments.x402_usage', '7 days', %(weeks)s)",
                {"weeks": WEEKS_AHEAD},
            ),
        )
