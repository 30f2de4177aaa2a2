"""Sellers: how one request is let in, counted and receipted, by its token or by the payment it carries."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from x402.mechanisms.evm.constants import SCHEME_EXACT
from x402.schemas import PaymentPayload

from tollbook.books.payments import answers, tokens
from tollbook.books.payments.answers import BODY_BYTES_MAX, Answer, Asked, Headers
from tollbook.books.payments.purchases import Opening, PaymentRefused, Purchase, Purchases, finish
from tollbook.books.payments.rules import MalformedPayment, Option, Toll, decode_payment, match_option
from tollbook.books.payments.schemes.terms import Terms
from tollbook.books.payments.schemes.upto import UsageUnreadable, read_usage
from tollbook.books.payments.usage import Admission, Meter
from tollbook.books.payments.wire import (
    SERVER_ERROR,
    SIGNATURE_HEADER,
    Message,
    PaymentMalformed,
    PaymentNeeded,
    Receive,
    Scope,
    make_receipt,
    read_body,
    remaining_header,
)
from tollbook.core import telemetry
from tollbook.core.errors import DatabaseUnreachable, Refusal

SECRET_PREFIX = tokens.PREFIX.encode()
REDIRECTION = 300
NOT_MODIFIED = 304

logger = logging.getLogger(__name__)
ADMIT = telemetry.LATENCY.labels("admit")
RECORD = telemetry.LATENCY.labels("record")


@dataclass(frozen=True, slots=True)
class Books:
    """What a paywall holds open: the meter, and the road of a purchase."""

    stack: AsyncExitStack
    meter: Meter
    purchases: Purchases
    terms: Terms

    async def close(self) -> None:
        await self.stack.aclose()


class Seller(Protocol):
    """How one request is let in and counted: by its token, or by the payment that it carries."""

    async def open(self) -> Answer | None: ...
    async def answer(
        self, status: int, endpoint: str, milliseconds: int, usage: bytes | None = None
    ) -> Headers: ...
    async def copy(self, message: Message) -> None: ...
    async def give_up(self, endpoint: str, milliseconds: int) -> None: ...
    async def close(self) -> None: ...
    def receipt(self) -> Headers: ...


async def make_seller(
    books: Books, toll: Toll, headers: Mapping[bytes, bytes], scope: Scope, receive: Receive
) -> tuple[Seller, Receive]:
    """A payment goes before a token: who pays wants the payment used, and his old token may be spent."""
    header = headers.get(SIGNATURE_HEADER)
    if header is not None:
        if scope["method"] == "HEAD":  # the goods are in a body that HEAD does not have
            raise PaymentRefused("invalid_payment_requirements", "No payment is taken for HEAD: ask by GET.")
        signed, option = _read_payment(toll, header)
        body, receive = await read_body(headers, scope, receive)
        target = (scope.get("raw_path") or scope["path"].encode()) + b"?" + scope.get("query_string", b"")
        request_hash = answers.hash_request(scope["method"], target, body)
        asked = Asked(header, request_hash, answers.has_secret(signed))
        purchases = await books.terms.find_purchases(option)
        return PaymentSeller(books.meter, purchases, toll, option, signed, asked), receive
    authorization = headers.get(b"authorization", b"")
    scheme, _, secret = authorization.partition(b" ")
    if scheme.lower() == b"bearer" and secret.startswith(SECRET_PREFIX):
        return TokenSeller(books, toll, secret.decode("latin-1")), receive
    raise PaymentNeeded("Payment required: see PAYMENT-REQUIRED for the ways to pay.")


def _read_payment(toll: Toll, header: bytes) -> tuple[PaymentPayload, Option]:
    try:
        signed = decode_payment(header)
    except MalformedPayment as error:
        raise PaymentMalformed(str(error)) from None
    route = answers.read_route(signed)
    if route not in (None, toll.key):
        raise PaymentRefused(
            "invalid_payment_requirements", f"The payment is for another route than {toll.key}."
        )
    option = match_option(toll, signed)
    if isinstance(option, str):
        raise PaymentRefused("invalid_payment_requirements", option)
    return signed, option


class TokenSeller:
    """Lets a request in on an access token: one of its payment's requests is taken before the app runs."""

    def __init__(self, books: Books, toll: Toll, secret: str) -> None:
        self._meter = books.meter
        self._toll = toll
        self._secret_hash = tokens.hash_secret(secret)
        self._admission: Admission | None = None

    async def open(self) -> None:
        """A token's requests are answered once each: there is never an answer to give again."""
        with ADMIT.time():
            self._admission = await self._meter.admit(self._secret_hash, self._toll.key)

    async def answer(
        self, status: int, endpoint: str, milliseconds: int, usage: bytes | None = None
    ) -> Headers:
        assert self._admission is not None
        with RECORD.time():
            await self._meter.record(
                self._admission, endpoint=endpoint, status_code=status, response_time_ms=milliseconds
            )
        return [remaining_header(count_remaining(self._admission, status))]

    async def copy(self, message: Message) -> None:
        pass

    async def give_up(self, endpoint: str, milliseconds: int) -> None:
        await finish(self.answer(SERVER_ERROR, endpoint, milliseconds))

    async def close(self) -> None:
        pass

    def receipt(self) -> Headers:
        return []


class PaymentSeller:
    """Lets a request in on the payment it carries, settled before the app runs or as it begins to answer."""

    def __init__(
        self,
        meter: Meter,
        purchases: Purchases,
        toll: Toll,
        option: Option,
        signed: PaymentPayload,
        asked: Asked,
    ) -> None:
        self._meter = meter
        self._purchases = purchases
        self._toll = toll
        self._option = option
        self._signed = signed
        self._asked = asked
        self._opening: Opening
        self._holding: asyncio.Task[None]
        self._purchase: Purchase | None = None
        self._remaining: int | None = None
        self._copy: _Copy | None = None
        self._is_counted = False

    async def open(self) -> Answer | None:
        opening = await self._purchases.open(self._toll, self._option, self._signed, self._asked)
        if isinstance(opening, Answer):
            return opening
        self._opening = opening
        self._holding = asyncio.create_task(self._purchases.hold(opening))
        if self._toll.terms.settle == "before":
            try:
                await self._settle()
            except BaseException:
                await self.close()
                raise
        return None

    async def _settle(self, amount: int | None = None) -> Purchase:
        self._purchase = await self._purchases.settle(self._opening, self._signed, self._option, amount)
        return self._purchase

    async def _read_usage(self, usage: bytes | None) -> int | None:
        """What is charged, where the handler says it and the scheme leaves it to him."""
        option = self._option
        if usage is None or option.requirements.scheme == SCHEME_EXACT:
            return None
        try:
            return read_usage(usage, option.requirements, option.token.decimals)
        except UsageUnreadable as unreadable:
            await self._purchases.release(self._opening, unreadable.reason)
            raise

    async def answer(
        self, status: int, endpoint: str, milliseconds: int, usage: bytes | None = None
    ) -> Headers:
        purchase = self._purchase
        if purchase is None:
            if status >= REDIRECTION and status != NOT_MODIFIED:
                await self._purchases.release(self._opening, f"the app answered {status}")
                return []
            purchase = await self._settle(await self._read_usage(usage))
        admission = await self._admit(purchase)
        self._is_counted = True  # also where the database is lost before it is recorded
        await self._meter.record(
            admission, endpoint=endpoint, status_code=status, response_time_ms=milliseconds
        )
        self._remaining, self._is_counted = count_remaining(admission, status), status < SERVER_ERROR
        if self._is_counted:
            self._copy = _Copy()
        return self.receipt()

    async def _admit(self, purchase: Purchase) -> Admission:
        """Take this request from the quota, unless one that was cut off took it."""
        payment = purchase.payment
        if not (self._opening.counted and payment.requests_used):
            try:
                return await self._meter.admit_first(payment.payment_id)
            except DatabaseUnreachable:
                self._is_counted = True  # perhaps it was taken: the next one sees
                raise
        remaining = payment.requests_allocated - payment.requests_used
        return Admission(payment.payment_id, remaining, purchase.grant.token.expires_at)

    async def copy(self, message: Message) -> None:
        """Keep the answer before its last byte leaves: from then on it can be asked for again."""
        if self._copy is None:
            return
        answer = self._copy.add(message)
        if answer is not None:
            self._copy = None
            try:
                await finish(self._purchases.keep(self._opening, self._asked, answer))
            except Refusal:  # he has paid and gets his answer: it cannot be given again, that is all
                logger.warning("the answer of payment %s is not kept", self._opening.payment.payment_id)

    async def give_up(self, endpoint: str, milliseconds: int) -> None:
        if self._purchase is None:
            await self._purchases.release(self._opening, "the app gave no answer")
        else:
            await finish(self.answer(SERVER_ERROR, endpoint, milliseconds))

    async def close(self) -> None:
        """Let go of the request; what was answered and kept stays so."""
        self._holding.cancel()
        try:
            await self._purchases.let_go(self._opening, is_counted=self._is_counted)
        except Refusal:  # it is let go of by time
            logger.warning("the request of payment %s is still held", self._opening.payment.payment_id)

    def receipt(self) -> Headers:
        """What was bought, once it is paid for: also when the request itself then failed."""
        if self._purchase is None:
            return []
        allocated = self._purchase.payment.requests_allocated
        return make_receipt(self._purchase, allocated if self._remaining is None else self._remaining)


class _Copy:
    """An answer as it goes by, up to a bound."""

    def __init__(self) -> None:
        self._status = 0
        self._headers: Headers = []
        self._body = bytearray()
        self._whole = True

    def add(self, message: Message) -> Answer | None:
        """Return the answer with its last message, before that leaves."""
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], message["headers"]
            return None
        if message["type"] == "http.response.pathsend":  # the server sends a file, and nothing follows
            return Answer(self._status, self._headers, b"", whole=False)
        if message["type"] != "http.response.body":  # trailers, pushes: not ours to copy
            self._whole = False
            return None
        body = message.get("body", b"")
        self._whole = self._whole and len(self._body) + len(body) <= BODY_BYTES_MAX
        if self._whole:
            self._body += body
        if message.get("more_body", False):
            return None
        return Answer(self._status, self._headers, bytes(self._body) if self._whole else b"", self._whole)


def count_remaining(admission: Admission, status: int) -> int:
    """A failed request was given back, if it was taken now."""
    return admission.requests_remaining + (status >= SERVER_ERROR and admission.taken_at is not None)
