"""Solana payments that are being settled at this moment: the SDK's SettlementCache."""

from datetime import timedelta

from x402.mechanisms.svm.constants import SETTLEMENT_TTL_SECONDS
from x402.mechanisms.svm.settlement_cache import SettlementCache

from tollbook.core.stores.connections import Connections, find_connections, hash_key


class PostgresSettlementCache(SettlementCache):
    """A `SettlementCache` that every facilitator of the database shares.

    Of any number of processes that settle one payment at once, one is told that it is no duplicate. A payment
    is forgotten after `lifetime`, by default the SDK's: longer than a Solana transaction can land. `database`
    is an address or `Connections`.
    """

    def __init__(
        self,
        database: str | Connections,
        *,
        lifetime: timedelta = timedelta(seconds=SETTLEMENT_TTL_SECONDS),
    ) -> None:
        super().__init__()
        self._connections = find_connections(database)
        self._lifetime = lifetime

    def is_duplicate(self, key: str) -> bool:
        """Whether the payment is being settled already; where not, it is from now on, by the caller."""
        taken = self._connections.execute(
            """
            INSERT INTO stores.settlement_keys AS k (key_hash) VALUES (%(key_hash)s)
            ON CONFLICT (key_hash) DO UPDATE SET seen_at = now()
            WHERE k.seen_at < now() - %(lifetime)s::interval
            """,
            {"key_hash": hash_key(key), "lifetime": self._lifetime},
        )
        return taken == 0

    def delete(self, key: str) -> None:
        """Let the payment be settled again: it was not sent."""
        self._connections.execute(
            "DELETE FROM stores.settlement_keys WHERE key_hash = %(key_hash)s", {"key_hash": hash_key(key)}
        )

    def purge(self) -> int:
        """Delete what is past its lifetime; how many."""
        return self._connections.execute(
            "DELETE FROM stores.settlement_keys WHERE seen_at < now() - %(lifetime)s::interval",
            {"lifetime": self._lifetime},
        )
