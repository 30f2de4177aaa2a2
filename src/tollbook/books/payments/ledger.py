"""The ledger: every settlement that any facilitator was asked for, its intent before and its end after.

What may follow what:

    (new)              -> pending   ask: the row is on disk before a facilitator hears of it
    failed             -> pending   asked again: nothing had moved
    pending            -> settled, failed, unknown
    unknown            -> settled, failed, unknown    asked again, or found on the chain
    settled            -> unknown   a reorganisation took the transaction back (reconciler)

Who asks holds the row for a time; a second asker meanwhile is told that it is in progress, a later one gets
the answer that was given. A facilitator is asked again only where nothing moved, or the same one where it is
not known: signed payments carry nonces, so a second broadcast of the same payment moves nothing more.

A settlement has one owner, who alone may sell for it: the paywall, the SDK's middleware, or who claims its
transaction. Owned by "sdk" it has bought nothing yet; as "sold" its answer was given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

from psycopg.types.json import Jsonb
from x402.mechanisms.evm.constants import ERR_AUTHORIZATION_VALUE_MISMATCH, SCHEME_UPTO
from x402.schemas import SettleResponse, SupportedResponse

from tollbook.books.payments.payments import Offer, spell
from tollbook.books.payments.rules import Proof
from tollbook.core import ids
from tollbook.core.database import ReadTx, WriteTx

Status = Literal["pending", "settled", "failed", "unknown"]
Outcome = Literal["settled", "not settled", "open"]
Owner = Literal["paywall", "sdk", "sold", "claim"]

HOLD = timedelta(seconds=20)  # a process that ended keeps its payers waiting for so long
REASON_LETTERS_MAX = 500
UNHEARD = "nobody told how it ended"
NOBODY = "nobody"  # the facilitator of what none was asked for yet


@dataclass(frozen=True, slots=True)
class Settlement:
    """A settlement as the ledger has it. Amounts in minor units; `amount` is what was signed."""

    settlement_id: int
    network: str
    scheme: str
    asset: str
    payer: str
    pay_to: str
    nonce: str
    amount: int
    amount_moved: int | None
    status: Status
    facilitator: str
    tx_hash: str | None
    block_number: int | None
    reason: str | None
    answer: dict[str, Any] | None
    asks: int
    holder: int
    asked_at: datetime
    held_until: datetime
    valid_before: datetime | None
    settled_at: datetime | None
    confirmed_at: datetime | None
    owner: Owner = "paywall"

    def __post_init__(self) -> None:
        # PostgreSQL's 78-digit integers arrive as Decimal.
        object.__setattr__(self, "amount", int(self.amount))
        if self.amount_moved is not None:
            object.__setattr__(self, "amount_moved", int(self.amount_moved))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a chain says of a settlement.

    "settled": the money moved, by `tx_hash`, `amount_moved` minor units. "not settled": it did not and never
    will (the authorization ran out, or was cancelled). "open": it has not yet, and still may.
    """

    outcome: Outcome
    tx_hash: str | None = None
    block_number: int | None = None
    amount_moved: int | None = None
    reason: str | None = None


class Truth(Protocol):
    """Somebody who can look a settlement up on its chain."""

    async def find(self, settlement: Settlement) -> Verdict | None:
        """Return the chain's verdict; None where that chain is not watched. Raises ChainUnreachable."""
        ...


async def find(tx: ReadTx, proof: Proof) -> Settlement | None:
    """The settlement of a signed payment, or None."""
    return await tx.maybe(
        """
        SELECT settlement_id, network, scheme, asset, payer, pay_to, nonce, amount, amount_moved, status,
               facilitator, tx_hash, block_number, reason, answer, asks, holder, asked_at, held_until,
               valid_before, settled_at, confirmed_at, owner
        FROM payments.x402_settlements
        WHERE network = %(network)s AND asset = %(asset)s AND payer = %(payer)s AND nonce = %(nonce)s
        """,
        {"network": proof.network, "asset": proof.asset, "payer": proof.payer, "nonce": proof.nonce},
        into=Settlement,
    )


async def conclude(
    tx: WriteTx, row: Settlement, verdict: Verdict, answer: SettleResponse, *, now: datetime
) -> bool:
    """Book the end of an open settlement ("settled" or "not settled"); whether it was open.

    That it is not settled counts from its holder alone: who took it over may be settling it.
    """
    settled = verdict.outcome == "settled"
    changed = await tx.execute(
        """
        UPDATE payments.x402_settlements
        SET status = CASE WHEN %(settled)s THEN 'settled' ELSE 'failed' END,
            settled_at = CASE WHEN %(settled)s THEN %(now)s::timestamptz END,
            answer = CASE WHEN %(settled)s THEN %(answer)s::jsonb END,
            tx_hash = coalesce(%(tx_hash)s, tx_hash), block_number = %(block_number)s,
            amount_moved = %(amount_moved)s, reason = %(reason)s, held_until = %(now)s, updated_at = %(now)s
        WHERE settlement_id = %(settlement_id)s AND status IN ('pending', 'unknown')
          AND (%(settled)s OR holder = %(holder)s)
        """,
        {
            "settlement_id": row.settlement_id,
            "holder": row.holder,
            "settled": settled,
            "answer": Jsonb(as_json(answer)),
            "tx_hash": verdict.tx_hash,
            "block_number": verdict.block_number,
            "amount_moved": verdict.amount_moved,
            "reason": None if settled else (verdict.reason or "not settled")[:REASON_LETTERS_MAX],
            "now": now,
        },
    )
    return changed == 1


def make_answer(row: Settlement, verdict: Verdict) -> SettleResponse:
    """What a facilitator would have answered, had it been heard.

    A payer can sign another authorization with the same nonce, for less, and have it mined first: that money
    came, and buys nothing.
    """
    moved, reason = verdict.amount_moved, None if verdict.outcome == "settled" else verdict.reason
    is_short = moved is not None and moved < row.amount and row.scheme != SCHEME_UPTO
    if verdict.outcome == "settled" and is_short:
        reason = ERR_AUTHORIZATION_VALUE_MISMATCH
    return SettleResponse(
        success=verdict.outcome == "settled" and not is_short,
        transaction=verdict.tx_hash or "",
        network=row.network,
        payer=row.payer,
        amount=None if moved is None else str(moved),
        error_reason=reason,
    )


async def take(
    tx: WriteTx, proof: Proof, facilitator: str, now: datetime, hold: timedelta, owner: Owner
) -> Settlement | None:
    """Take a settlement that is new, failed before, or was let go of; None where it is held or done.

    Of another `owner` it can be taken only where it failed. Whose holder was never heard of again is unknown
    from here on, if a facilitator may have been asked.
    """
    return await tx.maybe(
        """
        INSERT INTO payments.x402_settlements AS s (
            settlement_id, asked_at, updated_at, held_until, holder, valid_before, amount, status, network,
            scheme, asset, payer, pay_to, nonce, facilitator, owner)
        VALUES (
            %(settlement_id)s, %(now)s, %(now)s, %(held_until)s, %(settlement_id)s, %(valid_before)s,
            %(amount)s, 'pending', %(network)s, %(scheme)s, %(asset)s, %(payer)s, %(pay_to)s, %(nonce)s,
            %(facilitator)s, %(owner)s)
        ON CONFLICT (network, asset, payer, nonce) DO UPDATE
        SET held_until = excluded.held_until, holder = excluded.holder, updated_at = excluded.updated_at,
            asks = s.asks + 1, owner = excluded.owner,
            status = CASE WHEN s.status = 'failed' OR s.facilitator = %(nobody)s THEN 'pending'
                          ELSE 'unknown' END,
            facilitator = CASE WHEN s.status = 'failed' THEN excluded.facilitator ELSE s.facilitator END,
            reason = CASE WHEN s.status = 'failed' OR s.facilitator = %(nobody)s THEN NULL
                          ELSE coalesce(s.reason, %(unheard)s) END,
            pay_to = excluded.pay_to, scheme = excluded.scheme,
            amount = CASE WHEN s.status = 'failed' OR s.facilitator = %(nobody)s THEN excluded.amount
                          ELSE s.amount END,
            valid_before = excluded.valid_before
        WHERE (s.status = 'failed'
               OR (s.status IN ('pending', 'unknown') AND s.held_until <= %(now)s
                   AND s.owner = excluded.owner AND s.pay_to = excluded.pay_to AND s.scheme = excluded.scheme
                   AND (s.scheme <> 'exact' OR s.amount = excluded.amount)))
        RETURNING settlement_id, network, scheme, asset, payer, pay_to, nonce, amount, amount_moved, status,
                  facilitator, tx_hash, block_number, reason, answer, asks, holder, asked_at, held_until,
                  valid_before, settled_at, confirmed_at, owner
        """,
        {
            "settlement_id": ids.make(),
            "now": now,
            "held_until": now + hold,
            "valid_before": proof.valid_before,
            "amount": proof.amount,
            "network": proof.network,
            "scheme": proof.scheme,
            "asset": proof.asset,
            "payer": proof.payer,
            "pay_to": proof.pay_to,
            "nonce": proof.nonce,
            "facilitator": facilitator,
            "owner": owner,
            "nobody": NOBODY,
            "unheard": UNHEARD,
        },
        into=Settlement,
    )


async def renew(tx: WriteTx, row: Settlement, now: datetime) -> None:
    await tx.execute(
        """
        UPDATE payments.x402_settlements SET held_until = %(held_until)s
        WHERE settlement_id = %(settlement_id)s AND holder = %(holder)s AND status IN ('pending', 'unknown')
        """,
        {"settlement_id": row.settlement_id, "holder": row.holder, "held_until": now + HOLD},
    )


async def move(tx: WriteTx, row: Settlement, facilitator: str) -> bool:
    """Enter who is about to be asked; whether the settlement is still held by who took it."""
    moved = await tx.execute(
        """
        UPDATE payments.x402_settlements SET facilitator = %(facilitator)s
        WHERE settlement_id = %(settlement_id)s AND holder = %(holder)s AND status = 'pending'
        """,
        {"facilitator": facilitator, "settlement_id": row.settlement_id, "holder": row.holder},
    )
    return moved == 1


async def sell(tx: WriteTx, row: Settlement) -> bool:
    """Enter that the SDK's middleware gives its answer for it now; whether its holder may.

    Asked again by him it is the same: the first time may not have been heard of.
    """
    sold = await tx.execute(
        """
        UPDATE payments.x402_settlements AS s SET owner = 'sold'
        WHERE settlement_id = %(settlement_id)s AND holder = %(holder)s AND owner IN ('sdk', 'sold')
          AND status = 'settled'
          AND NOT EXISTS (
              SELECT FROM payments.x402_payments AS claim
              WHERE claim.network = s.network AND claim.tx_hash = s.tx_hash AND claim.from_address = s.payer
                AND claim.scheme = 'transfer' AND claim.status <> 'failed')
        """,
        {"settlement_id": row.settlement_id, "holder": row.holder},
    )
    return sold == 1


async def claim(tx: WriteTx, offer: Offer, tx_hash: str, nonces: Sequence[str], *, now: datetime) -> bool:
    """Own what a transaction settled, for its payer who claims it and bought nothing with it.

    False where it is sold, or being settled now (the caller's transaction must then be left by an exception).
    What is settled meanwhile, and not yet told, is waited for.
    """
    addresses = {"asset": offer.asset, "payer": offer.from_address, "pay_to": offer.to_address}
    place = {name: spell(offer.network, text) for name, text in addresses.items()}
    place |= {"network": offer.network, "tx_hash": tx_hash}
    await tx.execute(
        """
        SELECT FROM payments.x402_settlements
        WHERE network = %(network)s AND asset = %(asset)s AND payer = %(payer)s
          AND (status IN ('pending', 'unknown') OR tx_hash = %(tx_hash)s)
        ORDER BY settlement_id FOR NO KEY UPDATE
        """,
        place,
    )
    # Permit2 logs no nonces: its settlements are known by their transaction.
    is_sold = await tx.value(
        """
        WITH owned AS (
            UPDATE payments.x402_settlements SET owner = 'claim'
            WHERE network = %(network)s AND tx_hash = %(tx_hash)s AND asset = %(asset)s
              AND payer = %(payer)s AND status = 'settled' AND owner <> 'sold'
        )
        SELECT EXISTS (
            SELECT FROM payments.x402_settlements
            WHERE network = %(network)s AND tx_hash = %(tx_hash)s AND asset = %(asset)s
              AND payer = %(payer)s AND owner = 'sold')
        """,
        place,
    )
    return not is_sold and all([await _claim_one(tx, place, offer.amount, nonce, now) for nonce in nonces])


async def _claim_one(tx: WriteTx, place: Mapping[str, str], amount: int, nonce: str, now: datetime) -> bool:
    answer = SettleResponse(
        success=True, transaction=place["tx_hash"], network=place["network"], payer=place["payer"]
    )
    owned = await tx.execute(
        """
        INSERT INTO payments.x402_settlements AS s (
            settlement_id, asked_at, updated_at, held_until, settled_at, confirmed_at, holder, amount,
            status, network, scheme, asset, payer, pay_to, nonce, facilitator, tx_hash, answer, owner)
        VALUES (
            %(settlement_id)s, %(now)s, %(now)s, %(now)s, %(now)s, %(now)s, %(settlement_id)s, %(amount)s,
            'settled', %(network)s, 'exact', %(asset)s, %(payer)s, %(pay_to)s, %(nonce)s, %(nobody)s,
            %(tx_hash)s, %(answer)s, 'claim')
        ON CONFLICT (network, asset, payer, nonce) DO UPDATE
        SET owner = 'claim', status = 'settled', settled_at = excluded.settled_at, reason = NULL,
            confirmed_at = excluded.confirmed_at, tx_hash = excluded.tx_hash, answer = excluded.answer,
            updated_at = excluded.updated_at
        WHERE s.status = 'failed' OR (s.status = 'settled' AND s.owner <> 'sold')
        """,
        {
            **place,
            "settlement_id": ids.make(),
            "now": now,
            "amount": amount,
            "nonce": nonce,
            "nobody": NOBODY,
            "answer": Jsonb(as_json(answer)),
        },
    )
    return owned == 1


async def suspect(tx: WriteTx, row: Settlement, reason: str, tx_hash: str, now: datetime) -> None:
    await tx.execute(
        """
        UPDATE payments.x402_settlements
        SET status = 'unknown', reason = %(reason)s, tx_hash = coalesce(%(tx_hash)s, tx_hash),
            held_until = %(now)s, updated_at = %(now)s
        WHERE settlement_id = %(settlement_id)s AND holder = %(holder)s AND status IN ('pending', 'unknown')
        """,
        {
            "settlement_id": row.settlement_id,
            "holder": row.holder,
            "reason": reason[:REASON_LETTERS_MAX],
            "tx_hash": tx_hash or None,
            "now": now,
        },
    )


def as_json(model: SettleResponse | SupportedResponse) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)
