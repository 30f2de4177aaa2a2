"""The reconciler's look from the chain's side: every transfer to our recipients against the books."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from x402.mechanisms.evm.batch_settlement.constants import BATCH_SETTLEMENT_ADDRESS

from tollbook.books.payments import settlements
from tollbook.books.payments.payments import spell
from tollbook.books.payments.reconciler.differences import Finding, Kind
from tollbook.books.payments.reconciler.movements import Movement, Watcher
from tollbook.books.payments.reconciler.run import Run
from tollbook.books.payments.reconciler.settlements import decide, look_again
from tollbook.books.payments.rules import Payee
from tollbook.core.chains import ChainRefused, ChainUnreachable, find_network
from tollbook.core.database import ReadTx

POSITIONS_MAX = 50_000  # that are read and compared at once
PIECES_MAX = 10_000  # of so many, of a network in one run; the next one goes on
ADDRESSES_MAX = 10_000
SKEW = timedelta(minutes=1)  # that a chain's clock and ours may differ, a block's rounding included
ESCROW = BATCH_SETTLEMENT_ADDRESS.lower()  # pays out what vouchers claimed: channels have their own books


@dataclass(frozen=True, slots=True)
class _Place:
    """Where money comes in: what is watched on one network, and how far it was read."""

    network: str
    assets: list[str]
    recipients: list[str]
    position: int | None
    begun_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Booked:
    """A row that counts some of a transaction's money: a settlement, or a payment without one."""

    settlement_id: int | None
    payment_id: int | None
    amount: Decimal


async def look_at_movements(run: Run, payees: Sequence[Payee]) -> None:
    """Read each watched network from where the last run ended, and compare what moved with the books."""
    async with run.database.read() as tx:
        places = [await _find_place(tx, network, payees) for network in run.watchers]
    for place in places:
        if place.network in run.unreachable or not place.assets or not place.recipients:
            continue
        try:
            await _read(run, place, run.watchers[place.network])
        except (ChainUnreachable, ChainRefused) as error:
            run.unreachable[place.network] = error.sentence


async def _read(run: Run, place: _Place, watcher: Watcher) -> None:
    first = await _find_start(run, place, watcher)
    final = await run.find_final(place.network)
    old_enough = await watcher.find_position(place.network, run.settled_before)
    for start in range(first, min(final, old_enough) + 1, POSITIONS_MAX)[:PIECES_MAX]:
        last = min(final, old_enough, start + POSITIONS_MAX - 1)
        movements = await watcher.find_movements(place.network, place.assets, place.recipients, start, last)
        await run.each(movements, lambda each: each.network, lambda each: compare(run, each))
        if place.network in run.unreachable:
            return
        await _advance(run, place.network, last)


async def _find_start(run: Run, place: _Place, watcher: Watcher) -> int:
    """Where the last run ended; at the first, where the books begin; with `since`, there if it is earlier."""
    starts = [] if place.position is None else [place.position + 1]
    if run.since is not None:
        starts.append(await watcher.find_position(place.network, run.since - SKEW))
    if not starts:
        begun_at = place.begun_at or run.settled_before
        starts.append(await watcher.find_position(place.network, begun_at - SKEW))
    return min(starts)


async def compare(run: Run, movement: Movement) -> None:
    """Hold one movement against the rows that count it."""
    if movement.payer == ESCROW:
        return
    async with run.database.read() as tx:
        booked = await _find_booked(tx, movement)
    total = sum(int(row.amount) for row in booked)
    if total == movement.amount:
        return
    if total < movement.amount and await _decide_unbooked(run, movement):
        return
    async with run.database.write() as tx:
        await run.note(tx, _tell(movement, booked, total))


async def _decide_unbooked(run: Run, movement: Movement) -> bool:
    """Decide the settlements whose authorizations this transaction used; whether there were any."""
    nonces = await run.watchers[movement.network].find_nonces(movement)
    async with run.database.read() as tx:
        rows = await settlements.find_by_nonces(tx, movement.network, movement.asset, movement.payer, nonces)
    waiting = [row for row in rows if row.status != "settled" or row.tx_hash != movement.tx_hash]
    for row in waiting:
        if row.status in ("settled", "failed"):
            await look_again(run, row)
        elif row.held_until <= run.now:
            await decide(run, row)
    return bool(waiting)


def _tell(movement: Movement, booked: Sequence[_Booked], total: int) -> Finding:
    kind, note = _name(movement, booked, total)
    one = booked[0] if len(booked) == 1 else None
    subject = f"transfer:{movement.tx_hash}:{movement.asset}:{movement.payer}:{movement.pay_to}"
    if one is not None:
        known = one.settlement_id is not None
        subject = f"settlement:{one.settlement_id}" if known else f"payment:{one.payment_id}"
    return Finding(
        kind,
        subject,
        movement.network,
        note,
        asset=movement.asset,
        tx_hash=movement.tx_hash,
        settlement_id=None if one is None else one.settlement_id,
        payment_id=None if one is None else one.payment_id,
        amount_booked=total,
        amount_moved=movement.amount,
    )


def _name(movement: Movement, booked: Sequence[_Booked], total: int) -> tuple[Kind, str]:
    moved = movement.amount
    if not booked:
        return "foreign_transfer", (
            f"{movement.payer} sent {moved} to {movement.pay_to}, and no row names it. He may claim it "
            "(POST /v1/payments); or send it back, or accept it."
        )
    if len(booked) > 1 and total > moved:
        return "double", f"{len(booked)} rows count {total} of {moved} that moved. Revoke what was not paid."
    return "amount_differs", f"{moved} moved, the books say {total}. Compare the two, then accept it."


async def _find_place(tx: ReadTx, network: str, payees: Sequence[Payee]) -> _Place:
    """The tokens and recipients that the books and the settings name on a network."""
    known = await _find_pairs(tx, network)
    ours = [payee for payee in payees if find_network(payee.network).id == network]
    tokens = [payee.token or find_network(payee.network).usdc for payee in ours]
    position = await tx.value(
        "SELECT position FROM payments.x402_cursors WHERE network = %(network)s", {"network": network}
    )
    return _Place(
        network,
        sorted({pair.asset for pair in known} | {spell(network, token.address) for token in tokens if token}),
        sorted({pair.pay_to for pair in known} | {spell(network, payee.address) for payee in ours}),
        position,
        await _find_beginning(tx, network) if position is None else None,
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    pay_to: str
    asset: str


async def _find_pairs(tx: ReadTx, network: str) -> list[_Pair]:
    """Who is paid in which token: each step is one look into an index, however many rows name the pair.

    The recipients of deposits are no sellers.
    """
    return await tx.all(
        """
        WITH RECURSIVE paid AS (
            (SELECT to_address AS pay_to, asset FROM payments.x402_payments
             WHERE network = %(network)s ORDER BY to_address, asset LIMIT 1)
            UNION ALL
            SELECT following.pay_to, following.asset FROM paid, LATERAL (
                SELECT p.to_address AS pay_to, p.asset FROM payments.x402_payments AS p
                WHERE p.network = %(network)s AND (p.to_address, p.asset) > (paid.pay_to, paid.asset)
                ORDER BY p.to_address, p.asset LIMIT 1) AS following
        ), settled AS (
            (SELECT pay_to, asset FROM payments.x402_settlements
             WHERE network = %(network)s AND scheme <> 'batch-settlement' ORDER BY pay_to, asset LIMIT 1)
            UNION ALL
            SELECT following.pay_to, following.asset FROM settled, LATERAL (
                SELECT s.pay_to, s.asset FROM payments.x402_settlements AS s
                WHERE s.network = %(network)s AND s.scheme <> 'batch-settlement'
                  AND (s.pay_to, s.asset) > (settled.pay_to, settled.asset)
                ORDER BY s.pay_to, s.asset LIMIT 1) AS following
        )
        (SELECT pay_to, asset FROM paid LIMIT %(limit)s)
        UNION (SELECT pay_to, asset FROM settled LIMIT %(limit)s)
        """,
        {"network": network, "limit": ADDRESSES_MAX},
        into=_Pair,
    )


async def _find_beginning(tx: ReadTx, network: str) -> datetime | None:
    """When the books of a network begin. Ids are in the order of time."""
    return await tx.value(
        """
        SELECT least((SELECT created_at FROM payments.x402_payments WHERE network = %(network)s
                      ORDER BY payment_id LIMIT 1),
                     (SELECT asked_at FROM payments.x402_settlements WHERE network = %(network)s
                      ORDER BY settlement_id LIMIT 1))
        """,
        {"network": network},
    )


async def _find_booked(tx: ReadTx, movement: Movement) -> list[_Booked]:
    """Settlements by this transaction, and payments of which the ledger has none: claims."""
    return await tx.all(
        """
        SELECT settlement_id, NULL::bigint AS payment_id, coalesce(amount_moved, amount) AS amount
        FROM payments.x402_settlements
        WHERE network = %(network)s AND tx_hash = %(tx_hash)s AND asset = %(asset)s AND payer = %(payer)s
          AND pay_to = %(pay_to)s AND status = 'settled' AND owner <> 'claim'
        UNION ALL
        SELECT NULL::bigint, p.payment_id, p.amount
        FROM payments.x402_payments AS p
        WHERE p.network = %(network)s AND p.tx_hash = %(tx_hash)s AND p.asset = %(asset)s
          AND p.from_address = %(payer)s AND p.to_address = %(pay_to)s
          AND p.settlement IN ('settled', 'refunded') AND p.status <> 'failed'
          AND NOT EXISTS (
              SELECT FROM payments.x402_settlements AS s
              WHERE s.network = p.network AND s.asset = p.asset AND s.payer = p.from_address
                AND s.nonce = p.nonce AND s.owner <> 'claim')
        """,
        {
            "network": movement.network,
            "tx_hash": movement.tx_hash,
            "asset": movement.asset,
            "payer": movement.payer,
            "pay_to": movement.pay_to,
        },
        into=_Booked,
    )


async def _advance(run: Run, network: str, position: int) -> None:
    async with run.database.write() as tx:
        await tx.execute(
            """
            INSERT INTO payments.x402_cursors AS c (network, position, updated_at)
            VALUES (%(network)s, %(position)s, %(now)s)
            ON CONFLICT (network) DO UPDATE
            SET position = greatest(c.position, excluded.position), updated_at = excluded.updated_at
            """,
            {"network": network, "position": position, "now": run.now},
        )
