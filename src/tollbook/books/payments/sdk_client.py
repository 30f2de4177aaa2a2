"""The ledger for those who keep the SDK's own middleware: a FacilitatorClient that never settles twice.

    client = LedgeredFacilitatorClient("postgresql://…", "https://facilitator.example")
    server = x402ResourceServer(client)

The SDK's middleware runs a route's handler between `verify` and `settle`. So `verify` already takes the
payment in the ledger: of its copies one is served, and the others are told why not. What the middleware
makes of an unknown end is its own (402 with `settlement_pending`); Tollbook's Paywall answers 503. From then
on the payment may be on the chain, signature and all, for everybody to present: it buys nothing here, and
its payer claims its transaction with a signature (POST /v1/payments).
"""

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, TypeVar

from x402.mechanisms.evm.constants import ERR_SETTLEMENT_PENDING
from x402.schemas import (
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedResponse,
    VerifyResponse,
)

from tollbook.books.payments.facilitator.in_process import (
    Facilitator,
    FacilitatorUnreachable,
    SettlementUnknown,
    find_fault,
)
from tollbook.books.payments.facilitator.ledgered import (
    LedgeredFacilitator,
    SettlementConflict,
    SettlementInProgress,
)
from tollbook.books.payments.facilitator.remote import RemoteFacilitator
from tollbook.books.payments.ledger import Settlement, Truth
from tollbook.books.payments.rules import Proof, read_proof
from tollbook.core.database import Database

ALREADY_SETTLED = "payment_already_settled"
IN_PROGRESS = "payment_in_progress"
CONFLICT = "payment_used_for_other_terms"
UNREACHABLE = "facilitator_unreachable"
CLAIMS = "claims the transaction with his signature: POST /v1/payments."
HANDLER_HOLD = timedelta(seconds=120)  # between verify and settle
HELD_MAX = 10_000  # payments verified here and not yet settled

_Result = TypeVar("_Result")


class LedgeredFacilitatorClient:
    """The SDK's FacilitatorClient over the facilitators at these URLs, asked in their order.

    The books must be in the database (`tollbook migrate apply`). It opens at its first use; `aclose` it.
    """

    def __init__(self, database_url: str, *facilitator_urls: str, truth: Truth | None = None) -> None:
        self._database_url = database_url
        self._facilitator_urls = facilitator_urls
        self._truth = truth
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._ledger: LedgeredFacilitator | None = None
        self._database = Database(database_url, application="tollbook ledger")
        self._held: dict[Proof, Settlement] = {}

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        """Return whether this request may be served for this payment, and hold the payment if so."""
        fault = find_fault(payload, requirements)
        if fault is not None:
            return _refuse(*fault)
        ledger, proof = await self._open(), read_proof(payload, requirements)
        before = await ledger.recall(payload, requirements)
        if before is not None and before.status in ("settled", "unknown"):
            return _refuse_ended(before)
        try:
            answer = await ledger.verify(payload, requirements)
            if not answer.is_valid:
                return answer
            taken = await ledger.take(payload, requirements, HANDLER_HOLD)
        except FacilitatorUnreachable as error:
            return _refuse(UNREACHABLE, str(error))
        except SettlementInProgress as error:
            return _refuse(IN_PROGRESS, str(error))
        except SettlementConflict as error:
            return _refuse(CONFLICT, str(error))
        if taken.status != "pending":  # another was faster, or was not heard of again
            await ledger.let_go(taken)
            return _refuse_ended(taken)
        self._hold(proof, taken)
        return VerifyResponse(is_valid=True, payer=proof.payer)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        """Settle once. What is not known is said as the x402 reason `settlement_pending`, never raised."""
        ledger, proof = await self._open(), read_proof(payload, requirements)
        try:
            taken = self._held.pop(proof, None) or await ledger.take(payload, requirements)
            return await asyncio.shield(self._sell(ledger, taken, payload, requirements))
        except SettlementUnknown as error:
            return _fail(proof, error.error_reason, str(error), error.transaction)
        except SettlementConflict as error:
            return _fail(proof, CONFLICT, str(error))
        except FacilitatorUnreachable as error:
            return _fail(proof, UNREACHABLE, str(error))

    async def _sell(
        self,
        ledger: LedgeredFacilitator,
        taken: Settlement,
        payload: PaymentPayload,
        requirements: PaymentRequirements,
    ) -> SettleResponse:
        answer = await ledger.settle_taken(taken, payload, requirements)
        if answer.success and (taken.status == "settled" or not await ledger.sell(taken)):
            why = f"It has bought something else. Who has paid and got nothing {CLAIMS}"
            return _fail(read_proof(payload, requirements), ALREADY_SETTLED, why, answer.transaction)
        return answer

    def get_supported(self) -> SupportedResponse:
        """Return what is served. The SDK asks without an event loop, so one is made for it."""
        return _run_apart(self._ask_supported())

    async def aclose(self) -> None:
        """Let go of the database and of the connections."""
        await self._stack.aclose()

    def _hold(self, proof: Proof, taken: Settlement) -> None:
        while len(self._held) >= HELD_MAX:  # their handlers never settled; the ledger lets go by time
            del self._held[next(iter(self._held))]
        self._held[proof] = taken

    async def _open(self) -> LedgeredFacilitator:
        async with self._opening:
            if self._ledger is None:
                await self._stack.enter_async_context(self._database)
                self._ledger = LedgeredFacilitator(
                    self._database, self._name(self._stack), self._truth, owner="sdk"
                )
            return self._ledger

    def _name(self, stack: AsyncExitStack) -> Mapping[str, Facilitator]:
        remotes = [RemoteFacilitator(url) for url in self._facilitator_urls]
        for remote in remotes:
            stack.push_async_callback(remote.aclose)
        return {remote.name: remote for remote in remotes}

    async def _ask_supported(self) -> SupportedResponse:
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(Database(self._database_url))
            return await LedgeredFacilitator(database, self._name(stack)).supported()


def _refuse(reason: str, message: str) -> VerifyResponse:
    return VerifyResponse(is_valid=False, invalid_reason=reason, invalid_message=message)


def _refuse_ended(row: Settlement) -> VerifyResponse:
    reason = ALREADY_SETTLED if row.status == "settled" else ERR_SETTLEMENT_PENDING
    return _refuse(reason, f"It was presented before. Who has paid and got no answer {CLAIMS}")


def _fail(proof: Proof, reason: str, message: str, transaction: str = "") -> SettleResponse:
    return SettleResponse(
        success=False,
        error_reason=reason,
        error_message=message,
        transaction=transaction,
        network=proof.network,
        payer=proof.payer,
    )


def _run_apart(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run it in a thread of its own: the caller may, or may not, be inside an event loop."""
    outcome: list[_Result | BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:  # told to the caller, whatever it is
            outcome.append(error)

    thread = threading.Thread(target=run, name="tollbook-supported")
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
