"""A purchase: a signed payment is checked, written down, settled, and turned into requests that may be made.

The intent is on disk before anything moves money; what cannot be known is kept as unknown, never as failed.
"""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from tenacity import AsyncRetrying, stop_after_attempt, wait_random_exponential
from x402.schemas import PaymentPayload, SettleResponse

from tollbook.books.payments import payments, tokens
from tollbook.books.payments.facilitator import (
    Facilitator,
    FacilitatorUnreachable,
    SettlementUnknown,
    find_fault,
)
from tollbook.books.payments.payments import Offer, Payment
from tollbook.books.payments.rules import Option, Toll, read_authorization
from tollbook.books.payments.tokens import Grant
from tollbook.core import clock, ids, telemetry
from tollbook.core.database import Database
from tollbook.core.errors import Refusal

BOOKING_ATTEMPTS_MAX = 5
BOOKING_WAIT_SECONDS_MAX = 2.0
RETRY_AFTER_SECONDS = 5

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
    """The payment is not good for this route. No money moved; `code` is the x402 reason."""

    reason: ClassVar[str] = "payment-refused"
    status: ClassVar[int] = 402

    def __init__(self, code: str, sentence: str, settlement: SettleResponse | None = None) -> None:
        super().__init__(sentence, code=code)
        self.code = code
        self.settlement = settlement


class PaymentPostponed(Refusal):
    """It could not be settled now and no money moved: present the same payment again."""

    reason: ClassVar[str] = "payment-postponed"
    status: ClassVar[int] = 503


class PaymentUnknown(Refusal):
    """Money may have moved and it is not known yet. Pay nothing anew: the payment is kept and looked for."""

    reason: ClassVar[str] = "settlement-unknown"
    status: ClassVar[int] = 503


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
    facilitator: Facilitator

    async def reserve(self, toll: Toll, option: Option, payment: PaymentPayload) -> Payment:
        """Check a payment and write it down as the one that is about to be settled.

        Raises PaymentRefused where it would not settle, AlreadyCounted where it was presented before,
        PaymentPostponed where the facilitator cannot say now, DatabaseUnreachable.
        """
        requirements = option.requirements
        fault = find_fault(payment, requirements)
        if fault is not None:
            raise PaymentRefused(*fault)
        offer = _make_offer(toll, option, payment)
        async with self.database.read() as tx:
            await payments.refuse_counted(tx, offer)
        with telemetry.LATENCY.labels(step="verify").time():
            try:
                answer = await self.facilitator.verify(payment, requirements)
            except FacilitatorUnreachable as error:
                raise _postpone(error) from error
        if not answer.is_valid:
            code = answer.invalid_reason or "invalid_payload"
            raise PaymentRefused(code, answer.invalid_message or f"The facilitator refused it: {code}.")
        return await finish(self._reserve(offer))

    async def _reserve(self, offer: Offer) -> Payment:
        async with self.database.write() as tx:
            return await payments.reserve(tx, offer, now=clock.now())

    async def release(self, payment: Payment, reason: str) -> None:
        """Let go of a reserved payment that will not be settled: it costs its payer nothing."""
        await finish(self._book_failure(payment, reason))

    async def settle(self, payment: Payment, signed: PaymentPayload, option: Option) -> Purchase:
        """Move the money and book what it bought; goes on to its end even if the caller is cancelled.

        Raises PaymentRefused (no money moved), PaymentPostponed (nor here; the same payment may come again),
        PaymentUnknown (it may have moved).
        """
        with telemetry.LATENCY.labels(step="settle").time():
            return await finish(self._settle(payment, signed, option))

    async def close(self) -> None:
        """Wait for the settlements under way: what they did must be booked."""
        while _running:
            await asyncio.wait(_running)

    async def _settle(self, payment: Payment, signed: PaymentPayload, option: Option) -> Purchase:
        try:
            answer = await self.facilitator.settle(signed, option.requirements)
        except FacilitatorUnreachable as error:
            await self._book_failure(payment, error.reason)
            raise _postpone(error) from error
        except SettlementUnknown as error:
            raise await self._suspect(payment, error.error_reason, error.transaction) from error
        except Exception as error:
            logger.exception("settling %s ended in an unexpected way", ids.show("pay", payment.payment_id))
            raise await self._suspect(payment, "unexpected_settle_error", "") from error
        if not answer.success:
            code = answer.error_reason or "unexpected_settle_error"
            await self._book_failure(payment, code)
            _count(payment, "failed")
            raise PaymentRefused(code, answer.error_message or f"It was not settled: {code}.", answer)
        if answer.network != payment.network or not answer.transaction:
            raise await self._suspect(payment, "facilitator_answered_nonsense", answer.transaction)
        return await self._book_settlement(payment, answer)

    async def _book_settlement(self, payment: Payment, answer: SettleResponse) -> Purchase:
        try:
            async for attempt in _booking_attempts():
                with attempt:
                    async with self.database.write() as tx:
                        now = clock.now()
                        settled = await payments.settle(
                            tx, payment.payment_id, tx_hash=answer.transaction.lower(),
                            block_number=None, confirmations=None, now=now,
                        )  # fmt: skip
                        grant = await tokens.issue(tx, payment.payment_id, now=now)
                    _count(payment, "settled")
                    return Purchase(settled, grant, answer)
        except Exception as error:
            logger.exception("the settlement of %s is not booked", ids.show("pay", payment.payment_id))
            raise await self._suspect(payment, "settlement_not_booked", answer.transaction) from error
        raise AssertionError("unreachable: the attempts return or raise")

    async def _book_failure(self, payment: Payment, reason: str) -> None:
        async for attempt in _booking_attempts():
            with attempt:
                async with self.database.write() as tx:
                    await payments.fail(tx, payment.payment_id, reason, now=clock.now())

    async def _suspect(self, payment: Payment, reason: str, transaction: str) -> PaymentUnknown:
        """Book what is not known; where even that fails, the reserved row remains and says as much."""
        _count(payment, "unknown")
        try:
            async with self.database.write() as tx:
                hash_ = transaction.lower() or None
                await payments.suspect(tx, payment.payment_id, reason, hash_, now=clock.now())
        except Exception:
            logger.exception("the unknown outcome of %s is not booked", ids.show("pay", payment.payment_id))
        return _say_unknown(payment, transaction)


def _make_offer(toll: Toll, option: Option, payment: PaymentPayload) -> Offer:
    authorization = read_authorization(payment)
    return Offer(
        network=option.network.id,
        chain=option.network.name,
        asset=option.requirements.asset,
        decimals=option.token.decimals,
        amount=int(option.requirements.amount),
        from_address=authorization.payer,
        to_address=option.requirements.pay_to,
        nonce=authorization.nonce,
        tx_hash=None,
        scheme=option.requirements.scheme,
        endpoint=toll.key,
        requests_allocated=toll.terms.requests,
        lifetime=toll.terms.lifetime,
        valid_before=authorization.valid_before,
    )


def _booking_attempts() -> AsyncRetrying:
    """The money has moved: a passing fault of the database must not make the payer's answer a refusal."""
    return AsyncRetrying(
        stop=stop_after_attempt(BOOKING_ATTEMPTS_MAX),
        wait=wait_random_exponential(multiplier=0.05, max=BOOKING_WAIT_SECONDS_MAX),
        reraise=True,
    )


def _postpone(error: FacilitatorUnreachable) -> PaymentPostponed:
    return PaymentPostponed(
        "The facilitator cannot be asked now. No money moved: present the same payment again.",
        code=error.reason,
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


def _say_unknown(payment: Payment, transaction: str) -> PaymentUnknown:
    return PaymentUnknown(
        "It is not known yet whether the money moved. Do not pay again: the payment is kept under its id.",
        payment_id=ids.show("pay", payment.payment_id),
        transaction=transaction or None,
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


def _count(payment: Payment, outcome: str) -> None:
    telemetry.PAYMENTS.labels(network=payment.network, outcome=outcome).inc()
