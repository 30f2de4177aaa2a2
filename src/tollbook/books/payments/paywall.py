"""The paywall: ASGI middleware that sells requests of an app's routes for x402 payments.

It stands before routing, passes bodies through unbuffered in both directions, and leaves free routes alone.
Wire format: x402 version 2, HTTP transport (PAYMENT-REQUIRED, PAYMENT-SIGNATURE, PAYMENT-RESPONSE).
"""

import asyncio
import gc
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from x402.http.constants import (
    PAYMENT_REQUIRED_HEADER,
    PAYMENT_RESPONSE_HEADER,
    PAYMENT_SIGNATURE_HEADER,
)
from x402.http.utils import encode_payment_required_header, encode_payment_response_header
from x402.schemas import PaymentPayload, PaymentRequired, ResourceInfo, SettleResponse

from tollbook.books.payments import answers, tokens
from tollbook.books.payments.answers import BODY_BYTES_MAX, EXTENSION, Answer, Asked, Headers
from tollbook.books.payments.errors import TokenExpired, TokenSpent
from tollbook.books.payments.facilitator import Facilitator
from tollbook.books.payments.facilitator_remote import RemoteFacilitator
from tollbook.books.payments.ledger import LedgeredFacilitator
from tollbook.books.payments.purchases import (
    ANSWERS_KEPT,
    Opening,
    PaymentRefused,
    Purchase,
    Purchases,
    finish,
)
from tollbook.books.payments.rules import (
    MalformedPayment,
    Option,
    PaidRoute,
    Payee,
    Toll,
    compile_tolls,
    decode_payment,
    match_option,
)
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.books.payments.truth import ChainTruth
from tollbook.books.payments.usage import Admission, Meter
from tollbook.core import ids, journal, storage, telemetry
from tollbook.core.chains import Chain
from tollbook.core.database import Database
from tollbook.core.errors import Refusal
from tollbook.core.settings import Settings

__all__ = ["PaidRoute", "Payee", "Paywall"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_HEADER = "PAYMENT-TOKEN"  # noqa: S105 - a header's name
REMAINING_HEADER = "PAYMENT-REQUESTS-REMAINING"
REPLAYED_HEADER = "PAYMENT-REPLAYED"
EVM = "eip155:"
SIGNATURE_HEADER = PAYMENT_SIGNATURE_HEADER.lower().encode()
RECEIPT_HEADERS = tuple(
    name.lower().encode() for name in (PAYMENT_RESPONSE_HEADER, TOKEN_HEADER, REMAINING_HEADER)
)
BODY_HEADERS = (b"content-length", b"transfer-encoding")
REQUEST_BYTES_MAX = 1024 * 1024  # of a request's body, that a payment is bound to
CHALLENGE_BYTES = 24
CHALLENGE_SCHEMA = {
    "type": "object",
    "properties": {"route": {"type": "string"}, "challenge": {"type": "string"}},
    "required": ["route", "challenge"],
}
SECRET_PREFIX = tokens.PREFIX.encode()
PREFLIGHT_HEADER = b"access-control-request-method"
SERVER_ERROR = 500
REDIRECTION = 300
NOT_MODIFIED = 304
EXPOSED_HEADERS = ", ".join(
    (PAYMENT_REQUIRED_HEADER, PAYMENT_RESPONSE_HEADER, TOKEN_HEADER, REMAINING_HEADER, REPLAYED_HEADER)
).encode()

logger = logging.getLogger(__name__)
ADMIT = telemetry.LATENCY.labels("admit")
RECORD = telemetry.LATENCY.labels("record")


class _Seller(Protocol):
    """How one request is let in and counted: by its token, or by the payment that it carries."""

    async def open(self) -> Answer | None: ...
    async def answer(self, status: int, endpoint: str, milliseconds: int) -> Headers: ...
    async def copy(self, message: Message) -> None: ...
    async def give_up(self, endpoint: str, milliseconds: int) -> None: ...
    async def close(self) -> None: ...
    def receipt(self) -> Headers: ...


class Paywall:
    """Sell an app's routes: `app.add_middleware(Paywall, payees=[...], routes={...}, facilitator=...)`.

    `routes` maps "GET /weather/{city}" to a PaidRoute; `payees` say who is paid on which network;
    `facilitator` is a URL or a Facilitator in this process, or several, asked in their order. `rpc_urls` (or
    TOLLBOOK_RPC_URLS) name the chains' nodes, by CAIP-2 id: what no facilitator can tell is looked up there.
    For `answers_kept` a payer who lost his answer gets it again with the same payment. The books are in
    `database_url`, or else where the settings say (DATABASE_URL; the embedded server of TOLLBOOK_DATA_DIR);
    `tollbook up` makes them. Raises WrongPaywall at once where the configuration cannot work.
    """

    def __init__(
        self,
        app: App,
        *,
        routes: Mapping[str, PaidRoute],
        payees: Sequence[Payee],
        facilitator: str | Facilitator | list[str | Facilitator],
        database_url: str | None = None,
        rpc_urls: Mapping[str, str] | None = None,
        answers_kept: timedelta = ANSWERS_KEPT,
    ) -> None:
        self.app = app
        self._tolls = compile_tolls(routes, payees)
        several = isinstance(facilitator, list)
        self._facilitators: list[str | Facilitator] = list(facilitator) if several else [facilitator]
        self._database_url = database_url
        self._rpc_urls = rpc_urls
        self._answers_kept = answers_kept
        self._books: _Books | None = None
        self._opening = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass free requests on as they are; sell the others."""
        if scope["type"] == "http":
            toll = self._find_toll(scope)
            if toll is not None:
                await self._sell(toll, scope, receive, send)
                return
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, self._with_lifespan(send))
            return
        await self.app(scope, receive, send)

    def _find_toll(self, scope: Scope) -> Toll | None:
        """By the path as the app's router sees it, and by the whole one: behind a mount they differ."""
        method, path = scope["method"], scope["path"]
        if method == "OPTIONS" and any(name == PREFLIGHT_HEADER for name, _ in scope["headers"]):
            return None  # the browser's question before it pays, which no app answers with goods
        root = scope.get("root_path", "")
        if root and path.startswith(root + "/"):
            toll = self._tolls.find(method, path[len(root) :])
            if toll is not None:
                return toll
        return self._tolls.find(method, path)

    async def close(self) -> None:
        """Let go of the books, after the settlements and usage rows under way are written."""
        if self._books is not None:
            books, self._books = self._books, None
            await books.close()

    def _with_lifespan(self, send: Send) -> Send:
        async def send_lifespan(message: Message) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                await self.close()
            await send(message)

        return send_lifespan

    async def _open(self) -> "_Books":
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # test clients begin a new loop for each request
            self._loop, self._opening, self._books = loop, asyncio.Lock(), None
        async with self._opening:
            if self._books is None:
                self._books = await self._open_books()
                # Requests that wait for their commit outlive the collector's young generation, and each full
                # collection then walked every imported library: a third of the rate (bench/paid_http.py).
                gc.freeze()
            return self._books

    async def _sell(self, toll: Toll, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = _read_headers(scope)
        try:
            books = await self._open()
            seller, receive = await _make_seller(books, toll, wanted, scope, receive)
            answer = await seller.open()
        except Refusal as refusal:
            await _refuse(toll, scope, send, refusal)
            return
        if answer is None:
            await _Passage(self.app, toll, seller).run(scope, receive, send)
        else:
            await _answer_again(answer, toll, scope, send)

    async def _open_books(self) -> "_Books":
        async with AsyncExitStack() as stack:
            url = self._database_url
            if url is None:
                found = await asyncio.to_thread(storage.open_storage, Settings())
                stack.callback(found.close)
                url = found.url
            database = await stack.enter_async_context(Database(url, application="tollbook paywall"))
            async with database.write() as tx:
                await journal.check_epoch(tx)
            meter = await stack.enter_async_context(Meter(url))
            rpc_urls = PaymentsSettings().rpc_urls if self._rpc_urls is None else self._rpc_urls
            chains = {
                network: await stack.enter_async_context(Chain(network, node))
                for network, node in rpc_urls.items()
                if network.startswith(EVM)
            }
            facilitators = dict(self._name_facilitators(stack))
            ledgered = LedgeredFacilitator(database, facilitators, ChainTruth(chains))
            purchases = Purchases(database, ledgered, self._answers_kept)
            stack.push_async_callback(purchases.close)
            return _Books(stack.pop_all(), meter, purchases)

    def _name_facilitators(self, stack: AsyncExitStack) -> Iterator[tuple[str, Facilitator]]:
        """Those given by URL are ours to close."""
        for number, facilitator in enumerate(self._facilitators):
            if isinstance(facilitator, str):
                remote = RemoteFacilitator(facilitator)
                stack.push_async_callback(remote.aclose)
                yield remote.name, remote
            else:
                yield f"in process {number}", facilitator


@dataclass(frozen=True, slots=True)
class _Books:
    """What a paywall holds open: the meter, and the road of a purchase."""

    stack: AsyncExitStack
    meter: Meter
    purchases: Purchases

    async def close(self) -> None:
        await self.stack.aclose()


class _Passage:
    """One paid request on its way through the app: its answer leaves when it is counted, not before."""

    def __init__(self, app: App, toll: Toll, seller: _Seller) -> None:
        self._app = app
        self._toll = toll
        self._seller = seller
        self._started = time.monotonic_ns()
        self._began = False  # the app has begun an answer
        self._refused = False  # and it was replaced by a refusal

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._begin(message, scope, send)
            elif not self._refused:
                await self._seller.copy(message)
                await send(message)

        try:
            await self._app(scope, receive, send_counted)
        except Exception:
            if not self._began:
                await self._fall_over(scope, send)
            raise
        finally:
            if not self._began:  # cancelled, or an app that said nothing
                await self._seller.give_up(_find_endpoint(self._toll, scope), self._milliseconds())
            await self._seller.close()

    async def _begin(self, message: Message, scope: Scope, send: Send) -> None:
        self._began = True
        endpoint = _find_endpoint(self._toll, scope)
        try:
            headers = await self._seller.answer(message["status"], endpoint, self._milliseconds())
        except Refusal as refusal:
            self._refused = True
            await _refuse(self._toll, scope, send, refusal, self._seller.receipt())
            return
        start = {**message, "headers": _with_paid_headers(message.get("headers", ()), headers)}
        await self._seller.copy(start)
        await send(start)

    async def _fall_over(self, scope: Scope, send: Send) -> None:
        """The app raised. Who has paid already gets his receipt with the 500; others get the server's own."""
        self._began = True
        await self._seller.give_up(_find_endpoint(self._toll, scope), self._milliseconds())
        if self._seller.receipt():
            await _refuse(self._toll, scope, send, HandlerFailed(), self._seller.receipt())

    def _milliseconds(self) -> int:
        return (time.monotonic_ns() - self._started) // 1_000_000


class _TokenSeller:
    """Lets a request in on an access token: one of its payment's requests is taken before the app runs."""

    def __init__(self, books: _Books, toll: Toll, secret: str) -> None:
        self._meter = books.meter
        self._toll = toll
        self._secret_hash = tokens.hash_secret(secret)
        self._admission: Admission | None = None

    async def open(self) -> None:
        """A token's requests are answered once each: there is never an answer to give again."""
        with ADMIT.time():
            self._admission = await self._meter.admit(self._secret_hash, self._toll.key)

    async def answer(self, status: int, endpoint: str, milliseconds: int) -> Headers:
        assert self._admission is not None
        with RECORD.time():
            await self._meter.record(
                self._admission, endpoint=endpoint, status_code=status, response_time_ms=milliseconds
            )
        return [_remaining_header(_count_remaining(self._admission, status))]

    async def copy(self, message: Message) -> None:
        pass

    async def give_up(self, endpoint: str, milliseconds: int) -> None:
        await finish(self.answer(SERVER_ERROR, endpoint, milliseconds))

    async def close(self) -> None:
        pass

    def receipt(self) -> Headers:
        return []


class _PaymentSeller:
    """Lets a request in on the payment it carries, settled before the app runs or as it begins to answer."""

    def __init__(
        self, books: _Books, toll: Toll, option: Option, signed: PaymentPayload, asked: Asked
    ) -> None:
        self._books = books
        self._toll = toll
        self._option = option
        self._signed = signed
        self._asked = asked
        self._opening: Opening
        self._holding: asyncio.Task[None]
        self._purchase: Purchase | None = None
        self._remaining: int | None = None
        self._copy: _Copy | None = None

    async def open(self) -> Answer | None:
        purchases = self._books.purchases
        opening = await purchases.open(self._toll, self._option, self._signed, self._asked)
        if isinstance(opening, Answer):
            return opening
        self._opening = opening
        self._holding = asyncio.create_task(purchases.hold(opening))
        if self._toll.terms.settle == "before":
            try:
                await self._settle()
            except BaseException:
                await self.close()
                raise
        return None

    async def _settle(self) -> Purchase:
        self._purchase = await self._books.purchases.settle(self._opening, self._signed, self._option)
        return self._purchase

    async def answer(self, status: int, endpoint: str, milliseconds: int) -> Headers:
        purchase = self._purchase
        if purchase is None:
            if status >= REDIRECTION and status != NOT_MODIFIED:
                await self._books.purchases.release(self._opening, f"the app answered {status}")
                return []
            purchase = await self._settle()
        meter = self._books.meter
        admission = await self._admit(purchase)
        await meter.record(admission, endpoint=endpoint, status_code=status, response_time_ms=milliseconds)
        self._remaining = _count_remaining(admission, status)
        if status < SERVER_ERROR:
            self._copy = _Copy()
        return self.receipt()

    async def _admit(self, purchase: Purchase) -> Admission:
        """Take this request from the quota, unless one that was cut off before it could answer took it."""
        payment = purchase.payment
        if not payment.requests_used:
            return await self._books.meter.admit_first(payment.payment_id)
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
                await finish(self._books.purchases.keep(self._opening, self._asked, answer))
            except Refusal:  # he has paid and gets his answer: it cannot be given again, that is all
                logger.warning("the answer of payment %s is not kept", self._opening.payment.payment_id)

    async def give_up(self, endpoint: str, milliseconds: int) -> None:
        if self._purchase is None:
            await self._books.purchases.release(self._opening, "the app gave no answer")
        else:
            await finish(self.answer(SERVER_ERROR, endpoint, milliseconds))

    async def close(self) -> None:
        """Let go of the request; what was answered and kept stays so."""
        self._holding.cancel()
        try:
            await self._books.purchases.let_go(self._opening)
        except Refusal:  # it is let go of by time
            logger.warning("the request of payment %s is still held", self._opening.payment.payment_id)

    def receipt(self) -> Headers:
        """What was bought, once it is paid for: also when the request itself then failed."""
        if self._purchase is None:
            return []
        allocated = self._purchase.payment.requests_allocated
        return _make_receipt(self._purchase, allocated if self._remaining is None else self._remaining)


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
        if message["type"] != "http.response.body":  # sent from a file, or with trailers: not ours to copy
            self._whole = False
            return None
        body = message.get("body", b"")
        self._whole = self._whole and len(self._body) + len(body) <= BODY_BYTES_MAX
        if self._whole:
            self._body += body
        if message.get("more_body", False):
            return None
        return Answer(self._status, self._headers, bytes(self._body) if self._whole else b"", self._whole)


def _read_headers(scope: Scope) -> dict[bytes, bytes]:
    wanted = (b"authorization", SIGNATURE_HEADER, *BODY_HEADERS)
    return {name: value for name, value in scope["headers"] if name in wanted}


async def _make_seller(
    books: _Books, toll: Toll, headers: Mapping[bytes, bytes], scope: Scope, receive: Receive
) -> tuple[_Seller, Receive]:
    """A payment goes before a token: who pays wants the payment used, and his old token may be spent."""
    header = headers.get(SIGNATURE_HEADER)
    if header is not None:
        signed, option = _read_payment(toll, header)
        body, receive = await _read_body(headers, receive)
        target = (scope.get("raw_path") or scope["path"].encode()) + b"?" + scope.get("query_string", b"")
        request_hash = answers.hash_request(scope["method"], target, body)
        asked = Asked(header, request_hash, answers.has_secret(signed))
        return _PaymentSeller(books, toll, option, signed, asked), receive
    authorization = headers.get(b"authorization", b"")
    scheme, _, secret = authorization.partition(b" ")
    if scheme.lower() == b"bearer" and secret.startswith(SECRET_PREFIX):
        return _TokenSeller(books, toll, secret.decode("latin-1")), receive
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


async def _read_body(headers: Mapping[bytes, bytes], receive: Receive) -> tuple[bytes, Receive]:
    """Return the body, or its beginning where it is long, and a `receive` that gives it to the app."""
    if not any(name in headers for name in BODY_HEADERS):
        return b"", receive
    messages: deque[Message] = deque()
    size = 0
    while size < REQUEST_BYTES_MAX:
        message = await receive()
        messages.append(message)
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            break
    body = b"".join(message.get("body", b"") for message in messages)[:REQUEST_BYTES_MAX]

    async def receive_again() -> Message:
        return messages.popleft() if messages else await receive()

    return body, receive_again


async def _answer_again(answer: Answer, toll: Toll, scope: Scope, send: Send) -> None:
    """Give a paid answer again; of one that was too long to be kept, what was bought with it."""
    if not answer.whole:
        receipt = [(name, value) for name, value in answer.headers if name in RECEIPT_HEADERS]
        await _refuse(toll, scope, send, AnswerGone(), receipt)
        return
    headers = [*answer.headers, (REPLAYED_HEADER.lower().encode(), b"true")]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


class AnswerGone(Refusal):
    """The payment was answered before, and the answer was too long to be kept."""

    reason = "answer-gone"
    status = 409

    def __init__(self) -> None:
        super().__init__(
            "This payment was answered before, with more than is kept. Use its access token for more "
            "requests, or pay again with a new authorization."
        )


class PaymentNeeded(Refusal):
    """Nothing was presented: the answer says how to pay."""

    reason = "payment-required"
    status = 402


class PaymentMalformed(Refusal):
    """The PAYMENT-SIGNATURE header holds no x402 version 2 payment."""

    reason = "payment-malformed"
    status = 400

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The PAYMENT-SIGNATURE header is no x402 version 2 payment: {why}. "
            "Send base64 of the payment's JSON, as an x402 client makes it."
        )


class HandlerFailed(Refusal):
    """The app raised after its payment was settled: the request is given back, the token is in the answer."""

    reason = "handler-failed"
    status = SERVER_ERROR

    def __init__(self) -> None:
        super().__init__("The request failed and was not counted. Try again with the access token.")


async def _refuse(
    toll: Toll, scope: Scope, send: Send, refusal: Refusal, receipt: Headers | None = None
) -> None:
    """Answer with problem JSON; where paying helps, with a 402 that says how."""
    telemetry.REFUSALS.labels(reason=refusal.reason).inc()
    headers: Headers = [(b"cache-control", b"no-store"), (b"access-control-expose-headers", EXPOSED_HEADERS)]
    headers += receipt or []
    body: dict[str, object] = refusal.problem()
    if refusal.status == PaymentNeeded.status:
        required = _make_required(toll, scope, refusal)
        body = {**required.model_dump(mode="json", by_alias=True, exclude_none=True), **body}
        headers.append(_header(PAYMENT_REQUIRED_HEADER, encode_payment_required_header(required)))
    if isinstance(refusal, PaymentRefused) and refusal.settlement is not None:
        headers.append(_header(PAYMENT_RESPONSE_HEADER, encode_payment_response_header(refusal.settlement)))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="tollbook", error="invalid_token"'))
    if "retry_after_seconds" in refusal.details:
        headers.append(_header("Retry-After", str(refusal.details["retry_after_seconds"])))
    content = json.dumps(body).encode()
    headers += [(b"content-type", b"application/problem+json"), _header("Content-Length", str(len(content)))]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})


def _make_required(toll: Toll, scope: Scope, refusal: Refusal) -> PaymentRequired:
    code = refusal.code if isinstance(refusal, PaymentRefused) else refusal.sentence
    if isinstance(refusal, TokenExpired | TokenSpent):
        code = refusal.reason
    return PaymentRequired(
        error=code,
        resource=ResourceInfo(
            url=_read_url(scope), description=toll.terms.description, mime_type=toll.terms.mime_type
        ),
        accepts=[option.requirements for option in toll.options],
        extensions={EXTENSION: _make_challenge(toll)},
    )


def _make_challenge(toll: Toll) -> dict[str, object]:
    """What clients send back with the payment: its route, and a secret that no chain will show."""
    info = {"route": toll.key, "challenge": secrets.token_urlsafe(CHALLENGE_BYTES)}
    return {"info": info, "schema": CHALLENGE_SCHEMA}


def _read_url(scope: Scope) -> str:
    host = next((value for name, value in scope["headers"] if name == b"host"), None)
    server = scope.get("server") or ("localhost", None)
    name = host.decode("latin-1") if host else ":".join(str(part) for part in server if part is not None)
    path = scope.get("raw_path") or scope["path"].encode()
    return f"{scope.get('scheme', 'http')}://{name}{path.decode('latin-1')}"


def _count_remaining(admission: Admission, status: int) -> int:
    """A failed request was given back."""
    return admission.requests_remaining + (status >= SERVER_ERROR)


def _make_receipt(purchase: Purchase, remaining: int) -> Headers:
    """PAYMENT-RESPONSE with what was bought, and the token as a header of its own."""
    bought: dict[str, object] = {
        "paymentId": ids.show("pay", purchase.payment.payment_id),
        "requestsRemaining": remaining,
        "expiresAt": purchase.grant.token.expires_at.isoformat(),
    }
    headers: Headers = [_remaining_header(remaining)]
    if remaining:
        bought |= {"accessToken": purchase.grant.secret, "tokenType": "Bearer"}
        headers.append(_header(TOKEN_HEADER, purchase.grant.secret))
    extensions = {**(purchase.settlement.extensions or {}), EXTENSION: bought}
    answer: SettleResponse = purchase.settlement.model_copy(update={"extensions": extensions})
    return [*headers, _header(PAYMENT_RESPONSE_HEADER, encode_payment_response_header(answer))]


def _with_paid_headers(app_headers: Any, paid: Headers) -> Headers:
    """What was paid for is the payer's: no shared cache may keep it."""
    directives: list[bytes] = []
    rest: Headers = []
    for name, value in app_headers:
        if name.lower() == b"cache-control":
            directives += [each.strip() for each in value.split(b",")]
        else:
            rest.append((name, value))
    kept = [each for each in directives if each and each not in (b"public", b"private")]
    control = b", ".join([b"private", *(each for each in kept if not each.startswith(b"s-maxage"))])
    return [*rest, (b"cache-control", control), (b"access-control-expose-headers", EXPOSED_HEADERS), *paid]


def _find_endpoint(toll: Toll, scope: Scope) -> str:
    """The route that served the request as its framework names it, or else the toll's key."""
    path = getattr(scope.get("route"), "path", None)
    return f"{scope['method']} {path}" if path else toll.key


def _remaining_header(remaining: int) -> tuple[bytes, bytes]:
    return _header(REMAINING_HEADER, str(remaining))


def _header(name: str, value: str) -> tuple[bytes, bytes]:
    return name.lower().encode(), value.encode("latin-1")
