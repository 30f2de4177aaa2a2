"""Differences: where the books and a chain do not agree, each by its kind, and what became of it.

What may follow what:

    (new)          -> open, mended   seen: as it is, or as it was when it was set right at once
    open           -> mended         set right, or seen to be right
    open           -> accepted       an operator has looked at it and lets it be
    mended         -> open           seen again

A difference seen again is the same row. docs/reconcile.md says what each kind means and what to do.
In the journal a difference's subject is its number in decimal digits.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, ClassVar, Literal

from pydantic import PlainSerializer

from tollbook.books.payments.payments import MinorUnits
from tollbook.core import ids, journal
from tollbook.core.database import ReadTx, WriteTx
from tollbook.core.errors import Refusal
from tollbook.core.journal import Fact

Kind = Literal[
    "unknown",
    "paid_not_granted",
    "granted_not_paid",
    "double",
    "foreign_transfer",
    "orphaned",
    "amount_differs",
    "transaction_differs",
    "settlement_missing",
    "token_missing",
    "refund_unknown",
    "refund_not_landed",
    "refund_forgotten",
]
Status = Literal["open", "mended", "accepted"]

PAGE_MAX = 500
NOTE_LETTERS_MAX = 500


def show(difference_id: int) -> str:
    """The id as people see it: dif_ and 13 letters."""
    return ids.show("dif", difference_id)


DifferenceId = Annotated[int, PlainSerializer(show, return_type=str)]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a run saw. `subject` is what it is about, as "settlement:5": with its kind, its identity.

    Amounts in minor units. `mended` where it was set right in this very transaction.
    """

    kind: Kind
    subject: str
    network: str
    note: str
    mended: bool = False
    asset: str | None = None
    tx_hash: str | None = None
    settlement_id: int | None = None
    payment_id: int | None = None
    refund_id: int | None = None
    amount_booked: int | None = None
    amount_moved: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference as the book has it. Amounts in minor units."""

    difference_id: DifferenceId
    kind: Kind
    status: Status
    note: str
    network: str
    asset: str | None
    tx_hash: str | None
    settlement_id: Annotated[int | None, PlainSerializer(lambda number: number and ids.show("set", number))]
    payment_id: Annotated[int | None, PlainSerializer(lambda number: number and ids.show("pay", number))]
    refund_id: Annotated[int | None, PlainSerializer(lambda number: number and ids.show("ref", number))]
    amount_booked: MinorUnits | None
    amount_moved: MinorUnits | None
    subject: str
    times_seen: int
    first_seen: datetime
    last_seen: datetime
    closed_at: datetime | None

    def __post_init__(self) -> None:
        # PostgreSQL's 78-digit integers arrive as Decimal.
        for name in ("amount_booked", "amount_moved"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else int(value))


class DifferenceNotOpen(Refusal):
    """There is no such open difference."""

    reason: ClassVar[str] = "difference-not-open"
    status: ClassVar[int] = 409


async def note(tx: WriteTx, finding: Finding, *, now: datetime) -> Difference:
    """Write down what was seen. What was accepted stays so; what was mended is open again if seen again."""
    before = await tx.value(
        """
        SELECT status FROM payments.x402_differences
        WHERE kind = %(kind)s AND subject = %(subject)s FOR UPDATE
        """,
        {"kind": finding.kind, "subject": finding.subject},
    )
    seen = await tx.one(
        """
        INSERT INTO payments.x402_differences AS d (
            difference_id, first_seen, last_seen, closed_at, settlement_id, payment_id, refund_id,
            amount_booked, amount_moved, kind, status, subject, network, asset, tx_hash, note)
        VALUES (
            %(difference_id)s, %(now)s, %(now)s, %(closed_at)s, %(settlement_id)s, %(payment_id)s,
            %(refund_id)s, %(amount_booked)s, %(amount_moved)s, %(kind)s, %(status)s, %(subject)s,
            %(network)s, %(asset)s, %(tx_hash)s, %(note)s)
        ON CONFLICT (kind, subject) DO UPDATE
        SET last_seen = excluded.last_seen, times_seen = d.times_seen + 1, note = excluded.note,
            status = CASE d.status WHEN 'accepted' THEN 'accepted' ELSE excluded.status END,
            closed_at = CASE d.status WHEN 'accepted' THEN d.closed_at ELSE excluded.closed_at END,
            amount_booked = excluded.amount_booked, amount_moved = excluded.amount_moved,
            tx_hash = excluded.tx_hash
        RETURNING difference_id, kind, status, note, network, asset, tx_hash, settlement_id, payment_id,
                  refund_id, amount_booked, amount_moved, subject, times_seen, first_seen, last_seen,
                  closed_at
        """,
        {
            "difference_id": ids.make(),
            "now": now,
            "closed_at": now if finding.mended else None,
            "settlement_id": finding.settlement_id,
            "payment_id": finding.payment_id,
            "refund_id": finding.refund_id,
            "amount_booked": _as_decimal(finding.amount_booked),
            "amount_moved": _as_decimal(finding.amount_moved),
            "kind": finding.kind,
            "status": "mended" if finding.mended else "open",
            "subject": finding.subject,
            "network": finding.network,
            "asset": finding.asset,
            "tx_hash": finding.tx_hash,
            "note": finding.note[:NOTE_LETTERS_MAX],
        },
        into=Difference,
    )
    if seen.times_seen == 1 or (before == "mended" and seen.status == "open"):
        await _tell(tx, "difference.found", seen)
    if seen.status == "mended" and before != "mended":
        await _tell(tx, "difference.mended", seen)
    return seen


async def accept(tx: WriteTx, difference_id: int, why: str, *, now: datetime) -> Difference:
    """Let an open difference be, and say why. Raises DifferenceNotOpen."""
    return await _close(tx, difference_id, "accepted", why, now)


async def mend(tx: WriteTx, difference_id: int, how: str, *, now: datetime) -> Difference:
    """An open difference is right by now. Raises DifferenceNotOpen."""
    return await _close(tx, difference_id, "mended", how, now)


async def _close(tx: WriteTx, difference_id: int, status: Status, why: str, now: datetime) -> Difference:
    closed = await tx.maybe(
        """
        UPDATE payments.x402_differences
        SET status = %(status)s, closed_at = %(now)s, note = %(note)s
        WHERE difference_id = %(difference_id)s AND status = 'open'
        RETURNING difference_id, kind, status, note, network, asset, tx_hash, settlement_id, payment_id,
                  refund_id, amount_booked, amount_moved, subject, times_seen, first_seen, last_seen,
                  closed_at
        """,
        {"status": status, "now": now, "note": why[:NOTE_LETTERS_MAX], "difference_id": difference_id},
        into=Difference,
    )
    if closed is None:
        shown = show(difference_id)
        raise DifferenceNotOpen(
            f"There is no open difference {shown}. List them: tollbook payments differences.",
            difference_id=shown,
        )
    await _tell(tx, f"difference.{status}", closed)
    return closed


async def page(
    tx: ReadTx, *, status: Status | None = "open", after: int | None = None, limit: int = PAGE_MAX
) -> list[Difference]:
    """Differences, newest first, that follow the id `after`; at most `limit`, never more than PAGE_MAX."""
    return await tx.all(
        """
        SELECT difference_id, kind, status, note, network, asset, tx_hash, settlement_id, payment_id,
               refund_id, amount_booked, amount_moved, subject, times_seen, first_seen, last_seen, closed_at
        FROM payments.x402_differences
        WHERE (%(status)s::text IS NULL OR status = %(status)s)
          AND (%(after)s::bigint IS NULL OR difference_id < %(after)s)
        ORDER BY difference_id DESC LIMIT %(limit)s
        """,
        {"status": status, "after": after, "limit": min(limit, PAGE_MAX)},
        into=Difference,
    )


async def count_open(tx: ReadTx) -> int:
    """How many differences are left to look at."""
    return await tx.value("SELECT count(*) FROM payments.x402_differences WHERE status = 'open'")


def _as_decimal(amount: int | None) -> Decimal | None:
    return None if amount is None else Decimal(amount)


async def _tell(tx: WriteTx, kind: str, difference: Difference) -> None:
    fact = Fact(
        book="payments",
        kind=kind,
        subject=str(difference.difference_id),
        details={
            "kind": difference.kind,
            "about": difference.subject,
            "network": difference.network,
            "tx_hash": difference.tx_hash,
            "payment_id": None if difference.payment_id is None else str(difference.payment_id),
            "note": difference.note,
        },
    )
    await journal.append(tx, [fact])
