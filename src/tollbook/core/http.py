"""What every /v1 route shares: problems as RFC 9457 JSON, bounds, API keys, idempotent POSTs."""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Annotated, Any, cast

import psycopg
from fastapi import Depends, FastAPI, Request, Response, Security
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tollbook.core import clock, idempotency, ids, keys, telemetry
from tollbook.core.database import Database
from tollbook.core.errors import Refusal
from tollbook.core.idempotency import ANONYMOUS, Answer
from tollbook.core.keys import Key

PROBLEM = "application/problem+json"
BODY_BYTES_MAX = 256 * 1024
ERRORS_MAX = 20
UNSTORABLE_STATES = (None, "22021")  # psycopg found the NUL itself, or the server found bad UTF-8
KEPT_HEADERS = ("content-type", "location")
REQUEST_ID_HEADER = b"x-request-id"

logger = logging.getLogger(__name__)

_bearer = HTTPBearer(auto_error=False, scheme_name="apiKey", description="An API key: tbkey_…")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


class BodyTooLarge(Refusal):
    """The request's body is beyond the bound."""

    reason = "body-too-large"
    status = 413


class Problem(BaseModel):
    """RFC 9457: what went wrong, a stable type, and what to do next. More members may follow."""

    type: str = Field(examples=["urn:tollbook:problem:key-unknown"])
    title: str
    status: int
    detail: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem (RFC 9457).",
        "content": {PROBLEM: {"schema": Problem.model_json_schema()}},
    }
}


class TextUnstorable(Refusal):
    """A text has what PostgreSQL's text cannot have."""

    reason = "text-unstorable"
    status = 422


class IdMalformed(Refusal):
    """The id in the path is not an id."""

    reason = "id-malformed"
    status = 404


def read_id(prefix: str, shown: str) -> int:
    """The number behind an id in a path. Raises IdMalformed, a 404: nothing can be there."""
    number = ids.read(prefix, shown)
    if number is None:
        raise IdMalformed(f"Not an id: {shown[:40]!r}. It has the form {ids.show(prefix, 0)}.")
    return number


def get_database(request: Request) -> Database:
    """The app's database, for routes: `database: Base`."""
    return cast(Database, request.app.state.database)


Base = Annotated[Database, Depends(get_database)]


def install(app: FastAPI, database: Database, streams: Collection[str] = ()) -> None:
    """Give the app its database, its problem answers, and its frame (bounds, request ids, metrics).

    The routes at the paths `streams` read their bodies as they come, and bound them themselves.
    """
    app.state.database = database
    app.add_exception_handler(Refusal, cast(Any, _answer_refusal))
    app.add_exception_handler(RequestValidationError, cast(Any, _answer_invalid))
    app.add_exception_handler(psycopg.DataError, cast(Any, _answer_unstorable))
    app.add_exception_handler(HTTPException, cast(Any, _answer_http))
    app.add_middleware(Frame, tracer=telemetry.make_tracer(), streams=streams)


def answer_problem(problem: dict[str, object], headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem object as the answer it is."""
    status = cast(int, problem["status"])
    return JSONResponse(jsonable_encoder(problem), status, headers, media_type=PROBLEM)


def require(scope: str) -> Any:
    """The dependency of a route that only a key with `scope` may call; it gives the Key."""

    async def check(request: Request, credentials: Credentials) -> Key:
        key = await _identify(request, credentials.credentials if credentials else "")
        if not key.allows(scope):
            raise keys.ScopeMissing(f"This API key lacks the scope {scope}. Ask for a key that has it.")
        return key

    return Depends(check)


async def find_caller(request: Request, credentials: Credentials) -> Key | None:
    """The key a request comes with, None when it comes with none: for routes that are open to all."""
    return await _identify(request, credentials.credentials) if credentials else None


Caller = Annotated[Key | None, Depends(find_caller)]


def _read_new_id(request: Request) -> int:
    return getattr(request.state, "new_id", None) or ids.make()


# The id of what a POST makes: the same when it is sent again by its Idempotency-Key after its process died.
NewId = Annotated[int, Depends(_read_new_id)]


class IdempotentRoute(APIRoute):
    """A route whose POSTs may be sent again with the same Idempotency-Key: see core/idempotency."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, inside idempotency.run where the request brings a key."""
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            key = request.headers.get(idempotency.HEADER)
            if key is None or request.method != "POST":
                return await inner(request)
            return await _handle_once(request, key, inner)

        return handle


async def _handle_once(
    request: Request, key: str, inner: Callable[[Request], Awaitable[Response]]
) -> Response:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    # Before anything is replayed: a key that was revoked since gets no answer again.
    caller = (await _identify(request, secret)).key_id if scheme.lower() == "bearer" else ANONYMOUS
    target = f"{request.url.path}?{request.url.query}"

    async def handle(new_id: int) -> Answer:
        request.state.new_id = new_id
        response = await inner(request)
        kept = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
        return Answer(response.status_code, kept, bytes(response.body))

    answer = await idempotency.run(
        get_database(request),
        caller=caller,
        key=key,
        request_hash=idempotency.hash_request(request.method, target, await request.body()),
        handle=handle,
        now=clock.now(),
    )
    replayed = {idempotency.REPLAYED_HEADER: "true"} if answer.replayed else {}
    return Response(answer.body, answer.status, {**answer.headers, **replayed})


async def _identify(request: Request, secret: str) -> Key:
    known = getattr(request.state, "key", None)
    if known is None:
        known = await keys.authenticate(get_database(request), secret, now=clock.now())
        request.state.key = known
    return cast(Key, known)


async def _answer_refusal(_: Request, refusal: Refusal) -> Response:
    telemetry.REFUSALS.labels(refusal.reason).inc()
    headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
    if "retry_after_seconds" in refusal.details:
        headers["Retry-After"] = str(refusal.details["retry_after_seconds"])
    return answer_problem(refusal.problem(), headers)


async def _answer_invalid(_: Request, invalid: RequestValidationError) -> Response:
    # Not the input itself: it may hold a secret.
    errors = [
        {"field": ".".join(str(part) for part in error["loc"]), "message": str(error["msg"])}
        for error in invalid.errors()[:ERRORS_MAX]
    ]
    return answer_problem(
        {
            "type": "urn:tollbook:problem:request-invalid",
            "title": "request invalid",
            "status": 422,
            "detail": "The request cannot be understood: see errors, mend those fields and send it again.",
            "errors": errors,
        }
    )


async def _answer_unstorable(request: Request, error: psycopg.DataError) -> Response:
    if error.sqlstate not in UNSTORABLE_STATES:
        raise error
    return await _answer_refusal(request, TextUnstorable("A text holds NUL or is no Unicode. Mend it."))


async def _answer_http(request: Request, error: HTTPException) -> Response:
    reason = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "refused")
    return answer_problem(
        {
            "type": f"urn:tollbook:problem:{reason}",
            "title": reason.replace("-", " "),
            "status": error.status_code,
            "detail": f"{request.method} {request.url.path[:200]}: {error.detail}. See /docs.",
        },
        dict(error.headers or {}),
    )


class Frame:
    """The outermost layer: a request id, the body's bound, metrics, and an answer when something breaks."""

    def __init__(
        self, app: ASGIApp, tracer: telemetry.Tracer | None = None, streams: Collection[str] = ()
    ) -> None:
        self.app = app
        self.tracer = tracer
        self.streams = frozenset(streams)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request through the app."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, request_id, status = time.perf_counter(), f"req_{secrets.token_hex(12)}", 0

        async def framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID_HEADER, request_id.encode())]
            await send(message)

        try:
            with telemetry.span(self.tracer, f"{scope['method']} {scope['path']}"):
                await self._run(scope, receive, framed)
        except Exception:
            logger.exception("%s %s failed (%s)", scope["method"], scope["path"], request_id)
            if status:
                raise  # half an answer has left: the connection must break, so that nobody takes it whole
            await _unexpected(request_id)(scope, receive, framed)
        finally:
            _count(scope, status, time.perf_counter() - started)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in self.streams:
            await self.app(scope, receive, send)
            return
        try:
            body = await _read_bounded(receive)
        except BodyTooLarge as refusal:
            await answer_problem(refusal.problem())(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)


async def _read_bounded(receive: Receive) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as it is."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > BODY_BYTES_MAX:
            raise BodyTooLarge(f"A request's body has {BODY_BYTES_MAX} bytes at most. Send less.")
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _unexpected(request_id: str) -> Response:
    return answer_problem(
        {
            "type": "urn:tollbook:problem:unexpected",
            "title": "unexpected",
            "status": 500,
            "detail": f"Something broke here. Try again; if it persists, tell the operator {request_id}.",
            "request_id": request_id,
        }
    )


def _count(scope: Scope, status: int, seconds: float) -> None:
    # The route's template, not the path: a label must not grow with what callers invent.
    route = getattr(scope.get("route"), "path", "(none)")
    telemetry.HTTP_REQUESTS.labels(scope["method"], route, str(status)).inc()
    telemetry.LATENCY.labels("http").observe(seconds)
