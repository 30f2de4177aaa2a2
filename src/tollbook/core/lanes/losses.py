"""What a chain takes back although it was final: lost transactions, and chains that were begun anew."""

from collections.abc import Sequence
from datetime import datetime

from tollbook.core import clock
from tollbook.core.database import ReadTx, WriteTx
from tollbook.core.lanes.transactions import Transaction, find


async def find_final(
    tx: ReadTx, network: str, sender: str, used: int, *, before: datetime, limit: int
) -> list[Transaction]:
    """What was final before the chain was asked, and has a nonce that it says is not used."""
    ids = await tx.value(
        """
        SELECT array_agg(f.transaction_id) FROM (
            SELECT transaction_id FROM core.transactions
            WHERE network = %(network)s AND sender = %(sender)s AND nonce >= %(used)s
              AND status = 'mined' AND confirmed_at < %(before)s
            ORDER BY nonce LIMIT %(limit)s
        ) AS f
        """,
        {"network": network, "sender": sender, "used": used, "before": before, "limit": limit},
    )
    return await find(tx, ids=ids) if ids else []


async def record_lost(tx: WriteTx, rows: Sequence[Transaction]) -> int:
    """Their blocks are of the chain no more, and no node has them: their nonces are free; how many."""
    return await tx.execute(
        """
        WITH lost AS (
            UPDATE core.transactions
            SET status = 'lost', succeeded = NULL, block_number = NULL, block_hash = NULL, gas_used = NULL,
                fee_paid = NULL, mined_at = NULL, confirmed_at = NULL
            WHERE transaction_id IN (
                SELECT t.transaction_id FROM core.transactions t
                WHERE t.transaction_id = ANY (%(ids)s) ORDER BY t.purpose COLLATE "C" FOR NO KEY UPDATE
            ) AND block_hash = ANY (%(block_hashes)s) AND status = 'mined' AND confirmed_at IS NOT NULL
            RETURNING network, sender, nonce
        )
        INSERT INTO core.lane_gaps (network, sender, nonce)
        SELECT l.network, l.sender, l.nonce FROM lost l
        ON CONFLICT (network, sender, nonce) DO NOTHING
        """,
        {"ids": [row.transaction_id for row in rows], "block_hashes": [row.block_hash for row in rows]},
    )


async def find_final_holders(tx: ReadTx, lost_ids: Sequence[int]) -> list[Transaction]:
    """Those final ones of ours that were given the nonces of these lost ones."""
    ids = await tx.value(
        """
        SELECT array_agg(h.transaction_id) FROM core.transactions t
        JOIN core.transactions h ON h.network = t.network AND h.sender = t.sender AND h.nonce = t.nonce
        WHERE t.transaction_id = ANY (%(ids)s) AND t.status = 'lost'
          AND h.status = 'mined' AND h.confirmed_at IS NOT NULL
        """,
        {"ids": list(lost_ids)},
    )
    return await find(tx, ids=ids) if ids else []


async def find_held(tx: ReadTx, lost_ids: Sequence[int]) -> set[int]:
    """Those of these lost ones whose nonces went to others of ours."""
    rows = await tx.dicts(
        """
        SELECT t.transaction_id FROM core.transactions t
        WHERE t.transaction_id = ANY (%(ids)s) AND t.status = 'lost' AND EXISTS (
            SELECT FROM core.transactions h
            WHERE h.network = t.network AND h.sender = t.sender AND h.nonce = t.nonce
              AND h.status NOT IN ('lost', 'dropped')
        )
        """,
        {"ids": list(lost_ids)},
    )
    return {row["transaction_id"] for row in rows}


async def drop_lost(tx: WriteTx, lost_ids: Sequence[int]) -> int:
    """Those of these lost ones whose nonces went to final ones of ours cannot come back; how many."""
    return await tx.execute(
        """
        WITH held AS MATERIALIZED (
            SELECT r.transaction_id FROM core.transactions r
            WHERE r.transaction_id = ANY (%(ids)s) ORDER BY r.purpose COLLATE "C" FOR NO KEY UPDATE
        )
        UPDATE core.transactions t SET status = 'dropped'
        WHERE t.transaction_id IN (SELECT held.transaction_id FROM held) AND t.status = 'lost' AND EXISTS (
            SELECT FROM core.transactions h
            WHERE h.network = t.network AND h.sender = t.sender AND h.nonce = t.nonce
              AND h.status = 'mined' AND h.confirmed_at IS NOT NULL
        )
        """,
        {"ids": list(lost_ids)},
    )


async def record_chain(tx: WriteTx, network: str, genesis_hash: str) -> str | None:
    """Write down which chain it is; the first block of the former one, where it is another one now."""
    params = {"network": network, "genesis_hash": genesis_hash, "now": clock.now()}
    return await tx.value(
        """
        WITH known AS (
            INSERT INTO core.lane_chains (network, genesis_hash) VALUES (%(network)s, %(genesis_hash)s)
            ON CONFLICT (network) DO NOTHING
        ), former AS (
            SELECT network, genesis_hash FROM core.lane_chains
            WHERE network = %(network)s AND genesis_hash <> %(genesis_hash)s FOR NO KEY UPDATE
        )
        UPDATE core.lane_chains c SET genesis_hash = %(genesis_hash)s, reset_at = %(now)s
        FROM former WHERE c.network = former.network RETURNING former.genesis_hash
        """,
        params,
    )


async def find_reset(tx: ReadTx, network: str) -> datetime | None:
    """Since when it has been another chain than before; None where it always was this one."""
    return await tx.value(
        "SELECT reset_at FROM core.lane_chains WHERE network = %(network)s", {"network": network}
    )
