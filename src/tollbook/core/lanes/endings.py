"""How a purpose ends without a transaction: nobody sends it any more, and nothing of it can come."""

from tollbook.core import clock, ids
from tollbook.core.database import WriteTx
from tollbook.core.lanes.transactions import Transaction

NO_CALL = bytes(32)  # the fingerprint of what was barred before anybody sent it


async def bar(tx: WriteTx, network: str, purpose: str) -> list[str] | None:
    """See that a purpose is never sent, or never again; None where somebody has it in hand, or it was mined.

    From the commit on whoever comes late is refused. The answer are the hashes that a node may still bring
    out: it said that it refused them, and their nonce is not another's for good, as far as the books know.
    Where there are none, its owner may tell others that it came to nothing.
    """
    return await tx.value(
        """
        INSERT INTO core.transactions AS t
            (transaction_id, purpose, fingerprint, network, status, barred, created_at)
        VALUES (%(id)s, %(purpose)s, %(fingerprint)s, %(network)s, 'dropped', true, %(now)s)
        ON CONFLICT (purpose) DO UPDATE SET barred = true WHERE t.status = 'dropped'
        RETURNING CASE WHEN t.nonce IS NULL OR EXISTS (
            SELECT FROM core.transactions h
            WHERE h.network = t.network AND h.sender = t.sender AND h.nonce = t.nonce
              AND h.status = 'mined' AND h.confirmed_at IS NOT NULL
        ) THEN '{}' ELSE t.hashes || t.former_hashes END
        """,
        {
            "id": ids.make(),
            "purpose": purpose,
            "fingerprint": NO_CALL,
            "network": network,
            "now": clock.now(),
        },
    )


async def release(tx: WriteTx, refused: Transaction) -> None:
    """The nonce of one that was refused is another's for good, by the chain: any account may send it now."""
    await tx.execute(
        """
        UPDATE core.transactions SET nonce = NULL
        WHERE transaction_id = %(transaction_id)s AND status = 'dropped' AND sender = %(sender)s
          AND nonce = %(nonce)s
        """,
        {"transaction_id": refused.transaction_id, "sender": refused.sender, "nonce": refused.nonce},
    )
