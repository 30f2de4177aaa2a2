"""Payment channels (scheme batch-settlement): a deposit is settled once, requests are paid by vouchers.

The SDK's server scheme decides about every voucher. Here it gets a store that all processes share and that
outlives them, a queue for the requests of one channel, and threads for what would hold up the event loop.
A deposit is the payer's own money in escrow. What is earned is each charge, and it is claimed later.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from x402 import x402ResourceServer
from x402.interfaces import SchemePaymentRequiredContext
from x402.mechanisms.evm.batch_settlement.constants import SCHEME_BATCH_SETTLEMENT
from x402.mechanisms.evm.batch_settlement.errors import (
    ERR_CHANNEL_BUSY,
    ERR_CHANNEL_ID_MISMATCH,
    ERR_INVALID_PAYLOAD_TYPE,
    ERR_INVALID_VOUCHER_SIGNATURE,
    ERR_VERIFICATION_STATE_UNAVAILABLE,
    ERR_VOUCHER_PAYLOAD,
)
from x402.mechanisms.evm.batch_settlement.facilitator.utils import (
    verify_batch_settlement_voucher_typed_data,
)
from x402.mechanisms.evm.batch_settlement.server.scheme import (
    BatchSettlementEvmScheme,
    BatchSettlementEvmSchemeServerConfig,
)
from x402.mechanisms.evm.batch_settlement.types import (
    ChannelConfig,
    VoucherFields,
    is_deposit_payload,
    is_refund_payload,
    is_voucher_payload,
)
from x402.mechanisms.evm.batch_settlement.utils import normalize_channel_id
from x402.mechanisms.evm.constants import ERR_SETTLEMENT_PENDING
from x402.mechanisms.evm.utils import create_nonce, get_evm_chain_id
from x402.schemas import (
    PaymentAbortedError,
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedKind,
    SupportedResponse,
    VerifyResponse,
)
from x402.schemas.hooks import VerifiedPaymentCancelOptions

from tollbook.books.payments.facilitator.faults import read_deposit
from tollbook.books.payments.facilitator.in_process import Facilitator, SettlementUnknown
from tollbook.books.payments.schemes.vouchers import find_channel_id
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.core.errors import Refusal
from tollbook.core.stores import PostgresChannelStorage
from tollbook.core.stores.charges import State, Voucher
from tollbook.core.stores.sealing import SealKeyUnusable

RETRY_AFTER_SECONDS = 1
UINT128_MAX = 2**128 - 1
NOT_NOW = (ERR_CHANNEL_BUSY, ERR_VERIFICATION_STATE_UNAVAILABLE)
# Of the request under way, between Channels and its client: the SDK's server stands in the middle.
_known: ContextVar[VerifyResponse | None] = ContextVar("_known", default=None)
_settled: ContextVar[SettleResponse | None] = ContextVar("_settled", default=None)
_SIGNATURE = re.compile(r"0x(?:[0-9a-fA-F]{2}){65,4096}")  # longer than 65 bytes: smart wallets
_NOBODY = "0x" + "00" * 20
_HOOKS = (
    "before_verify",
    "after_verify",
    "on_verify_failure",
    "before_settle",
    "after_settle",
    "on_settle_failure",
    "on_verified_payment_canceled",
)


class ChannelBusy(Refusal):
    """Other requests hold the channel, or it cannot be read. Nothing was charged: the voucher stays good."""

    reason: ClassVar[str] = "channel-busy"
    status: ClassVar[int] = 503

    def __init__(self) -> None:
        super().__init__(
            "The channel is in use by other requests. Nothing was charged: present the same payment again.",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """How a payment stands with its channel: good (`reason` is None), or the x402 reason why it is not.

    `terms` are those to answer a payer with who is not good: where he has to catch up with the channel, its
    state is in them. `state` is the channel's of one who is good, and `body` his whole answer where the
    payment is the channel's own business, a refund.
    """

    reason: str | None
    message: str | None
    terms: PaymentRequirements
    state: State
    body: Mapping[str, Any] | None = None


class Channels:
    """The channels that pay a seller's routes, in one database and settled by one facilitator.

    The facilitator authorizes claims and refunds: it announces its `receiverAuthorizer`, and no key is here.
    """

    def __init__(self, url: str, facilitator: Facilitator, supported: SupportedResponse) -> None:
        self.storage = find_storage(url)
        self.scheme = _make_scheme(self.storage)
        self.kinds = find_kinds(supported.kinds)
        self._server = x402ResourceServer(_Client(facilitator, supported))
        self.storage.queue(self._server, self.scheme)
        for network in self.kinds:
            self._server.register(network, cast(Any, self.scheme))
        self._server.initialize()

    def complete(self, terms: PaymentRequirements) -> PaymentRequirements:
        """Return a route's terms, on one of `kinds`, with what its payers need to open a channel."""
        copy = terms.model_copy(deep=True)
        return self.scheme.enhance_payment_requirements(copy, self.kinds[terms.network], [])

    async def verify(
        self, signed: PaymentPayload, terms: PaymentRequirements, known: VerifyResponse | None = None
    ) -> Standing:
        """Say how a payment without fault stands, and reserve its channel if it is good.

        A reserved channel waits for `charge` or `cancel`. `known` is what the facilitator would say of it,
        where it need not be asked. Raises ChannelBusy, FacilitatorUnreachable.
        """
        try:
            _known.set(known)
            answer = await self._server.verify_payment(signed, terms)
        except PaymentAbortedError as aborted:
            return await self._correct(signed, terms, aborted.reason, None)
        if not answer.is_valid:
            reason = answer.invalid_reason or ERR_VOUCHER_PAYLOAD
            return await self._correct(signed, terms, reason, answer.invalid_message)
        body = answer.skip_handler and answer.skip_handler.body
        return Standing(None, None, terms, State.read(answer.verify.extra or {}), body)

    async def charge(self, signed: PaymentPayload, terms: PaymentRequirements, amount: int) -> SettleResponse:
        """Charge a verified payment so many minor units, up to its terms' amount; a deposit is settled first.

        `extra["chargedAmount"]` of the answer is what was charged. Raises what Facilitator.settle raises.
        """
        charged, network = terms.model_copy(update={"amount": str(amount)}), terms.network
        _settled.set(None)
        try:
            return await self._server.settle_payment(signed, charged)
        except Refusal:
            raise
        except Exception as error:
            settled = _settled.get()
            if settled is not None:  # the escrow has moved, and the channel could not be brought up to it
                why = "the channel could not be written down"
                raise SettlementUnknown(network, settled.transaction, ERR_SETTLEMENT_PENDING, why) from error
            if not isinstance(error, PaymentAbortedError | ValueError):
                raise
            reason = error.reason if isinstance(error, PaymentAbortedError) else str(error)
            return SettleResponse(success=False, error_reason=reason, transaction="", network=network)

    async def cancel(self, signed: PaymentPayload, terms: PaymentRequirements) -> None:
        """Let go of a verified payment's channel: nothing is charged."""
        dispatcher = self._server.create_payment_cancellation_dispatcher(signed, terms)
        await dispatcher.cancel(VerifiedPaymentCancelOptions(reason="handler_failed"))

    def read_voucher(self, signed: PaymentPayload, terms: PaymentRequirements) -> Voucher:
        """Return what a payment without fault signs for, and which request's it is.

        A verified one has the name by which `verify` reserved its channel, once: from then on it is not for
        `charge` and `cancel`, but for those who charge inside of their own transactions.
        """
        context = self.scheme.take_request_context(signed)
        voucher = signed.payload["voucher"]
        channel_id = normalize_channel_id(voucher["channelId"])
        signed_max = int(voucher["maxClaimableAmount"])
        return Voucher(
            channel_id=channel_id,
            base=signed_max - int(terms.amount),
            signed_max=signed_max,
            signature=self.storage.seal_signature(channel_id, voucher["signature"]),
            pending_id=(context and context.pending_id) or create_nonce(),
        )

    async def _correct(
        self, signed: PaymentPayload, terms: PaymentRequirements, reason: str, message: str | None
    ) -> Standing:
        if reason in NOT_NOW:
            self.scheme.take_request_context(signed)  # the SDK would keep it for ever
            raise ChannelBusy
        context = SchemePaymentRequiredContext(
            requirements=[terms.model_copy(deep=True)],
            resource_info=None,
            error=reason,
            payment_required_response=cast(Any, None),  # the scheme does not look at it
            payment_payload=signed,
        )
        corrected = await asyncio.to_thread(self.scheme.enrich_payment_required_response, context)
        self.scheme.take_request_context(signed)
        if corrected and not is_signed(signed, terms):  # the SDK shows it to everybody who names the channel
            corrected[0].extra.pop("voucherState", None)
        return Standing(reason, message, corrected[0] if corrected else terms, State())


class _Client:
    """Our facilitator as the SDK's server asks it."""

    def __init__(self, facilitator: Facilitator, supported: SupportedResponse) -> None:
        self._facilitator = facilitator
        self._supported = supported

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        return _known.get() or await self._facilitator.verify(payload, requirements)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        answer = await self._facilitator.settle(payload, requirements)
        _settled.set(answer if answer.success else None)
        return answer

    def get_supported(self) -> SupportedResponse:
        return self._supported


def is_signed(payment: PaymentPayload, terms: PaymentRequirements) -> bool:
    """Whether a payment without fault is its channel's payer's own: another must not see what he signed.

    His last voucher is good for more than he was charged, and so for somebody's request. Wallets that are
    contracts sign nothing that is known here; they find their channel's state on the chain.
    """
    voucher = VoucherFields.from_dict(payment.payload["voucher"])
    config = ChannelConfig.from_dict(payment.payload["channelConfig"])
    return int(config.payer_authorizer, 16) != 0 and verify_batch_settlement_voucher_typed_data(
        signer=cast(Any, None),  # asked for contracts' signatures only
        channel_id=voucher.channel_id,
        max_claimable_amount=voucher.max_claimable_amount,
        payer_authorizer=config.payer_authorizer,
        payer=config.payer,
        signature=voucher.signature,
        chain_id=get_evm_chain_id(terms.network),
    )


def find_kinds(kinds: Sequence[SupportedKind]) -> dict[str, SupportedKind]:
    """Return where a facilitator serves channels and authorizes their claims, by CAIP-2 network."""
    return {
        kind.network: kind
        for kind in kinds
        if kind.scheme == SCHEME_BATCH_SETTLEMENT and (kind.extra or {}).get("receiverAuthorizer")
    }


def find_storage(url: str) -> PostgresChannelStorage:
    """Return the channels of a database, their vouchers sealed where there is a TOLLBOOK_CHANNEL_KEY.

    Raises SealKeyUnusable, which does not show it.
    """
    key = PaymentsSettings().channel_key
    if key is None:
        return PostgresChannelStorage(url)
    try:
        return PostgresChannelStorage(url, key=bytes.fromhex(key.get_secret_value()))
    except ValueError:
        raise SealKeyUnusable(
            "TOLLBOOK_CHANNEL_KEY is not hexadecimal. Make one: openssl rand -hex 32"
        ) from None


def _make_scheme(storage: PostgresChannelStorage) -> BatchSettlementEvmScheme:
    """The SDK's scheme; it asks the database in threads. One is for all receivers: terms name theirs."""
    scheme = BatchSettlementEvmScheme(_NOBODY, BatchSettlementEvmSchemeServerConfig(storage=storage))
    for name in _HOOKS:
        setattr(scheme, name, _aside(getattr(scheme, name)))
    return scheme


def _aside(hook: Callable[[Any], Any]) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    async def run(context: Any) -> Any:
        return await asyncio.to_thread(hook, context)

    return run


def find_channel_fault(signed: PaymentPayload, terms: PaymentRequirements) -> tuple[str, str] | None:
    """Return why a payment cannot be for a channel of these terms: x402 reason and sentence.

    Looks at the texts alone. What it lets pass is a deposit, voucher or refund that names its own channel.
    """
    payload = signed.payload
    try:
        if is_deposit_payload(payload):
            read_deposit(payload)
        elif not (is_voucher_payload(payload) or is_refund_payload(payload)):
            return ERR_INVALID_PAYLOAD_TYPE, "Send a deposit, a voucher or a refund of a channel."
        voucher = VoucherFields.from_dict(payload["voucher"])
        if not 0 <= int(voucher.max_claimable_amount) <= UINT128_MAX:
            return ERR_VOUCHER_PAYLOAD, "A voucher is for 0 to 2^128-1 minor units."
        if _SIGNATURE.fullmatch(voucher.signature) is None:
            return ERR_INVALID_VOUCHER_SIGNATURE, "The voucher's signature is malformed."
        named = normalize_channel_id(voucher.channel_id)
        if find_channel_id(ChannelConfig.from_dict(payload["channelConfig"]), terms.network) != named:
            return ERR_CHANNEL_ID_MISMATCH, "The voucher is for another channel than it names."
    except Exception:  # the SDK's readers raise whatever a malformed field comes to
        return ERR_VOUCHER_PAYLOAD, "The channel payload is malformed."
    return None
