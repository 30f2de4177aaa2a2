"""The reconciler's look at the ledger: each settlement's end, as the chain has it."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from x402.mechanisms.evm.constants import SCHEME_UPTO

from tollbook.books.payments import ledger, payments, settlements, tokens
from tollbook.books.payments.ledger import Settlement, Verdict
from tollbook.books.payments.payments import Payment
from tollbook.books.payments.reconciler.differences import Finding, Kind
from tollbook.books.payments.reconciler.run import PAGES_MAX, Run
from tollbook.books.payments.settlements import ORPHANED
from tollbook.core.database import ReadTx, WriteTx


async def look_at_open(run: Run) -> None:
    """Decide those whose end is not known and that nobody holds any more."""
    after = 0
    for _ in range(PAGES_MAX):
        async with run.database.read() as tx:
            rows = await settlements.page_open(tx, now=run.now, after=after)
        if not rows:
            return
        await run.each(rows, lambda row: row.network, lambda row: decide(run, row))
        after = rows[-1].settlement_id


async def look_at_unconfirmed(run: Run) -> None:
    """Confirm those that are settled."""
    await _look_at_pages(
        run,
        lambda tx, after: settlements.page_unconfirmed(
            tx, networks=list(run.watchers), until=run.settled_before, after=after
        ),
    )


async def look_at_ended(run: Run, since: datetime) -> None:
    """Look again at all that ended."""
    await _look_at_pages(
        run,
        lambda tx, after: settlements.page_ended(
            tx, networks=list(run.watchers), since=since, until=run.settled_before, after=after
        ),
    )


async def _look_at_pages(run: Run, read: Callable[[ReadTx, int], Awaitable[list[Settlement]]]) -> None:
    after = 0
    for _ in range(PAGES_MAX):
        async with run.database.read() as tx:
            rows = await read(tx, after)
        if not rows:
            return
        await run.each(rows, lambda row: row.network, lambda row: look_again(run, row))
        after = rows[-1].settlement_id


async def decide(run: Run, row: Settlement) -> None:
    """Give an open settlement its end, where the chain knows it, and its payment with it."""
    verdict = await run.judge(row)
    async with run.database.write() as tx:
        if not await settlements.hold(tx, row):
            return
        if verdict is None or verdict.outcome == "open":
            if row.asked_at <= run.settled_before:  # before that its payer is likely to come again
                await run.note(tx, _leave_open(row, verdict))
            return
        await ledger.conclude(tx, row, verdict, ledger.make_answer(row, verdict), now=run.now)
        if verdict.outcome == "settled":
            await grant(run, tx, row, verdict)
        else:
            await withdraw(run, tx, row, verdict.reason or "not settled")


async def look_again(run: Run, row: Settlement) -> None:
    """Hold a settlement that has an end against the chain."""
    verdict = await run.judge(row)
    if verdict is None:
        return
    final = await run.find_final(row.network)
    async with run.database.write() as tx:
        if not await settlements.hold(tx, row):
            return
        if row.status == "failed":
            if verdict.outcome == "settled":
                await _revive(run, tx, row, verdict)
        elif verdict.outcome == "settled":
            await _compare(run, tx, row, verdict, final)
        elif verdict.outcome == "open":
            await _orphan(run, tx, row)
        else:
            await settlements.reopen(tx, row, ORPHANED, now=run.now)
            await ledger.conclude(tx, row, verdict, ledger.make_answer(row, verdict), now=run.now)
            await withdraw(run, tx, row, verdict.reason or "not settled")


async def grant(run: Run, tx: WriteTx, row: Settlement, verdict: Verdict) -> None:
    """The money is here: book what it bought, where a payment waits for it. Whoever presents it gets it."""
    moved = verdict.amount_moved or 0
    payment = await find_payment(tx, row)
    if payment is None or payment.status != "pending":
        if payment is not None and row.reason and row.reason.startswith(ORPHANED):
            return  # it was granted, and the chain has taken it again: close_mended says so
        note = "The chain settled it; the ledger says so now."
        await run.note(tx, _tell(row, "unknown", note, verdict, mended=True))
        return
    if falls_short(payment, moved):
        note = f"It moved {moved} of {payment.amount}: nothing was granted. Refund it, or accept it."
        await run.note(tx, _tell(row, "amount_differs", note, verdict, payment))
        return
    await settle_payment(run, tx, payment, verdict)
    note = "Settled in the books. The payer gets what he bought when he presents the payment again."
    await run.note(tx, _tell(row, "paid_not_granted", note, verdict, payment, mended=True))


def falls_short(payment: Payment, moved: int) -> bool:
    """Whether less moved than pays for it. By usage less is charged than was reserved."""
    return moved < payment.amount and payment.scheme != SCHEME_UPTO


async def settle_payment(run: Run, tx: WriteTx, payment: Payment, verdict: Verdict) -> None:
    """Book a pending payment as settled by the verdict's transaction."""
    await payments.settle(
        tx,
        payment.payment_id,
        tx_hash=verdict.tx_hash,
        block_number=verdict.block_number,
        confirmations=None,
        now=run.now,
        amount=verdict.amount_moved if payment.scheme == SCHEME_UPTO else None,
    )


async def withdraw(run: Run, tx: WriteTx, row: Settlement, reason: str) -> None:
    """No money is here, nor will be: a waiting payment failed, a granted one is taken back."""
    payment = await find_payment(tx, row)
    if payment is None or payment.status == "pending":
        if payment is not None:
            await payments.fail(tx, payment.payment_id, reason, now=run.now)
        note = f"Not settled, and never will be: {reason}."
        await run.note(tx, _tell(row, "unknown", note, payment=payment, mended=True))
    elif payment.settlement == "settled":
        await take_back(run, tx, payment, reason, subject=f"settlement:{row.settlement_id}", row=row)


async def take_back(
    run: Run, tx: WriteTx, payment: Payment, reason: str, *, subject: str, row: Settlement | None = None
) -> None:
    """End a payment that was granted and never paid, and its tokens. Open where requests were served."""
    await payments.reverse(tx, payment.payment_id, reason, now=run.now)
    await tokens.revoke_all(tx, payment.payment_id, now=run.now)
    served = payment.requests_used
    finding = Finding(
        "granted_not_paid",
        subject,
        payment.network,
        f"No money moved: {reason}. The payment is reversed, its tokens are revoked; "
        + (f"{served} requests were served for nothing." if served else "nothing had been served."),
        mended=served == 0,
        asset=payment.asset,
        tx_hash=payment.tx_hash,
        settlement_id=None if row is None else row.settlement_id,
        payment_id=payment.payment_id,
        amount_booked=payment.amount,
        amount_moved=0,
    )
    await run.note(tx, finding)


async def find_payment(tx: WriteTx, row: Settlement) -> Payment | None:
    """The payment of a settlement, held until the transaction ends; failed ones aside.

    None where another than the paywall sells for it: a payment with the same nonce waits in vain.
    """
    if row.owner != "paywall":
        return None
    payment_id = await tx.value(
        """
        SELECT payment_id FROM payments.x402_payments
        WHERE network = %(network)s AND asset = %(asset)s AND from_address = %(payer)s AND nonce = %(nonce)s
          AND status <> 'failed'
        FOR NO KEY UPDATE
        """,
        {"network": row.network, "asset": row.asset, "payer": row.payer, "nonce": row.nonce},
    )
    return None if payment_id is None else await payments.get(tx, payment_id)


def _leave_open(row: Settlement, verdict: Verdict | None) -> Finding:
    if row.reason and row.reason.startswith(ORPHANED):
        note = "The chain took its transaction back. It is settled again when the payment is presented again."
        return _tell(row, "orphaned", note)
    if verdict is None:
        note = (
            "The chain does not tell: its network is not watched, or it cannot be judged. Look it up by hand."
        )
        return _tell(row, "unknown", note)
    until = "" if row.valid_before is None else f" until {row.valid_before:%Y-%m-%d %H:%M:%S} UTC"
    note = f"It has not moved and still may{until}. The next runs decide; nothing is to be done."
    return _tell(row, "unknown", note)


async def _compare(run: Run, tx: WriteTx, row: Settlement, verdict: Verdict, final: int) -> None:
    if verdict.tx_hash != row.tx_hash:
        await _correct(run, tx, row, verdict)
        return
    moved = verdict.amount_moved
    if moved != row.amount and row.scheme != SCHEME_UPTO:
        note = f"It moved {moved}, and {row.amount} was signed. Compare the two, then accept it."
        await run.note(tx, _tell(row, "amount_differs", note, verdict))
    elif row.amount_moved not in (None, moved):
        await settlements.correct(tx, row, verdict, now=run.now)
        note = f"The ledger said that {row.amount_moved} moved; it says {moved} now, as the chain does."
        await run.note(tx, _tell(row, "amount_differs", note, verdict, mended=True))
    if verdict.block_number is not None and verdict.block_number <= final:
        await settlements.confirm(tx, row, verdict, now=run.now)


async def _correct(run: Run, tx: WriteTx, row: Settlement, verdict: Verdict) -> None:
    """A reorganisation may bring the same authorization back in another transaction."""
    await settlements.correct(tx, row, verdict, now=run.now)
    payment = await find_payment(tx, row)
    if payment is not None and payment.tx_hash == row.tx_hash:
        await name_transaction(run, tx, payment, verdict)
    note = f"The books named {row.tx_hash}; they name the transaction that settled it now."
    await run.note(tx, _tell(row, "transaction_differs", note, verdict, payment, mended=True))


async def name_transaction(run: Run, tx: WriteTx, payment: Payment, verdict: Verdict) -> None:
    """Have a settled payment name the verdict's transaction."""
    await tx.execute(
        """
        UPDATE payments.x402_payments
        SET tx_hash = %(tx_hash)s, block_number = %(block_number)s, updated_at = %(now)s
        WHERE payment_id = %(payment_id)s AND settlement = 'settled'
        """,
        {
            "tx_hash": verdict.tx_hash,
            "block_number": verdict.block_number,
            "now": run.now,
            "payment_id": payment.payment_id,
        },
    )


async def _orphan(run: Run, tx: WriteTx, row: Settlement) -> None:
    """Its transaction is gone and may come back: what it bought stays until that is impossible."""
    await settlements.reopen(tx, row, f"{ORPHANED}: {row.tx_hash} is not on the chain", now=run.now)
    note = "The chain took its transaction back. It is settled again when the payment is presented again."
    await run.note(tx, _tell(row, "orphaned", note, payment=await find_payment(tx, row)))


async def _revive(run: Run, tx: WriteTx, row: Settlement, verdict: Verdict) -> None:
    """The ledger called it failed, and it settled."""
    await settlements.reopen(tx, row, "failed, and yet the chain settled it", now=run.now)
    await ledger.conclude(tx, row, verdict, ledger.make_answer(row, verdict), now=run.now)
    payment = await find_payment(tx, row)
    if payment is not None and payment.settlement in ("pending", "unknown"):
        await grant(run, tx, row, verdict)
        return
    granted = payment is not None and payment.settlement == "settled"
    note = "The ledger said failed; it says settled now" + (
        "." if granted else ", and its payment is looked for next."
    )
    await run.note(tx, _tell(row, "settlement_missing", note, verdict, payment, mended=True))


def _tell(
    row: Settlement,
    kind: Kind,
    note: str,
    verdict: Verdict | None = None,
    payment: Payment | None = None,
    *,
    mended: bool = False,
) -> Finding:
    return Finding(
        kind,
        f"settlement:{row.settlement_id}",
        row.network,
        note,
        mended=mended,
        asset=row.asset,
        tx_hash=row.tx_hash if verdict is None or verdict.tx_hash is None else verdict.tx_hash,
        settlement_id=row.settlement_id,
        payment_id=None if payment is None else payment.payment_id,
        amount_booked=row.amount if payment is None else payment.amount,
        amount_moved=None if verdict is None else verdict.amount_moved,
    )
