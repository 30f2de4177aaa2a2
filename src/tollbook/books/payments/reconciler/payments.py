"""The reconciler's look at the payments: what each of them says against its settlement, or the chain."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from tollbook.books.payments import payments, settlements
from tollbook.books.payments.claims import SCHEME as CLAIMED
from tollbook.books.payments.ledger import Settlement, Verdict
from tollbook.books.payments.payments import Offer, Payment
from tollbook.books.payments.reconciler.differences import Finding, Kind
from tollbook.books.payments.reconciler.run import PAGES_MAX, Run
from tollbook.books.payments.reconciler.settlements import (
    falls_short,
    look_again,
    name_transaction,
    settle_payment,
    take_back,
)
from tollbook.core import ids
from tollbook.core.database import ReadTx, WriteTx

PAGE_MAX = 500
RECENT = timedelta(hours=24)  # how far back is looked without `since`
WRITTEN_ANEW = "the chain"  # the facilitator of a settlement that was written down from the chain


@dataclass(frozen=True, slots=True)
class _Pair:
    """A payment and how its settlement stands, where there is one."""

    payment_id: int
    network: str
    settlement_id: int | None
    settlement_status: str | None
    settlement_owner: str | None
    settlement_tx: str | None
    settlement_block: int | None
    settlement_moved: Decimal | None


@dataclass(frozen=True, slots=True)
class _Lone:
    """A settlement of ours that no payment stands for."""

    settlement_id: int
    network: str
    asset: str
    payer: str
    nonce: str
    tx_hash: str | None
    block_number: int | None
    amount_moved: Decimal | None
    failed_payment_id: int | None


async def look_at_waiting(run: Run) -> None:
    """Decide the payments that wait although nobody can be at work on them any more."""
    after = 0
    for _ in range(PAGES_MAX):
        async with run.database.read() as tx:
            pairs = await _page_waiting(tx, run.settled_before, after)
        if not pairs:
            return
        await run.each(pairs, lambda pair: pair.network, lambda pair: _decide(run, pair))
        after = pairs[-1].payment_id


async def look_at_granted(run: Run) -> None:
    """Hold the payments that were granted lately against what should stand behind them."""
    after = 0
    for _ in range(PAGES_MAX):
        async with run.database.read() as tx:
            pairs = await _page_unbacked(tx, run.since or run.now - RECENT, run.settled_before, after)
        if not pairs:
            break
        await run.each(pairs, lambda pair: pair.network, lambda pair: _back(run, pair))
        after = pairs[-1].payment_id
    await _find_unequal(run)
    await _find_tokenless(run)


async def look_at_lone_settlements(run: Run) -> None:
    """Find the settlements to our recipients that granted nothing."""
    async with run.database.read() as tx:
        lone = await _page_lone(tx, run.since or run.now - RECENT, run.settled_before)
    await run.each(lone, lambda row: row.network, lambda row: _grant_lone(run, row))


async def _decide(run: Run, pair: _Pair) -> None:
    if pair.settlement_status != "settled":
        await _decide_by_chain(run, pair)
        return
    async with run.database.write() as tx:
        payment = await _hold(tx, pair.payment_id)
        if payment is None or payment.status != "pending":
            return
        if pair.settlement_owner != "paywall":
            await payments.fail(
                tx, payment.payment_id, "its authorization bought something else", now=run.now
            )
            return
        moved = payment.amount if pair.settlement_moved is None else int(pair.settlement_moved)
        verdict = Verdict("settled", pair.settlement_tx, pair.settlement_block, moved)
        if falls_short(payment, moved):
            note = f"It moved {moved} of {payment.amount}: nothing was granted. Refund it, or accept it."
            await run.note(tx, _tell(payment, "amount_differs", note, pair.settlement_id, verdict))
            return
        await settle_payment(run, tx, payment, verdict)
        note = "Settled in the books. The payer gets what he bought when he presents the payment again."
        await run.note(tx, _tell(payment, "paid_not_granted", note, pair.settlement_id, mended=True))


async def _decide_by_chain(run: Run, pair: _Pair) -> None:
    """Nobody wrote down that a facilitator was asked, or the ledger says failed: the chain alone tells."""
    async with run.database.read() as tx:
        payment = await payments.get(tx, pair.payment_id)
    verdict = await run.judge(as_settlement(payment))
    if verdict is not None and verdict.outcome == "settled" and pair.settlement_id is not None:
        await _correct_ledger(run, payment)
        return
    async with run.database.write() as tx:
        if await _hold(tx, payment.payment_id) != payment:
            return
        if verdict is None or verdict.outcome == "open":
            if payment.valid_before is not None and payment.valid_before > run.now:
                return  # reserved, and its handler may still be at work
            note = "No facilitator was asked, and the chain does not tell. The next runs look again."
            await run.note(tx, _tell(payment, "unknown", note))
        elif verdict.outcome == "settled" and falls_short(payment, verdict.amount_moved or 0):
            note = f"It moved {verdict.amount_moved} of {payment.amount}: nothing was granted."
            await run.note(tx, _tell(payment, "amount_differs", note, verdict=verdict))
        elif verdict.outcome == "settled":
            if not await settlements.restore(tx, as_settlement(payment), verdict, now=run.now):
                return  # somebody took it meanwhile: the next run sees how that ended
            await settle_payment(run, tx, payment, verdict)
            note = "Settled in the books. The payer gets what he bought when he presents the payment again."
            await run.note(tx, _tell(payment, "paid_not_granted", note, verdict=verdict, mended=True))
        else:
            await payments.fail(tx, payment.payment_id, verdict.reason or "not settled", now=run.now)
            note = f"Not settled, and never will be: {verdict.reason}."
            await run.note(tx, _tell(payment, "unknown", note, mended=True))


async def _back(run: Run, pair: _Pair) -> None:
    """Find what stands behind a payment that was granted and whose settlement is missing or says failed."""
    async with run.database.read() as tx:
        payment = await payments.get(tx, pair.payment_id)
    if payment.nonce is None:
        await _back_claim(run, payment)
        return
    verdict = await run.judge(as_settlement(payment))
    if verdict is not None and verdict.outcome == "settled" and pair.settlement_id is not None:
        await _correct_ledger(run, payment)
        return
    async with run.database.write() as tx:
        if await _hold(tx, payment.payment_id) != payment:
            return
        if verdict is None:
            note = "Nothing stands behind it in the ledger, and the chain does not tell. Look it up by hand."
            await run.note(tx, _tell(payment, "unknown", note))
        elif verdict.outcome == "settled":
            await _write_anew(run, tx, payment, verdict)
        elif verdict.outcome == "open":
            note = "It was granted, and no money has moved. Revoke its tokens if it does not move soon."
            await run.note(tx, _tell(payment, "granted_not_paid", note))
        else:
            reason = verdict.reason or "not settled"
            await take_back(run, tx, payment, reason, subject=f"payment:{payment.payment_id}")


async def _correct_ledger(run: Run, payment: Payment) -> None:
    """The ledger calls it failed, and it settled."""
    assert payment.nonce is not None
    async with run.database.read() as tx:
        rows = await settlements.find_by_nonces(
            tx, payment.network, payment.asset, payment.from_address, [payment.nonce]
        )
    for row in rows:
        await look_again(run, row)


async def _write_anew(run: Run, tx: WriteTx, payment: Payment, verdict: Verdict) -> None:
    if (verdict.amount_moved or 0) != payment.amount:
        note = f"The chain moved {verdict.amount_moved}, the payment says {payment.amount}."
        await run.note(tx, _tell(payment, "amount_differs", note, verdict=verdict))
    if payment.scheme == CLAIMED:
        return
    if await settlements.restore(tx, as_settlement(payment), verdict, now=run.now):
        note = "The ledger had no settlement for it; it was written down from the chain."
        await run.note(tx, _tell(payment, "settlement_missing", note, verdict=verdict, mended=True))


async def _back_claim(run: Run, payment: Payment) -> None:
    """Money that was sent beforehand: its transaction must have moved it."""
    watcher = run.watchers.get(payment.network)
    if watcher is None or payment.tx_hash is None:
        return
    moved = sum(
        movement.amount
        for movement in await watcher.read_transaction(payment.network, payment.tx_hash) or []
        if (movement.asset, movement.payer, movement.pay_to)
        == (payment.asset, payment.from_address, payment.to_address)
    )
    if moved == payment.amount:
        return
    kind: Kind = "amount_differs" if moved else "granted_not_paid"
    note = (
        f"Its transaction moved {moved}, the payment says {payment.amount}. Revoke its tokens, or accept it."
    )
    async with run.database.write() as tx:
        await run.note(tx, _tell(payment, kind, note, verdict=Verdict("settled", amount_moved=moved)))


async def _grant_lone(run: Run, row: _Lone) -> None:
    """Money of ours came and granted nothing. A payment that was called failed is made again from itself."""
    async with run.database.write() as tx:
        old = None if row.failed_payment_id is None else await payments.get(tx, row.failed_payment_id)
        moved = None if row.amount_moved is None else int(row.amount_moved)
        if old is None or moved is None or falls_short(old, moved):
            note = "Money came and no payment stands for it. Find out what was sold; refund it or accept it."
            await run.note(tx, _tell_lone(row, note))
            return
        made = await payments.reserve(tx, _offer_again(old), now=run.now)
        verdict = Verdict("settled", row.tx_hash, row.block_number, moved)
        await settle_payment(run, tx, made, verdict)
        await _hand_over(tx, old.payment_id, made.payment_id)
        note = f"{payments.show(old.payment_id)} was called failed; this one stands for it now."
        await run.note(tx, _tell(made, "paid_not_granted", note, row.settlement_id, mended=True))


async def _hand_over(tx: WriteTx, old_id: int, new_id: int) -> None:
    """Who presents the payment again is served as if it had never been called failed."""
    await tx.execute(
        """
        INSERT INTO payments.x402_answers (
            payment_id, holder, held_until, expires_at, status, proof_hash, request_hash)
        SELECT %(new_id)s, holder, held_until, expires_at, 'open', proof_hash, request_hash
        FROM payments.x402_answers WHERE payment_id = %(old_id)s
        """,
        {"old_id": old_id, "new_id": new_id},
    )


def as_settlement(payment: Payment) -> Settlement:
    """A payment as the ledger would have it: what a chain is asked with."""
    assert payment.nonce is not None
    number = ids.make()
    return Settlement(
        settlement_id=number, network=payment.network, scheme=payment.scheme, asset=payment.asset,
        payer=payment.from_address, pay_to=payment.to_address, nonce=payment.nonce, amount=payment.amount,
        amount_moved=None, status="unknown", facilitator=WRITTEN_ANEW, tx_hash=payment.tx_hash,
        block_number=payment.block_number, reason=None, answer=None, asks=1, holder=number,
        asked_at=payment.created_at, held_until=payment.created_at, valid_before=payment.valid_before,
        settled_at=payment.settled_at, confirmed_at=None,
    )  # fmt: skip


def _offer_again(old: Payment) -> Offer:
    return Offer(
        network=old.network, chain=old.chain, asset=old.asset, decimals=old.decimals, amount=old.amount,
        from_address=old.from_address, to_address=old.to_address, nonce=old.nonce, tx_hash=None,
        scheme=old.scheme, endpoint=old.endpoint, requests_allocated=old.requests_allocated,
        lifetime=old.lifetime, valid_before=old.valid_before,
    )  # fmt: skip


async def _hold(tx: WriteTx, payment_id: int) -> Payment | None:
    """The payment, held until the transaction ends; None where somebody else has it now."""
    held = await tx.value(
        """
        SELECT payment_id FROM payments.x402_payments WHERE payment_id = %(payment_id)s
        FOR NO KEY UPDATE SKIP LOCKED
        """,
        {"payment_id": payment_id},
    )
    return None if held is None else await payments.get(tx, payment_id)


async def _page_waiting(tx: ReadTx, before: datetime, after: int) -> list[_Pair]:
    """Pending payments whose settlement has ended, or was never begun."""
    return await tx.all(
        """
        SELECT p.payment_id, p.network, s.settlement_id, s.status AS settlement_status,
               s.owner AS settlement_owner, s.tx_hash AS settlement_tx, s.block_number AS settlement_block,
               s.amount_moved AS settlement_moved
        FROM payments.x402_payments AS p
        LEFT JOIN payments.x402_settlements AS s
          ON s.network = p.network AND s.asset = p.asset AND s.payer = p.from_address AND s.nonce = p.nonce
        WHERE p.status = 'pending' AND p.nonce IS NOT NULL AND p.updated_at <= %(before)s
          AND (s.settlement_id IS NULL
               OR (s.status IN ('settled', 'failed') AND s.updated_at <= %(before)s))
          AND p.payment_id > %(after)s
        ORDER BY p.payment_id LIMIT %(limit)s
        """,
        {"before": before, "after": after, "limit": PAGE_MAX},
        into=_Pair,
    )


async def _page_unbacked(tx: ReadTx, since: datetime, before: datetime, after: int) -> list[_Pair]:
    """Granted payments without a settlement, or with one that says failed. Channels are settled later."""
    return await tx.all(
        """
        SELECT p.payment_id, p.network, s.settlement_id, s.status AS settlement_status,
               s.owner AS settlement_owner, s.tx_hash AS settlement_tx, s.block_number AS settlement_block,
               s.amount_moved AS settlement_moved
        FROM payments.x402_payments AS p
        LEFT JOIN payments.x402_settlements AS s
          ON s.network = p.network AND s.asset = p.asset AND s.payer = p.from_address AND s.nonce = p.nonce
         AND s.owner = 'paywall'
        WHERE p.settlement = 'settled' AND p.settled_at >= %(since)s AND p.settled_at <= %(before)s
          AND p.scheme <> 'batch-settlement'
          AND (s.settlement_id IS NULL OR (s.status = 'failed' AND s.updated_at <= %(before)s))
          AND p.payment_id > %(after)s
        ORDER BY p.payment_id LIMIT %(limit)s
        """,
        {"since": since, "before": before, "after": after, "limit": PAGE_MAX},
        into=_Pair,
    )


async def _page_lone(tx: ReadTx, since: datetime, before: datetime) -> list[_Lone]:
    """Settlements to those who are paid here that no payment stands for. Channels have their own books."""
    return await tx.all(
        """
        SELECT s.settlement_id, s.network, s.asset, s.payer, s.nonce, s.tx_hash, s.block_number,
               s.amount_moved,
               (SELECT max(f.payment_id) FROM payments.x402_payments AS f
                WHERE f.network = s.network AND f.asset = s.asset AND f.from_address = s.payer
                  AND f.nonce = s.nonce AND f.status = 'failed' AND s.owner = 'paywall') AS failed_payment_id
        FROM payments.x402_settlements AS s
        WHERE s.status = 'settled' AND s.scheme <> 'batch-settlement'
          AND s.settled_at >= %(since)s AND s.updated_at <= %(before)s
          AND (s.owner = 'sdk' OR (s.owner = 'paywall' AND (
              SELECT true FROM payments.x402_payments AS ours
              WHERE ours.network = s.network AND ours.to_address = s.pay_to
              ORDER BY ours.asset LIMIT 1)))  -- in the order of an index: a look, whoever is paid
          AND NOT EXISTS (
              SELECT FROM payments.x402_payments AS p
              WHERE p.network = s.network AND p.asset = s.asset AND p.from_address = s.payer
                AND p.nonce = s.nonce AND p.status <> 'failed')
        ORDER BY s.settlement_id LIMIT %(limit)s
        """,
        {"since": since, "before": before, "limit": PAGE_MAX},
        into=_Lone,
    )


@dataclass(frozen=True, slots=True)
class _Unequal:
    payment_id: int
    settlement_id: int
    amount_moved: Decimal
    tx_hash: str | None
    block_number: int | None


async def _find_unequal(run: Run) -> None:
    async with run.database.write() as tx:
        unequal = await tx.all(
            """
            SELECT p.payment_id, s.settlement_id, s.amount_moved, s.tx_hash, s.block_number
            FROM payments.x402_payments AS p
            JOIN payments.x402_settlements AS s
              ON s.network = p.network AND s.asset = p.asset AND s.payer = p.from_address
             AND s.nonce = p.nonce AND s.owner = 'paywall'
            WHERE p.settlement = 'settled' AND s.status = 'settled' AND s.confirmed_at IS NOT NULL
              AND (s.amount_moved <> p.amount OR s.tx_hash IS DISTINCT FROM p.tx_hash)
              AND p.settled_at >= %(since)s
            LIMIT %(limit)s
            """,
            {"since": run.since or run.now - RECENT, "limit": PAGE_MAX},
            into=_Unequal,
        )
        for row in unequal:
            payment = await payments.get(tx, row.payment_id)
            verdict = Verdict("settled", row.tx_hash, row.block_number, int(row.amount_moved))
            if payment.amount != row.amount_moved:
                note = f"The chain moved {row.amount_moved}, the payment says {payment.amount}."
                await run.note(tx, _tell(payment, "amount_differs", note, row.settlement_id, verdict))
            if payment.tx_hash != row.tx_hash:
                await name_transaction(run, tx, payment, verdict)
                note = f"The payment named {payment.tx_hash}; it names its settlement's transaction now."
                finding = _tell(payment, "transaction_differs", note, None, verdict, mended=True)
                await run.note(tx, finding)


@dataclass(frozen=True, slots=True)
class _Tokenless:
    payment_id: int


async def _find_tokenless(run: Run) -> None:
    """A token is issued with the settlement; where we settled it ourselves, the payer has yet to come."""
    async with run.database.write() as tx:
        tokenless = await tx.all(
            """
            SELECT p.payment_id FROM payments.x402_payments AS p
            WHERE p.settlement = 'settled' AND p.status <> 'expired'
              AND p.settled_at >= %(since)s AND p.settled_at <= %(before)s
              AND NOT EXISTS (SELECT FROM payments.x402_tokens AS t WHERE t.payment_id = p.payment_id)
              AND NOT EXISTS (
                  SELECT FROM payments.x402_differences AS d
                  WHERE d.payment_id = p.payment_id AND d.kind = 'paid_not_granted' AND d.status = 'mended')
            LIMIT %(limit)s
            """,
            {"since": run.since or run.now - RECENT, "before": run.settled_before, "limit": PAGE_MAX},
            into=_Tokenless,
        )
        for row in tokenless:
            payment = await payments.get(tx, row.payment_id)
            note = (
                "It was paid and nobody has a token. The payer gets one when he presents the payment again."
            )
            await run.note(tx, _tell(payment, "token_missing", note))


def _tell(
    payment: Payment,
    kind: Kind,
    note: str,
    settlement_id: int | None = None,
    verdict: Verdict | None = None,
    *,
    mended: bool = False,
) -> Finding:
    """A finding about a payment; about its amount it has the settlement's name, where there is one."""
    by_settlement = kind == "amount_differs" and settlement_id is not None
    return Finding(
        kind,
        f"settlement:{settlement_id}" if by_settlement else f"payment:{payment.payment_id}",
        payment.network,
        note,
        mended=mended,
        asset=payment.asset,
        tx_hash=payment.tx_hash if verdict is None or verdict.tx_hash is None else verdict.tx_hash,
        settlement_id=settlement_id,
        payment_id=payment.payment_id,
        amount_booked=payment.amount,
        amount_moved=None if verdict is None else verdict.amount_moved,
    )


def _tell_lone(row: _Lone, note: str) -> Finding:
    return Finding(
        "paid_not_granted",
        f"settlement:{row.settlement_id}",
        row.network,
        note,
        asset=row.asset,
        tx_hash=row.tx_hash,
        settlement_id=row.settlement_id,
        payment_id=row.failed_payment_id,
        amount_moved=None if row.amount_moved is None else int(row.amount_moved),
    )
