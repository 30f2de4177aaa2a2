"""Payments: money that arrived, or is about to, and how many requests it buys.

What may follow what (status, and beside it the settlement):

    (new)               -> pending  (pending)    reserve: the identity is taken, nothing has moved
    pending (pending)   -> pending  (unknown)    suspect: money may have moved; a later check decides
    pending (either)    -> verified (settled)    settle
    pending (either)    -> failed   (failed)     fail: nothing moved; the identity is free again
    verified            -> used                  the last request is taken (usage.Meter)
    used                -> verified              a failed request gave its quota back (usage.Meter)
    verified, used      -> expired               cleanup_expired_x402_payments()
    verified, expired   -> verified              renew: its payer was never served
    verified, used, expired (settled) -> expired (refunded)   refunds: all of it went back
    verified, used, expired (settled) -> expired (reversed)   reverse: the chain took it back for good

In the journal a payment's subject is its number in decimal digits, and every fact names amount and parties.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer

from tollbook.books.payments.errors import AlreadyCounted, PaymentNotInState, PaymentUnknown
from tollbook.core import ids, journal
from tollbook.core.database import ReadTx, WriteTx
from tollbook.core.journal import Fact

Status = Literal["pending", "verified", "used", "expired", "failed"]
Settlement = Literal["pending", "settled", "failed", "unknown", "refunded", "reversed"]

PAGE_MAX = 500
RESERVE_ATTEMPTS_MAX = 5  # each lost one means another presenter of the same identity failed meanwhile
REASON_LETTERS_MAX = 500


def show(payment_id: int) -> str:
    """The id as people see it: pay_ and 13 letters."""
    return ids.show("pay", payment_id)


PaymentId = Annotated[int, PlainSerializer(show, return_type=str)]
# JSON's numbers end at 2**53 in many readers; amounts do not.
MinorUnits = Annotated[int, PlainSerializer(str, return_type=str, when_used="json")]


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment. `amount` is in the asset's minor units; `endpoint` is the route it buys requests of.

    `refunded_amount` went back, in minor units: refunds that are done, or all of what the chain took back.
    """

    payment_id: PaymentId
    network: str
    chain: str
    asset: str
    decimals: int
    amount: MinorUnits
    amount_usdc: Decimal
    from_address: str
    to_address: str
    scheme: str
    nonce: str | None
    tx_hash: str | None
    block_number: int | None
    confirmations: int | None
    endpoint: str
    requests_allocated: int
    requests_used: int
    status: Status
    settlement: Settlement
    settlement_error: str | None
    lifetime: timedelta
    valid_before: datetime | None
    created_at: datetime
    verified_at: datetime | None
    settled_at: datetime | None
    expires_at: datetime | None
    refunded_at: datetime | None
    refunded_amount: MinorUnits
    updated_at: datetime

    def __post_init__(self) -> None:
        # PostgreSQL's 78-digit integers arrive as Decimal.
        object.__setattr__(self, "amount", int(self.amount))
        object.__setattr__(self, "refunded_amount", int(self.refunded_amount))


@dataclass(frozen=True, slots=True)
class Offer:
    """What a payer presents: an authorization (`nonce`) or money already sent (`tx_hash`), and its price.

    EVM addresses, nonces and hashes may come in any spelling; they are kept in lower case. `lifetime` counts
    from settlement. `valid_before` is the authorization's end.
    """

    network: str
    chain: str
    asset: str
    decimals: int
    amount: int
    from_address: str
    to_address: str
    nonce: str | None
    tx_hash: str | None
    scheme: str
    endpoint: str
    requests_allocated: int
    lifetime: timedelta
    valid_before: datetime | None


@dataclass(frozen=True, slots=True)
class Stats:
    """One chain's last 24 hours; amounts in whole units of the asset."""

    chain: str
    network: str
    total_payments: int
    total_amount_usdc: Decimal
    refunded_amount_usdc: Decimal
    total_requests_allocated: int
    total_requests_used: int
    unique_payers: int
    average_payment_usdc: Decimal


async def reserve(tx: WriteTx, offer: Offer, *, now: datetime) -> Payment:
    """Take the offer's identity, once and for all processes; the new payment is pending.

    Waits for another transaction that presents the same. Raises AlreadyCounted.
    """
    if (offer.nonce is None) == (offer.tx_hash is None):
        raise ValueError("an offer is an authorization with a nonce, or a transaction hash: one of the two")
    if (
        offer.tx_hash is not None
    ):  # an x402 payment of the payer that this transaction settled is not money anew
        await refuse_counted(tx, offer)
    identity = _identify(offer)
    for _ in range(RESERVE_ATTEMPTS_MAX):
        payment_id = ids.make()
        inserted = await _insert(tx, payment_id, offer, identity, now)
        if inserted:
            payment = await get(tx, payment_id)
            await _tell(tx, "payment.reserved", payment, {"endpoint": payment.endpoint})
            return payment
        taken_by = await _find_identity(tx, identity)
        if taken_by is not None:
            raise AlreadyCounted(taken_by)
    raise RuntimeError("a payment's identity was taken and freed again too often")


async def refuse_counted(tx: ReadTx, offer: Offer) -> None:
    """Raise AlreadyCounted where the offer's identity is taken: a cheap look before anybody else is asked."""
    taken_by = await _find_identity(tx, _identify(offer))
    if taken_by is not None:
        raise AlreadyCounted(taken_by)


async def settle(
    tx: WriteTx,
    payment_id: int,
    *,
    tx_hash: str | None,
    block_number: int | None,
    confirmations: int | None,
    now: datetime,
    amount: int | None = None,
) -> Payment:
    """Enter that the money arrived: from now on, for its lifetime, the payment buys requests.

    `amount` is what was charged, in minor units, where that is not what was reserved (usage).
    Raises PaymentNotInState unless it is pending, AlreadyCounted when the transaction is another payment's
    (the transaction block must then be left by the exception: nothing in it can be kept), PaymentUnknown.
    """
    before = await get(tx, payment_id)
    if tx_hash is not None:
        tx_hash = spell(before.network, tx_hash)
        if before.nonce is None:  # with a nonce, that is its identity: one transaction may settle several
            await _refuse_other_owner(tx, before, tx_hash)
    changed = await tx.execute(
        """
        UPDATE payments.x402_payments
        SET status = 'verified', settlement = 'settled', settlement_error = NULL,
            amount = coalesce(%(amount)s, amount),
            tx_hash = coalesce(%(tx_hash)s, tx_hash), block_number = %(block_number)s,
            confirmations = %(confirmations)s, verified_at = %(now)s, settled_at = %(now)s,
            expires_at = %(now)s::timestamptz + lifetime, updated_at = %(now)s,
            settled_in = pg_current_xact_id()::text::bigint
        WHERE payment_id = %(payment_id)s AND status = 'pending'
        """,
        {
            "payment_id": payment_id,
            "amount": amount,
            "tx_hash": tx_hash,
            "block_number": block_number,
            "confirmations": confirmations,
            "now": now,
        },
    )
    payment = await _changed(tx, payment_id, changed, "settled")
    if tx_hash is not None and before.nonce is not None:
        await _refuse_claimed(tx, payment, tx_hash)
    details = {"tx_hash": payment.tx_hash, "block_number": block_number, "endpoint": payment.endpoint}
    await _tell(tx, "payment.settled", payment, details)
    return payment


async def renew(tx: WriteTx, payment_id: int, *, now: datetime) -> Payment:
    """Begin the lifetime of a settled payment anew where it ended before anything was bought with it.

    Its payer was told that the settlement is unknown, and comes late for what he paid.
    """
    changed = await tx.execute(
        """
        UPDATE payments.x402_payments
        SET status = 'verified', expires_at = %(now)s::timestamptz + lifetime, updated_at = %(now)s
        WHERE payment_id = %(payment_id)s AND status IN ('verified', 'expired') AND settlement = 'settled'
          AND requests_used = 0 AND expires_at <= %(now)s
        """,
        {"payment_id": payment_id, "now": now},
    )
    payment = await get(tx, payment_id)
    if changed:
        await _tell(tx, "payment.renewed", payment, {"expires_at": str(payment.expires_at)})
    return payment


async def fail(tx: WriteTx, payment_id: int, reason: str, *, now: datetime) -> Payment:
    """Enter that nothing moved and nothing will; the identity may be presented again.

    Raises PaymentNotInState unless it is pending, PaymentUnknown.
    """
    reason = reason[:REASON_LETTERS_MAX]
    changed = await tx.execute(
        """
        UPDATE payments.x402_payments
        SET status = 'failed', settlement = 'failed', settlement_error = %(reason)s, updated_at = %(now)s
        WHERE payment_id = %(payment_id)s AND status = 'pending'
        """,
        {"payment_id": payment_id, "reason": reason, "now": now},
    )
    payment = await _changed(tx, payment_id, changed, "failed")
    await _tell(tx, "payment.failed", payment, {"reason": reason})
    return payment


async def suspect(
    tx: WriteTx, payment_id: int, reason: str, tx_hash: str | None, *, now: datetime
) -> Payment:
    """Enter that money may have moved. The payment stays pending and keeps its identity.

    A `tx_hash` that is another payment's is kept in the journal only. Raises PaymentNotInState unless it is
    pending and not yet suspected, PaymentUnknown.
    """
    reason = reason[:REASON_LETTERS_MAX]
    before = await get(tx, payment_id)
    tx_hash = None if tx_hash is None else spell(before.network, tx_hash)
    changed = await tx.execute(
        """
        UPDATE payments.x402_payments
        SET settlement = 'unknown', settlement_error = %(reason)s, updated_at = %(now)s
        WHERE payment_id = %(payment_id)s AND status = 'pending' AND settlement = 'pending'
        """,
        {"payment_id": payment_id, "reason": reason, "now": now},
    )
    payment = await _changed(tx, payment_id, changed, "suspected")
    await _tell(tx, "payment.unknown", payment, {"reason": reason, "tx_hash": tx_hash})
    return payment


async def reverse(tx: WriteTx, payment_id: int, reason: str, *, now: datetime) -> Payment:
    """Enter that the money is not there, although it was settled, and never will be. It buys nothing more.

    Raises PaymentNotInState unless it is settled, PaymentUnknown.
    """
    reason = reason[:REASON_LETTERS_MAX]
    changed = await tx.execute(
        """
        UPDATE payments.x402_payments
        SET status = 'expired', settlement = 'reversed', settlement_error = %(reason)s, updated_at = %(now)s,
            refund_asked = amount, refunded_amount = amount, settled_in = pg_current_xact_id()::text::bigint
        WHERE payment_id = %(payment_id)s AND status IN ('verified', 'used', 'expired')
          AND settlement = 'settled'
        """,
        {"payment_id": payment_id, "reason": reason, "now": now},
    )
    payment = await _changed(tx, payment_id, changed, "reversed")
    await journal.append(tx, [_turned(_fact("payment.reversed", payment, {"reason": reason}))])
    return payment


async def get(tx: ReadTx, payment_id: int) -> Payment:
    """One payment. Raises PaymentUnknown."""
    rows = await _read(tx, [payment_id])
    if not rows:
        raise PaymentUnknown(payment_id)
    return rows[0]


async def find(tx: ReadTx, network: str, tx_hash: str) -> Payment | None:
    """The payment that this transaction made, failed ones aside; None when there is none."""
    payment_id = await tx.value(
        """
        SELECT payment_id FROM payments.x402_payments
        WHERE network = %(network)s AND tx_hash = %(tx_hash)s AND status <> 'failed'
        """,
        {"network": network, "tx_hash": spell(network, tx_hash)},
    )
    return None if payment_id is None else await get(tx, payment_id)


async def page(
    tx: ReadTx,
    *,
    after: int | None = None,
    limit: int = PAGE_MAX,
    status: Status | None = None,
    from_address: str | None = None,
    network: str | None = None,
) -> list[Payment]:
    """Payments, newest first, that follow the id `after`; at most `limit`, and never more than PAGE_MAX."""
    found = await tx.value(
        """
        SELECT array_agg(payment_id) FROM (
            SELECT payment_id FROM payments.x402_payments
            WHERE (%(after)s::bigint IS NULL OR payment_id < %(after)s)
              AND (%(status)s::text IS NULL OR status = %(status)s)
              AND (%(from_address)s::text IS NULL OR from_address = %(from_address)s)
              AND (%(network)s::text IS NULL OR network = %(network)s)
            ORDER BY payment_id DESC LIMIT %(limit)s
        ) AS found
        """,
        {
            "after": after,
            "status": status,
            "from_address": spell(network or "", from_address) if from_address else None,
            "network": network,
            "limit": min(limit, PAGE_MAX),
        },
    )
    return await _read(tx, found) if found else []


async def stats(tx: ReadTx) -> list[Stats]:
    """The last 24 hours of each chain."""
    return await tx.all(
        """
        SELECT chain, network, total_payments, total_amount_usdc, refunded_amount_usdc,
               total_requests_allocated, total_requests_used, unique_payers, average_payment_usdc
        FROM payments.v_x402_stats_24h ORDER BY total_amount_usdc DESC, chain
        """,
        into=Stats,
    )


async def _read(tx: ReadTx, payment_ids: Sequence[int]) -> list[Payment]:
    return await tx.all(
        """
        SELECT payment_id, network, chain, asset, decimals, amount, amount_usdc, from_address, to_address,
               scheme, nonce, tx_hash, block_number, confirmations, endpoint, requests_allocated,
               requests_used, status, settlement, settlement_error, lifetime, valid_before, created_at,
               verified_at, settled_at, expires_at, refunded_at, refunded_amount, updated_at
        FROM payments.x402_payments WHERE payment_id = ANY(%(payment_ids)s::bigint[])
        ORDER BY payment_id DESC
        """,
        {"payment_ids": list(payment_ids)},
        into=Payment,
    )


def spell(network: str, text: str) -> str:
    """The one spelling: EVM's hexadecimal in lower case; other chains' base 58 as it is."""
    evm = network.startswith("eip155:") or text[:2] in ("0x", "0X")
    return text.lower() if evm else text


def _identify(offer: Offer) -> dict[str, str | None]:
    return {
        "network": offer.network,
        "asset": spell(offer.network, offer.asset),
        "from_address": spell(offer.network, offer.from_address),
        "nonce": None if offer.nonce is None else spell(offer.network, offer.nonce),
        "tx_hash": None if offer.tx_hash is None else spell(offer.network, offer.tx_hash),
    }


async def _insert(
    tx: WriteTx, payment_id: int, offer: Offer, identity: Mapping[str, str | None], now: datetime
) -> bool:
    """Whether the identity was free and is now this payment's."""
    rows = await tx.execute(
        """
        INSERT INTO payments.x402_payments (
            payment_id, network, chain, asset, decimals, amount, from_address, to_address, scheme, nonce,
            tx_hash, endpoint, requests_allocated, lifetime, valid_before, status, settlement, created_at,
            updated_at)
        VALUES (
            %(payment_id)s, %(network)s, %(chain)s, %(asset)s, %(decimals)s, %(amount)s, %(from_address)s,
            %(to_address)s, %(scheme)s, %(nonce)s, %(tx_hash)s, %(endpoint)s, %(requests_allocated)s,
            %(lifetime)s, %(valid_before)s, 'pending', 'pending', %(now)s, %(now)s)
        ON CONFLICT DO NOTHING
        """,
        {
            **identity,
            "payment_id": payment_id,
            "chain": offer.chain,
            "decimals": offer.decimals,
            "amount": Decimal(offer.amount),
            "to_address": spell(offer.network, offer.to_address),
            "scheme": offer.scheme,
            "endpoint": offer.endpoint,
            "requests_allocated": offer.requests_allocated,
            "lifetime": offer.lifetime,
            "valid_before": offer.valid_before,
            "now": now,
        },
    )
    return rows == 1


async def _find_identity(tx: ReadTx, identity: Mapping[str, str | None]) -> int | None:
    return await tx.value(
        """
        SELECT payment_id FROM payments.x402_payments
        WHERE network = %(network)s AND tx_hash = %(tx_hash)s AND from_address = %(from_address)s
          AND status <> 'failed'
        UNION ALL
        SELECT payment_id FROM payments.x402_payments
        WHERE network = %(network)s AND asset = %(asset)s AND from_address = %(from_address)s
          AND nonce = %(nonce)s AND status <> 'failed'
        LIMIT 1
        """,
        identity,
    )


async def _refuse_claimed(tx: ReadTx, payment: Payment, tx_hash: str) -> None:
    """The payer claimed this transaction before: its money has bought what it buys."""
    claim = await tx.value(
        """
        SELECT payment_id FROM payments.x402_payments
        WHERE network = %(network)s AND tx_hash = %(tx_hash)s AND from_address = %(payer)s
          AND scheme = 'transfer' AND payment_id <> %(payment_id)s AND status <> 'failed'
        LIMIT 1
        """,
        {
            "network": payment.network,
            "tx_hash": tx_hash,
            "payer": payment.from_address,
            "payment_id": payment.payment_id,
        },
    )
    if claim is not None:
        raise AlreadyCounted(claim)


async def _refuse_other_owner(tx: ReadTx, payment: Payment, tx_hash: str) -> None:
    owner = await find(tx, payment.network, tx_hash)
    if owner is not None and owner.payment_id != payment.payment_id:
        raise AlreadyCounted(owner.payment_id)


async def _changed(tx: ReadTx, payment_id: int, rows: int, wanted: str) -> Payment:
    payment = await get(tx, payment_id)
    if rows == 0:
        raise PaymentNotInState(payment_id, payment.status, payment.settlement, wanted)
    return payment


def _fact(kind: str, payment: Payment, details: dict[str, Any]) -> Fact:
    return Fact(
        book="payments",
        kind=kind,
        subject=str(payment.payment_id),
        network=payment.network,
        asset=payment.asset,
        amount=payment.amount,
        from_party=payment.from_address,
        to_party=payment.to_address,
        details=details,
    )


def _turned(fact: Fact) -> Fact:
    """The same money the other way."""
    return replace(fact, from_party=fact.to_party, to_party=fact.from_party)


async def _tell(tx: WriteTx, kind: str, payment: Payment, details: dict[str, Any]) -> None:
    await journal.append(tx, [_fact(kind, payment, details)])
