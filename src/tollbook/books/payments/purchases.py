"""A purchase: a signed payment is checked, written down, settled, and turned into requests that may be made.

The intent is on disk before anything moves money; what cannot be known is kept as unknown, never as failed.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Literal, TypeVar

from tenacity import (
    AsyncRetrying,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)
from x402.mechanisms.evm.batch_settlement.constants import SCHEME_BATCH_SETTLEMENT
from x402.mechanisms.evm.constants import SCHEME_UPTO
from x402.schemas import PaymentPayload, PaymentRequirements, SettleResponse

from tollbook.books.payments import answers, payments, tokens
from tollbook.books.payments.answers import BROKEN_MAX, Answer, Asked
from tollbook.books.payments.errors import AlreadyCounted, PaymentNotInState
from tollbook.books.payments.facilitator.in_process import (
    FacilitatorUnreachable,
    SettlementUnknown,
    find_fault,
)
from tollbook.books.payments.facilitator.ledgered import (
    LedgeredFacilitator,
    SettlementConflict,
    SettlementInProgress,
)
from tollbook.books.payments.payments import Offer, Payment
from tollbook.books.payments.rules import SOLANA_LIFETIME, Option, Toll, read_proof
from tollbook.books.payments.solana import payment as solana_payment
from tollbook.books.payments.tokens import Grant
from tollbook.core import clock, ids, telemetry
from tollbook.core.chains import MalformedHash, is_solana, normalize_hash
from tollbook.core.database import Database, WriteTx
from tollbook.core.errors import Refusal

ANSWERS_KEPT = timedelta(hours=1)
BOOKING_ATTEMPTS_MAX = 5
BOOKING_WAIT_SECONDS_MAX = 2.0
RETRY_AFTER_SECONDS = 5
IN_PROGRESS_SECONDS = 1
OPENINGS_MAX = 3  # each lost one: the payment failed for another presenter meanwhile
WAITING_MAX = 256  # copies of requests that are being answered
WAIT_SECONDS_MAX = 10.0
WAIT_SECONDS_MIN = 0.02
WAIT_PAUSE_SECONDS_MAX = 0.5

logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


_running: set[asyncio.Task[Any]] = set()


async def finish(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Do it to its end: a client that goes away must not cut a settlement or a give-back in two."""
    task = asyncio.create_task(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return await asyncio.shield(task)


class PaymentRefused(Refusal):
    """The payment is not good for this route. No money moved; `code` is the x402 reason.

    `terms` are the ones to pay by, where they are no longer the route's own.
    """

    reason: ClassVar[str] = "payment-refused"
    status: ClassVar[int] = 402

    def __init__(
        self,
        code: str,
        sentence: str,
        settlement: SettleResponse | None = None,
        terms: PaymentRequirements | None = None,
    ) -> None:
        super().__init__(sentence, code=code)
        self.code = code
        self.settlement = settlement
        self.terms = terms


class PaymentPostponed(Refusal):
    """It could not be settled now and no money moved: present the same payment again."""

    reason: ClassVar[str] = "payment-postponed"
    status: ClassVar[int] = 503


class PaymentInProgress(Refusal):
    """This very payment is being answered for another copy of the request: ask again in a moment."""

    reason: ClassVar[str] = "payment-in-progress"
    status: ClassVar[int] = 503

    def __init__(self, payment_id: int | None) -> None:
        super().__init__(
            "This payment is being settled and answered now. Present the same one again for its answer.",
            payment_id=None if payment_id is None else ids.show("pay", payment_id),
            retry_after_seconds=IN_PROGRESS_SECONDS,
        )


class PaymentBound(Refusal):
    """The payment was made with another request, and buys that one alone."""

    reason: ClassVar[str] = "payment-bound"
    status: ClassVar[int] = 409

    def __init__(self, payment_id: int) -> None:
        shown = ids.show("pay", payment_id)
        super().__init__(
            f"This payment was presented before, as {shown}, with another method, path or body, and buys "
            "nothing else. Use its access token, or pay again with a new authorization.",
            payment_id=shown,
        )


class AnswerGone(Refusal):
    """It was answered before, and that is not kept: it was too long, or broke off too often."""

    reason: ClassVar[str] = "answer-gone"
    status: ClassVar[int] = 409

    def __init__(self) -> None:
        super().__init__(
            "This payment was answered before, with more than is kept. Use its access token for more "
            "requests, or pay again with a new authorization."
        )


class PaymentUnknown(Refusal):
    """Money may have moved and it is not known yet. Pay nothing anew: the payment is kept and looked for."""

    reason: ClassVar[str] = "settlement-unknown"
    status: ClassVar[int] = 503


@dataclass(frozen=True, slots=True)
class Opening:
    """A payment whose request may be answered now, by `holder`.

    `resumed` where it was presented before and not answered: then it may be settled; `counted` where its
    request was taken from the quota then, and not given back.
    """

    payment: Payment
    holder: int
    resumed: bool
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Purchase:
    """A settled payment with what it bought: the row, the token, and the facilitator's answer."""

    payment: Payment
    grant: Grant
    settlement: SettleResponse


@dataclass(slots=True)
class Purchases:
    """The road from a signed payment to an access token, over one database and one facilitator."""

    database: Database
    facilitator: LedgeredFacilitator
    answers_kept: timedelta = ANSWERS_KEPT
    _waiting: int = field(default=0, init=False)

    async def open(
        self, toll: Toll, option: Option, payment: PaymentPayload, asked: Asked
    ) -> Opening | Answer:
        """Check a payment and write it down as the one that is about to be settled, for this request.

        Presented again with the same request it gives the answer that was given, or goes on where nobody
        answered. Raises PaymentRefused where it would not settle, AlreadyCounted where it was presented by
        somebody else or its answer is forgotten, PaymentBound where with another request, PaymentPostponed
        where the facilitator cannot say now, PaymentInProgress, DatabaseUnreachable.
        """
        find = solana_payment.find_fault if option.network.is_solana else find_fault
        fault = find(payment, option.requirements)
        if fault is not None:
            raise PaymentRefused(*fault)
        offer = _make_offer(toll, option, payment)
        for _ in range(OPENINGS_MAX):
            try:
                await self._refuse_counted(offer)
                await self._verify(option, payment, offer)
                return await finish(self._reserve(offer, asked))
            except AlreadyCounted as counted:
                found = await self._resume(counted, asked)
            if found is not None:
                return found
        raise PaymentInProgress(None)

    async def _refuse_counted(self, offer: Offer) -> None:
        async with self.database.read() as tx:
            await payments.refuse_counted(tx, offer)

    async def _verify(self, option: Option, payment: PaymentPayload, offer: Offer) -> None:
        with telemetry.LATENCY.labels(step="verify").time():
            try:
                answer = await self.facilitator.verify(payment, option.requirements)
            except FacilitatorUnreachable as error:
                raise postpone(error) from error
        if not answer.is_valid:
            await self._refuse_counted(offer)  # a copy of it may have been faster and have spent its nonce
            code = answer.invalid_reason or "invalid_payload"
            raise PaymentRefused(code, answer.invalid_message or f"The facilitator refused it: {code}.")

    async def _reserve(self, offer: Offer, asked: Asked) -> Opening:
        async with self.database.write() as tx:
            return await self._begin(tx, offer, asked)

    async def _begin(self, tx: WriteTx, offer: Offer, asked: Asked) -> Opening:
        holder, now = ids.make(), clock.now()
        payment = await payments.reserve(tx, offer, now=now)
        lifetime = max(offer.lifetime, self.answers_kept)
        await answers.begin(tx, payment.payment_id, asked, holder, lifetime=lifetime, now=now)
        return Opening(payment, holder, resumed=False)

    async def _resume(self, counted: AlreadyCounted, asked: Asked) -> Opening | Answer | None:
        """Wait for who is answering, or take over. None where that payment failed: it is free again."""
        if self._waiting >= WAITING_MAX:
            raise PaymentInProgress(counted.payment_id)
        self._waiting += 1
        try:
            deadline, pause = time.monotonic() + WAIT_SECONDS_MAX, WAIT_SECONDS_MIN
            while True:
                async with self.database.write() as tx:
                    found = await self._look(tx, counted, asked)
                if found != "busy":
                    return found
                if time.monotonic() > deadline:
                    raise PaymentInProgress(counted.payment_id)
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, WAIT_PAUSE_SECONDS_MAX)
        finally:
            self._waiting -= 1

    async def _look(
        self, tx: WriteTx, counted: AlreadyCounted, asked: Asked
    ) -> Opening | Answer | Literal["busy"] | None:
        record = await answers.get(tx, counted.payment_id)
        payment = await payments.get(tx, counted.payment_id)
        if payment.status == "failed":
            return None
        if record is None or record.proof_hash != asked.proof_hash:
            raise counted
        if record.request_hash != asked.request_hash:
            raise PaymentBound(payment.payment_id)
        if record.sealed_answer is not None:
            if not asked.has_secret:
                raise counted
            return answers.read_answer(record, asked)
        if record.broken > BROKEN_MAX:
            raise AnswerGone
        holder = ids.make()
        if not await answers.take(tx, payment.payment_id, holder, now=clock.now()):
            return "busy"
        payment = await payments.get(tx, payment.payment_id)  # who let go of it may have released it first
        # Of one whose process ended it is not known; counted twice he would have paid for nothing.
        is_counted = record.broken > 0 or (record.status == "running" and payment.requests_used > 0)
        opening = Opening(payment, holder, resumed=True, counted=is_counted)
        return None if payment.status == "failed" else opening

    async def release(self, opening: Opening, reason: str) -> None:
        """Let go of a reserved payment that will not be settled: it costs its payer nothing.

        A resumed one may have moved already: it keeps its place in the books.
        """
        if not opening.resumed:
            await finish(self._book_failure(opening, reason))

    async def let_go(self, opening: Opening, *, is_counted: bool = False) -> None:
        """Nothing was answered that can be given again: who presents the payment again is served.

        `is_counted` where its answer began, was counted, and broke off.
        """
        await finish(self._let_go(opening, is_counted=is_counted))

    async def _let_go(self, opening: Opening, *, is_counted: bool) -> None:
        async with self.database.write() as tx:
            payment_id = opening.payment.payment_id
            await answers.let_go(tx, payment_id, opening.holder, is_counted=is_counted)

    async def keep(self, opening: Opening, asked: Asked, answer: Answer) -> None:
        """Keep what was answered, for as long as answers are kept."""
        until = clock.now() + self.answers_kept
        async with self.database.write() as tx:
            await answers.keep(tx, opening.payment.payment_id, opening.holder, asked, answer, until=until)

    async def hold(self, opening: Opening) -> None:
        """Hold the request while its app is at it; until cancelled."""
        while True:
            await asyncio.sleep(answers.RENEW_SECONDS)
            payment_id = opening.payment.payment_id
            try:
                async with self.database.write() as tx:
                    await answers.renew(tx, payment_id, opening.holder, now=clock.now())
            except Exception as error:  # whatever it was: the next one may succeed
                logger.warning("payment %s is not held on (%s)", payment_id, type(error).__name__)

    async def settle(
        self, opening: Opening, signed: PaymentPayload, option: Option, amount: int | None = None
    ) -> Purchase:
        """Move the money and book what it bought; goes on to its end even if the caller is cancelled.

        `amount` is what is charged, in minor units, where that is not the price (usage).
        Raises PaymentRefused (no money moved), PaymentPostponed (nor here; the same payment may come again),
        PaymentUnknown (it may have moved), SettlementConflict.
        """
        with telemetry.LATENCY.labels(step="settle").time():
            return await finish(self._settle(opening, signed, option, amount))

    async def close(self) -> None:
        """Wait for the settlements under way: what they did must be booked."""
        while _running:
            await asyncio.wait(_running)

    async def _settle(
        self, opening: Opening, signed: PaymentPayload, option: Option, amount: int | None
    ) -> Purchase:
        payment = opening.payment
        try:
            answer = await self._ask(opening, signed, option.requirements, amount)
        except FacilitatorUnreachable as error:
            await self._book_failure(opening, error.reason)
            raise postpone(error) from error
        except SettlementInProgress as error:
            raise PaymentInProgress(payment.payment_id) from error
        except SettlementUnknown as error:
            raise await self._suspect(payment, error.error_reason, error.transaction) from error
        except SettlementConflict as error:
            await self._book_failure(opening, error.reason)
            raise
        except Exception as error:
            logger.exception("settling %s ended in an unexpected way", ids.show("pay", payment.payment_id))
            raise await self._suspect(payment, "unexpected_settle_error", "") from error
        if not answer.success:
            code = answer.error_reason or "unexpected_settle_error"
            await self._book_failure(opening, code)
            _count(payment, "failed")
            raise PaymentRefused(code, answer.error_message or f"It was not settled: {code}.", answer)
        return await self._book_settlement(opening, answer)

    async def _ask(
        self, opening: Opening, signed: PaymentPayload, terms: PaymentRequirements, amount: int | None
    ) -> SettleResponse:
        if amount is not None:
            terms = terms.model_copy(update={"amount": str(amount)})
        return await self.facilitator.settle(signed, terms)

    async def _book_settlement(self, opening: Opening, answer: SettleResponse) -> Purchase:
        payment_id = opening.payment.payment_id
        try:
            async for attempt in _booking_attempts():
                with attempt:
                    async with self.database.write() as tx:
                        settled = await self._settle_once(tx, payment_id, answer)
                        grant = await (tokens.rotate if opening.resumed else tokens.issue)(
                            tx, payment_id, now=clock.now()
                        )
                    _count(settled, "settled")
                    return Purchase(settled, grant, answer)
        except PaymentNotInState:
            raise
        except (AlreadyCounted, PaymentRefused) as refused:
            await self._book_failure(opening, refused.reason)
            raise
        except Exception as error:
            logger.exception("the settlement of %s is not booked", ids.show("pay", payment_id))
            raise await self._suspect(opening.payment, "settlement_not_booked", answer.transaction) from error
        raise AssertionError("unreachable: the attempts return or raise")

    async def _settle_once(self, tx: WriteTx, payment_id: int, answer: SettleResponse) -> Payment:
        """Book it, unless the reconciler, or one who was cut off before he could answer, has done so."""
        payment = await payments.get(tx, payment_id)
        if payment.status != "pending":
            return await payments.renew(tx, payment_id, now=clock.now())
        # A deposit's transaction fills a channel: it is not what moved this request's charge.
        transaction = None if payment.scheme == SCHEME_BATCH_SETTLEMENT else _read_hash(payment, answer)
        return await payments.settle(
            tx, payment_id, tx_hash=transaction, block_number=None, confirmations=None,
            now=clock.now(), amount=_read_charged(payment.scheme, answer),
        )  # fmt: skip

    async def _book_failure(self, opening: Opening, reason: str) -> None:
        """Let go of the payment, unless somebody else took it over: then his settlement may be under way."""
        payment_id = opening.payment.payment_id
        async for attempt in _booking_attempts():
            with attempt:
                async with self.database.write() as tx:
                    if await answers.find_holder(tx, payment_id) in (None, opening.holder):
                        await payments.fail(tx, payment_id, reason, now=clock.now())

    async def _suspect(self, payment: Payment, reason: str, transaction: str) -> PaymentUnknown:
        """Book what is not known; where even that fails, the reserved row remains and says as much."""
        _count(payment, "unknown")
        try:
            async with self.database.write() as tx:
                await payments.suspect(tx, payment.payment_id, reason, transaction or None, now=clock.now())
        except PaymentNotInState:
            pass  # it was known before that it is not known
        except Exception:
            logger.exception("the unknown outcome of %s is not booked", ids.show("pay", payment.payment_id))
        return _say_unknown(payment, transaction)


def _read_hash(payment: Payment, answer: SettleResponse) -> str | None:
    """The transaction, where it can be one: the payer has paid, however a facilitator calls that."""
    if not answer.transaction:
        return None
    try:
        read = solana_payment.normalize_signature if is_solana(payment.network) else normalize_hash
        return read(answer.transaction)
    except MalformedHash:
        logger.warning("the facilitator named no transaction hash for %s", payments.show(payment.payment_id))
        return None


def _read_charged(scheme: str, answer: SettleResponse) -> int | None:
    """What was charged by usage; None where it is the price. A deposit into a channel is no charge."""
    charged = (answer.extra or {}).get("chargedAmount") if scheme == SCHEME_BATCH_SETTLEMENT else None
    if scheme == SCHEME_UPTO:
        charged = answer.amount
    return int(charged) if charged else None


def _make_offer(toll: Toll, option: Option, payment: PaymentPayload) -> Offer:
    proof = read_proof(payment, option.requirements)
    return Offer(
        network=option.network.id,
        chain=option.network.name,
        asset=proof.asset,
        decimals=option.token.decimals,
        amount=proof.amount,
        from_address=proof.payer,
        to_address=proof.pay_to,
        nonce=proof.nonce,
        tx_hash=None,
        scheme=proof.scheme,
        endpoint=toll.key,
        requests_allocated=toll.terms.requests,
        lifetime=toll.terms.lifetime,
        valid_before=proof.valid_before or clock.now() + SOLANA_LIFETIME,
    )


def _booking_attempts() -> AsyncRetrying:
    """The money has moved: a passing fault of the database must not make the payer's answer a refusal."""
    return AsyncRetrying(
        stop=stop_after_attempt(BOOKING_ATTEMPTS_MAX),
        wait=wait_random_exponential(multiplier=0.05, max=BOOKING_WAIT_SECONDS_MAX),
        retry=retry_if_not_exception_type((PaymentNotInState, AlreadyCounted, PaymentRefused)),
        reraise=True,
    )


def postpone(error: FacilitatorUnreachable) -> PaymentPostponed:
    """What a payer is told where the facilitator did nothing."""
    return PaymentPostponed(
        "The facilitator cannot be asked now. No money moved: present the same payment again.",
        code=error.reason,
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


def _say_unknown(payment: Payment, transaction: str) -> PaymentUnknown:
    return PaymentUnknown(
        "It is not known yet whether the money moved. Pay nothing anew: present the same payment again; "
        "it is answered as soon as the chain has told.",
        payment_id=ids.show("pay", payment.payment_id),
        transaction=transaction or None,
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


def _count(payment: Payment, outcome: str) -> None:
    telemetry.PAYMENTS.labels(network=payment.network, outcome=outcome).inc()
