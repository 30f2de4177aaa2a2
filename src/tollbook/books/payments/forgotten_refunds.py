"""Refunds that a chain shows and this database has forgotten, because it was restored or had lagged behind.

Every refund's transfer carries a mark (refund_marks.py). Before a refund is sent, and whenever the books are
compared with the chains, what the operator's accounts sent since the last look is read; what the books do not
know is booked, so that the next refund finds no more left than there is.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from tollbook.books.payments import refunds
from tollbook.books.payments.reconciler import differences
from tollbook.books.payments.reconciler.differences import Finding
from tollbook.books.payments.refund_marks import IDENTITY_BYTES, PREFIX, MarkedTransfer
from tollbook.core import clock
from tollbook.core.database import Database, ReadTx, WriteTx

AGAIN_MAX = 500  # unplaced ones that are looked at again at once


class Reader(Protocol):
    """Who reads marked transfers of a network. All of it raises ChainUnreachable, ChainRefused."""

    @property
    def network(self) -> str:
        """The network's CAIP-2 id."""
        ...

    @property
    def span(self) -> int:
        """So many positions are read and remembered as read at once."""
        ...

    async def find_ends(self) -> tuple[int, int]:
        """Return the last position that no reorganisation reaches, and the newest."""
        ...

    async def find_marked(self, asset: str, sender: str, first: int, last: int) -> list[MarkedTransfer]:
        """Return what the sender sent with a mark from position `first` to `last`."""
        ...

    async def read_marked(self, asset: str, tx_hash: str) -> MarkedTransfer | None:
        """Return what a transaction sent; None where it is not there, failed, or carries no mark."""
        ...


@dataclass(frozen=True, slots=True)
class Cursor:
    """What was read of one account: every position from `first` to `position`."""

    network: str
    asset: str
    sender: str
    first: int
    position: int


async def catch_up(database: Database, reader: Reader, asset: str, sender: str, since: int) -> None:
    """Book what an account sent from position `since` on, and was not read yet."""
    async with database.read() as tx:
        read = await _find_cursor(tx, reader.network, asset, sender)
    final, newest = await reader.find_ends()
    if read is not None and since < read.first:
        place = Cursor(reader.network, asset, sender, since, read.first - 1)
        await _read(database, reader, place, final)
    start = since if read is None else read.position + 1
    await _read(database, reader, Cursor(reader.network, asset, sender, start, newest), final)


async def look_again(database: Database, reader: Reader, identity: bytes = b"") -> None:
    """Book those of which the payment was missing, where it is here by now; only of `identity`, if given."""
    async with database.read() as tx:
        rows = await _find_unplaced(tx, reader.network, f"refund:{identity.hex()}%")
    for row in rows:
        moved = await reader.read_marked(row.asset, row.tx_hash)
        if moved is None:
            continue
        async with database.write() as tx:
            if await book(tx, moved, now=clock.now()):
                await differences.mend(tx, row.difference_id, "Booked by now.", now=clock.now())


async def find_cursors(tx: ReadTx) -> list[Cursor]:
    """The accounts that are read."""
    return await tx.all(
        "SELECT network, asset, sender, first, position FROM payments.x402_refund_cursors", into=Cursor
    )


async def book(tx: WriteTx, moved: MarkedTransfer, *, now: datetime) -> bool:
    """Enter a transfer that the chain shows, where the books do not know it; whether they do now.

    It is the refund that its mark names. Where that one is unknown, it is one that the same payment waits
    for, of the same amount; else one more. What does not fit is a difference.
    """
    known = await _find_known(tx, moved)
    if known is not None and known.tx_hash == moved.tx_hash:
        return True
    if known is not None:
        await refunds.mark_sent(tx, moved.refund_id, now=now)
        if await _complete(tx, moved.refund_id, moved, now):
            return True
        return await _note(tx, moved, f"the books call the refund {known.status}", now)
    payment_id = await _find_payment(tx, moved)
    if payment_id is None:
        return await _note(tx, moved, "no payment here is its own", now)
    waiting = await _lock_waiting(tx, payment_id)
    if await _find_known(tx, moved) is not None:  # somebody else was faster
        return True
    for refund_id, amount in waiting:
        if amount == moved.amount and await refunds.mark_sent(tx, refund_id, now=now):
            return await _complete(tx, refund_id, moved, now)
    return await _add(tx, payment_id, [refund_id for refund_id, _ in waiting], moved, now)


async def _add(
    tx: WriteTx, payment_id: int, waiting: list[int], moved: MarkedTransfer, now: datetime
) -> bool:
    """Enter it as a refund of its own. Those that wait give way, the newest first: their money is gone."""
    while not await _take(tx, payment_id, moved.amount, now):
        if not waiting:
            return await _note(tx, moved, "its payment has nothing left", now)
        why = f"{moved.tx_hash} had sent it back before, which this database had forgotten"
        await refunds.fail(tx, waiting.pop(), why, was="requested", now=now)
    await refunds.restore(tx, payment_id, moved, now=now)
    return True


async def _complete(tx: WriteTx, refund_id: int, moved: MarkedTransfer, now: datetime) -> bool:
    return await refunds.complete(
        tx,
        refund_id,
        from_address=moved.from_address,
        tx_hash=moved.tx_hash,
        block_number=moved.position,
        now=now,
    )


async def _note(tx: WriteTx, moved: MarkedTransfer, why: str, now: datetime) -> bool:
    finding = Finding(
        "refund_forgotten",
        f"refund:{moved.mark.hex()}",
        moved.network,
        f"{moved.amount} went back to {moved.to_address} by a refund that these books do not have: {why}.",
        asset=moved.asset,
        tx_hash=moved.tx_hash,
        refund_id=moved.refund_id,
        amount_moved=moved.amount,
    )
    await differences.note(tx, finding, now=now)
    return False


async def _read(database: Database, reader: Reader, place: Cursor, final: int) -> None:
    """Read an account from `place.first` to `place.position`."""
    for start in range(place.first, place.position + 1, reader.span):
        last = min(place.position, start + reader.span - 1)
        for moved in await reader.find_marked(place.asset, place.sender, start, last):
            async with database.write() as tx:
                await book(tx, moved, now=clock.now())
        async with database.write() as tx:
            await _advance(tx, place, min(last, final))


@dataclass(frozen=True, slots=True)
class _Known:
    status: str
    tx_hash: str | None


@dataclass(frozen=True, slots=True)
class _Unplaced:
    difference_id: int
    asset: str
    tx_hash: str


async def _find_known(tx: ReadTx, moved: MarkedTransfer) -> _Known | None:
    return await tx.maybe(
        """
        SELECT status, tx_hash FROM payments.x402_refunds
        WHERE refund_id = %(refund_id)s OR (network = %(network)s AND tx_hash = %(tx_hash)s)
        ORDER BY tx_hash = %(tx_hash)s DESC NULLS LAST LIMIT 1
        """,
        {"refund_id": moved.refund_id, "network": moved.network, "tx_hash": moved.tx_hash},
        into=_Known,
    )


async def _find_payment(tx: ReadTx, moved: MarkedTransfer) -> int | None:
    """The payment of a mark: see refund_marks.identify."""
    return await tx.value(
        """
        SELECT payment_id FROM payments.x402_payments
        WHERE network = %(network)s AND asset = %(asset)s AND from_address = %(payer)s
          AND settlement IN ('settled', 'refunded', 'reversed')
          AND substring(sha256(convert_to(concat_ws(
              ' ', %(prefix)s::text, network, asset, from_address, coalesce(nonce, tx_hash)), 'UTF8'))
              FROM 1 FOR %(bytes)s) = %(identity)s
        ORDER BY payment_id LIMIT 1
        """,
        {
            "network": moved.network,
            "asset": moved.asset,
            "payer": moved.to_address,
            "prefix": PREFIX,
            "bytes": IDENTITY_BYTES,
            "identity": moved.identity,
        },
    )


async def _lock_waiting(tx: WriteTx, payment_id: int) -> list[tuple[int, int]]:
    """The refunds of a payment that nothing was sent for, and their amounts, the oldest first.

    The payment itself is locked after them, as by whoever ends a refund.
    """
    rows = await tx.dicts(
        """
        SELECT refund_id, amount FROM payments.x402_refunds
        WHERE payment_id = %(payment_id)s AND status = 'requested' ORDER BY refund_id FOR UPDATE
        """,
        {"payment_id": payment_id},
    )
    await tx.value(
        "SELECT 1 FROM payments.x402_payments WHERE payment_id = %(payment_id)s FOR NO KEY UPDATE",
        {"payment_id": payment_id},
    )
    return [(row["refund_id"], int(row["amount"])) for row in rows]


async def _take(tx: WriteTx, payment_id: int, amount: int, now: datetime) -> bool:
    changed = await tx.execute(
        """
        UPDATE payments.x402_payments SET refund_asked = refund_asked + %(amount)s, updated_at = %(now)s
        WHERE payment_id = %(payment_id)s AND settlement = 'settled' AND refund_asked + %(amount)s <= amount
        """,
        {"payment_id": payment_id, "amount": Decimal(amount), "now": now},
    )
    return changed == 1


async def _find_unplaced(tx: ReadTx, network: str, subject: str) -> list[_Unplaced]:
    return await tx.all(
        """
        SELECT difference_id, asset, tx_hash FROM payments.x402_differences
        WHERE kind = 'refund_forgotten' AND status = 'open' AND network = %(network)s
          AND subject LIKE %(subject)s
        ORDER BY difference_id LIMIT %(limit)s
        """,
        {"network": network, "subject": subject, "limit": AGAIN_MAX},
        into=_Unplaced,
    )


async def _find_cursor(tx: ReadTx, network: str, asset: str, sender: str) -> Cursor | None:
    return await tx.maybe(
        """
        SELECT network, asset, sender, first, position FROM payments.x402_refund_cursors
        WHERE network = %(network)s AND asset = %(asset)s AND sender = %(sender)s
        """,
        {"network": network, "asset": asset, "sender": sender},
        into=Cursor,
    )


async def _advance(tx: WriteTx, place: Cursor, position: int) -> None:
    """Remember what was read, where it lies against what was read before: between the two nothing is left."""
    if position < place.first:
        return
    await tx.execute(
        """
        INSERT INTO payments.x402_refund_cursors AS c (network, asset, sender, first, position)
        VALUES (%(network)s, %(asset)s, %(sender)s, %(first)s, %(position)s)
        ON CONFLICT (network, asset, sender) DO UPDATE
        SET first = least(c.first, excluded.first), position = greatest(c.position, excluded.position)
        WHERE excluded.first <= c.position + 1 AND excluded.position >= c.first - 1
        """,
        {
            "network": place.network,
            "asset": place.asset,
            "sender": place.sender,
            "first": place.first,
            "position": position,
        },
    )
