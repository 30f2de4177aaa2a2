"""A node asked in batches: one HTTP request for many JSON-RPC calls, and three ways in which one may end."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import aiohttp

from tollbook.core.chains import MESSAGE_CHARS_MAX, ChainUnreachable

BATCH_MAX = 100  # what public nodes take at once
CONNECTIONS_MAX = 16
REQUEST_SECONDS_MAX = 10.0
CONNECT_SECONDS_MAX = 3.0
ANSWER_BYTES_MAX = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Said:
    """The node's answer to one call: its result, or what it said instead."""

    result: Any = None
    error: str | None = None
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One JSON-RPC call. Its parameters hold signatures, so it does not show them."""

    method: str
    params: tuple[object, ...] = ()

    def __repr__(self) -> str:
        return f"Ask({self.method!r})"


class NodeUnreachable(ChainUnreachable):
    """The node was not reached: the request surely never left."""


class AnswerLost(ChainUnreachable):
    """The request left and no usable answer came: what was asked may have been done."""


class Node:
    """A network's node. Its URL, which may hold a key, is never shown."""

    def __init__(self, network: str, url: str) -> None:
        self.network = network
        self._url = url
        self._batch_max = BATCH_MAX
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"Node({self.network!r})"

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def complain(self, why: str) -> AnswerLost:
        """The exception for an answer that is of no use."""
        return AnswerLost(self.network, self._url, why)

    async def ask(self, method: str, *params: object) -> Any:
        """The result of one call. Raises NodeUnreachable, AnswerLost; an error is an AnswerLost too."""
        said = (await self.ask_all([Ask(method, params)]))[0]
        if said.error is not None:
            raise self.complain(f"{method} was answered by {said.error}")
        return said.result

    async def ask_int(self, method: str, *params: object) -> int:
        """The result of one call that is a number."""
        return self.read_int(method, await self.ask(method, *params))

    def read_int(self, method: str, result: object) -> int:
        """A result as a number. Raises AnswerLost."""
        try:
            return int(cast(str, result), 16)
        except (TypeError, ValueError):
            raise self.complain(f"{method} was answered by nonsense") from None

    async def ask_all(self, asks: Sequence[Ask]) -> list[Said]:
        """What the node said to each call, in their order, at most BATCH_MAX in a request.

        Raises NodeUnreachable where nothing left, AnswerLost where a request's answer was lost.
        """
        said: list[Said] = []
        start, has_left = 0, False
        while start < len(asks):
            some = asks[start : start + self._batch_max]
            try:
                answer = await self._ask_some(some)
            except NodeUnreachable:
                if not has_left:
                    raise
                raise self.complain("it went away half-way") from None
            has_left = True
            if answer is None:
                self._batch_max = 1  # it knows no batches; or who stands before it gave up on this one
                continue
            said += answer
            start += len(some)
        return said

    async def _ask_some(self, asks: Sequence[Ask]) -> list[Said] | None:
        calls = [
            {"jsonrpc": "2.0", "id": number, "method": ask.method, "params": ask.params}
            for number, ask in enumerate(asks)
        ]
        answer = await self._post(json.dumps(calls if len(calls) > 1 else calls[0]))
        try:
            decoded: Any = json.loads(answer)
            if len(calls) > 1 and isinstance(decoded, dict) and "error" in decoded:
                return None
            items = cast(list[dict[str, Any]], decoded if isinstance(decoded, list) else [decoded])
            by_number = {item["id"]: item for item in items}
            return [_read(by_number[number]) for number in range(len(asks))]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise self.complain("no JSON-RPC came back") from None

    async def _post(self, body: str) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
                timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX, connect=CONNECT_SECONDS_MAX),
                headers={"content-type": "application/json"},
            )
        try:
            async with self._session.post(self._url, data=body, allow_redirects=False) as response:
                answer = bytearray()
                async for chunk in response.content.iter_any():
                    answer += chunk
                    if len(answer) > ANSWER_BYTES_MAX:
                        raise aiohttp.ClientPayloadError
                return bytes(answer)
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL, aiohttp.ConnectionTimeoutError) as error:
            raise NodeUnreachable(self.network, self._url, type(error).__name__) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            # from None: the library's own exceptions carry the whole URL.
            raise self.complain(type(error).__name__) from None


def _read(answer: dict[str, Any]) -> Said:
    error = answer.get("error")
    if error is None:
        return Said(result=answer["result"])
    if not isinstance(error, dict):
        return Said(error=str(error)[:MESSAGE_CHARS_MAX])
    fields = cast(dict[str, Any], error)
    code = fields.get("code")
    return Said(
        error=str(fields.get("message", "no message"))[:MESSAGE_CHARS_MAX],
        code=code if isinstance(code, int) else None,
    )
