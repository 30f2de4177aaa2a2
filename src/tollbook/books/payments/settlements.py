"""The ledger's rows as a reconciler reads and corrects them; who settles uses ledger.py."""

from datetime import datetime
from decimal import Decimal

from psycopg.types.json import Jsonb

from tollbook.books.payments.ledger import Settlement, Verdict, make_answer
from tollbook.core import ids
from tollbook.core.database import ReadTx, WriteTx

PAGE_MAX = 500
REASON_LETTERS_MAX = 500
ORPHANED = "orphaned"


async def page_open(tx: ReadTx, *, now: datetime, after: int) -> list[Settlement]:
    """Those whose end is not known and that nobody holds, from the id `after` on; at most PAGE_MAX."""
    return await tx.all(
        """
        SELECT settlement_id, network, scheme, asset, payer, pay_to, nonce, amount, amount_moved, status,
               facilitator, tx_hash, block_number, reason, answer, asks, holder, asked_at, held_until,
               valid_before, settled_at, confirmed_at, owner
        FROM payments.x402_settlements
        WHERE status IN ('pending', 'unknown') AND held_until <= %(now)s AND settlement_id > %(after)s
        ORDER BY settlement_id LIMIT %(limit)s
        """,
        {"now": now, "after": after, "limit": PAGE_MAX},
        into=Settlement,
    )


async def page_unconfirmed(
    tx: ReadTx, *, networks: list[str], until: datetime, after: int
) -> list[Settlement]:
    """Those of these networks that are settled and not confirmed, from the id `after` on; at most PAGE_MAX.

    Vouchers of channels move nothing by themselves, nor does usage of nothing; claims are looked at as
    payments.
    """
    return await tx.all(
        """
        SELECT settlement_id, network, scheme, asset, payer, pay_to, nonce, amount, amount_moved, status,
               facilitator, tx_hash, block_number, reason, answer, asks, holder, asked_at, held_until,
               valid_before, settled_at, confirmed_at, owner
        FROM payments.x402_settlements
        WHERE status = 'settled' AND confirmed_at IS NULL AND settled_at <= %(until)s
          AND network = ANY(%(networks)s) AND scheme <> 'batch-settlement' AND owner <> 'claim'
          AND (scheme <> 'upto' OR amount_moved <> 0 OR amount_moved IS NULL)
          AND settlement_id > %(after)s
        ORDER BY settlement_id LIMIT %(limit)s
        """,
        {"networks": networks, "until": until, "after": after, "limit": PAGE_MAX},
        into=Settlement,
    )


async def page_ended(
    tx: ReadTx, *, networks: list[str], since: datetime, until: datetime, after: int
) -> list[Settlement]:
    """Those of these networks asked for since, and ended; from the id `after` on, at most PAGE_MAX."""
    return await tx.all(
        """
        SELECT settlement_id, network, scheme, asset, payer, pay_to, nonce, amount, amount_moved, status,
               facilitator, tx_hash, block_number, reason, answer, asks, holder, asked_at, held_until,
               valid_before, settled_at, confirmed_at, owner
        FROM payments.x402_settlements
        WHERE status IN ('settled', 'failed') AND asked_at >= %(since)s AND updated_at <= %(until)s
          AND network = ANY(%(networks)s) AND scheme <> 'batch-settlement' AND owner <> 'claim'
          AND (scheme <> 'upto' OR amount_moved <> 0 OR amount_moved IS NULL)
          AND settlement_id > %(after)s
        ORDER BY settlement_id LIMIT %(limit)s
        """,
        {"networks": networks, "since": since, "until": until, "after": after, "limit": PAGE_MAX},
        into=Settlement,
    )


async def find_by_nonces(
    tx: ReadTx, network: str, asset: str, payer: str, nonces: list[str]
) -> list[Settlement]:
    """The settlements of these authorizations."""
    return await tx.all(
        """
        SELECT settlement_id, network, scheme, asset, payer, pay_to, nonce, amount, amount_moved, status,
               facilitator, tx_hash, block_number, reason, answer, asks, holder, asked_at, held_until,
               valid_before, settled_at, confirmed_at, owner
        FROM payments.x402_settlements
        WHERE network = %(network)s AND asset = %(asset)s AND payer = %(payer)s AND nonce = ANY(%(nonces)s)
        """,
        {"network": network, "asset": asset, "payer": payer, "nonces": nonces},
        into=Settlement,
    )


async def hold(tx: WriteTx, row: Settlement) -> bool:
    """Keep everybody else from a row until the transaction ends; whether it is still as it was read.

    False also where somebody else has it now: then it is his.
    """
    held = await tx.value(
        """
        SELECT settlement_id FROM payments.x402_settlements
        WHERE settlement_id = %(settlement_id)s AND status = %(status)s AND holder = %(holder)s
          AND asks = %(asks)s
        FOR UPDATE SKIP LOCKED
        """,
        {
            "settlement_id": row.settlement_id,
            "status": row.status,
            "holder": row.holder,
            "asks": row.asks,
        },
    )
    return held is not None


async def confirm(tx: WriteTx, row: Settlement, verdict: Verdict, *, now: datetime) -> None:
    """The chain agrees, deep enough: this transaction moved so much."""
    await tx.execute(
        """
        UPDATE payments.x402_settlements
        SET confirmed_at = %(now)s, block_number = %(block_number)s, amount_moved = %(amount_moved)s,
            updated_at = %(now)s
        WHERE settlement_id = %(settlement_id)s AND status = 'settled'
        """,
        {
            "now": now,
            "block_number": verdict.block_number,
            "amount_moved": _as_decimal(verdict.amount_moved),
            "settlement_id": row.settlement_id,
        },
    )


async def correct(tx: WriteTx, row: Settlement, verdict: Verdict, *, now: datetime) -> None:
    """It was settled, by another transaction than the books had."""
    answer = make_answer(row, verdict).model_dump(mode="json", by_alias=True, exclude_none=True)
    await tx.execute(
        """
        UPDATE payments.x402_settlements
        SET tx_hash = %(tx_hash)s, block_number = %(block_number)s, amount_moved = %(amount_moved)s,
            answer = %(answer)s, confirmed_at = NULL, updated_at = %(now)s
        WHERE settlement_id = %(settlement_id)s AND status = 'settled'
        """,
        {
            "tx_hash": verdict.tx_hash,
            "block_number": verdict.block_number,
            "amount_moved": _as_decimal(verdict.amount_moved),
            "answer": Jsonb(answer),
            "now": now,
            "settlement_id": row.settlement_id,
        },
    )


async def reopen(tx: WriteTx, row: Settlement, reason: str, *, now: datetime) -> None:
    """Its end is not known, although the books had one: whoever asks, or the next run, decides."""
    await tx.execute(
        """
        UPDATE payments.x402_settlements
        SET status = 'unknown', reason = %(reason)s, settled_at = NULL, answer = NULL, confirmed_at = NULL,
            block_number = NULL, held_until = %(now)s, updated_at = %(now)s
        WHERE settlement_id = %(settlement_id)s AND status IN ('settled', 'failed')
        """,
        {"reason": reason[:REASON_LETTERS_MAX], "now": now, "settlement_id": row.settlement_id},
    )


async def restore(tx: WriteTx, row: Settlement, verdict: Verdict, *, now: datetime) -> bool:
    """Write down a settlement that the chain has and the ledger has not; whether it was missing."""
    answer = make_answer(row, verdict).model_dump(mode="json", by_alias=True, exclude_none=True)
    inserted = await tx.execute(
        """
        INSERT INTO payments.x402_settlements (
            settlement_id, asked_at, updated_at, held_until, valid_before, settled_at, holder, block_number,
            amount, amount_moved, status, network, scheme, asset, payer, pay_to, nonce, facilitator, tx_hash,
            answer)
        VALUES (
            %(settlement_id)s, %(asked_at)s, %(now)s, %(now)s, %(valid_before)s, %(now)s, %(settlement_id)s,
            %(block_number)s, %(amount)s, %(amount_moved)s, 'settled', %(network)s, %(scheme)s, %(asset)s,
            %(payer)s, %(pay_to)s, %(nonce)s, %(facilitator)s, %(tx_hash)s, %(answer)s)
        ON CONFLICT (network, asset, payer, nonce) DO NOTHING
        """,
        {
            "settlement_id": ids.make(),
            "asked_at": row.asked_at,
            "now": now,
            "valid_before": row.valid_before,
            "block_number": verdict.block_number,
            "amount": Decimal(row.amount),
            "amount_moved": _as_decimal(verdict.amount_moved),
            "network": row.network,
            "scheme": row.scheme,
            "asset": row.asset,
            "payer": row.payer,
            "pay_to": row.pay_to,
            "nonce": row.nonce,
            "facilitator": row.facilitator,
            "tx_hash": verdict.tx_hash,
            "answer": Jsonb(answer),
        },
    )
    return inserted == 1


def _as_decimal(amount: int | None) -> Decimal | None:
    return None if amount is None else Decimal(amount)
