"""Facilitators: who checks a signed payment and moves the money; here, the one inside this process.

The one promise: a settlement is reported as failed only where it is sure that no money moved. Everything
that cannot be known is an exception, SettlementUnknown, and the book records it as such.
"""

import asyncio
import logging
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, Protocol, TypeVar, cast

from x402.mechanisms.evm.constants import (
    ERR_ASSET_NOT_DEPLOYED_CONTRACT,
    ERR_AUTHORIZATION_VALUE_MISMATCH,
    ERR_FACTORY_NOT_ALLOWED,
    ERR_FAILED_TO_VERIFY_SIGNATURE,
    ERR_INVALID_SIGNATURE,
    ERR_MISSING_EIP712_DOMAIN,
    ERR_NETWORK_MISMATCH,
    ERR_NONCE_ALREADY_USED,
    ERR_RECIPIENT_MISMATCH,
    ERR_SETTLEMENT_PENDING,
    ERR_UNDEPLOYED_SMART_WALLET,
    ERR_UNSUPPORTED_SCHEME,
    ERR_VALID_AFTER_FUTURE,
    SCHEME_EXACT,
)
from x402.mechanisms.evm.exact.facilitator import ExactEvmScheme, ExactEvmSchemeConfig
from x402.mechanisms.evm.types import is_permit2_payload
from x402.pending_settlement_store import InMemoryPendingSettlementStore
from x402.schemas import (
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedKind,
    SupportedResponse,
    VerifyResponse,
)

from tollbook.books.payments.facilitator_signer import (
    RECEIPT_SECONDS_MAX,
    Attempt,
    Node,
    NodeFailed,
    NoGasMoney,
    check_operator_key,
)
from tollbook.core.errors import Refusal

X402_VERSION = 2
CAIP_FAMILY = "eip155:*"
VERIFY_THREADS_MAX = 8
SETTLE_THREADS_MAX = 8  # apart: settlements wait for blocks, and must not keep verifications waiting
WAITING_MAX = 256  # per pool, those at work included

CLOSED = "The facilitator is stopping. No money moved; present the same payment to the next one."

# x402 error codes that the SDK has no constant for.
ERR_INVALID_NETWORK = "invalid_network"
ERR_INVALID_PAYLOAD = "invalid_payload"
ERR_INVALID_REQUIREMENTS = "invalid_payment_requirements"
ERR_INVALID_VERSION = "invalid_x402_version"
ERR_UNEXPECTED_SETTLE = "unexpected_settle_error"

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_WORD = re.compile(r"0x[0-9a-fA-F]{64}")
_SIGNATURE = re.compile(r"0x(?:[0-9a-fA-F]{2}){65,4096}")  # longer than 65 bytes: smart wallets
_UINT = re.compile(r"[0-9]{1,78}")
UINT256_MAX = 2**256 - 1

# Refusals of what a payment says itself: they hold whatever the chain's state, now and ever.
SURE_REASONS = {
    ERR_ASSET_NOT_DEPLOYED_CONTRACT,
    ERR_AUTHORIZATION_VALUE_MISMATCH,
    ERR_FACTORY_NOT_ALLOWED,
    ERR_FAILED_TO_VERIFY_SIGNATURE,
    ERR_INVALID_SIGNATURE,
    ERR_MISSING_EIP712_DOMAIN,
    ERR_NETWORK_MISMATCH,
    ERR_RECIPIENT_MISMATCH,
    ERR_UNDEPLOYED_SMART_WALLET,
    ERR_UNSUPPORTED_SCHEME,
    ERR_VALID_AFTER_FUTURE,
    ERR_INVALID_NETWORK,
    ERR_INVALID_PAYLOAD,
    ERR_INVALID_REQUIREMENTS,
    ERR_INVALID_VERSION,
}
logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class FacilitatorUnreachable(Refusal):
    """The facilitator could not do it now. No money moved; the same payment may be presented again."""

    reason: ClassVar[str] = "facilitator-unreachable"
    status: ClassVar[int] = 503


class OperatorOutOfGas(FacilitatorUnreachable):
    """The facilitator's account cannot pay for transactions. No money moved."""

    reason: ClassVar[str] = "operator-out-of-gas"


class SettlementUnknown(Refusal):
    """Money may have moved, or may still move: neither settled nor failed. Never settle it anew blindly.

    `transaction` is the hash to look for, empty where none is known. `error_reason` is the x402 code:
    settlement_pending, or the one for a nonce that is already used.
    """

    reason: ClassVar[str] = "settlement-unknown"
    status: ClassVar[int] = 502

    def __init__(self, network: str, transaction: str, error_reason: str, why: str) -> None:
        self.network = network
        self.transaction = transaction
        self.error_reason = error_reason
        super().__init__(
            f"It is not known whether this payment on {network} was settled: {why}. "
            f"Look for {transaction or 'its authorization nonce'} on the chain before paying again."
        )


class Facilitator(Protocol):
    """What the paywall needs of a facilitator.

    `verify` and `settle` answer with what is sure; what is not is FacilitatorUnreachable (nothing happened)
    or, from `settle` alone, SettlementUnknown. A cancelled `settle` may have settled: shield it.
    """

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        """Return whether the payment would settle now, with the x402 reason where it would not."""
        ...

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        """Move the money and return the transaction, or the x402 reason why none moved."""
        ...

    async def supported(self) -> SupportedResponse:
        """Return the schemes and networks that are served, and the operators' addresses."""
        ...

    async def aclose(self) -> None:
        """Let go of threads and connections."""
        ...


class InProcessFacilitator:
    """A facilitator in this process: the SDK's exact EVM scheme, with a node and the operator's key.

    `rpc_urls` maps CAIP-2 networks to JSON-RPC addresses. EIP-3009 payments only, x402 version 2.
    Settlements of one network are sent one after the other and awaited side by side.
    """

    def __init__(
        self,
        rpc_urls: Mapping[str, str],
        private_key: str,
        receipt_seconds_max: float = RECEIPT_SECONDS_MAX,
    ) -> None:
        key = check_operator_key(private_key)
        self._nodes = {
            network: Node(network, url, key, receipt_seconds_max) for network, url in rpc_urls.items()
        }
        self._verifying = _Pool("verify", VERIFY_THREADS_MAX)
        self._settling = _Pool("settle", SETTLE_THREADS_MAX)
        # Not x402FacilitatorSync: it files every EVM network under "eip155:*" and would hand a payment to
        # the first node registered, whichever chain that is of.
        self._pending = InMemoryPendingSettlementStore()

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        """See Facilitator."""
        fault = self._find_fault(payload, requirements)
        if fault is not None:
            reason, message = fault
            return VerifyResponse(is_valid=False, invalid_reason=reason, invalid_message=message)
        return await self._verifying.run(lambda: self._verify(payload, requirements))

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        """See Facilitator."""
        fault = self._find_fault(payload, requirements)
        if fault is not None:
            reason, message = fault
            return SettleResponse(
                success=False,
                error_reason=reason,
                error_message=message,
                transaction="",
                network=requirements.network,
            )
        return await self._settling.run(lambda: self._settle(payload, requirements))

    async def supported(self) -> SupportedResponse:
        """See Facilitator."""
        addresses = sorted({address for node in self._nodes.values() for address in node.get_addresses()})
        return SupportedResponse(
            kinds=[
                SupportedKind(x402_version=X402_VERSION, scheme=SCHEME_EXACT, network=network)
                for network in self._nodes
            ],
            signers={CAIP_FAMILY: addresses},
        )

    async def aclose(self) -> None:
        """Stop waiting for blocks, end the threads. What still waited ends as SettlementUnknown."""
        pools = (self._verifying, self._settling)
        for pool in pools:
            pool.close()  # before the nodes: else a freed thread would begin what still waits
        for node in self._nodes.values():
            node.closing.set()
        for pool in pools:
            await pool.wait_closed()

    def _find_fault(
        self, payload: PaymentPayload, requirements: PaymentRequirements
    ) -> tuple[str, str] | None:
        if requirements.network not in self._nodes:
            served = ", ".join(self._nodes)
            return ERR_INVALID_NETWORK, f"This facilitator does not serve this network. It serves: {served}."
        return find_fault(payload, requirements)

    def _verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        attempt = Attempt(self._nodes[requirements.network])
        try:
            attempt.node.check_chain()
            result = ExactEvmScheme(attempt).verify(payload, requirements)  # pyright: ignore[reportUnknownMemberType]
        except Exception as error:
            raise self._unreachable(attempt, error) from None
        if not result.is_valid and attempt.failure is not None:
            raise self._unreachable(attempt, attempt.failure)
        return result

    def _settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        attempt = Attempt(self._nodes[requirements.network])
        scheme = ExactEvmScheme(attempt, ExactEvmSchemeConfig(simulate_in_settle=True), self._pending)
        try:
            attempt.node.check_chain()
            result = scheme.settle(payload, requirements)  # pyright: ignore[reportUnknownMemberType]
        except Exception as error:
            if attempt.transaction:
                logger.exception("settling %s on %s", attempt.transaction, requirements.network)
                raise self._unknown(attempt, type(error).__name__) from None
            raise self._unreachable(attempt, error) from None
        if not result.success:
            self._refuse_to_guess(attempt, payload, requirements, result)
        return result

    def _refuse_to_guess(
        self,
        attempt: Attempt,
        payload: PaymentPayload,
        requirements: PaymentRequirements,
        result: SettleResponse,
    ) -> None:
        """Return where it is sure that no money moved: then, and only then, has the settlement failed.

        Sure is a payment refused for what it says itself, and one of which nothing of ours is under way
        (not sent, or sent and reverted) while the chain says that its authorization is unspent.
        """
        receipt = attempt.receipt
        if attempt.transaction and receipt is None:
            raise self._unknown(attempt, str(attempt.failure))
        if receipt is not None and receipt.status == 1:
            raise self._unknown(attempt, "it was mined, but not with the transfer that was signed")
        if receipt is None and attempt.failure is not None:
            raise self._unreachable(attempt, attempt.failure)
        if result.error_reason in SURE_REASONS:
            return
        authorization = payload.payload["authorization"]
        try:
            used = attempt.node.is_authorization_used(
                requirements.asset,
                authorization["from"],
                authorization["nonce"],
                None if receipt is None else receipt.block_number,
            )
        except NodeFailed as failure:
            raise self._unknown(attempt, str(failure)) from None
        if used:
            why = "its authorization is already used or cancelled"
            raise self._unknown(attempt, why, ERR_NONCE_ALREADY_USED)

    def _unknown(
        self, attempt: Attempt, why: str, error_reason: str = ERR_SETTLEMENT_PENDING
    ) -> SettlementUnknown:
        return SettlementUnknown(attempt.node.network, attempt.transaction, error_reason, why)

    def _unreachable(self, attempt: Attempt, error: Exception) -> FacilitatorUnreachable:
        failure = attempt.failure or error
        network = attempt.node.network
        if isinstance(failure, NoGasMoney):
            return OperatorOutOfGas(f"The facilitator could not send on {network}: {failure}. Nothing moved.")
        if not isinstance(failure, NodeFailed):
            logger.error("unexpected %s from the x402 SDK", type(failure).__name__, exc_info=failure)
        why = failure if isinstance(failure, NodeFailed) else type(failure).__name__
        return FacilitatorUnreachable(
            f"The facilitator got no usable answer from the node of {network}: {why}. "
            "No money moved; present the same payment again later."
        )


class _Pool:
    """Threads for blocking work, with a bound on how much of it waits."""

    def __init__(self, name: str, threads_max: int) -> None:
        self._threads = ThreadPoolExecutor(threads_max, thread_name_prefix=f"facilitator-{name}")
        self._waiting = 0
        self._closed = False
        self._lock = threading.Lock()

    async def run(self, work: Callable[[], _Result]) -> _Result:
        """Return what the work returns. Raises FacilitatorUnreachable when too much waits already."""
        with self._lock:
            if self._waiting >= WAITING_MAX:
                raise FacilitatorUnreachable("The facilitator is busy. Nothing moved; try again in a second.")
            if self._closed:
                raise FacilitatorUnreachable(CLOSED)
            self._waiting += 1
            future = self._threads.submit(work)
        future.add_done_callback(self._leave)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if future.cancelled() and task is not None and not task.cancelling():
                raise FacilitatorUnreachable(CLOSED) from None  # it had not begun when we closed
            raise

    def _leave(self, _: "Future[Any]") -> None:
        with self._lock:
            self._waiting -= 1

    def close(self) -> None:
        """Take nothing more, and drop what has not begun."""
        with self._lock:
            self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def wait_closed(self) -> None:
        """Return when all that had begun has ended."""
        await asyncio.to_thread(self._threads.shutdown)


def find_fault(payload: PaymentPayload, requirements: PaymentRequirements) -> tuple[str, str] | None:
    """Return why a payment cannot be for these requirements: x402 reason and sentence; None where it can.

    Looks at the texts alone. What it lets pass is well-formed, so that nothing behind it stumbles, and is for
    this recipient and amount, which the SDK forgets to ask when it resumes a pending settlement.
    """
    authorization = payload.payload.get("authorization")
    if payload.x402_version != X402_VERSION:
        return ERR_INVALID_VERSION, f"Only x402 version {X402_VERSION} is served."
    if (payload.accepted.scheme, requirements.scheme) != (SCHEME_EXACT, SCHEME_EXACT):
        return ERR_UNSUPPORTED_SCHEME, f"Only the scheme {SCHEME_EXACT!r} is served."
    if payload.accepted.network != requirements.network:
        return ERR_NETWORK_MISMATCH, "The payment is for another network."
    if not (
        _fits(_ADDRESS, requirements.asset)
        and _fits(_ADDRESS, requirements.pay_to)
        and _is_uint(requirements.amount)
        and all(isinstance(requirements.extra.get(field), str) for field in ("name", "version"))
    ):
        return ERR_INVALID_REQUIREMENTS, (
            "asset and payTo are 0x addresses, amount is minor units in decimal digits, and extra has the "
            "name and version of the token's EIP-712 domain."
        )
    if is_permit2_payload(payload.payload) or not isinstance(authorization, dict):
        return ERR_INVALID_PAYLOAD, "Sign an EIP-3009 authorization: no other kind is served."
    fields = cast(dict[str, Any], authorization)
    if not (
        _fits(_ADDRESS, fields.get("from"))
        and _fits(_ADDRESS, fields.get("to"))
        and all(_is_uint(fields.get(field)) for field in ("value", "validAfter", "validBefore"))
        and _fits(_WORD, fields.get("nonce"))
        and _fits(_SIGNATURE, payload.payload.get("signature"))
    ):
        return ERR_INVALID_PAYLOAD, "The authorization or its signature is malformed."
    if fields["to"].lower() != requirements.pay_to.lower():
        return ERR_RECIPIENT_MISMATCH, "The payment is for another recipient."
    if int(fields["value"]) != int(requirements.amount):
        return ERR_AUTHORIZATION_VALUE_MISMATCH, "The payment is of another amount."
    return None


def _fits(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_uint(value: object) -> bool:
    return _fits(_UINT, value) and int(cast(str, value)) <= UINT256_MAX
