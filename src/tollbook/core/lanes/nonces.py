"""Nonces: handed out by one statement, given back where they surely were not used, never behind the chain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from psycopg.errors import UniqueViolation

from tollbook.core import clock, ids
from tollbook.core.database import Database, ReadTx, WriteTx
from tollbook.core.lanes.transactions import Call

TAKE_ATTEMPTS_MAX = 5
GAP_SPAN_MAX = 100_000  # nonces that are looked through for gaps at once
ID_CONSTRAINT = "transactions_pkey"  # broken by an id that was made twice in a millisecond
NONCE_CONSTRAINT = "transactions_nonce"  # by one that was lost, and came back to its nonce


@dataclass(frozen=True, slots=True)
class Taken:
    """A purpose's row after nonces were taken; `taken` when it was given its nonce just now."""

    purpose: str
    transaction_id: int
    sender: str | None
    nonce: int | None
    taken: bool


async def take_nonces(
    database: Database, network: str, senders: Sequence[str], calls: Sequence[Call]
) -> list[Taken]:
    """Reserve a nonce for each call whose purpose is new or was dropped; a row for every purpose."""
    for attempt in range(1, TAKE_ATTEMPTS_MAX + 1):
        try:
            return await _take(database, network, senders, calls)
        except UniqueViolation as error:
            broken = error.diag.constraint_name
            if broken not in (ID_CONSTRAINT, NONCE_CONSTRAINT) or attempt == TAKE_ATTEMPTS_MAX:
                raise
            async with database.write() as tx:
                await close_held(tx, network)
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _take(
    database: Database, network: str, senders: Sequence[str], calls: Sequence[Call]
) -> list[Taken]:
    calls = sorted(calls, key=lambda call: call.purpose)
    # One statement that is its own transaction: the lane's row is locked for no round trip to this process.
    async with database.statement() as tx:
        return await tx.all(
            """
            SELECT purpose, transaction_id, sender, nonce, taken
            FROM core.take_nonces(
                %(network)s, %(senders)s::text[], %(ids)s::bigint[], %(purposes)s::text[],
                %(fingerprints)s::bytea[], %(now)s, false
            )
            """,
            {
                "network": network,
                "senders": list(senders),
                "ids": [ids.make() for _ in calls],
                "purposes": [call.purpose for call in calls],
                "fingerprints": [call.fingerprint for call in calls],
                "now": clock.now(),
            },
            into=Taken,
        )


async def take_gaps(database: Database, network: str, sender: str, gaps: Mapping[int, Call]) -> list[Taken]:
    """Reserve for each of these calls the free nonce that it is to use up; none where that is free no more.

    A call that came to nothing under it before is tried again.
    """
    async with database.statement() as tx:
        return await tx.all(
            """
            WITH gone AS (
                DELETE FROM core.lane_gaps g
                WHERE g.network = %(network)s AND g.sender = %(sender)s AND g.nonce = ANY (%(nonces)s)
                RETURNING g.sender, g.nonce
            )
            INSERT INTO core.transactions AS t
                (transaction_id, purpose, fingerprint, network, sender, nonce, status, created_at)
            SELECT w.id, w.purpose, w.fingerprint, %(network)s, gone.sender, gone.nonce, 'reserved', %(now)s
            FROM unnest(%(ids)s::bigint[], %(purposes)s::text[], %(fingerprints)s::bytea[],
                        %(nonces)s::bigint[]) AS w (id, purpose, fingerprint, nonce)
            JOIN gone ON gone.nonce = w.nonce
            ORDER BY w.purpose COLLATE "C"
            ON CONFLICT (purpose) DO UPDATE
                SET status = 'reserved', sender = excluded.sender, nonce = excluded.nonce, hash = NULL,
                    hashes = '{}', sends = 0, sealed_call = NULL, created_at = excluded.created_at,
                    sent_at = NULL
                WHERE t.status IN ('dropped', 'lost')
            RETURNING purpose, transaction_id, sender, nonce, true AS taken
            """,
            {
                "network": network,
                "sender": sender,
                "nonces": list(gaps),
                "ids": [ids.make() for _ in gaps],
                "purposes": [call.purpose for call in gaps.values()],
                "fingerprints": [call.fingerprint for call in gaps.values()],
                "now": clock.now(),
            },
            into=Taken,
        )


async def find_accounts(tx: ReadTx, purposes: Sequence[str]) -> dict[str, str]:
    """By purpose, the only account that core.take_nonces lets what was refused be sent from.

    A node may hide what it took there, until its nonce is another's for good.
    """
    rows = await tx.dicts(
        """
        SELECT t.purpose, t.sender FROM core.transactions t
        WHERE t.purpose = ANY (%(purposes)s) AND t.status = 'dropped' AND t.nonce IS NOT NULL
          AND cardinality(t.hashes || t.former_hashes) > 0 AND NOT EXISTS (
              SELECT FROM core.transactions h
              WHERE h.network = t.network AND h.sender = t.sender AND h.nonce = t.nonce
                AND h.status = 'mined' AND h.confirmed_at IS NOT NULL
          )
        """,
        {"purposes": list(purposes)},
    )
    return {row["purpose"]: row["sender"] for row in rows}


async def take_one(tx: WriteTx, network: str, sender: str) -> int:
    """A nonce for a transaction that lost its own: the lowest free one. The lane is locked until the end."""
    lane = {"network": network, "sender": sender}
    fresh = await tx.value(
        """
        SELECT next_nonce FROM core.lanes WHERE network = %(network)s AND sender = %(sender)s
        FOR NO KEY UPDATE
        """,
        lane,
    )
    gap = await tx.value(
        """
        DELETE FROM core.lane_gaps g WHERE g.network = %(network)s AND g.sender = %(sender)s AND g.nonce = (
            SELECT min(f.nonce) FROM core.lane_gaps f
            WHERE f.network = %(network)s AND f.sender = %(sender)s
        ) RETURNING g.nonce
        """,
        lane,
    )
    if gap is not None:
        return gap
    await tx.execute(
        """
        UPDATE core.lanes SET next_nonce = next_nonce + 1
        WHERE network = %(network)s AND sender = %(sender)s
        """,
        lane,
    )
    return fresh


async def free(tx: WriteTx, refused: Mapping[int, str]) -> set[int]:
    """No node took these, by id and hash: drop them, and give their nonces to the next calls.

    Returns those that were dropped: not the ones that somebody handed to a node once more, nor those that
    were dropped and issued anew meanwhile, which are other transactions by now.
    """
    rows = await tx.dicts(
        """
        WITH dropped AS (
            UPDATE core.transactions SET status = 'dropped', sealed_call = NULL
            WHERE transaction_id IN (
                SELECT t.transaction_id FROM core.transactions t
                WHERE t.transaction_id = ANY (%(ids)s) ORDER BY t.purpose COLLATE "C" FOR NO KEY UPDATE
            ) AND hash = ANY (%(hashes)s) AND status = 'signed' AND sends = 1
            RETURNING transaction_id, network, sender, nonce
        ), gaps AS (
            INSERT INTO core.lane_gaps (network, sender, nonce)
            SELECT d.network, d.sender, d.nonce FROM dropped d
            ON CONFLICT (network, sender, nonce) DO NOTHING
        )
        SELECT transaction_id FROM dropped
        """,
        {"ids": list(refused), "hashes": list(refused.values())},
    )
    return {row["transaction_id"] for row in rows}


async def free_abandoned(tx: WriteTx, network: str, older_than: timedelta) -> int:
    """Drop what was reserved by a process that never signed it, and free the nonces."""
    return await tx.execute(
        """
        WITH dropped AS (
            UPDATE core.transactions SET status = 'dropped'
            WHERE transaction_id IN (
                -- Who holds one of these signs it just now.
                SELECT t.transaction_id FROM core.transactions t
                WHERE t.network = %(network)s AND t.status = 'reserved' AND t.created_at < %(before)s
                FOR NO KEY UPDATE SKIP LOCKED
            ) AND status = 'reserved'
            RETURNING network, sender, nonce
        )
        INSERT INTO core.lane_gaps (network, sender, nonce)
        SELECT d.network, d.sender, d.nonce FROM dropped d
        ON CONFLICT (network, sender, nonce) DO NOTHING
        """,
        {"network": network, "before": clock.now() - older_than},
    )


async def close_held(tx: WriteTx, network: str) -> None:
    """A nonce that somebody holds is no gap: one that was lost has come back to it."""
    await tx.execute(
        """
        WITH held AS MATERIALIZED (
            SELECT h.sender, h.nonce FROM core.lane_gaps s
            JOIN core.transactions h ON h.network = s.network AND h.sender = s.sender AND h.nonce = s.nonce
            WHERE s.network = %(network)s AND h.status NOT IN ('lost', 'dropped')
            FOR SHARE OF h SKIP LOCKED  -- who has one of these may be giving its nonce back
        )
        DELETE FROM core.lane_gaps g USING held
        WHERE g.network = %(network)s AND g.sender = held.sender AND g.nonce = held.nonce
        """,
        {"network": network},
    )


async def jump(tx: WriteTx, network: str, sender: str, used: int, pending: int) -> None:
    """The chain has `used` transactions of this sender, `pending` with those that wait: never fall behind.

    It makes the lane where there is none yet.
    """
    await tx.execute(
        """
        INSERT INTO core.lanes AS l (network, sender, next_nonce)
        VALUES (%(network)s, %(sender)s, %(next_nonce)s)
        ON CONFLICT (network, sender) DO UPDATE SET next_nonce = excluded.next_nonce
            WHERE l.next_nonce < excluded.next_nonce
        """,
        {"network": network, "sender": sender, "next_nonce": max(used, pending)},
    )
    await tx.execute(
        "DELETE FROM core.lane_gaps WHERE network = %(network)s AND sender = %(sender)s AND nonce < %(used)s",
        {"network": network, "sender": sender, "used": used},
    )


async def find_leaps(tx: ReadTx, network: str, counts: Mapping[str, int], leap_max: int) -> list[str]:
    """Those senders of whom the chain counts far more transactions than their lanes know of."""
    rows = await tx.dicts(
        """
        SELECT c.sender
        FROM unnest(%(senders)s::text[], %(counts)s::bigint[]) AS c (sender, counted)
        LEFT JOIN core.lanes l ON l.network = %(network)s AND l.sender = c.sender
        WHERE c.counted > coalesce(l.next_nonce, 0) + %(leap_max)s
        """,
        {
            "network": network,
            "senders": list(counts),
            "counts": list(counts.values()),
            "leap_max": leap_max,
        },
    )
    return [row["sender"] for row in rows]


async def find_gaps(tx: WriteTx, network: str, sender: str, first: int, limit: int) -> list[int]:
    """Free the nonces from `first` on that nobody holds; those of them that hold up later ones."""
    params = {"network": network, "sender": sender, "first": first, "limit": limit, "span": GAP_SPAN_MAX}
    await tx.value(  # no nonce is taken meanwhile
        """
        SELECT next_nonce FROM core.lanes WHERE network = %(network)s AND sender = %(sender)s
        FOR NO KEY UPDATE
        """,
        params,
    )
    await tx.execute(
        """
        INSERT INTO core.lane_gaps (network, sender, nonce)
        SELECT %(network)s, %(sender)s, n
        FROM generate_series(%(first)s::bigint, (
            SELECT least(l.next_nonce - 1, %(first)s::bigint + %(span)s) FROM core.lanes l
            WHERE l.network = %(network)s AND l.sender = %(sender)s
        )) AS n
        WHERE NOT EXISTS (
            SELECT FROM core.transactions h
            WHERE h.network = %(network)s AND h.sender = %(sender)s AND h.nonce = n
              AND h.status NOT IN ('lost', 'dropped')
        )
        LIMIT %(limit)s
        ON CONFLICT (network, sender, nonce) DO NOTHING
        """,
        params,
    )
    rows = await tx.dicts(
        """
        SELECT g.nonce FROM core.lane_gaps g
        WHERE g.network = %(network)s AND g.sender = %(sender)s AND g.nonce >= %(first)s AND g.nonce < (
            SELECT max(t.nonce) FROM core.transactions t
            WHERE t.network = %(network)s AND t.sender = %(sender)s AND t.status IN ('signed', 'sent')
        )
        ORDER BY g.nonce LIMIT %(limit)s
        """,
        params,
    )
    return [row["nonce"] for row in rows]
