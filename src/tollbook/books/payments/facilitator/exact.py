"""EIP-3009 payments of plain accounts, on one network: checked in one round trip, sent once, and judged by
what really moved.

What this road does not know for sure (smart wallets, reverts without a known reason) it leaves to the SDK's.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from x402.mechanisms.evm.constants import (
    ERR_ASSET_NOT_DEPLOYED_CONTRACT,
    ERR_FAILED_TO_VERIFY_SIGNATURE,
    ERR_INVALID_SIGNATURE,
    ERR_NONCE_ALREADY_USED,
    ERR_TRANSACTION_FAILED,
    ERR_VALID_AFTER_FUTURE,
    ERR_VALID_BEFORE_EXPIRED,
)
from x402.mechanisms.evm.exact.eip3009_utils import parse_eip3009_transfer_error
from x402.schemas import PaymentPayload, PaymentRequirements, SettleResponse, VerifyResponse

from tollbook.books.payments.facilitator import eip3009
from tollbook.books.payments.facilitator.broadcast import GAS_LIMIT, Broadcast, is_reverted
from tollbook.books.payments.facilitator.eip3009 import Authorization
from tollbook.books.payments.facilitator.errors import SettlementUnknown
from tollbook.books.payments.facilitator.faults import SURE_REASONS
from tollbook.books.payments.facilitator.node import CallReverted, Node, NodeFailed, read_bytes, read_int
from tollbook.books.payments.facilitator.purposes import ATTEMPTS_MAX, identify, number
from tollbook.core.chains import ADDRESS_PADDING, AUTHORIZATION_USED_TOPIC, Receipt, decode_transfer
from tollbook.core.lanes import Call, PurposeReused
from tollbook.core.lanes.node import Ask

VALID_SECONDS_MIN = 6  # the SDK's: what a settlement may take
ASSETS_MAX = 4096  # remembered as contracts
ASSET_SECONDS_MAX = 900.0
LOG_BLOCKS = 2_000  # what public nodes search at once
LOG_SEARCHES_MAX = 10
NONCE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Payment:
    """An EIP-3009 payment without fault, and what it is for."""

    authorization: Authorization
    requirements: PaymentRequirements
    payer: str  # as the payload spells it
    purpose: str

    @classmethod
    def read(cls, payload: PaymentPayload, requirements: PaymentRequirements) -> Self:
        """Return what is in a payload."""
        payer = payload.payload["authorization"]["from"]
        authorization = eip3009.read(payload.payload)
        return cls(authorization, requirements, payer, identify(payload, requirements))

    @property
    def asset(self) -> str:
        """The token, in lower case."""
        return self.requirements.asset.lower()

    def refuse(self, reason: str, message: str | None = None) -> VerifyResponse:
        """Return that it would not settle."""
        return VerifyResponse(
            is_valid=False, invalid_reason=reason, invalid_message=message, payer=self.payer
        )

    def fail(self, reason: str, message: str | None = None, transaction: str = "") -> SettleResponse:
        """Return that it was not settled."""
        return SettleResponse(
            success=False,
            error_reason=reason,
            error_message=message,
            transaction=transaction,
            network=self.requirements.network,
            payer=self.payer,
        )


class Eip3009:
    """This road over one network's node and lanes."""

    def __init__(self, node: Node, broadcast: Broadcast, operator: str) -> None:
        self._node = node
        self._broadcast = broadcast
        self._operator = operator
        self._contracts: dict[str, float] = {}  # assets that have code, and until when that is believed

    async def verify(self, payment: Payment) -> VerifyResponse | None:
        """Return what the SDK would; None where only its own code can tell. Raises NodeFailed."""
        authorization = payment.authorization
        if len(authorization.signature) != eip3009.SIGNATURE_BYTES:
            return None
        early = _find_early_fault(authorization, int(time.time()))
        if early is not None:
            return payment.refuse(early)
        code, simulated, *asset_code = await self._node.ask_all(self._ask(payment))
        if code != "0x":
            return None  # a contract answers for its own signatures
        reason = _find_signature_fault(payment)
        if reason is None and asset_code and not self._remember(payment.asset, asset_code[0]):
            reason = ERR_ASSET_NOT_DEPLOYED_CONTRACT
        if reason is not None:
            return payment.refuse(reason)
        if not isinstance(simulated, CallReverted):
            return VerifyResponse(is_valid=True, payer=payment.payer)
        reason = parse_eip3009_transfer_error(simulated)
        # A revert of which that makes nothing, the SDK looks into.
        return None if reason == ERR_TRANSACTION_FAILED else payment.refuse(reason, str(simulated))

    async def settle(self, payment: Payment) -> SettleResponse | None:
        """Move the money once; None where only the SDK's code can.

        Raises NodeFailed where nothing was sent, FacilitatorUnreachable, SettlementUnknown.
        """
        data = eip3009.encode_transfer(payment.authorization)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            verified = await self.verify(payment)
            if verified is None:
                return None
            if not verified.is_valid:
                reason = verified.invalid_reason or ERR_TRANSACTION_FAILED
                return await self.explain(payment, payment.fail(reason, verified.invalid_message))
            call = Call(self._node.network, number(payment.purpose, attempt), payment.asset, data, GAS_LIMIT)
            try:
                transaction = await self._broadcast.submit(call)
            except PurposeReused:
                said = "Its payer signed another payment with this nonce, and that one came first."
                return await self.explain(payment, payment.fail(ERR_NONCE_ALREADY_USED, said))
            if not is_reverted(transaction):
                return await self.judge(payment, await self._broadcast.see(transaction))
        return payment.fail(ERR_TRANSACTION_FAILED, "Every attempt was mined and reverted.")

    async def explain(self, payment: Payment, failed: SettleResponse) -> SettleResponse:
        """Return this failure if it is sure; or else what became of the payment before, by whomever.

        Raises SettlementUnknown.
        """
        if failed.error_reason in SURE_REASONS:
            return failed
        standing, _ = await self._broadcast.find(payment.purpose)
        if standing is not None:
            return await self.judge(payment, await self._broadcast.see(standing))
        return await self._look(payment, failed)

    async def judge(self, payment: Payment, receipt: Receipt) -> SettleResponse:
        """Return what a mined transaction of ours did."""
        if receipt.succeeded:
            try:
                return self.read_outcome(payment, receipt)
            except SettlementUnknown:
                if not await self._settles_another(payment, receipt):
                    raise
                said = "Its payer signed another payment with this nonce, and that one came first."
                return payment.fail(ERR_NONCE_ALREADY_USED, said)
        failed = payment.fail(ERR_TRANSACTION_FAILED, "It was mined and reverted.", receipt.transaction_hash)
        return await self._look(payment, failed, receipt.block_number)

    async def _look(
        self, payment: Payment, failed: SettleResponse, block: int | None = None
    ) -> SettleResponse:
        """Return the failure if the authorization is unspent on the chain, or else what spent it."""
        try:
            if not await self._is_used(payment, block):
                return failed
            spending = await self._find_spending(payment)
        except NodeFailed as failure:
            raise self._broadcast.unknown(failed.transaction, str(failure)) from None
        if spending == "canceled":
            return failed.model_copy(update={"error_reason": ERR_NONCE_ALREADY_USED})
        if spending is None:
            why = "its authorization nonce is already used"
            raise self._broadcast.unknown(failed.transaction, why, ERR_NONCE_ALREADY_USED)
        return self.read_outcome(payment, spending)

    def read_outcome(self, payment: Payment, receipt: Receipt) -> SettleResponse:
        """Return what the transaction that spent this nonce did here. Raises SettlementUnknown."""
        moved = eip3009.find_transfer(receipt.logs, payment.asset, payment.authorization)
        payer, receiver = payment.authorization.payer, payment.authorization.receiver
        transfers = [decode_transfer(log) for log in receipt.logs if log.address == payment.asset]
        # A token may take a fee first: where the recipient got anything of this payer, it is not sure.
        got = any(one is not None and (one.sender, one.receiver) == (payer, receiver) for one in transfers)
        if moved is not None and not got:
            said = "Its payer spent the nonce on another payment."
            return payment.fail(ERR_NONCE_ALREADY_USED, said)
        if moved is None or (moved.sender, moved.amount) != payment.authorization.giving:
            why = "it was mined, but not with the transfer that was signed"
            raise self._broadcast.unknown(receipt.transaction_hash, why)
        return SettleResponse(
            success=True,
            transaction=receipt.transaction_hash,
            network=payment.requirements.network,
            payer=payment.payer,
        )

    async def _settles_another(self, payment: Payment, receipt: Receipt) -> bool:
        """Return whether a transaction of ours spent this nonce by another authorization: its call shows."""
        try:
            sent = await self._node.ask("eth_getTransactionByHash", receipt.transaction_hash)
        except NodeFailed:
            return False
        data = read_bytes(sent["input"]) if sent is not None else b""
        words = payment.authorization.words
        return words[-NONCE_BYTES:] in data and words not in data

    async def _is_used(self, payment: Payment, block: int | None = None) -> bool:
        """Return whether an authorization is spent or canceled, as of a block or the newest.

        Raises NodeFailed when the node, or this block's state, gives no answer.
        """
        question = {
            "to": payment.asset,
            "data": "0x" + eip3009.encode_state_question(payment.authorization).hex(),
        }
        try:
            answer = await self._node.ask("eth_call", question, "latest" if block is None else hex(block))
        except CallReverted:
            return False  # a token that knows no authorizations has spent none
        return any(read_bytes(answer))

    async def _find_spending(self, payment: Payment) -> Receipt | Literal["canceled"] | None:
        """Return the transaction that used the authorization, by its log; searched backwards from now."""
        last = read_int(await self._node.ask("eth_blockNumber"))
        topics = [
            [AUTHORIZATION_USED_TOPIC, eip3009.AUTHORIZATION_CANCELED_TOPIC],
            ADDRESS_PADDING + payment.authorization.payer[2:],
            payment.authorization.nonce,
        ]
        for _ in range(LOG_SEARCHES_MAX):
            first = max(0, last - LOG_BLOCKS + 1)
            wanted = {
                "address": payment.asset,
                "topics": topics,
                "fromBlock": hex(first),
                "toBlock": hex(last),
            }
            logs: list[dict[str, Any]] = await self._node.ask("eth_getLogs", wanted)
            if logs:
                if logs[0]["topics"][0] != AUTHORIZATION_USED_TOPIC:
                    return "canceled"
                return await self._node.get_receipt(logs[0]["transactionHash"])
            if first == 0:
                break
            last = first - 1
        return None

    def _ask(self, payment: Payment) -> Sequence[Ask]:
        data = "0x" + eip3009.encode_transfer(payment.authorization).hex()
        call = {"from": self._operator, "to": payment.asset, "data": data}
        asks = [
            Ask("eth_getCode", (payment.authorization.payer, "latest")),
            Ask("eth_call", (call, "latest")),
        ]
        if self._contracts.get(payment.asset, 0.0) < time.monotonic():
            asks.append(Ask("eth_getCode", (payment.asset, "latest")))
        return asks

    def _remember(self, asset: str, code: object) -> bool:
        """Return whether an asset has code; that it has is believed for some minutes."""
        if not read_bytes(code):
            return False
        if len(self._contracts) >= ASSETS_MAX:
            self._contracts.clear()
        self._contracts[asset] = time.monotonic() + ASSET_SECONDS_MAX
        return True


def _find_early_fault(authorization: Authorization, now: int) -> str | None:
    if authorization.valid_before < now + VALID_SECONDS_MIN:
        return ERR_VALID_BEFORE_EXPIRED
    return ERR_VALID_AFTER_FUTURE if authorization.valid_after > now else None


def _find_signature_fault(payment: Payment) -> str | None:
    authorization, extra = payment.authorization, payment.requirements.extra
    domain = eip3009.hash_domain(payment.requirements.network, payment.asset, extra["name"], extra["version"])
    digest = eip3009.hash_authorization(authorization, domain)
    try:
        signer = eip3009.recover_signer(digest, authorization.signature)
    except eip3009.WrongSignature:
        return ERR_FAILED_TO_VERIFY_SIGNATURE
    return None if signer == authorization.payer else ERR_INVALID_SIGNATURE
