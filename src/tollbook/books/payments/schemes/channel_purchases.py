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
from x402.mechanisms.evm.batch_settlement.errors import ERR_CHANNEL_BUSY
from x402.mechanisms.evm.batch_settlement.types import is_deposit_payload, is_refund_payload
from x402.schemas import PaymentPayload, PaymentRequirements, SettleResponse, VerifyResponse

from tollbook.books.payments import payments
from tollbook.books.payments.answers import Answer, Asked
from tollbook.books.payments.errors import AlreadyCounted
from tollbook.books.payments.facilitator.in_process import FacilitatorUnreachable
from tollbook.books.payments.payments import Offer, Payment
from tollbook.books.payments.purchases import (
    OPENINGS_MAX,
    Opening,
    PaymentInProgress,
    PaymentRefused,
    Purchase,
    Purchases,
    finish,
    postpone,
)
from tollbook.books.payments.rules import Option, Toll
from tollbook.books.payments.schemes.batch import Channels, Standing, find_channel_fault
from tollbook.books.payments.schemes.vouchers import is_plain
from tollbook.core import clock
from tollbook.core.database import WriteTx
from tollbook.core.stores import charges
from tollbook.core.stores.channel_queue import ANYBODY, read_challenge
from tollbook.core.stores.charges import State, Voucher

COPY_LETTERS = 32  # of the hash that tells copies of a request


@dataclass(slots=True)
class _Hold:
    """A channel that a request has reserved, as the chain knew it then, and since its deposit."""

    voucher: Voucher
    state: State
    deposited: State | None = None


@dataclass(slots=True)
class ChannelPurchases(Purchases):
    """Purchases, paid by the vouchers of channels.

    A charge and its booking are one transaction, so what is pending in the books was not charged.
    """

    channels: Channels = field(kw_only=True)
    _reserved: dict[int, _Hold] = field(default_factory=dict[int, _Hold], init=False)
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
        await finish(self._free(opening.payment.payment_id))
        await Purchases.release(self, opening, reason)  # super() does not know a class with slots

    async def let_go(self, opening: Opening, *, is_counted: bool = False) -> None:
        """See Purchases; and the channel is free again, if the request came to no end."""
        await finish(self._free(opening.payment.payment_id))
        await Purchases.let_go(self, opening, is_counted=is_counted)

    async def _free(self, payment_id: int) -> None:
        hold = self._reserved.pop(payment_id, None)
        if hold is not None:
            await self._free_channel(hold)

    async def _free_channel(self, hold: _Hold) -> None:
        async with self.database.write() as tx:
            await charges.release(tx, hold.voucher)

    async def _enter(
        self, offer: Offer, payment: PaymentPayload, terms: PaymentRequirements, asked: Asked
    ) -> Opening:
        nonce = cast(str, offer.nonce)
        async with self._entering.setdefault(nonce, asyncio.Lock()):  # copies must not queue
            opening = await self._enter_at_once(offer, payment, terms, asked)
            if opening is not None:
                return opening
            await self._refuse_counted(offer)
            try:
                hold = await self._stand(payment, terms)
            except PaymentRefused:
                await self._refuse_counted(offer)  # a copy of it in another process may have been faster
                raise
            try:
                opening = await finish(self._reserve(offer, asked))
            except BaseException:
                await finish(self._free_channel(hold))
                raise
        self._reserved[opening.payment.payment_id] = hold
        return opening

    async def _enter_at_once(
        self, offer: Offer, payment: PaymentPayload, terms: PaymentRequirements, asked: Asked
    ) -> Opening | None:
        """Enter in one transaction where the channel is free and nothing is to be asked; None where not."""
        if not is_plain(payment, terms):
            return None
        voucher = self.channels.read_voucher(payment, terms)
        async with self.database.write() as tx:
            state = await charges.reserve(
                tx,
                voucher,
                payment.payload["channelConfig"],
                [read_challenge(payment) or ANYBODY],
                seconds=terms.max_timeout_seconds,
                fresh_milliseconds=self.channels.scheme.get_onchain_state_ttl_ms(),
            )
            if state is None:
                return None
            opening = await self._begin(tx, offer, asked)
        self._reserved[opening.payment.payment_id] = _Hold(voucher, state)
        return opening

    async def _stand(
        self, payment: PaymentPayload, terms: PaymentRequirements, known: VerifyResponse | None = None
    ) -> _Hold:
        """Reserve the channel. Raises PaymentRefused with the terms that the payer catches up by."""
        standing = await self._verify_channel(payment, terms, known)
        return _Hold(self.channels.read_voucher(payment, terms), standing.state)

    async def _verify_channel(
        self, payment: PaymentPayload, terms: PaymentRequirements, known: VerifyResponse | None = None
    ) -> Standing:
        try:
            standing = await self.channels.verify(payment, terms, known)
        except FacilitatorUnreachable as error:
            raise postpone(error) from error
        if standing.reason is not None:
            sentence = standing.message or f"The channel refused it: {standing.reason}."
            raise PaymentRefused(standing.reason, sentence, terms=standing.terms)
        return standing

    async def _rejoin(self, opening: Opening, payment: PaymentPayload, terms: PaymentRequirements) -> None:
        """Go on with a request that was cut off: if it is still pending, it was not charged."""
        payment_id = opening.payment.payment_id
        if opening.payment.status != "pending":
            return
        try:
            self._reserved[payment_id] = await self._stand(payment, terms, await self._recall(payment, terms))
        except PaymentRefused as refused:
            await finish(self._book_failure(opening, refused.code))
            raise
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

    async def _settle(
        self, opening: Opening, signed: PaymentPayload, option: Option, amount: int | None
    ) -> Purchase:
        try:
            return await Purchases._settle(self, opening, signed, option, amount)
        except BaseException:
            await self._free(opening.payment.payment_id)
            raise
        finally:
            self._reserved.pop(opening.payment.payment_id, None)

    async def _ask(
        self, opening: Opening, signed: PaymentPayload, terms: PaymentRequirements, amount: int | None
    ) -> SettleResponse:
        """Settle a deposit; a voucher asks nobody. What is charged is said, and charged when it is booked."""
        hold = self._reserved.get(opening.payment.payment_id)
        answer = SettleResponse(
            success=True, transaction="", network=terms.network, payer=opening.payment.from_address, amount=""
        )
        if hold is None:  # it was charged before it was cut off
            answer.extra = {"chargedAmount": str(opening.payment.amount)}
            return answer
        shown = {"channelId": hold.voucher.channel_id} | hold.state.show()
        if is_deposit_payload(signed.payload):
            answer = await self.facilitator.settle(signed, terms)
            if not answer.success:
                return answer
            shown |= (answer.extra or {}).get("channelState") or {}
            hold.deposited = State.read(shown)
        charged = int(terms.amount) if amount is None else amount
        shown["chargedCumulativeAmount"] = str(hold.voucher.base + charged)
        extra = {**(answer.extra or {}), "channelState": shown, "chargedAmount": str(charged)}
        return answer.model_copy(update={"extra": extra})

    async def _settle_once(self, tx: WriteTx, payment_id: int, answer: SettleResponse) -> Payment:
        hold = self._reserved.get(payment_id)
        # What is booked is charged: by this very request, where nobody answered its commit.
        if hold is not None and (await payments.get(tx, payment_id)).status == "pending":
            amount = int((answer.extra or {})["chargedAmount"])
            if not await charges.charge(tx, hold.voucher, amount, hold.deposited):
                raise PaymentRefused(ERR_CHANNEL_BUSY, "The request took so long that its channel went on.")
        return await Purchases._settle_once(self, tx, payment_id, answer)

    async def _refund(self, payment: PaymentPayload, terms: PaymentRequirements) -> Answer:
        """Give a payer back what is left in his channel, which is not revenue and never was."""
        standing = await self._verify_channel(payment, terms)
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
