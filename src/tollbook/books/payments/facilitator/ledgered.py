"""Facilitators with a memory: the first that can be reached is asked, and never two for one payment."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import ClassVar, TypeVar

from circuitbreaker import CircuitBreaker
from psycopg.types.json import Jsonb
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)
from x402.mechanisms.evm.constants import ERR_SETTLEMENT_PENDING, SCHEME_EXACT, SCHEME_UPTO
from x402.schemas import (
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedResponse,
    VerifyResponse,
)

from tollbook.books.payments import ledger
from tollbook.books.payments.facilitator.in_process import (
    Facilitator,
    FacilitatorUnreachable,
    SettlementUnknown,
)
from tollbook.books.payments.ledger import NOBODY, UNHEARD, Owner, Settlement, Truth, Verdict
from tollbook.books.payments.rules import Proof, read_proof
from tollbook.core import clock
from tollbook.core.chains import ChainUnreachable
from tollbook.core.database import Database
from tollbook.core.errors import Refusal

RENEW_SECONDS = 5.0  # well within ledger.HOLD
ASK_ATTEMPTS_MAX = 3
ASK_WAIT_SECONDS_MAX = 1.0
BOOKING_ATTEMPTS_MAX = 5
BOOKING_WAIT_SECONDS_MAX = 2.0
FAILURES_MAX = 5  # in a row; then a facilitator is left alone for
RECOVERY_SECONDS = 15
SUPPORTED = "supported"
AMOUNT_DIGITS_MAX = 78  # of 256 bits
SUPPORTED_KEPT = timedelta(minutes=5)

logger = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class SettlementInProgress(SettlementUnknown):
    """Somebody is settling this very payment now."""


class SettlementConflict(Refusal):
    """The authorization was presented before, on other terms or to another who sells for it."""

    reason: ClassVar[str] = "settlement-conflict"
    status: ClassVar[int] = 409

    def __init__(self) -> None:
        super().__init__(
            "This authorization was presented before, on other terms or for another sale. Sign a new one."
        )


class LedgeredFacilitator:
    """Facilitators with a memory: the first that can be reached is asked, and never two for one payment.

    `facilitators` are asked in their order, each by its name; `truth` looks at the chain where one of them
    left it open; `owner` is who sells. Outcomes as Facilitator has them: an answer that is sure,
    FacilitatorUnreachable (nothing moved), or SettlementUnknown with its subclass SettlementInProgress; and
    SettlementConflict.
    """

    def __init__(
        self,
        database: Database,
        facilitators: Mapping[str, Facilitator],
        truth: Truth | None = None,
        owner: Owner = "paywall",
    ) -> None:
        if not facilitators:
            raise ValueError("name at least one facilitator")
        self._database = database
        self._desks = {name: _Desk(name, facilitator) for name, facilitator in facilitators.items()}
        self._truth = truth
        self._owner: Owner = owner
        self._supported: SupportedResponse | None = None
        self._supported_until = clock.now()

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        """Return whether the payment would settle now, by the first facilitator that answers."""
        _, answer = await self._ask_first(lambda at: at.verify(payload, requirements), requirements.network)
        return answer

    async def supported(self) -> SupportedResponse:
        """Return what the first facilitator that answers serves; while none does, what one said last.

        The last answer outlives a restart, so that an outage at the start closes no route.
        """
        if self._supported is None or clock.now() >= self._supported_until:
            try:
                name, self._supported = await self._ask_first(lambda at: at.supported(), SUPPORTED)
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
            return await ledger.find(tx, read_proof(payload, requirements))

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
        self, payload: PaymentPayload, requirements: PaymentRequirements, hold: timedelta = ledger.HOLD
    ) -> Settlement:
        """Write the intent down and hold it: for so long nobody else settles this payment.

        The SDK's middleware takes it before its handler runs: nobody is asked yet. A settlement that is
        settled already comes back as it is. Raises SettlementInProgress where somebody else holds it,
        SettlementConflict.
        """
        proof = read_proof(payload, requirements)
        first = NOBODY if self._owner == "sdk" else next(iter(self._desks))
        async with self._database.write() as tx:
            row = await ledger.take(tx, proof, first, clock.now(), hold, self._owner)
            return row or _check_settled(await ledger.find(tx, proof), proof, self._owner)

    async def sell(self, row: Settlement) -> bool:
        """Enter that the answer to what was settled is given now; False where it bought something before.

        Raises SettlementUnknown where that cannot be written down: then it bought nothing.
        """
        try:
            async for attempt in _booking_attempts():
                with attempt:
                    async with self._database.write() as tx:
                        return await ledger.sell(tx, row)
        except Exception as error:
            logger.exception("that settlement %s is sold is not booked", row.settlement_id)
            why = "it could not be written down"
            raise SettlementUnknown(row.network, row.tx_hash or "", ERR_SETTLEMENT_PENDING, why) from error
        raise AssertionError("unreachable: the attempts return or raise")

    async def let_go(self, row: Settlement) -> None:
        """Let go of what was taken and is unknown: it is not settled here."""
        async with self._database.write() as tx:
            await ledger.suspect(tx, row, row.reason or UNHEARD, "", clock.now())

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
            try:
                async with self._database.write() as tx:
                    await ledger.renew(tx, row, clock.now())
            except Exception as error:  # whatever it was: the next one may succeed
                logger.warning("settlement %s is not held on (%s)", row.settlement_id, type(error).__name__)

    async def _begin(
        self, row: Settlement, payload: PaymentPayload, requirements: PaymentRequirements
    ) -> SettleResponse:
        """Ask until one facilitator takes it. As long as none has, nothing can have moved."""

        async def on_paper(name: str) -> None:
            if name != row.facilitator:
                async with self._database.write() as tx:
                    is_ours = await ledger.move(tx, row, name)
                if not is_ours:
                    raise _say_in_progress(row.network, "")

        try:
            _, answer = await self._ask_first(
                lambda at: at.settle(payload, requirements), row.network, on_paper
            )
        except FacilitatorUnreachable as error:
            await self._close(row, Verdict("not settled", reason=error.reason))
            raise
        except SettlementInProgress:
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
        if row.scheme == SCHEME_UPTO:  # as the first time: an answer made anew may have used less, or nothing
            requirements = requirements.model_copy(update={"amount": str(row.amount)})
        try:
            answer = await desk.ask(lambda: desk.facilitator.settle(payload, requirements), row.network)
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
        moved = _read_moved(row, answer)
        if (
            moved is None
            or answer.network != row.network
            or not (answer.transaction or _moves_nothing(row, answer))
        ):
            nonsense = SettlementUnknown(
                row.network,
                answer.transaction,
                "facilitator_answered_nonsense",
                "it names no transaction here, or no amount that settles this",
            )
            raise await self._leave_open(row, nonsense)
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
        """Book the end of it. The money has moved or not: a passing fault of the database changes neither.

        Raises SettlementInProgress where it is not settled and somebody took it over: he may be settling it.
        """
        answer = answer or ledger.make_answer(row, verdict)
        try:
            async for attempt in _booking_attempts():
                with attempt:
                    async with self._database.write() as tx:
                        is_ours = await ledger.conclude(tx, row, verdict, answer, now=clock.now())
                    if not is_ours and verdict.outcome != "settled":
                        raise _say_in_progress(row.network, "")
        except SettlementInProgress:
            raise
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
                await ledger.suspect(tx, row, unknown.error_reason, unknown.transaction, clock.now())
        except Exception:
            logger.exception("the unknown end of settlement %s is not booked", row.settlement_id)
        return unknown

    async def _ask_first(
        self,
        question: Callable[[Facilitator], Awaitable[_Answer]],
        about: str,
        before: Callable[[str], Awaitable[None]] | None = None,
    ) -> tuple[str, _Answer]:
        """Return the first answer and whose it is. Raises FacilitatorUnreachable where nobody answers."""
        last = FacilitatorUnreachable("No facilitator can be asked now.")
        for desk in self._desks.values():
            if desk.breakers[about].opened:
                continue
            if before is not None:
                await before(desk.name)
            try:
                return desk.name, await desk.ask(lambda at=desk.facilitator: question(at), about)
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
                {"facilitator": name, "supported": Jsonb(ledger.as_json(answer)), "now": clock.now()},
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
        # One for each network: that one's node is down closes no other.
        self.breakers = defaultdict[str, CircuitBreaker](
            lambda: CircuitBreaker(FAILURES_MAX, RECOVERY_SECONDS, FacilitatorUnreachable, name)
        )

    async def ask(self, question: Callable[[], Awaitable[_Answer]], about: str) -> _Answer:
        """Return its answer. FacilitatorUnreachable means that nothing was done, so it is asked again.

        `about` is the network, or SUPPORTED.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(ASK_ATTEMPTS_MAX),
            wait=wait_random_exponential(multiplier=0.1, max=ASK_WAIT_SECONDS_MAX),
            retry=retry_if_exception_type(FacilitatorUnreachable),
            reraise=True,
        )

        async def ask() -> _Answer:
            return await question()

        with self.breakers[about]:
            return await retrying(ask)


def _check_settled(row: Settlement | None, proof: Proof, owner: Owner) -> Settlement:
    """Return a settlement that cannot be taken, where it is settled. Raises as take does."""
    if row is not None and owner != ("sdk" if row.owner == "sold" else row.owner):
        raise SettlementConflict
    if row is not None and (row.pay_to, row.scheme) != (proof.pay_to, proof.scheme):
        raise SettlementConflict
    if row is not None and row.scheme == SCHEME_EXACT and row.amount != proof.amount:
        raise SettlementConflict  # another authorization, signed with the same nonce
    if row is not None and row.status == "settled":
        return row
    raise _say_in_progress(proof.network, "" if row is None else row.tx_hash or "")


def _say_in_progress(network: str, tx_hash: str) -> SettlementInProgress:
    return SettlementInProgress(
        network, tx_hash, ERR_SETTLEMENT_PENDING, "another request is settling it now"
    )


def _read_moved(row: Settlement, answer: SettleResponse) -> int | None:
    """What a facilitator says has moved: of the scheme exact all of it; None where that cannot be."""
    if not answer.amount:
        return row.amount
    if not (
        answer.amount.isascii() and answer.amount.isdecimal() and len(answer.amount) <= AMOUNT_DIGITS_MAX
    ):
        return None
    moved = int(answer.amount)
    return None if row.scheme == SCHEME_EXACT and moved < row.amount else moved


def _moves_nothing(row: Settlement, answer: SettleResponse) -> bool:
    """Some settlements have no transaction: usage of nothing, and vouchers that are claimed later."""
    return (row.scheme == "upto" and answer.amount == "0") or row.scheme == "batch-settlement"


def _booking_attempts() -> AsyncRetrying:
    return AsyncRetrying(
        stop=stop_after_attempt(BOOKING_ATTEMPTS_MAX),
        wait=wait_random_exponential(multiplier=0.05, max=BOOKING_WAIT_SECONDS_MAX),
        retry=retry_if_not_exception_type((AssertionError, SettlementInProgress)),
        reraise=True,
    )
