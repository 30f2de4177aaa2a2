"""The paywall's side of the wire: x402 version 2 over HTTP, as headers and problem JSON.

PAYMENT-REQUIRED, PAYMENT-SIGNATURE and PAYMENT-RESPONSE are x402's (HTTP transport); PAYMENT-TOKEN,
PAYMENT-REQUESTS-REMAINING and PAYMENT-REPLAYED are ours.
"""

import json
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from x402.http.constants import (
    PAYMENT_REQUIRED_HEADER,
    PAYMENT_RESPONSE_HEADER,
    PAYMENT_SIGNATURE_HEADER,
)
from x402.http.utils import encode_payment_required_header, encode_payment_response_header
from x402.schemas import PaymentRequired, PaymentRequirements, ResourceInfo, SettleResponse

from tollbook.books.payments.answers import EXTENSION, Answer, Headers
from tollbook.books.payments.errors import TokenExpired, TokenSpent
from tollbook.books.payments.purchases import AnswerGone, PaymentRefused, Purchase
from tollbook.books.payments.rules import Toll
from tollbook.core import ids, telemetry
from tollbook.core.errors import Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_HEADER = "PAYMENT-TOKEN"  # noqa: S105 - a header's name
REMAINING_HEADER = "PAYMENT-REQUESTS-REMAINING"
REPLAYED_HEADER = "PAYMENT-REPLAYED"
SIGNATURE_HEADER = PAYMENT_SIGNATURE_HEADER.lower().encode()
RECEIPT_HEADERS = tuple(
    name.lower().encode() for name in (PAYMENT_RESPONSE_HEADER, TOKEN_HEADER, REMAINING_HEADER)
)
EXPOSED_HEADERS = ", ".join(
    (PAYMENT_REQUIRED_HEADER, PAYMENT_RESPONSE_HEADER, TOKEN_HEADER, REMAINING_HEADER, REPLAYED_HEADER)
).encode()
BODY_HEADERS = (b"content-length", b"transfer-encoding")
REQUEST_BYTES_MAX = 1024 * 1024  # of a request's body, that a payment is bound to
CHALLENGE_BYTES = 24
CHALLENGE_SCHEMA = {
    "type": "object",
    "properties": {"route": {"type": "string"}, "challenge": {"type": "string"}},
    "required": ["route", "challenge"],
}
SERVER_ERROR = 500


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


class RequestBroken(Refusal):
    """The client went away before its request was whole: a payment would be bound to a part of it."""

    reason = "request-broken"
    status = 400

    def __init__(self) -> None:
        super().__init__("The request broke off before its end, and nothing was paid. Send it again, whole.")


class HandlerFailed(Refusal):
    """The app raised after its payment was settled: the request is given back, the token is in the answer."""

    reason = "handler-failed"
    status = SERVER_ERROR

    def __init__(self) -> None:
        super().__init__("The request failed and was not counted. Try again with the access token.")


def read_headers(scope: Scope) -> dict[bytes, bytes]:
    wanted = (b"authorization", SIGNATURE_HEADER, *BODY_HEADERS)
    return {name: value for name, value in scope["headers"] if name in wanted}


async def read_body(headers: Mapping[bytes, bytes], scope: Scope, receive: Receive) -> tuple[bytes, Receive]:
    """Return the body, or its beginning where it is long, and a `receive` that gives it to the app.

    From HTTP/2 on a body needs no header. Raises RequestBroken.
    """
    is_framed = scope.get("http_version", "1.1") >= "2"
    if not is_framed and not any(name in headers for name in BODY_HEADERS):
        return b"", receive
    messages: deque[Message] = deque()
    size = 0
    while size < REQUEST_BYTES_MAX:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestBroken
        messages.append(message)
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            break
    body = b"".join(message.get("body", b"") for message in messages)[:REQUEST_BYTES_MAX]

    async def receive_again() -> Message:
        return messages.popleft() if messages else await receive()

    return body, receive_again


async def answer_again(answer: Answer, toll: Toll, scope: Scope, send: Send) -> None:
    """Give a paid answer again; of one that was too long to be kept, what was bought with it."""
    if not answer.whole:
        receipt = [(name, value) for name, value in answer.headers if name in RECEIPT_HEADERS]
        await refuse(toll, scope, send, AnswerGone(), receipt)
        return
    again = [] if answer.first else [(REPLAYED_HEADER.lower().encode(), b"true")]
    headers = [*answer.headers, *again]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def refuse(
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
        accepts=_list_terms(toll, refusal),
        extensions={EXTENSION: _make_challenge(toll)},
    )


def _list_terms(toll: Toll, refusal: Refusal) -> list[PaymentRequirements]:
    """The ways to pay; where a payer has to catch up with his channel, that way says how far it is."""
    corrected = refusal.terms if isinstance(refusal, PaymentRefused) else None
    every = [option.requirements for option in toll.options]
    if corrected is None:
        return every
    place = (corrected.network, corrected.asset, corrected.pay_to)
    return [corrected if (one.network, one.asset, one.pay_to) == place else one for one in every]


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


def make_receipt(purchase: Purchase, remaining: int) -> Headers:
    """PAYMENT-RESPONSE with what was bought, and the token as a header of its own."""
    bought: dict[str, object] = {
        "paymentId": ids.show("pay", purchase.payment.payment_id),
        "requestsRemaining": remaining,
        "expiresAt": purchase.grant.token.expires_at.isoformat(),
    }
    headers: Headers = [remaining_header(remaining)]
    if remaining:
        bought |= {"accessToken": purchase.grant.secret, "tokenType": "Bearer"}
        headers.append(_header(TOKEN_HEADER, purchase.grant.secret))
    extensions = {**(purchase.settlement.extensions or {}), EXTENSION: bought}
    answer: SettleResponse = purchase.settlement.model_copy(update={"extensions": extensions})
    return [*headers, _header(PAYMENT_RESPONSE_HEADER, encode_payment_response_header(answer))]


def with_paid_headers(app_headers: Any, paid: Headers) -> Headers:
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


def remaining_header(remaining: int) -> tuple[bytes, bytes]:
    return _header(REMAINING_HEADER, str(remaining))


def _header(name: str, value: str) -> tuple[bytes, bytes]:
    return name.lower().encode(), value.encode("latin-1")
