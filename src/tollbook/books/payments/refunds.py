"""Refunds: money of a payment that goes back to its payer, whole or in part, on the chain it came on.

What may follow what:

    (new)           -> requested  request: the sum is taken from what the payment still holds, at once
    requested       -> sent       the payment is final; from here on a transaction may be on its way
    requested, sent -> done       the tokens have arrived; when nothing is left, the payment ends (refunded)
    requested       -> failed     refused before anything was sent
    sent            -> failed     its transaction was reverted, and nothing moved
    (new)           -> done       the chain shows it, and the database had forgotten it (forgotten_refunds.py)

All that was asked back of a payment is never more than was paid: one statement and one constraint hold it.
In the journal a refund's subject is its number in decimal digits.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, ClassVar, Literal

from pydantic import PlainSerializer

from tollbook.books.payments import payments
from tollbook.books.payments.errors import PaymentNotInState
from tollbook.books.payments.payments import MinorUnits, PaymentId
from tollbook.books.payments.refund_marks import MarkedTransfer
from tollbook.core import ids, journal
from tollbook.core.database import ReadTx, WriteTx
from tollbook.core.errors import Refusal
from tollbook.core.journal import Fact

Status = Literal["requested", "sent", "done", "failed"]

PAGE_MAX = 500
REASON_LETTERS_MAX = 500


def show(refund_id: int) -> str:
    """The id as people see it: ref_ and 13 letters."""
    return ids.show("ref", refund_id)


RefundId = Annotated[int, PlainSerializer(show, return_type=str)]


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund. `amount` in minor units goes from the operator's `from_address` to the payer."""

    refund_id: RefundId
    payment_id: PaymentId
    status: Status
    network: str
    asset: str
    amount: MinorUnits
    to_address: str
    from_address: str | None
    tx_hash: str | None
    block_number: int | None
    reason: str | None
    error: str | None
    requested_at: datetime
    sent_at: datetime | None
    ended_at: datetime | None

    def __post_init__(self) -> None:
        # PostgreSQL's 78-digit integers arrive as Decimal.
        object.__setattr__(self, "amount", int(self.amount))


class RefundNotFound(Refusal):
    """No refund has this id."""

    reason: ClassVar[str] = "refund-not-found"
    status: ClassVar[int] = 404


class RefundTooLarge(Refusal):
    """More than is left of the payment. Nothing was sent."""

    reason: ClassVar[str] = "refund-too-large"
    status: ClassVar[int] = 409


@dataclass(frozen=True, slots=True)
class _Taken:
    amount: Decimal
    network: str
    asset: str
    from_address: str


async def request(
    tx: WriteTx,
    payment_id: int,
    *,
    amount: int | None,
    reason: str | None,
    refund_id: int | None = None,
    now: datetime,
) -> Refund:
    """Take `amount` minor units, or all that is left, from what a payment holds, to be sent back.

    A refund_id that is in the books already is that refund, asked for again.
    Where a restored database had forgotten a refund of this very sum, it is that one, `done`: asked for again
    it is sent. Raises PaymentNotInState unless it is settled, RefundTooLarge, PaymentUnknown.
    """
    refund_id = refund_id or ids.make()
    if (asked := await find(tx, refund_id)) is not None:
        return asked
    recalled = await _claim_recalled(tx, payment_id, amount, refund_id)
    if recalled is not None:
        return await get(tx, recalled)
    taken = await _take(tx, payment_id, amount)
    if taken is None:
        raise await _refuse(tx, payment_id)
    await tx.execute(
        """
        INSERT INTO payments.x402_refunds (
            refund_id, payment_id, requested_at, amount, status, network, asset, to_address, reason)
        VALUES (
            %(refund_id)s, %(payment_id)s, %(now)s, %(amount)s, 'requested', %(network)s, %(asset)s,
            %(to_address)s, %(reason)s)
        """,
        {
            "refund_id": refund_id,
            "payment_id": payment_id,
            "now": now,
            "amount": taken.amount,
            "network": taken.network,
            "asset": taken.asset,
            "to_address": taken.from_address,
            "reason": None if reason is None else reason[:REASON_LETTERS_MAX],
        },
    )
    refund = await get(tx, refund_id)
    await _tell(tx, "refund.requested", refund)
    return refund


async def mark_sent(tx: WriteTx, refund_id: int, *, now: datetime) -> bool:
    """Enter that its transaction is written down to be sent; whether it was waiting for that.

    Not where the chain took the payment itself back meanwhile.
    """
    changed = await tx.execute(
        """
        UPDATE payments.x402_refunds AS r SET status = 'sent', sent_at = %(now)s
        WHERE r.refund_id = %(refund_id)s AND r.status = 'requested' AND EXISTS (
            SELECT FROM payments.x402_payments AS p
            WHERE p.payment_id = r.payment_id AND p.settlement = 'settled')
        """,
        {"refund_id": refund_id, "now": now},
    )
    if changed == 1:
        await _tell(tx, "refund.sent", await get(tx, refund_id))
    return changed == 1


async def complete(
    tx: WriteTx, refund_id: int, *, from_address: str, tx_hash: str, block_number: int, now: datetime
) -> bool:
    """Enter that the tokens have arrived; whether the refund was on its way.

    The payment buys nothing more once nothing of it is left.
    """
    changed = await tx.execute(
        """
        UPDATE payments.x402_refunds
        SET status = 'done', tx_hash = %(tx_hash)s, block_number = %(block_number)s, ended_at = %(now)s,
            from_address = %(from_address)s
        WHERE refund_id = %(refund_id)s AND status = 'sent'
        """,
        {
            "refund_id": refund_id,
            "from_address": from_address,
            "tx_hash": tx_hash,
            "block_number": block_number,
            "now": now,
        },
    )
    if changed == 1:
        refund = await get(tx, refund_id)
        await _take_off(tx, refund, now)
        await _tell(tx, "payment.refunded", refund, subject=refund.payment_id)
    return changed == 1


async def fail(
    tx: WriteTx, refund_id: int, error: str, *, was: Literal["requested", "sent"], now: datetime
) -> bool:
    """Enter that nothing went back and nothing will, where it `was` there. The sum is free again.

    Where it was `sent`, its transaction must be known to have moved nothing. Whether it was there.
    """
    changed = await tx.execute(
        """
        UPDATE payments.x402_refunds SET status = 'failed', error = %(error)s, ended_at = %(now)s
        WHERE refund_id = %(refund_id)s AND status = %(was)s AND status IN ('requested', 'sent')
        """,
        {"refund_id": refund_id, "error": error[:REASON_LETTERS_MAX], "was": was, "now": now},
    )
    if changed == 1:
        refund = await get(tx, refund_id)
        await tx.execute(
            """
            UPDATE payments.x402_payments SET refund_asked = refund_asked - %(amount)s, updated_at = %(now)s
            WHERE payment_id = %(payment_id)s AND settlement = 'settled'
            """,
            {"amount": Decimal(refund.amount), "payment_id": refund.payment_id, "now": now},
        )
        await _tell(tx, "refund.failed", refund)
    return changed == 1


async def rename(tx: WriteTx, refund_id: int, *, tx_hash: str, block_number: int) -> None:
    """Name the transaction that pays a refund by now: a reorganisation can bring it back as another one."""
    await tx.execute(
        """
        UPDATE payments.x402_refunds SET tx_hash = %(tx_hash)s, block_number = %(block_number)s
        WHERE refund_id = %(refund_id)s AND status = 'done'
        """,
        {"tx_hash": tx_hash, "block_number": block_number, "refund_id": refund_id},
    )


async def restore(tx: WriteTx, payment_id: int, moved: MarkedTransfer, *, now: datetime) -> None:
    """Enter a refund that the chain shows and the database had forgotten. Its sum is taken already."""
    await tx.execute(
        """
        INSERT INTO payments.x402_refunds (
            refund_id, payment_id, requested_at, sent_at, ended_at, block_number, amount, status, network,
            asset, to_address, from_address, tx_hash, reason, recalled)
        VALUES (
            %(refund_id)s, %(payment_id)s, %(now)s, %(now)s, %(now)s, %(block_number)s, %(amount)s, 'done',
            %(network)s, %(asset)s, %(to_address)s, %(from_address)s, %(tx_hash)s, %(reason)s, true)
        """,
        {
            "refund_id": moved.refund_id,
            "payment_id": payment_id,
            "now": now,
            "block_number": moved.position,
            "amount": Decimal(moved.amount),
            "network": moved.network,
            "asset": moved.asset,
            "to_address": moved.to_address,
            "from_address": moved.from_address,
            "tx_hash": moved.tx_hash,
            "reason": "found on the chain: the database had forgotten it",
        },
    )
    refund = await get(tx, moved.refund_id)
    await _take_off(tx, refund, now)
    await _tell(tx, "payment.refunded", refund, subject=payment_id)


async def get(tx: ReadTx, refund_id: int) -> Refund:
    """One refund. Raises RefundNotFound."""
    refund = await find(tx, refund_id)
    if refund is None:
        raise RefundNotFound(f"There is no refund {show(refund_id)}.")
    return refund


async def find(tx: ReadTx, refund_id: int) -> Refund | None:
    """One refund, None where there is none of this id."""
    return await tx.maybe(
        """
        SELECT refund_id, payment_id, status, network, asset, amount, to_address, from_address, tx_hash,
               block_number, reason, error, requested_at, sent_at, ended_at
        FROM payments.x402_refunds WHERE refund_id = %(refund_id)s
        """,
        {"refund_id": refund_id},
        into=Refund,
    )


async def page(
    tx: ReadTx, *, after: int | None = None, limit: int = PAGE_MAX, payment_id: int | None = None
) -> list[Refund]:
    """Refunds, newest first, that follow the id `after`; at most `limit`, and never more than PAGE_MAX."""
    return await tx.all(
        """
        SELECT refund_id, payment_id, status, network, asset, amount, to_address, from_address, tx_hash,
               block_number, reason, error, requested_at, sent_at, ended_at
        FROM payments.x402_refunds
        WHERE (%(after)s::bigint IS NULL OR refund_id < %(after)s)
          AND (%(payment_id)s::bigint IS NULL OR payment_id = %(payment_id)s)
        ORDER BY refund_id DESC LIMIT %(limit)s
        """,
        {"after": after, "payment_id": payment_id, "limit": min(limit, PAGE_MAX)},
        into=Refund,
    )


async def find_open(tx: ReadTx, *, after: int = 0) -> list[Refund]:
    """Those on their way, the oldest first, that follow the id `after`; at most PAGE_MAX."""
    return await tx.all(
        """
        SELECT refund_id, payment_id, status, network, asset, amount, to_address, from_address, tx_hash,
               block_number, reason, error, requested_at, sent_at, ended_at
        FROM payments.x402_refunds WHERE status IN ('requested', 'sent') AND refund_id > %(after)s
        ORDER BY refund_id LIMIT %(limit)s
        """,
        {"after": after, "limit": PAGE_MAX},
        into=Refund,
    )


async def page_done(tx: ReadTx, *, since: datetime) -> list[Refund]:
    """Those that were sent back since; at most PAGE_MAX, the newest."""
    return await tx.all(
        """
        SELECT refund_id, payment_id, status, network, asset, amount, to_address, from_address, tx_hash,
               block_number, reason, error, requested_at, sent_at, ended_at
        FROM payments.x402_refunds WHERE status = 'done' AND ended_at >= %(since)s
        ORDER BY ended_at DESC LIMIT %(limit)s
        """,
        {"since": since, "limit": PAGE_MAX},
        into=Refund,
    )


async def _claim_recalled(tx: WriteTx, payment_id: int, amount: int | None, asked_as: int) -> int | None:
    """The one that was found on the chain and is meant: asked for as this before, or by nobody yet."""
    return await tx.value(
        """
        UPDATE payments.x402_refunds SET recalled = false, asked_as = %(asked_as)s
        WHERE (recalled OR asked_as = %(asked_as)s) AND status = 'done' AND refund_id = (
            SELECT refund_id FROM payments.x402_refunds
            WHERE payment_id = %(payment_id)s
              AND (asked_as = %(asked_as)s OR (recalled AND amount = %(amount)s))
            ORDER BY asked_as, refund_id LIMIT 1 FOR UPDATE)
        RETURNING refund_id
        """,
        {
            "payment_id": payment_id,
            "amount": None if amount is None else Decimal(amount),
            "asked_as": asked_as,
        },
    )


async def _take(tx: WriteTx, payment_id: int, amount: int | None) -> _Taken | None:
    """Take the sum, where it is there. Two at once wait for each other at the payment's row."""
    return await tx.maybe(
        """
        WITH held AS (
            SELECT payment_id, amount - refund_asked AS rest,
                   coalesce(%(amount)s::numeric, amount - refund_asked) AS wanted
            FROM payments.x402_payments
            WHERE payment_id = %(payment_id)s AND settlement = 'settled'
            FOR NO KEY UPDATE
        )
        UPDATE payments.x402_payments AS p SET refund_asked = p.refund_asked + held.wanted
        FROM held
        WHERE p.payment_id = held.payment_id AND p.settlement = 'settled'
          AND held.wanted > 0 AND held.wanted <= held.rest
        RETURNING held.wanted AS amount, p.network, p.asset, p.from_address
        """,
        {"payment_id": payment_id, "amount": None if amount is None else Decimal(amount)},
        into=_Taken,
    )


async def _refuse(tx: WriteTx, payment_id: int) -> Refusal:
    payment = await payments.get(tx, payment_id)
    if payment.settlement != "settled":
        return PaymentNotInState(payment_id, payment.status, payment.settlement, "refunded")
    asked = await tx.value(
        "SELECT refund_asked FROM payments.x402_payments WHERE payment_id = %(payment_id)s",
        {"payment_id": payment_id},
    )
    rest = payment.amount - int(asked)
    return RefundTooLarge(
        f"{rest} minor units are left of this payment's {payment.amount}: ask for 1 to {rest}."
        if rest
        else "All of this payment went back already, or is on its way.",
        rest=str(rest),
    )


async def _take_off(tx: WriteTx, refund: Refund, now: datetime) -> None:
    await tx.execute(
        """
        UPDATE payments.x402_payments
        SET refunded_amount = refunded_amount + %(amount)s, updated_at = %(now)s,
            status = CASE WHEN refunded_amount + %(amount)s = amount THEN 'expired' ELSE status END,
            settlement = CASE WHEN refunded_amount + %(amount)s = amount THEN 'refunded' ELSE settlement END,
            refunded_at = CASE WHEN refunded_amount + %(amount)s = amount THEN %(now)s::timestamptz END,
            settled_in = pg_current_xact_id()::text::bigint
        WHERE payment_id = %(payment_id)s AND settlement = 'settled'
        """,
        {"amount": Decimal(refund.amount), "payment_id": refund.payment_id, "now": now},
    )


async def _tell(tx: WriteTx, kind: str, refund: Refund, subject: int | None = None) -> None:
    details: dict[str, object] = {"payment_id": str(refund.payment_id), "tx_hash": refund.tx_hash}
    if refund.status == "failed":
        details["error"] = refund.error
    payment = await payments.get(tx, refund.payment_id)
    fact = Fact(
        book="payments",
        kind=kind,
        subject=str(refund.refund_id if subject is None else subject),
        network=refund.network,
        asset=refund.asset,
        amount=refund.amount,
        from_party=refund.from_address or payment.to_address,
        to_party=refund.to_address,
        details={**details, "refund_id": str(refund.refund_id)},
    )
    await journal.append(tx, [fact])
