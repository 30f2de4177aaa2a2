"""The SDK's schemes on one network, for smart wallets, Permit2, upto and channels: what they hide made plain.

A scheme runs in a thread on an `Attempt`. Its "valid" and "settled" are believed where the chain's logs bear
them out, its "invalid" and "failed" where it is sure that no money moved.
"""

import asyncio
import importlib.util
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from eth_abi.abi import encode
from eth_hash.auto import keccak
from x402.mechanisms.evm.batch_settlement.authorizer_signer import LocalAuthorizerSigner
from x402.mechanisms.evm.batch_settlement.constants import (
    BATCH_SETTLEMENT_ADDRESS,
    ERC3009_DEPOSIT_COLLECTOR_ADDRESS,
)
from x402.mechanisms.evm.batch_settlement.encoding import build_erc3009_deposit_nonce
from x402.mechanisms.evm.batch_settlement.facilitator import BatchSettlementEvmFacilitator
from x402.mechanisms.evm.batch_settlement.facilitator.utils import read_channel_state
from x402.mechanisms.evm.batch_settlement.types import (
    ChannelStateExtra,
    is_deposit_payload,
    is_settle_payload,
)
from x402.mechanisms.evm.constants import (
    ERR_NONCE_ALREADY_USED,
    ERR_TRANSACTION_FAILED,
    PERMIT2_ADDRESS,
    SCHEME_EXACT,
    SCHEME_UPTO,
    X402_UPTO_PERMIT2_PROXY_ADDRESS,
)
from x402.mechanisms.evm.exact.facilitator import ExactEvmScheme, ExactEvmSchemeConfig
from x402.mechanisms.evm.types import is_eip3009_payload, is_permit2_payload
from x402.mechanisms.evm.upto.facilitator import UptoEvmScheme, UptoEvmSchemeConfig
from x402.schemas import (
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedKind,
    VerifyResponse,
)

from tollbook.books.payments.facilitator import eip3009
from tollbook.books.payments.facilitator.broadcast import (
    CLOSED,
    GAS_LIMIT,
    GAS_LIMIT_MAX,
    Broadcast,
    is_reverted,
)
from tollbook.books.payments.facilitator.errors import FacilitatorUnreachable, SettlementUnknown
from tollbook.books.payments.facilitator.exact import Eip3009, Payment
from tollbook.books.payments.facilitator.faults import (
    ERR_INVALID_PAYLOAD,
    SCHEME_BATCH,
    SURE_REASONS,
    X402_VERSION,
)
from tollbook.books.payments.facilitator.node import CallReverted, Node, NodeFailed, read_bytes
from tollbook.books.payments.facilitator.purposes import ATTEMPTS_MAX, identify, number
from tollbook.books.payments.facilitator.sdk import Attempt, Pending, Reader
from tollbook.core.chains import Receipt, Transfer, decode_transfer
from tollbook.core.lanes import Call, PurposeReused, Transaction

# The SDK's Permit2 code imports all of its extensions, and one of them insists on this library.
PERMIT2_USABLE = importlib.util.find_spec("jsonschema") is not None
CONTRACTS = {
    SCHEME_UPTO: (PERMIT2_ADDRESS, X402_UPTO_PERMIT2_PROXY_ADDRESS),
    SCHEME_BATCH: (BATCH_SETTLEMENT_ADDRESS,),
}
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError)  # what the SDK stumbles with over a payload
_NONCE_BITMAP = keccak(b"nonceBitmap(address,uint256)")[:4]
_RECEIVERS = keccak(b"receivers(address,address)")[:4]

logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Scheme(Protocol):
    """What the SDK's scheme classes have in common."""

    def get_extra(self, network: str) -> dict[str, Any] | None:
        """What /supported tells of it."""
        ...

    def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        """See the SDK."""
        ...

    def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        """See the SDK."""
        ...


class Threads:
    """Threads for the SDK's blocking work. How much may wait for one is bounded by who calls."""

    def __init__(self, name: str, threads_max: int) -> None:
        self._pool = ThreadPoolExecutor(threads_max, thread_name_prefix=f"facilitator-{name}")

    async def run(self, work: Callable[[], _Result]) -> _Result:
        """Return what the work returns. Raises FacilitatorUnreachable when it had not begun as we closed."""
        try:
            future = self._pool.submit(work)
        except RuntimeError:
            raise FacilitatorUnreachable(CLOSED) from None
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if future.cancelled() and task is not None and not task.cancelling():
                raise FacilitatorUnreachable(CLOSED) from None
            raise

    async def aclose(self) -> None:
        """Drop what has not begun; return when all that had begun has ended."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A transfer that must be in the logs; a channel's money goes to its collectors, whoever they are."""

    token: str
    sender: str
    receiver: str | None
    amount: int

    def fits(self, transfer: Transfer) -> bool:
        """Whether this is that transfer."""
        same = (transfer.token, transfer.sender, transfer.amount) == (self.token, self.sender, self.amount)
        return same and self.receiver in (None, transfer.receiver)


class Sending:
    """How an Attempt of one settlement sends: each step once, under the settlement's own purpose."""

    def __init__(
        self,
        broadcast: Broadcast,
        purpose: str,
        attempt: int,
        operator: str,
        *,
        pinned: bool,
        gas_max: int,
    ) -> None:
        self._broadcast = broadcast
        self._purpose = purpose
        self._attempt = attempt
        self._operator = operator
        self._pinned = pinned
        self._gas_max = gas_max
        self.sent: dict[str, Transaction] = {}

    async def send(self, to: str, data: bytes, step: str) -> str:
        """See the adapter's Sender. A wallet's deployment is a step of its own, with attempts of its own."""
        first = self._attempt if not step else 1
        sender = self._operator if self._pinned else None
        gas = min(await self._broadcast.estimate_gas(self._operator, to, data), self._gas_max)
        for attempt in range(first, ATTEMPTS_MAX + 1):
            purpose = number(self._purpose + step, attempt)
            call = Call(self._broadcast.network, purpose, to, data, gas, sender=sender)
            try:
                transaction = await self._broadcast.submit(call)
            except PurposeReused:
                why = "it is being settled on other terms"
                raise self._broadcast.unknown("", why, ERR_NONCE_ALREADY_USED) from None
            if not is_reverted(transaction):
                self.sent[transaction.hash] = transaction
                return transaction.hash
        raise NodeFailed("every attempt was mined and reverted")

    async def see(self, transaction_hash: str) -> Receipt:
        """See the adapter's Sender."""
        return await self._broadcast.see(self.sent[transaction_hash])


class Schemes:
    """The SDK's schemes over one network's node and lanes. `readers` by operator, the first by default."""

    def __init__(
        self,
        node: Node,
        broadcast: Broadcast,
        exact: Eip3009,
        readers: Mapping[str, Reader],
        authorizer: LocalAuthorizerSigner,
        verifying: Threads,
        settling: Threads,
    ) -> None:
        self._node = node
        self._broadcast = broadcast
        self._exact = exact
        self._readers = readers
        self._authorizer = authorizer
        self._verifying = verifying
        self._settling = settling
        self._deployed: set[str] = set()

    async def list_supported(self) -> list[SupportedKind]:
        """Return what can be settled on this network: exact, and what has its contracts there."""
        kinds: list[SupportedKind] = []
        for name in (SCHEME_EXACT, SCHEME_UPTO, SCHEME_BATCH):
            if await self._is_served(name):
                scheme = self._make(name, self._attempt(next(iter(self._readers))), None)
                extra = scheme.get_extra(self._node.network)
                kinds.append(
                    SupportedKind(
                        x402_version=X402_VERSION, scheme=name, network=self._node.network, extra=extra
                    )
                )
        return kinds

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        """Return what the SDK says. Raises NodeFailed, and what else keeps it from knowing."""
        attempt = self._attempt(self._choose_operator(payload))
        scheme = self._make(requirements.scheme, attempt, None)
        try:
            result = await self._verifying.run(lambda: scheme.verify(payload, requirements))
        except UNREADABLE as error:
            if attempt.failure is not None:
                raise
            said = f"The SDK cannot read it ({type(error).__name__})."
            return VerifyResponse(is_valid=False, invalid_reason=ERR_INVALID_PAYLOAD, invalid_message=said)
        if not result.is_valid and attempt.failure is not None:
            raise attempt.failure
        return result

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        """Move the money once. Raises NodeFailed where nothing was sent, SettlementUnknown, and the like."""
        purpose = identify(payload, requirements, await self._read_state(payload))
        standing, number_ = await self._broadcast.find(purpose)
        if standing is not None and not _is_resumable(payload):
            return self._answer_again(payload, requirements, await self._broadcast.see(standing))
        if number_ > ATTEMPTS_MAX:
            return _fail(requirements, "Every attempt was mined and reverted.")
        operator = self._choose_operator(payload)
        pinned = requirements.scheme == SCHEME_UPTO
        # A payer's wallet is a contract of his, and burns what it is given; sellers' claims need more.
        gas_max = GAS_LIMIT if _is_resumable(payload) else GAS_LIMIT_MAX
        sending = Sending(self._broadcast, purpose, number_, operator, pinned=pinned, gas_max=gas_max)
        attempt = self._attempt(operator, sending)
        if standing is not None:
            sending.sent[standing.hash] = standing
            attempt.transaction = standing.hash
        scheme = self._make(requirements.scheme, attempt, Pending(standing.hash if standing else None))
        try:
            result = await self._settling.run(lambda: scheme.settle(payload, requirements))
        except Exception as error:
            if not attempt.transaction:
                if attempt.failure is not None or not isinstance(error, UNREADABLE):
                    raise
                said = f"The SDK cannot read it ({type(error).__name__})."
                return _fail(requirements, said, reason=ERR_INVALID_PAYLOAD)
            logger.exception("settling %s on %s", attempt.transaction, requirements.network)
            raise self._broadcast.unknown(attempt.transaction, type(error).__name__) from None
        if result.success:
            return self._check_success(payload, requirements, result, attempt.receipt)
        return await self._check_failure(payload, requirements, result, attempt)

    def _attempt(self, operator: str, sending: Sending | None = None) -> Attempt:
        return Attempt(self._readers[operator], asyncio.get_running_loop(), sending)

    def _make(self, name: str, attempt: Attempt, pending: Pending | None) -> Scheme:
        if name == SCHEME_UPTO:
            return UptoEvmScheme(attempt, UptoEvmSchemeConfig(simulate_in_settle=True), pending)
        if name == SCHEME_BATCH:
            return BatchSettlementEvmFacilitator(attempt, self._authorizer, None, pending)
        return ExactEvmScheme(attempt, ExactEvmSchemeConfig(simulate_in_settle=True), pending)

    def _choose_operator(self, payload: PaymentPayload) -> str:
        """Return who must send it: the payer of an upto payment names the facilitator's account."""
        if payload.accepted.scheme == SCHEME_UPTO:
            named = payload.payload["permit2Authorization"]["witness"]["facilitator"].lower()
            if named in self._readers:
                return named
        return next(iter(self._readers))

    async def _is_served(self, name: str) -> bool:
        if name == SCHEME_UPTO and not PERMIT2_USABLE:
            return False
        for address in CONTRACTS.get(name, ()):
            if address not in self._deployed:
                try:
                    if not read_bytes(await self._node.ask("eth_getCode", address, "latest")):
                        return False
                except (NodeFailed, CallReverted):
                    return False  # not to be promised before it is known
                self._deployed.add(address)
        return True

    async def _read_state(self, payload: PaymentPayload) -> str:
        """Return what tells one sweep of a channel's money from the next: the sums before it."""
        if payload.accepted.scheme != SCHEME_BATCH or not is_settle_payload(payload.payload):
            return ""
        named = [payload.payload["receiver"], payload.payload["token"]]
        data = "0x" + (_RECEIVERS + encode(["address", "address"], named)).hex()
        try:
            answer = await self._node.ask(
                "eth_call", {"to": BATCH_SETTLEMENT_ADDRESS, "data": data}, "latest"
            )
        except CallReverted:
            return ""
        return f":{int.from_bytes(read_bytes(answer)[32:64])}"

    def _answer_again(
        self, payload: PaymentPayload, requirements: PaymentRequirements, receipt: Receipt
    ) -> SettleResponse:
        if not receipt.succeeded:
            return _fail(requirements, "It was mined and reverted.", receipt.transaction_hash)
        channel: dict[str, Any] = payload.payload.get("channelConfig") or {}
        return SettleResponse(
            success=True,
            transaction=receipt.transaction_hash,
            network=requirements.network,
            payer=channel.get("payer"),
            amount=payload.payload.get("amount"),
        )

    def _check_success(
        self,
        payload: PaymentPayload,
        requirements: PaymentRequirements,
        result: SettleResponse,
        receipt: Receipt | None,
    ) -> SettleResponse:
        """Return a success that the chain's logs bear out. Raises SettlementUnknown for another."""
        if receipt is None:
            if result.transaction:
                raise self._broadcast.unknown(result.transaction, "its receipt was not seen")
            return result  # upto: nothing to move
        result = result.model_copy(update={"transaction": receipt.transaction_hash})  # of the bump that won
        if is_eip3009_payload(payload.payload) and requirements.scheme == SCHEME_EXACT:
            outcome = self._exact.read_outcome(Payment.read(payload, requirements), receipt)
            return result if outcome.success else outcome
        if (wanted := _find_wanted(payload, requirements)) is not None:
            moved = [decode_transfer(log) for log in receipt.logs]
            if not any(transfer is not None and wanted.fits(transfer) for transfer in moved):
                why = "it was mined, but not with the transfer that was asked for"
                raise self._broadcast.unknown(receipt.transaction_hash, why)
        return result

    async def _check_failure(
        self,
        payload: PaymentPayload,
        requirements: PaymentRequirements,
        result: SettleResponse,
        attempt: Attempt,
    ) -> SettleResponse:
        """Return a failure that is sure: nothing of ours is under way, and the payment's nonce is unspent."""
        receipt = attempt.receipt
        if isinstance(attempt.failure, SettlementUnknown):
            raise attempt.failure
        if attempt.transaction and receipt is None:
            raise self._broadcast.unknown(attempt.transaction, str(attempt.failure))
        if attempt.failure is not None and receipt is None:
            raise attempt.failure
        if receipt is not None and receipt.succeeded:
            why = "it was mined, but not with the transfer that was signed"
            raise self._broadcast.unknown(receipt.transaction_hash, why)
        if is_eip3009_payload(payload.payload) and requirements.scheme == SCHEME_EXACT:
            payment = Payment.read(payload, requirements)
            if receipt is not None:
                return await self._exact.judge(payment, receipt)
            return await self._exact.explain(payment, result)
        if is_deposit_payload(payload.payload) and requirements.scheme == SCHEME_BATCH:
            return await self._explain_deposit(payload, requirements, result, attempt)
        if is_permit2_payload(payload.payload) and result.error_reason not in SURE_REASONS:
            await self._check_permit(payload.payload["permit2Authorization"], result)
        return result

    async def _explain_deposit(
        self,
        payload: PaymentPayload,
        requirements: PaymentRequirements,
        failed: SettleResponse,
        attempt: Attempt,
    ) -> SettleResponse:
        """Return the failure if the deposit is unspent, or else what somebody else settled it by."""
        body = payload.payload
        permit = body["deposit"]["authorization"].get("permit2Authorization")
        if permit:
            await self._check_permit(permit, failed)
            return failed
        found = await self._exact.explain(_read_deposit(payload, requirements), failed)
        if not found.success:
            return found
        channel_id = body["voucher"]["channelId"]
        try:
            state = await self._settling.run(lambda: read_channel_state(attempt, channel_id))
        except Exception as error:
            raise self._broadcast.unknown(found.transaction, type(error).__name__) from error
        shown = ChannelStateExtra(
            channel_id,
            str(state.balance),
            str(state.total_claimed),
            state.withdraw_requested_at,
            str(state.refund_nonce),
        )
        amount, extra = body["deposit"]["amount"], {"channelState": shown.to_dict()}
        return found.model_copy(update={"amount": amount, "extra": extra})

    async def _check_permit(self, permit: dict[str, Any], failed: SettleResponse) -> None:
        """Raises SettlementUnknown where a Permit2 nonce is used: what for is not to be seen."""
        if await self._is_permit_used(permit):
            why = "its Permit2 nonce is already used"
            raise self._broadcast.unknown(failed.transaction, why, ERR_NONCE_ALREADY_USED)

    async def _is_permit_used(self, permit: dict[str, Any]) -> bool:
        word, bit = divmod(int(permit["nonce"]), 256)
        data = "0x" + (_NONCE_BITMAP + encode(["address", "uint256"], [permit["from"], word])).hex()
        try:
            answer = await self._node.ask("eth_call", {"to": PERMIT2_ADDRESS, "data": data}, "latest")
        except CallReverted:
            return False
        except NodeFailed as failure:
            raise self._broadcast.unknown("", str(failure)) from None
        return bool(int.from_bytes(read_bytes(answer)) >> bit & 1)


def _read_deposit(payload: PaymentPayload, requirements: PaymentRequirements) -> Payment:
    """Return a deposit by EIP-3009 as what it is to the token: a payment to the deposits' collector."""
    body = payload.payload
    signed, payer = body["deposit"]["authorization"]["erc3009Authorization"], body["channelConfig"]["payer"]
    nonce = build_erc3009_deposit_nonce(body["voucher"]["channelId"], signed["salt"])
    fields = {"from": payer, "to": ERC3009_DEPOSIT_COLLECTOR_ADDRESS, "value": body["deposit"]["amount"]}
    fields |= {"nonce": nonce, "validAfter": signed["validAfter"], "validBefore": signed["validBefore"]}
    authorization = eip3009.read({"authorization": fields, "signature": signed["signature"]})
    return Payment(authorization, requirements, payer, identify(payload, requirements))


def _find_wanted(payload: PaymentPayload, requirements: PaymentRequirements) -> _Wanted | None:
    """Return what a Permit2 payment or a channel's deposit must have moved; claims and the like move sums."""
    body = payload.payload
    if requirements.scheme == SCHEME_BATCH:
        if not is_deposit_payload(body):
            return None
        channel = body["channelConfig"]
        return _Wanted(
            channel["token"].lower(), channel["payer"].lower(), None, int(body["deposit"]["amount"])
        )
    payer = body["permit2Authorization"]["from"].lower()
    return _Wanted(requirements.asset.lower(), payer, requirements.pay_to.lower(), int(requirements.amount))


def _is_resumable(payload: PaymentPayload) -> bool:
    """Whether the SDK can take up a transaction that was sent before; else we answer by its receipt alone."""
    return payload.accepted.scheme != SCHEME_BATCH or is_deposit_payload(payload.payload)


def _fail(
    requirements: PaymentRequirements,
    message: str,
    transaction: str = "",
    reason: str = ERR_TRANSACTION_FAILED,
) -> SettleResponse:
    return SettleResponse(
        success=False,
        error_reason=reason,
        error_message=message,
        transaction=transaction,
        network=requirements.network,
    )
