"""Purchases by channel: each request is charged to its payer's channel, and booked at what was charged.

A voucher is good for one sum of all charges, so the channel itself keeps it from paying twice. Copies of a
request are told by their PAYMENT-SIGNATURE: it holds our challenge, which is another one in each 402.
"""

import asyncio
import json
import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast
from weakref import WeakValueDictionary

from x402.http.constants import PAYMENT_RESPONSE_HEADER
from x402.http.utils import encode_payment_response_header
from x402.mechanisms.evm.batch_settlement.errors import ERR_CUMULATIVE_AMOUNT_MISMATCH
from x402.mechanisms.evm.batch_settlement.types import is_deposit_payload, is_refund_payload
from x402.schemas import PaymentPayload, PaymentRequirements, SettleResponse, VerifyResponse

from tollbook.books.payments.answers import Answer, Asked
from tollbook.books.payments.errors import AlreadyCounted
from tollbook.books.payments.facilitator.in_process import FacilitatorUnreachable
from tollbook.books.payments.payments import Offer
from tollbook.books.payments.purchases import (
    OPENINGS_MAX,
    Opening,
    PaymentInProgress,
    PaymentRefused,
    Purchases,
    finish,
    postpone,
)
from tollbook.books.payments.rules import Option, Toll
from tollbook.books.payments.schemes.batch import Channels, Standing, find_channel_fault
from tollbook.core import clock

COPY_LETTERS = 32  # of the hash that tells copies of a request


@dataclass(slots=True)
class ChannelPurchases(Purchases):
    """Purchases, paid by the vouchers of channels."""

    channels: Channels = field(kw_only=True)
    _reserved: dict[int, tuple[PaymentPayload, PaymentRequirements]] = field(
        default_factory=dict[int, tuple[PaymentPayload, PaymentRequirements]], init=False
    )
    _charged: dict[int, int] = field(default_factory=dict[int, int], init=False)
    _entering: WeakValueDictionary[str, asyncio.Lock] = field(
        default_factory=WeakValueDictionary[str, asyncio.Lock], init=False
    )

    async def open(
        self, toll: Toll, option: Option, payment: PaymentPayload, asked: Asked
    ) -> Opening | Answer:
        """See Purchases. The channel is this request's from now on; others wait for it.

        A refund is answered here. Raises ChannelBusy too.
        """
        fault = find_channel_fault(payment, option.requirements)
        if fault is not None:
            raise PaymentRefused(*fault)
        if is_refund_payload(payment.payload):
            return await finish(self._refund(payment, option.requirements))
        offer = _make_offer(toll, option, payment, asked)
        for _ in range(OPENINGS_MAX):
            try:
                return await self._enter(offer, payment, option.requirements, asked)
            except AlreadyCounted as counted:
                found = await self._resume(counted, asked)
            if isinstance(found, Opening):
                await self._rejoin(found, payment, option.requirements)
            if found is not None:
                return found
        raise PaymentInProgress(None)

    async def release(self, opening: Opening, reason: str) -> None:
        """See Purchases; and the channel is free again."""
        self._charged.pop(opening.payment.payment_id, None)
        reserved = self._reserved.pop(opening.payment.payment_id, None)
        if reserved is not None:
            await finish(self.channels.cancel(*reserved))
        await Purchases.release(self, opening, reason)  # super() does not know a class with slots

    async def _enter(
        self, offer: Offer, payment: PaymentPayload, terms: PaymentRequirements, asked: Asked
    ) -> Opening:
        nonce = cast(str, offer.nonce)
        async with self._entering.setdefault(nonce, asyncio.Lock()):  # copies must not queue
            await self._refuse_counted(offer)
            try:
                await self._stand(payment, terms)
            except PaymentRefused:
                await self._refuse_counted(offer)  # a copy of it in another process may have been faster
                raise
            try:
                opening = await finish(self._reserve(offer, asked))
            except BaseException:
                await finish(self.channels.cancel(payment, terms))
                raise
        self._reserved[opening.payment.payment_id] = (payment, terms)
        return opening

    async def _stand(
        self, payment: PaymentPayload, terms: PaymentRequirements, known: VerifyResponse | None = None
    ) -> Standing:
        """Reserve the channel. Raises PaymentRefused with the terms that the payer catches up by."""
        try:
            standing = await self.channels.verify(payment, terms, known)
        except FacilitatorUnreachable as error:
            raise postpone(error) from error
        if standing.reason is not None:
            sentence = standing.message or f"The channel refused it: {standing.reason}."
            raise PaymentRefused(standing.reason, sentence, terms=standing.terms)
        return standing

    async def _rejoin(self, opening: Opening, payment: PaymentPayload, terms: PaymentRequirements) -> None:
        """Go on with a request that was cut off: before its charge, or after it."""
        payment_id = opening.payment.payment_id
        if opening.payment.status != "pending":
            self._charged[payment_id] = opening.payment.amount
            return
        try:
            await self._stand(payment, terms, await self._recall(payment, terms))
            self._reserved[payment_id] = (payment, terms)
        except PaymentRefused as refused:
            charged = _find_charge(refused, payment, terms)
            if charged is None:
                await self.let_go(opening)
                raise
            self._charged[payment_id] = charged
        except BaseException:
            await self.let_go(opening)
            raise

    async def _recall(self, payment: PaymentPayload, terms: PaymentRequirements) -> VerifyResponse | None:
        """A deposit that was sent on its way cannot be verified again: its authorization may be used."""
        if not is_deposit_payload(payment.payload):
            return None
        row = await self.facilitator.recall(payment, terms)
        if row is None or row.status == "failed":
            return None
        answer = SettleResponse.model_validate(row.answer) if row.answer else None
        state = (answer.extra or {}).get("channelState") if answer else None
        return VerifyResponse(is_valid=True, payer=row.payer, extra=state)

    async def _ask(
        self, opening: Opening, signed: PaymentPayload, terms: PaymentRequirements, amount: int | None
    ) -> SettleResponse:
        payment_id = opening.payment.payment_id
        self._reserved.pop(payment_id, None)
        charged = self._charged.pop(payment_id, None)
        if charged is None:
            return await self.channels.charge(signed, terms, int(terms.amount) if amount is None else amount)
        return SettleResponse(
            success=True,
            transaction="",
            network=terms.network,
            payer=opening.payment.from_address,
            amount="",
            extra={"chargedAmount": str(charged)},
        )

    async def _refund(self, payment: PaymentPayload, terms: PaymentRequirements) -> Answer:
        """Give a payer back what is left in his channel, which is not revenue and never was."""
        standing = await self._stand(payment, terms)
        try:
            settlement = await self.channels.charge(payment, terms, int(terms.amount))
        except FacilitatorUnreachable as error:
            raise postpone(error) from error
        if not settlement.success:
            code = settlement.error_reason or "unexpected_settle_error"
            raise PaymentRefused(code, settlement.error_message or f"Not refunded: {code}.", settlement)
        headers = {
            "content-type": "application/json",
            "cache-control": "private, no-store",
            PAYMENT_RESPONSE_HEADER.lower(): encode_payment_response_header(settlement),
        }
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        return Answer(200, pairs, json.dumps(standing.body).encode(), first=True)


def _make_offer(toll: Toll, option: Option, payment: PaymentPayload, asked: Asked) -> Offer:
    """What is about to be charged. Who sends no secret back cannot be told from others: each is a new one."""
    terms, payload = option.requirements, payment.payload
    voucher, config = payload["voucher"], payload["channelConfig"]
    copy = asked.proof_hash.hex()[:COPY_LETTERS] if asked.has_secret else secrets.token_hex(COPY_LETTERS // 2)
    return Offer(
        network=option.network.id,
        chain=option.network.name,
        asset=terms.asset.lower(),
        decimals=option.token.decimals,
        amount=int(terms.amount),
        from_address=config["payer"].lower(),
        to_address=terms.pay_to.lower(),
        nonce=f"channel:{voucher['channelId'].lower()}:{int(voucher['maxClaimableAmount'])}:{copy}",
        tx_hash=None,
        scheme=terms.scheme,
        endpoint=toll.key,
        requests_allocated=toll.terms.requests,
        lifetime=toll.terms.lifetime,
        valid_before=clock.now() + timedelta(seconds=terms.max_timeout_seconds),
    )


def _find_charge(refused: PaymentRefused, payment: PaymentPayload, terms: PaymentRequirements) -> int | None:
    """What a voucher was charged before its request was cut off; None where the channel is not that far.

    Where others were charged since, it is taken for charged: rather one request for nothing than one that
    is paid twice.
    """
    if refused.code != ERR_CUMULATIVE_AMOUNT_MISMATCH or refused.terms is None:
        return None
    state = refused.terms.extra.get("channelState")
    if state is None:
        return None
    base = int(payment.payload["voucher"]["maxClaimableAmount"]) - int(terms.amount)
    since = int(state["chargedCumulativeAmount"]) - base
    return min(since, int(terms.amount)) if since > 0 else None
