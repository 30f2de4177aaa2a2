"""The broken line between a shop and its facilitator: a proxy that loses or garbles answers to /settle."""

import asyncio
import json
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import stage

JSON = "application/json"
PAGE = "<html><body>Service temporarily unavailable</body></html>"


@dataclass
class Line:
    """`fault` names what happens to the next answers of /settle; None: nothing.

    timeout, garbage (an HTML 502), non_json (an HTML 200) and http503 (a 503 with a stale success) do not
    reach the facilitator; truncated reaches it, and its answer is cut in half.
    """

    url: str = ""
    fault: str | None = None
    faults_played: list[str] = field(default_factory=list)


@contextmanager
def play_line(facilitator_url: str, silence_seconds: float) -> Generator[Line]:
    """Yield the line to a facilitator; a timeout is a silence of so many seconds."""
    line = Line()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[dict[str, httpx.AsyncClient]]:
        async with httpx.AsyncClient(base_url=facilitator_url, timeout=60) as client:
            yield {"client": client}

    async def forward(request: Request) -> Response:
        body = await request.body()
        fault = line.fault if request.url.path == "/settle" else None
        if fault is not None:
            line.faults_played.append(fault)
        if fault == "timeout":
            await asyncio.sleep(silence_seconds)
        if fault in ("timeout", "garbage"):
            return Response("<html>502</html>", 502, media_type="text/html")
        if fault == "non_json":
            return Response(PAGE, media_type="text/html")
        if fault == "http503":
            return Response(_make_stale_success(body), 503, media_type=JSON)
        client: httpx.AsyncClient = request.state.client
        answer = await client.request(
            request.method, request.url.path, content=body, headers={"Content-Type": JSON}
        )
        content = answer.content[: len(answer.content) // 2] if fault == "truncated" else answer.content
        return Response(content, answer.status_code, media_type=JSON)

    routes = [Route("/{rest:path}", forward, methods=["GET", "POST"])]
    with stage.serve(Starlette(routes=routes, lifespan=lifespan)) as line.url:
        yield line


def _make_stale_success(body: bytes) -> str:
    asked = json.loads(body)
    nonce = asked["paymentPayload"]["payload"]["authorization"]["nonce"]
    network = asked["paymentRequirements"]["network"]
    return json.dumps({"success": True, "transaction": nonce, "network": network})
