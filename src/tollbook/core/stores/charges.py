"""A channel reserved and charged inside of a transaction of the seller's own books: both happen, or neither.

What the SDK's scheme does by reading, comparing and writing back is one statement here each, with the same
conditions; so its requests and these may share a channel. Rows are locked in the same order: channel, turn.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from tollbook.core.database import WriteTx

PENDING_SECONDS = (5, 600)  # the SDK's: a request reserves its channel for no less, and no more


@dataclass(frozen=True, slots=True)
class Voucher:
    """A voucher of a request, its signature as the store keeps it; amounts in minor units.

    `base` is what was charged on the channel before: the request may be charged from nothing to the rest.
    """

    channel_id: str
    base: int
    signed_max: int
    signature: str
    pending_id: str  # the request's own, by which it holds the channel


@dataclass(frozen=True, slots=True)
class State:
    """What the chain said of a channel."""

    balance: str = "0"
    total_claimed: str = "0"
    withdraw_requested_at: int = 0
    refund_nonce: str = "0"

    @classmethod
    def read(cls, shown: Mapping[str, Any]) -> "State":
        """Return the state in an x402 `channelState`."""
        return cls(
            balance=str(shown.get("balance", 0)),
            total_claimed=str(shown.get("totalClaimed", 0)),
            withdraw_requested_at=int(shown.get("withdrawRequestedAt", 0)),
            refund_nonce=str(shown.get("refundNonce", 0)),
        )

    def show(self) -> dict[str, Any]:
        """Return it as an x402 `channelState`."""
        return {
            "balance": self.balance,
            "totalClaimed": self.total_claimed,
            "withdrawRequestedAt": self.withdraw_requested_at,
            "refundNonce": self.refund_nonce,
        }


async def reserve(
    tx: WriteTx,
    voucher: Voucher,
    config: Mapping[str, Any],
    names: Sequence[str],
    *,
    seconds: int,
    fresh_milliseconds: int,
) -> State | None:
    """Reserve a channel for a voucher that its payer signed; None where it cannot be had just so.

    `config` is the channel's, `names` are those whose turn is the request's as well, `seconds` is how long
    its app may take, and the chain was asked within `fresh_milliseconds`. Waits for no disk: nothing is owed.
    """
    now, (least, most) = int(time.time() * 1000), PENDING_SECONDS
    return await tx.maybe(
        """
        WITH quick AS (SELECT set_config('synchronous_commit', 'off', true)),
        free AS (
            SELECT c.channel_id FROM stores.channels AS c, quick
            WHERE c.channel_id = %(channel_id)s AND c.channel_config = %(config)s
              AND c.charged_cumulative_amount = %(base)s AND c.total_claimed < %(signed_max)s
              AND c.balance >= %(signed_max)s AND c.onchain_synced_at >= %(fresh_from)s
              AND (c.pending_id IS NULL OR c.pending_expires_at <= %(now)s)
            FOR UPDATE OF c),
        turn AS (
            INSERT INTO stores.channel_turns AS t (channel_id, holder, ends_at)
            SELECT channel_id, %(pending_id)s, to_timestamp(%(expires_at)s / 1000.0) FROM free
            ON CONFLICT (channel_id) DO UPDATE SET holder = excluded.holder, ends_at = excluded.ends_at
            WHERE t.ends_at < clock_timestamp() OR t.holder = ANY (%(names)s)
            RETURNING channel_id)
        UPDATE stores.channels AS c
        SET pending_id = %(pending_id)s, pending_signed_max = %(signed_max)s,
            pending_expires_at = %(expires_at)s, last_request_timestamp = %(now)s
        FROM turn WHERE c.channel_id = turn.channel_id
        RETURNING c.balance::text, c.total_claimed::text, c.withdraw_requested_at, c.refund_nonce::text
        """,
        {
            "channel_id": voucher.channel_id,
            "config": Jsonb(dict(config)),
            "base": voucher.base,
            "signed_max": voucher.signed_max,
            "fresh_from": now - fresh_milliseconds,
            "now": now,
            "pending_id": voucher.pending_id,
            "expires_at": now + 1000 * min(max(seconds, least), most),
            "names": list(names),
        },
        into=State,
    )


async def charge(tx: WriteTx, voucher: Voucher, amount: int, state: State | None = None) -> bool:
    """Charge a channel, and leave it to the next; whether nobody else was charged since the voucher's base.

    `state` is the channel's where a deposit has changed it. Waits for no disk: commit something that does,
    such as the request's row of usage, before the answer leaves.
    """
    now = int(time.time() * 1000)
    charged = await tx.value(
        """
        WITH quick AS (SELECT set_config('synchronous_commit', 'off', true)),
        charged AS (
            UPDATE stores.channels AS c
            SET charged_cumulative_amount = c.charged_cumulative_amount + %(amount)s,
                signed_max_claimable = %(signed_max)s, signature = %(signature)s,
                highest_signed_max = greatest(c.highest_signed_max, %(signed_max)s),
                highest_signature = CASE WHEN %(signed_max)s >= c.highest_signed_max
                                         THEN %(signature)s ELSE c.highest_signature END,
                balance = coalesce(%(balance)s, c.balance),
                total_claimed = coalesce(%(total_claimed)s, c.total_claimed),
                withdraw_requested_at = coalesce(%(withdraw_requested_at)s, c.withdraw_requested_at),
                refund_nonce = coalesce(%(refund_nonce)s, c.refund_nonce),
                onchain_synced_at = coalesce(%(synced_at)s, c.onchain_synced_at),
                last_request_timestamp = %(now)s,
                pending_id = NULL, pending_signed_max = NULL, pending_expires_at = NULL
            FROM quick
            WHERE c.channel_id = %(channel_id)s AND c.charged_cumulative_amount = %(base)s
            RETURNING c.channel_id),
        passed AS (
            UPDATE stores.channel_turns AS t SET ends_at = '-infinity'
            FROM charged WHERE t.channel_id = charged.channel_id AND t.holder = %(pending_id)s)
        SELECT count(*) FROM charged
        """,
        {
            "channel_id": voucher.channel_id,
            "base": voucher.base,
            "amount": amount,
            "signed_max": voucher.signed_max,
            "signature": voucher.signature,
            "balance": state and state.balance,
            "total_claimed": state and state.total_claimed,
            "withdraw_requested_at": state and state.withdraw_requested_at,
            "refund_nonce": state and state.refund_nonce,
            "synced_at": state and now,
            "now": now,
            "pending_id": voucher.pending_id,
        },
    )
    return charged == 1


async def release(tx: WriteTx, voucher: Voucher) -> None:
    """Leave a reserved channel to the next: nothing is charged."""
    await tx.execute(
        """
        WITH released AS (
            UPDATE stores.channels
            SET pending_id = NULL, pending_signed_max = NULL, pending_expires_at = NULL
            WHERE channel_id = %(channel_id)s AND pending_id = %(pending_id)s
            RETURNING channel_id)
        UPDATE stores.channel_turns AS t SET ends_at = '-infinity'
        FROM released WHERE t.channel_id = released.channel_id AND t.holder = %(pending_id)s
        """,
        {"channel_id": voucher.channel_id, "pending_id": voucher.pending_id},
    )
