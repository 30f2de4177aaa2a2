"""Transactions that were broadcast and not yet confirmed: the SDK's PendingSettlementStore."""

from datetime import timedelta

from tollbook.core.stores.connections import Connections, find_connections, hash_key

KEEP = timedelta(days=30)  # no authorization is valid that long; until then a retry must find its transaction


class PostgresPendingSettlementStore:
    """A `PendingSettlementStore` that every facilitator of the database shares.

    A retry that reaches another process, or this one after a restart, finds the transaction that was already
    sent and waits for it, in place of a second one that fails and makes a paid payment look unpaid. An entry
    stays until it is deleted or purged. `database` is an address or `Connections`.
    """

    def __init__(self, database: str | Connections) -> None:
        self._connections = find_connections(database)

    def get(self, key: str) -> str | None:
        """The transaction's hash, or None."""
        row = self._connections.fetch(
            "SELECT tx_hash FROM stores.pending_settlements WHERE key_hash = %(key_hash)s",
            {"key_hash": hash_key(key)},
        )
        return None if row is None else row[0]

    def set(self, key: str, tx_hash: str) -> None:
        """Remember that the payment was broadcast as this transaction; the last one counts."""
        self._connections.execute(
            """
            INSERT INTO stores.pending_settlements (key_hash, tx_hash) VALUES (%(key_hash)s, %(tx_hash)s)
            ON CONFLICT (key_hash) DO UPDATE SET tx_hash = excluded.tx_hash, broadcast_at = now()
            """,
            {"key_hash": hash_key(key), "tx_hash": tx_hash},
        )

    def delete(self, key: str) -> None:
        """Forget it: it is confirmed, or failed for good."""
        self._connections.execute(
            "DELETE FROM stores.pending_settlements WHERE key_hash = %(key_hash)s",
            {"key_hash": hash_key(key)},
        )

    def purge(self, older_than: timedelta = KEEP) -> int:
        """Forget what was broadcast longer ago; how many."""
        return self._connections.execute(
            "DELETE FROM stores.pending_settlements WHERE broadcast_at < now() - %(older_than)s::interval",
            {"older_than": older_than},
        )
