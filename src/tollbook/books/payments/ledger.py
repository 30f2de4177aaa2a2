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
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from circuitbreaker import CircuitBreaker
from psycopg.types.json import Jsonb
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)
from x402.mechanisms.evm.constants import ERR_SETTLEMENT_PENDING
from x402.schemas import (
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedResponse,
    VerifyResponse,
)

from tollbook.books.payments.facilitator import Facilitator, FacilitatorUnreachable, SettlementUnknown
from tollbook.books.payments.rules import Proof, read_proof
from tollbook.core import clock, ids
from tollbook.core.chains import ChainUnreachable
from tollbook.core.database import Database, ReadTx, WriteTx
from tollbook.core.errors import Refusal

Status = Literal["pending", "settled", "failed", "unknown"]
Outcome = Literal["settled", "not settled", "open"]

HOLD = timedelta(seconds=20)  # a process that ended keeps its payers waiting for so long
RENEW_SECONDS = 5.0
ASK_ATTEMPTS_MAX = 3
ASK_WAIT_SECONDS_MAX = 1.0
BOOKING_ATTEMPTS_MAX = 5
BOOKING_WAIT_SECONDS_MAX = 2.0
FAILURES_MAX = 5  # in a row; then a facilitator is left alone for
RECOVERY_SECONDS = 15
SUPPORTED_KEPT = timedelta(minutes=5)
REASON_LETTERS_MAX = 500
UNHEARD = "nobody told how it ended"

logger = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


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


class SettlementInProgress(SettlementUnknown):
    """Somebody is settling this very payment now."""


class SettlementConflict(Refusal):
    """The authorization was presented before on other terms."""

    reason: ClassVar[str] = "settlement-conflict"
    status: ClassVar[int] = 409

    def __init__(self) -> None:
        super().__init__("This authorization was presented before on other terms. Sign a new one.")


class LedgeredFacilitator:
    """Facilitators with a memory: the first that can be reached is asked, and never two for one payment.

    `facilitators` are asked in their order, each by its name; `truth` looks at the chain where one of them
    left it open. Outcomes as Facilitator has them: an answer that is sure, FacilitatorUnreachable (nothing
    moved), or SettlementUnknown with its subclass SettlementInProgress; and SettlementConflict.
    """

    def __init__(
        self, database: Database, facilitators: Mapping[str, Facilitator], truth: Truth | None = None
    ) -> None:
        if not facilitators:
            raise ValueError("name at least one facilitator")
        self._database = database
        self._desks = {name: _Desk(name, facilitator) for name, facilitator in facilitators.items()}
        self._truth = truth
        self._supported: SupportedResponse | None = None
        self._supported_until = clock.now()

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        """Return whether the payment would settle now, by the first facilitator that answers."""
        _, answer = await self._ask_first(lambda at: at.verify(payload, requirements))
        return answer

    async def supported(self) -> SupportedResponse:
        """Return what the first facilitator that answers serves; while none does, what one said last.

        The last answer outlives a restart, so that an outage at the start closes no route.
        """
        if self._supported is None or clock.now() >= self._supported_until:
            try:
                name, self._supported = await self._ask_first(lambda at: at.supported())
                await self._remember_supported(name, self._supported)
            except FacilitatorUnreachable:
                self._supported = self._supported or await self._recall_supported()
                if self._supported is None:
                    raise
            self._supported_until = clock.now() + SUPPORTED_KEPT
        return self._supported

    async def recall(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Settlement | None:
        """Return the settlement of a payment as it is in the ledger; None where nobody asked for it yet."""
        async with self._database.read() as tx:
            return await find(tx, read_proof(payload, requirements))

    async def aclose(self) -> None:
        """Close the facilitators."""
        for desk in self._desks.values():
            await desk.facilitator.aclose()

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        """Move the money once for all who ask; the answer is kept and given again.

        Cancelled, it leaves the row held until HOLD is over: shield it.
        """
        return await self.settle_taken(await self.take(payload, requirements), payload, requirements)

    async def take(
        self, payload: PaymentPayload, requirements: PaymentRequirements, hold: timedelta = HOLD
    ) -> Settlement:
        """Write the intent down and hold it: for so long nobody else settles this payment.

        A settlement that is settled already comes back as it is. Raises SettlementInProgress where somebody
        else holds it, SettlementConflict.
        """
        proof = read_proof(payload, requirements)
        async with self._database.write() as tx:
            row = await _take(tx, proof, next(iter(self._desks)), clock.now(), hold)
            return row or _check_settled(await find(tx, proof), proof)

    async def settle_taken(
        self, row: Settlement, payload: PaymentPayload, requirements: PaymentRequirements
    ) -> SettleResponse:
        """Settle what was taken, or give the answer that was given. See settle."""
        if row.status == "settled":
            return SettleResponse.model_validate(row.answer)
        holding = asyncio.create_task(self._hold(row))
        try:
            go_on = self._resume if row.status == "unknown" else self._begin
            return await go_on(row, payload, requirements)
        finally:
            holding.cancel()

    async def _hold(self, row: Settlement) -> None:
        """Hold the settlement while a facilitator is at it; until cancelled."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            with suppress(Refusal):
                async with self._database.write() as tx:
                    await _renew(tx, row, clock.now())

    async def _begin(
        self, row: Settlement, payload: PaymentPayload, requirements: PaymentRequirements
    ) -> SettleResponse:
        """Ask until one facilitator takes it. As long as none has, nothing can have moved."""

        async def on_paper(name: str) -> None:
            if name != row.facilitator:
                async with self._database.write() as tx:
                    await _move(tx, row, name)

        try:
            _, answer = await self._ask_first(lambda at: at.settle(payload, requirements), on_paper)
        except FacilitatorUnreachable as error:
            await self._close(row, Verdict("not settled", reason=error.reason))
            raise
        except Exception as error:
            raise await self._leave_open(row, error) from error
        return await self._judge(row, answer)

    async def _resume(
        self, row: Settlement, payload: PaymentPayload, requirements: PaymentRequirements
    ) -> SettleResponse:
        """Let the chain decide; where it has not or cannot be asked, ask the same facilitator again."""
        verdict = await self._look(row)
        if verdict is not None and verdict.outcome != "open":
            return await self._close(row, verdict)
        desk = self._desks.get(row.facilitator)
        if desk is None:
            gone = FacilitatorUnreachable(f"the facilitator {row.facilitator} is not configured any more")
            raise await self._leave_open(row, gone)
        try:
            answer = await desk.ask(lambda: desk.facilitator.settle(payload, requirements))
        except Exception as error:  # unreachable or unknown: the first time may have moved it
            raise await self._leave_open(row, error) from error
        if not answer.success:
            refused = SettlementUnknown(
                row.network, row.tx_hash or "", answer.error_reason or ERR_SETTLEMENT_PENDING,
                "asked again, the facilitator refuses it, and that proves nothing",
            )  # fmt: skip
            raise await self._leave_open(row, refused)
        return await self._judge(row, answer)

    async def _judge(self, row: Settlement, answer: SettleResponse) -> SettleResponse:
        """Book an answer that is sure."""
        if not answer.success:
            await self._close(row, Verdict("not settled", reason=answer.error_reason or "refused"))
            return answer
        if answer.network != row.network or not (answer.transaction or _moves_nothing(row, answer)):
            nonsense = SettlementUnknown(
                row.network,
                answer.transaction,
                "facilitator_answered_nonsense",
                "it names no transaction here",
            )
            raise await self._leave_open(row, nonsense)
        moved = int(answer.amount) if answer.amount else row.amount
        verdict = Verdict("settled", tx_hash=answer.transaction or None, amount_moved=moved)
        return await self._close(row, verdict, answer)

    async def _look(self, row: Settlement) -> Verdict | None:
        try:
            return None if self._truth is None else await self._truth.find(row)
        except ChainUnreachable:
            return None

    async def _close(
        self, row: Settlement, verdict: Verdict, answer: SettleResponse | None = None
    ) -> SettleResponse:
        """Book the end of it. The money has moved or not: a passing fault of the database changes neither."""
        answer = answer or make_answer(row, verdict)
        try:
            async for attempt in _booking_attempts():
                with attempt:
                    async with self._database.write() as tx:
                        await conclude(tx, row, verdict, answer, now=clock.now())
        except Exception as error:
            logger.exception("the end of settlement %s is not booked", row.settlement_id)
            raise SettlementUnknown(
                row.network, answer.transaction, ERR_SETTLEMENT_PENDING, "it could not be written down"
            ) from error
        return answer

    async def _leave_open(self, row: Settlement, error: Exception) -> SettlementUnknown:
        """Book that it is not known, and let go of it: whoever asks next goes on."""
        if not isinstance(error, Refusal):
            logger.error("settling %s ended in an unexpected way", row.settlement_id, exc_info=error)
        unknown = (
            error
            if isinstance(error, SettlementUnknown)
            else SettlementUnknown(row.network, row.tx_hash or "", ERR_SETTLEMENT_PENDING, UNHEARD)
        )
        try:
            async with self._database.write() as tx:
                await _suspect(tx, row, unknown.error_reason, unknown.transaction, clock.now())
        except Exception:
            logger.exception("the unknown end of settlement %s is not booked", row.settlement_id)
        return unknown

    async def _ask_first(
        self,
        question: Callable[[Facilitator], Awaitable[_Answer]],
        before: Callable[[str], Awaitable[None]] | None = None,
    ) -> tuple[str, _Answer]:
        """Return the first answer and whose it is. Raises FacilitatorUnreachable where nobody answers."""
        last = FacilitatorUnreachable("No facilitator can be asked now.")
        for desk in self._desks.values():
            if desk.breaker.opened:
                continue
            if before is not None:
                await before(desk.name)
            try:
                return desk.name, await desk.ask(lambda at=desk.facilitator: question(at))
            except FacilitatorUnreachable as error:
                last = error
        raise last

    async def _remember_supported(self, name: str, answer: SupportedResponse) -> None:
        async with self._database.write() as tx:
            await tx.execute(
                """
                INSERT INTO payments.x402_facilitators AS f (facilitator, supported, asked_at)
                VALUES (%(facilitator)s, %(supported)s, %(now)s)
                ON CONFLICT (facilitator) DO UPDATE
                SET supported = excluded.supported, asked_at = excluded.asked_at
                """,
                {"facilitator": name, "supported": Jsonb(_as_json(answer)), "now": clock.now()},
            )

    async def _recall_supported(self) -> SupportedResponse | None:
        async with self._database.read() as tx:
            kept = await tx.value(
                """
                SELECT supported FROM payments.x402_facilitators
                WHERE facilitator = ANY(%(names)s) ORDER BY asked_at DESC LIMIT 1
                """,
                {"names": list(self._desks)},
            )
        return None if kept is None else SupportedResponse.model_validate(kept)


class _Desk:
    """One facilitator, asked patiently, and left alone for a while when it does not answer."""

    def __init__(self, name: str, facilitator: Facilitator) -> None:
        self.name = name
        self.facilitator = facilitator
        self.breaker = CircuitBreaker(FAILURES_MAX, RECOVERY_SECONDS, FacilitatorUnreachable, name)

    async def ask(self, question: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Return its answer. FacilitatorUnreachable means that nothing was done, so it is asked again."""
        retrying = AsyncRetrying(
            stop=stop_after_attempt(ASK_ATTEMPTS_MAX),
            wait=wait_random_exponential(multiplier=0.1, max=ASK_WAIT_SECONDS_MAX),
            retry=retry_if_exception_type(FacilitatorUnreachable),
            reraise=True,
        )

        async def ask() -> _Answer:
            return await question()

        with self.breaker:
            return await retrying(ask)


async def find(tx: ReadTx, proof: Proof) -> Settlement | None:
    """The settlement of a signed payment, or None."""
    return await tx.maybe(
        """
        SELECT settlement_id, network, scheme, asset, payer, pay_to, nonce, amount, amount_moved, status,
               facilitator, tx_hash, block_number, reason, answer, asks, holder, asked_at, held_until,
               valid_before, settled_at, confirmed_at
        FROM payments.x402_settlements
        WHERE network = %(network)s AND asset = %(asset)s AND payer = %(payer)s AND nonce = %(nonce)s
        """,
        {"network": proof.network, "asset": proof.asset, "payer": proof.payer, "nonce": proof.nonce},
        into=Settlement,
    )


async def conclude(
    tx: WriteTx, row: Settlement, verdict: Verdict, answer: SettleResponse, *, now: datetime
) -> bool:
    """Book the end of an open settlement ("settled" or "not settled"); whether it was open."""
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
        """,
        {
            "settlement_id": row.settlement_id,
            "settled": settled,
            "answer": Jsonb(_as_json(answer)),
            "tx_hash": verdict.tx_hash,
            "block_number": verdict.block_number,
            "amount_moved": verdict.amount_moved,
            "reason": None if settled else (verdict.reason or "not settled")[:REASON_LETTERS_MAX],
            "now": now,
        },
    )
    return changed == 1


def make_answer(row: Settlement, verdict: Verdict) -> SettleResponse:
    """What a facilitator would have answered, had it been heard."""
    return SettleResponse(
        success=verdict.outcome == "settled",
        transaction=verdict.tx_hash or "",
        network=row.network,
        payer=row.payer,
        amount=None if verdict.amount_moved is None else str(verdict.amount_moved),
        error_reason=None if verdict.outcome == "settled" else verdict.reason,
    )


async def _take(
    tx: WriteTx, proof: Proof, facilitator: str, now: datetime, hold: timedelta
) -> Settlement | None:
    """Take a settlement that is new, failed before, or was let go of; None where it is held or done.

    Whose holder was never heard of again is unknown from here on.
    """
    return await tx.maybe(
        """
        INSERT INTO payments.x402_settlements AS s (
            settlement_id, asked_at, updated_at, held_until, holder, valid_before, amount, status, network,
            scheme, asset, payer, pay_to, nonce, facilitator)
        VALUES (
            %(settlement_id)s, %(now)s, %(now)s, %(held_until)s, %(settlement_id)s, %(valid_before)s,
            %(amount)s, 'pending', %(network)s, %(scheme)s, %(asset)s, %(payer)s, %(pay_to)s, %(nonce)s,
            %(facilitator)s)
        ON CONFLICT (network, asset, payer, nonce) DO UPDATE
        SET held_until = excluded.held_until, holder = excluded.holder, updated_at = excluded.updated_at,
            asks = s.asks + 1,
            status = CASE s.status WHEN 'failed' THEN 'pending' ELSE 'unknown' END,
            facilitator = CASE s.status WHEN 'failed' THEN excluded.facilitator ELSE s.facilitator END,
            reason = CASE s.status WHEN 'failed' THEN NULL ELSE coalesce(s.reason, %(unheard)s) END,
            pay_to = excluded.pay_to, scheme = excluded.scheme, amount = excluded.amount,
            valid_before = excluded.valid_before
        WHERE (s.status = 'failed'
               OR (s.status IN ('pending', 'unknown') AND s.held_until <= %(now)s
                   AND s.pay_to = excluded.pay_to AND s.scheme = excluded.scheme))
        RETURNING settlement_id, network, scheme, asset, payer, pay_to, nonce, amount, amount_moved, status,
                  facilitator, tx_hash, block_number, reason, answer, asks, holder, asked_at, held_until,
                  valid_before, settled_at, confirmed_at
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
            "unheard": UNHEARD,
        },
        into=Settlement,
    )


def _check_settled(row: Settlement | None, proof: Proof) -> Settlement:
    """Return a settlement that cannot be taken, where it is settled. Raises as take does."""
    if row is not None and (row.pay_to, row.scheme) != (proof.pay_to, proof.scheme):
        raise SettlementConflict
    if row is not None and row.status == "settled":
        return row
    hash_ = "" if row is None else row.tx_hash or ""
    raise SettlementInProgress(
        proof.network, hash_, ERR_SETTLEMENT_PENDING, "another request is settling it now"
    )


async def _renew(tx: WriteTx, row: Settlement, now: datetime) -> None:
    await tx.execute(
        """
        UPDATE payments.x402_settlements SET held_until = %(held_until)s
        WHERE settlement_id = %(settlement_id)s AND holder = %(holder)s AND status IN ('pending', 'unknown')
        """,
        {"settlement_id": row.settlement_id, "holder": row.holder, "held_until": now + HOLD},
    )


async def _move(tx: WriteTx, row: Settlement, facilitator: str) -> None:
    await tx.execute(
        """
        UPDATE payments.x402_settlements SET facilitator = %(facilitator)s
        WHERE settlement_id = %(settlement_id)s AND holder = %(holder)s AND status = 'pending'
        """,
        {"facilitator": facilitator, "settlement_id": row.settlement_id, "holder": row.holder},
    )


async def _suspect(tx: WriteTx, row: Settlement, reason: str, tx_hash: str, now: datetime) -> None:
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


def _moves_nothing(row: Settlement, answer: SettleResponse) -> bool:
    """Some settlements have no transaction: usage of nothing, and vouchers that are claimed later."""
    return (row.scheme == "upto" and answer.amount == "0") or row.scheme == "batch-settlement"


def _as_json(model: SettleResponse | SupportedResponse) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _booking_attempts() -> AsyncRetrying:
    return AsyncRetrying(
        stop=stop_after_attempt(BOOKING_ATTEMPTS_MAX),
        wait=wait_random_exponential(multiplier=0.05, max=BOOKING_WAIT_SECONDS_MAX),
        retry=retry_if_not_exception_type(AssertionError),
        reraise=True,
    )
