"""A seller's payment channels: the SDK's ChannelStorage for batch-settlement."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import Connection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from x402 import x402ResourceServer, x402ResourceServerSync
from x402.mechanisms.evm.batch_settlement.server.scheme import BatchSettlementEvmScheme
from x402.mechanisms.evm.batch_settlement.server.storage import (
    Channel,
    ChannelUpdate,
    ChannelUpdateResult,
    PendingRequest,
)
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig
from x402.mechanisms.evm.batch_settlement.utils import normalize_channel_id

from tollbook.core.errors import Refusal
from tollbook.core.stores.channel_queue import QUEUE_SECONDS_MAX, ChannelQueue
from tollbook.core.stores.connections import WAIT_SECONDS_MAX, Connections, find_connections
from tollbook.core.stores.sealing import Seal

LIST_MAX = 100_000  # channels in memory at once; the SDK's managers ask for all of them


class ChannelWouldShrink(Refusal):
    """An update would lower what was charged on a channel: it was computed from an old state."""

    reason = "channel-would-shrink"
    status = 409


class ChannelLocked(Refusal):
    """Another process has been updating the channel for too long."""

    reason = "channel-locked"
    status = 503


@dataclass(frozen=True, slots=True)
class Voucher:
    """What the payer signed: that so much, in minor units since the channel began, may be claimed."""

    signed_max_claimable: int
    signature: str


@dataclass(frozen=True, slots=True)
class _Row:
    channel_id: str
    channel_config: dict[str, Any]
    charged_cumulative_amount: str
    signed_max_claimable: str
    signature: str
    balance: str
    total_claimed: str
    withdraw_requested_at: int
    refund_nonce: int
    onchain_synced_at: int | None
    last_request_timestamp: int
    pending_id: str | None
    pending_signed_max: str | None
    pending_expires_at: int | None


class PostgresChannelStorage:
    """A `ChannelStorage` that all processes of a seller share.

    Updates of one channel happen one after another, whoever makes them. What was charged never goes down
    while the channel exists, and of all vouchers the highest is kept (`find_highest_voucher`), so a restart
    loses nothing that was signed. Signatures are kept as they are, or sealed with `key` (32 bytes,
    AES-256-GCM), and then no dump of the database shows one. `database` is an address or `Connections`.

    `queue` lets parallel requests on one channel wait for each other, where the SDK says `channel_busy`.
    """

    def __init__(self, database: str | Connections, *, key: bytes | None = None) -> None:
        self._connections = find_connections(database)
        self._seal = Seal(key)

    def queue(
        self,
        server: x402ResourceServer | x402ResourceServerSync,
        scheme: BatchSettlementEvmScheme,
        *,
        seconds_max: float = QUEUE_SECONDS_MAX,
    ) -> None:
        """Let a server's requests wait for their channel; after `seconds_max` the SDK refuses as ever.

        `scheme` is the one with this storage that is registered on the server.
        """
        ChannelQueue(self._connections, scheme, seconds_max).join(server)

    def get(self, channel_id: str) -> Channel | None:
        """The channel, or None. Raises ValueError where `channel_id` is none."""
        with self._connections.open() as connection:
            return self._read(connection, normalize_channel_id(channel_id))

    def list(self) -> list[Channel]:
        """Every channel, up to LIST_MAX."""
        with self._connections.open() as connection, connection.cursor(row_factory=class_row(_Row)) as cursor:
            cursor.execute(
                """
                SELECT channel_id, channel_config, charged_cumulative_amount::text,
                       signed_max_claimable::text, signature, balance::text, total_claimed::text,
                       withdraw_requested_at, refund_nonce, onchain_synced_at, last_request_timestamp,
                       pending_id, pending_signed_max::text, pending_expires_at
                FROM stores.channels ORDER BY channel_id LIMIT %(list_max)s
                """,
                {"list_max": LIST_MAX},
            )
            return [self._make_channel(row) for row in cursor.fetchall()]

    def update_channel(self, channel_id: str, update: ChannelUpdate) -> ChannelUpdateResult:
        """Give the channel, or None, to `update`, and keep what it returns: the same object changes nothing,
        None deletes.

        No other update of this channel runs meanwhile, in any process. Raises ValueError where `channel_id`
        is none, ChannelWouldShrink, ChannelLocked, and what `update` raises; then nothing was changed.
        """
        channel_id = normalize_channel_id(channel_id)
        with self._connections.open() as connection, _locking(connection):
            current = self._read(connection, channel_id, lock=True)
            changed = update(current)
            if changed is current:
                return ChannelUpdateResult(current, "unchanged")
            if changed is None:
                _delete(connection, channel_id)
                return ChannelUpdateResult(None, "deleted")
            self._write(connection, channel_id, changed)
            _pass_turn(connection, channel_id, current and current.pending_request, changed.pending_request)
            return ChannelUpdateResult(changed.copy(), "updated")

    def seal_signature(self, channel_id: str, signature: str) -> str:
        """A signature as it is kept at its channel."""
        return self._seal.close(signature, _name_place(channel_id))

    def find_highest_voucher(self, channel_id: str) -> Voucher | None:
        """The voucher of the channel that is worth most, whichever came last."""
        channel_id = normalize_channel_id(channel_id)
        row = self._connections.fetch(
            """
            SELECT highest_signed_max, highest_signature FROM stores.channels
            WHERE channel_id = %(channel_id)s
            """,
            {"channel_id": channel_id},
        )
        return None if row is None else Voucher(int(row[0]), self._seal.open(row[1], _name_place(channel_id)))

    def _read(self, connection: Connection[Any], channel_id: str, *, lock: bool = False) -> Channel | None:
        row = _select(connection, channel_id, lock=lock)
        if row is None and lock:
            # Nothing to lock yet. Whoever makes the channel holds this, and by then it may be made.
            connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(%(channel_id)s, 402))",
                {"channel_id": channel_id},
            )
            row = _select(connection, channel_id, lock=True)
        return row and self._make_channel(row)

    def _make_channel(self, row: _Row) -> Channel:
        pending = None
        if row.pending_id is not None and row.pending_signed_max and row.pending_expires_at is not None:
            pending = PendingRequest(row.pending_id, row.pending_signed_max, row.pending_expires_at)
        return Channel(
            channel_id=row.channel_id,
            channel_config=ChannelConfig.from_dict(row.channel_config),
            charged_cumulative_amount=row.charged_cumulative_amount,
            signed_max_claimable=row.signed_max_claimable,
            signature=self._seal.open(row.signature, _name_place(row.channel_id)),
            balance=row.balance,
            total_claimed=row.total_claimed,
            withdraw_requested_at=row.withdraw_requested_at,
            refund_nonce=int(row.refund_nonce),
            onchain_synced_at=row.onchain_synced_at,
            last_request_timestamp=row.last_request_timestamp,
            pending_request=pending,
        )

    def _write(self, connection: Connection[Any], channel_id: str, channel: Channel) -> None:
        pending = channel.pending_request
        values = {
            "channel_id": channel_id,
            "channel_config": Jsonb(channel.channel_config.to_dict()),
            "charged": channel.charged_cumulative_amount,
            "signed_max": channel.signed_max_claimable,
            "signature": self.seal_signature(channel_id, channel.signature),
            "balance": channel.balance,
            "total_claimed": channel.total_claimed,
            "withdraw_requested_at": channel.withdraw_requested_at,
            "refund_nonce": channel.refund_nonce,
            "onchain_synced_at": channel.onchain_synced_at,
            "last_request_timestamp": channel.last_request_timestamp,
            "pending_id": pending and pending.pending_id,
            "pending_signed_max": pending and pending.signed_max_claimable,
            "pending_expires_at": pending and pending.expires_at,
        }
        if not _upsert(connection, values):
            raise ChannelWouldShrink("More was charged on this channel already. Read it again and try again.")


@contextmanager
def _locking(connection: Connection[Any]) -> Generator[None]:
    """A transaction that does not wait for a lock for ever."""
    try:
        with connection.transaction():
            connection.execute(
                "SELECT set_config('lock_timeout', %(milliseconds)s, true)",
                {"milliseconds": str(round(WAIT_SECONDS_MAX * 1000))},
            )
            yield
    except psycopg.errors.LockNotAvailable:
        raise ChannelLocked("This channel is being updated elsewhere. Try again in a moment.") from None


def _select(connection: Connection[Any], channel_id: str, *, lock: bool) -> _Row | None:
    read: LiteralString = """
        SELECT channel_id, channel_config, charged_cumulative_amount::text, signed_max_claimable::text,
               signature, balance::text, total_claimed::text, withdraw_requested_at,
               refund_nonce, onchain_synced_at, last_request_timestamp,
               pending_id, pending_signed_max::text, pending_expires_at
        FROM stores.channels WHERE channel_id = %(channel_id)s
        """
    with connection.cursor(row_factory=class_row(_Row)) as cursor:
        cursor.execute(read + " FOR UPDATE" if lock else read, {"channel_id": channel_id})
        return cursor.fetchone()


def _upsert(connection: Connection[Any], values: dict[str, Any]) -> bool:
    """Whether the channel was written: not where less would be charged on it than was."""
    written = connection.execute(
        """
        INSERT INTO stores.channels AS c (
            channel_id, channel_config, charged_cumulative_amount, signed_max_claimable, signature,
            highest_signed_max, highest_signature, balance, total_claimed, withdraw_requested_at,
            refund_nonce, onchain_synced_at, last_request_timestamp,
            pending_id, pending_signed_max, pending_expires_at
        ) VALUES (
            %(channel_id)s, %(channel_config)s, %(charged)s, %(signed_max)s, %(signature)s,
            %(signed_max)s, %(signature)s, %(balance)s, %(total_claimed)s, %(withdraw_requested_at)s,
            %(refund_nonce)s, %(onchain_synced_at)s, %(last_request_timestamp)s,
            %(pending_id)s, %(pending_signed_max)s, %(pending_expires_at)s
        )
        ON CONFLICT (channel_id) DO UPDATE
        SET channel_config = excluded.channel_config,
            charged_cumulative_amount = excluded.charged_cumulative_amount,
            signed_max_claimable = excluded.signed_max_claimable, signature = excluded.signature,
            highest_signed_max = greatest(c.highest_signed_max, excluded.signed_max_claimable),
            highest_signature = CASE WHEN excluded.signed_max_claimable >= c.highest_signed_max
                                     THEN excluded.signature ELSE c.highest_signature END,
            balance = excluded.balance, total_claimed = excluded.total_claimed,
            withdraw_requested_at = excluded.withdraw_requested_at, refund_nonce = excluded.refund_nonce,
            onchain_synced_at = excluded.onchain_synced_at,
            last_request_timestamp = excluded.last_request_timestamp, pending_id = excluded.pending_id,
            pending_signed_max = excluded.pending_signed_max, pending_expires_at = excluded.pending_expires_at
        WHERE c.charged_cumulative_amount <= excluded.charged_cumulative_amount
        """,
        values,
    )
    return written.rowcount == 1


def _pass_turn(
    connection: Connection[Any], channel_id: str, before: PendingRequest | None, after: PendingRequest | None
) -> None:
    """The turn is the pending request's as long as the channel is reserved for it; then it is anybody's."""
    if after is not None:
        connection.execute(
            """
            INSERT INTO stores.channel_turns (channel_id, holder, ends_at)
            VALUES (%(channel_id)s, %(holder)s, to_timestamp(%(expires_at)s / 1000.0))
            ON CONFLICT (channel_id) DO UPDATE SET holder = excluded.holder, ends_at = excluded.ends_at
            """,
            {"channel_id": channel_id, "holder": after.pending_id, "expires_at": after.expires_at},
        )
    elif before is not None:
        connection.execute(
            """
            UPDATE stores.channel_turns SET ends_at = '-infinity'
            WHERE channel_id = %(channel_id)s AND holder = %(holder)s
            """,
            {"channel_id": channel_id, "holder": before.pending_id},
        )


def _delete(connection: Connection[Any], channel_id: str) -> None:
    connection.execute(
        "DELETE FROM stores.channels WHERE channel_id = %(channel_id)s", {"channel_id": channel_id}
    )
    connection.execute(
        "DELETE FROM stores.channel_turns WHERE channel_id = %(channel_id)s", {"channel_id": channel_id}
    )


def _name_place(channel_id: str) -> str:
    return f"server {channel_id}"
