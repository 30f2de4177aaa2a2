"""A buyer's payment channels: the SDK's ClientChannelStorage."""

from dataclasses import dataclass
from typing import Any

from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from x402.mechanisms.evm.batch_settlement.client.storage import BatchSettlementClientContext
from x402.mechanisms.evm.batch_settlement.utils import normalize_channel_id

from tollbook.core.stores.connections import Connections, find_connections
from tollbook.core.stores.sealing import Seal


@dataclass(frozen=True, slots=True)
class _Row:
    charged_cumulative_amount: str | None
    balance: str | None
    total_claimed: str | None
    signed_max_claimable: str | None
    signature: str | None
    extra: dict[str, Any]


class PostgresClientChannelStorage:
    """A `ClientChannelStorage` that all processes of one buyer, the `owner`, share.

    What the buyer owes on a channel never goes down: a context with a lower charged amount than the kept one
    is out of date (answers overtake each other) and changes nothing, until the channel is deleted. Signatures
    are kept as they are, or sealed with `key` (32 bytes, AES-256-GCM), and then no dump of the database shows
    one. `database` is an address or `Connections`.
    """

    def __init__(self, database: str | Connections, *, owner: str, key: bytes | None = None) -> None:
        self._connections = find_connections(database)
        self._owner = owner
        self._seal = Seal(key)

    def get(self, key: str) -> BatchSettlementClientContext | None:
        """The channel as this owner knows it, or None. Raises ValueError where `key` is no channel id."""
        channel_id = normalize_channel_id(key)
        with self._connections.open() as connection, connection.cursor(row_factory=class_row(_Row)) as cursor:
            cursor.execute(
                """
                SELECT charged_cumulative_amount::text, balance::text, total_claimed::text,
                       signed_max_claimable::text, signature, extra
                FROM stores.client_channels WHERE owner = %(owner)s AND channel_id = %(channel_id)s
                """,
                {"owner": self._owner, "channel_id": channel_id},
            )
            row = cursor.fetchone()
        if row is None:
            return None
        signature = row.signature and self._seal.open(row.signature, self._name_place(channel_id))
        return BatchSettlementClientContext(
            row.charged_cumulative_amount,
            row.balance,
            row.total_claimed,
            row.signed_max_claimable,
            signature,
            row.extra,
        )

    def set(self, key: str, context: BatchSettlementClientContext) -> None:
        """Keep the channel so, unless less is charged than is kept. Raises ValueError as `get` does."""
        channel_id = normalize_channel_id(key)
        self._connections.execute(
            """
            INSERT INTO stores.client_channels AS c (
                owner, channel_id, charged_cumulative_amount, balance, total_claimed, signed_max_claimable,
                signature, extra
            ) VALUES (
                %(owner)s, %(channel_id)s, %(charged)s, %(balance)s, %(total_claimed)s, %(signed_max)s,
                %(signature)s, %(extra)s
            )
            ON CONFLICT (owner, channel_id) DO UPDATE
            SET charged_cumulative_amount = excluded.charged_cumulative_amount, balance = excluded.balance,
                total_claimed = excluded.total_claimed, extra = excluded.extra,
                signed_max_claimable = greatest(c.signed_max_claimable, excluded.signed_max_claimable),
                signature = CASE WHEN excluded.signed_max_claimable >= coalesce(c.signed_max_claimable, 0)
                                 THEN excluded.signature ELSE c.signature END
            WHERE coalesce(excluded.charged_cumulative_amount, 0) >= coalesce(c.charged_cumulative_amount, 0)
            """,
            {
                "owner": self._owner,
                "channel_id": channel_id,
                "charged": context.charged_cumulative_amount,
                "balance": context.balance,
                "total_claimed": context.total_claimed,
                "signed_max": context.signed_max_claimable,
                "signature": context.signature
                and self._seal.close(context.signature, self._name_place(channel_id)),
                "extra": Jsonb(context.extra),
            },
        )

    def delete(self, key: str) -> None:
        """Forget the channel: it was refunded. Raises ValueError as `get` does."""
        self._connections.execute(
            "DELETE FROM stores.client_channels WHERE owner = %(owner)s AND channel_id = %(channel_id)s",
            {"owner": self._owner, "channel_id": normalize_channel_id(key)},
        )

    def _name_place(self, channel_id: str) -> str:
        return f"client {self._owner} {channel_id}"
