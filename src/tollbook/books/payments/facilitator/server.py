"""The facilitator over HTTP: /verify, /settle, /supported, /healthz, /readyz, for servers in any language."""

import json
from typing import Any, cast

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from x402.mechanisms.evm.batch_settlement.errors import ERR_AUTHORIZER_NOT_CONFIGURED
from x402.mechanisms.evm.batch_settlement.types import is_enriched_refund_payload
from x402.schemas import PaymentPayload, SettleResponse, VerifyRequest, VerifyResponse

from tollbook.books.payments.facilitator.faults import ERR_INVALID_VERSION, X402_VERSION
from tollbook.books.payments.facilitator.in_process import Facilitator, SettlementUnknown
from tollbook.core.errors import Refusal

BODY_BYTES_MAX = 64 * 1024
RETRY_SECONDS = 5
PROBLEMS_MAX = 5  # of a malformed body's faults, those that are told
OLD_VERSION = 1
UNAVAILABLE = 503


class MalformedRequest(Exception):
    """A request body that is no x402 facilitator request."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason


class _OldVersion(Exception):
    """A well-meant request of x402 version 1."""


def facilitator_app(facilitator: Facilitator, *, signs_refunds: bool = False) -> Starlette:
    """Return the ASGI application of a facilitator. Whoever made the facilitator closes it.

    With `signs_refunds` it signs for sellers that a channel's money goes back to its payer. It cannot know
    what a seller is owed, so only sellers may then reach it: else a payer takes back what he has used up.

    Bodies are those of the x402 facilitator API, version 2: {x402Version, paymentPayload,
    paymentRequirements}. What is not known of a settlement is answered as `settlement_pending`.
    """

    async def verify(request: Request) -> Response:
        try:
            asked = await _read_request(request)
        except _OldVersion:
            return _answer(VerifyResponse(is_valid=False, invalid_reason=ERR_INVALID_VERSION))
        return _answer(await facilitator.verify(asked.payment_payload, asked.payment_requirements))

    async def settle(request: Request) -> Response:
        try:
            asked = await _read_request(request)
        except _OldVersion:
            return _answer(_fail_settlement("", ERR_INVALID_VERSION, None, ""))
        requirements = asked.payment_requirements
        if not signs_refunds and _is_unsigned_refund(asked.payment_payload):
            said = "Refunds are not signed for sellers here: send your own refundAuthorizerSignature."
            return _answer(_fail_settlement(requirements.network, ERR_AUTHORIZER_NOT_CONFIGURED, said, ""))
        try:
            return _answer(await facilitator.settle(asked.payment_payload, requirements))
        except SettlementUnknown as unknown:
            return _answer(
                _fail_settlement(unknown.network, unknown.error_reason, str(unknown), unknown.transaction)
            )

    async def supported(_: Request) -> Response:
        return _answer(await facilitator.supported())

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        await getattr(facilitator, "check_ready", facilitator.supported)()
        return JSONResponse({"status": "ready"})

    return Starlette(
        routes=[
            Route("/verify", verify, methods=["POST"]),
            Route("/settle", settle, methods=["POST"]),
            Route("/supported", supported, methods=["GET"]),
            Route("/healthz", healthz, methods=["GET"]),
            Route("/readyz", readyz, methods=["GET"]),
        ],
        exception_handlers={
            MalformedRequest: _tell_malformed,
            Refusal: _tell_refusal,
            HTTPException: _tell_http,
        },
    )


async def _read_request(request: Request) -> VerifyRequest:
    """Return the request of a body (that of /settle has the same shape). Raises MalformedRequest."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > BODY_BYTES_MAX:
            raise MalformedRequest(413, "body_too_large", f"Send at most {BODY_BYTES_MAX} bytes.")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise MalformedRequest(400, "malformed-body", "Send a JSON object.") from None
    if not isinstance(body, dict):
        raise MalformedRequest(400, "malformed-body", "Send a JSON object.")
    version = cast(dict[str, Any], body).get("x402Version")
    if version == OLD_VERSION:
        raise _OldVersion
    if version != X402_VERSION:
        raise MalformedRequest(400, ERR_INVALID_VERSION, f"Send x402Version {X402_VERSION}.")
    try:
        return VerifyRequest.model_validate(body)
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)[:PROBLEMS_MAX]
        ]
        raise MalformedRequest(400, "malformed-body", "; ".join(faults)) from None


def _is_unsigned_refund(payload: PaymentPayload) -> bool:
    body = payload.payload
    return is_enriched_refund_payload(body) and not body.get("refundAuthorizerSignature")


def _fail_settlement(network: str, reason: str, message: str | None, transaction: str) -> SettleResponse:
    return SettleResponse(
        success=False, error_reason=reason, error_message=message, transaction=transaction, network=network
    )


def _answer(model: Any) -> Response:
    return JSONResponse(model.model_dump(mode="json", by_alias=True, exclude_none=True))


def _make_problem(status: int, reason: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Return an RFC 9457 problem, with `reason` for programs and `detail` for people."""
    return JSONResponse(
        {"type": "about:blank", "title": reason, "status": status, "reason": reason, "detail": detail},
        status_code=status,
        headers=headers,
        media_type="application/problem+json",
    )


def _tell_malformed(_: Request, error: Exception) -> Response:
    assert isinstance(error, MalformedRequest)
    return _make_problem(error.status, error.reason, str(error))


def _tell_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    headers = {"Retry-After": str(RETRY_SECONDS)} if error.status == UNAVAILABLE else None
    return _make_problem(error.status, error.reason, str(error), headers)


def _tell_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return _make_problem(error.status_code, reason, error.detail, dict(error.headers or {}))
