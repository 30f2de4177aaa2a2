"""The reconciler's look at refunds: what is on its way for too long, and what never arrived."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from tollbook.books.payments import forgotten_refunds, refunds
from tollbook.books.payments.evm_refunds import EvmReader
from tollbook.books.payments.forgotten_refunds import Cursor, Reader
from tollbook.books.payments.reconciler import differences
from tollbook.books.payments.reconciler.differences import Finding, Kind
from tollbook.books.payments.reconciler.movements import ChainWatcher
from tollbook.books.payments.reconciler.run import Run
from tollbook.books.payments.refunds import Refund
from tollbook.books.payments.solana.movements import SolanaWatcher
from tollbook.books.payments.solana.refunds import SolanaReader
from tollbook.core.database import ReadTx, WriteTx

ON_ITS_WAY_MAX = timedelta(minutes=10)
RECENT = timedelta(hours=24)  # how far back is looked without `since`


@dataclass(frozen=True, slots=True)
class _Unequal:
    payment_id: int
    network: str
    asset: str
    booked: Decimal
    moved: Decimal


@dataclass(frozen=True, slots=True)
class _Sent:
    status: str
    hash: str
    block_number: int


async def look_at_refunds(run: Run) -> None:
    """Book the refunds that were forgotten, name the late ones, compare the done ones with the chain."""
    await _recall(run)
    async with run.database.read() as tx:
        waiting = await refunds.find_open(tx)
        done = await refunds.page_done(tx, since=run.since or run.now - RECENT)
        not_landed = {
            each.refund_id: each.difference_id
            for each in await differences.page(tx)
            if each.kind == "refund_not_landed" and each.refund_id is not None
        }
    async with run.database.write() as tx:
        for refund in waiting:
            if refund.requested_at <= run.now - ON_ITS_WAY_MAX:
                note = f"It was {refund.status}, and not heard of since. The worker goes on with it."
                await run.note(tx, _tell(refund, "refund_unknown", note))
        for payment in await _find_unequal(tx, run.since or run.now - RECENT):
            await run.note(tx, _tell_payment(payment))
    await run.each(done, lambda refund: refund.network, lambda refund: _look(run, refund, not_landed))


async def _recall(run: Run) -> None:
    """Read what the operator's accounts sent since the last look; see forgotten_refunds."""
    async with run.database.read() as tx:
        cursors = await forgotten_refunds.find_cursors(tx)
        unplaced = [each for each in await differences.page(tx) if each.kind == "refund_forgotten"]
    await run.each(cursors, lambda cursor: cursor.network, lambda cursor: _catch_up(run, cursor))
    networks = sorted({each.network for each in unplaced})
    await run.each(networks, lambda network: network, lambda network: _look_again(run, network))
    async with run.database.read() as tx:
        for each in await differences.page(tx, status=None):
            if each.kind == "refund_forgotten" and run.now <= (each.closed_at or each.last_seen):
                run.seen[each.difference_id] = each


async def _look_again(run: Run, network: str) -> None:
    reader = _open_reader(run, network)
    if reader is not None:
        await forgotten_refunds.look_again(run.database, reader)


async def _catch_up(run: Run, cursor: Cursor) -> None:
    reader = _open_reader(run, cursor.network)
    if reader is not None:
        await forgotten_refunds.catch_up(run.database, reader, cursor.asset, cursor.sender, cursor.first)


def _open_reader(run: Run, network: str) -> Reader | None:
    watcher = run.watchers.get(network)
    if isinstance(watcher, SolanaWatcher):
        return SolanaReader(watcher.nodes[network])
    return EvmReader(watcher.chains[network]) if isinstance(watcher, ChainWatcher) else None


async def _find_unequal(tx: ReadTx, since: datetime) -> list[_Unequal]:
    """Payments that say more or less went back than their refunds do."""
    return await tx.all(
        """
        SELECT p.payment_id, p.network, p.asset, p.refunded_amount AS booked,
               coalesce(sum(r.amount), 0) AS moved
        FROM payments.x402_payments AS p
        LEFT JOIN payments.x402_refunds AS r ON r.payment_id = p.payment_id AND r.status = 'done'
        WHERE p.settled_at >= %(since)s AND p.settlement IN ('settled', 'refunded')
        GROUP BY p.payment_id HAVING p.refunded_amount <> coalesce(sum(r.amount), 0)
        LIMIT %(limit)s
        """,
        {"since": since, "limit": refunds.PAGE_MAX},
        into=_Unequal,
    )


def _tell_payment(row: _Unequal) -> Finding:
    return Finding(
        "refund_not_landed",
        f"payment:{row.payment_id}",
        row.network,
        f"The payment says that {row.booked} went back, its refunds say {row.moved}.",
        asset=row.asset,
        payment_id=row.payment_id,
        amount_booked=int(row.booked),
        amount_moved=int(row.moved),
    )


async def _look(run: Run, refund: Refund, open_before: Mapping[int, int]) -> None:
    """Compare a refund that is done with its transaction; `open_before` are differences, by refund."""
    watcher = run.watchers.get(refund.network)
    if watcher is None or refund.tx_hash is None:
        return
    moved = sum(
        movement.amount
        for movement in await watcher.read_transaction(refund.network, refund.tx_hash) or []
        if (movement.asset, movement.payer, movement.pay_to)
        == (refund.asset, refund.from_address, refund.to_address)
    )
    async with run.database.write() as tx:
        if moved != refund.amount:
            await _name_missing(run, tx, refund, moved)
        elif refund.refund_id in open_before:
            await differences.mend(tx, open_before[refund.refund_id], "It has landed.", now=run.now)


async def _name_missing(run: Run, tx: WriteTx, refund: Refund, moved: int) -> None:
    """After a reorganisation the lanes send it again, perhaps under another hash: then nobody else may."""
    sent = await _find_transaction(tx, refund)
    note = (
        f"The books sent back {refund.amount}; its transaction moved {moved}. Send what is missing by hand."
    )
    if sent is not None and sent.status in ("reserved", "signed", "sent"):
        note = "The chain took its transaction back, and the worker sends it again. Do nothing by hand."
    elif sent is not None and sent.status == "mined" and sent.hash != refund.tx_hash:
        await refunds.rename(tx, refund.refund_id, tx_hash=sent.hash, block_number=sent.block_number)
        note = f"Its transaction is {sent.hash} by now. The next run compares that."
    await run.note(tx, _tell(refund, "refund_not_landed", note, moved))


async def _find_transaction(tx: ReadTx, refund: Refund) -> _Sent | None:
    return await tx.maybe(
        "SELECT status, hash, block_number FROM core.transactions WHERE purpose = %(purpose)s",
        {"purpose": f"refund:{refund.refund_id}"},
        into=_Sent,
    )


def _tell(refund: Refund, kind: Kind, note: str, moved: int | None = None) -> Finding:
    return Finding(
        kind,
        f"refund:{refund.refund_id}",
        refund.network,
        note,
        asset=refund.asset,
        tx_hash=refund.tx_hash,
        payment_id=refund.payment_id,
        refund_id=refund.refund_id,
        amount_booked=refund.amount,
        amount_moved=moved,
    )
