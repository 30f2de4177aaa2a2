"""A network's node as the facilitator asks it: questions that wait together travel in one request."""

import asyncio
import random
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tollbook.core import chains
from tollbook.core.chains import ChainUnreachable, Receipt, read_receipt
from tollbook.core.lanes import node as lanes_node
from tollbook.core.lanes.node import Ask, Said

ATTEMPTS_MAX = 3
WAIT_SECONDS_MAX = 1.0
BATCH_MAX = 50  # questions in one request
REQUESTS_MAX = 4  # under way at once; what comes meanwhile waits and is batched
WAITING_MAX = 10_000
LIMIT_EXCEEDED = -32005  # JSON-RPC, EIP-1474: the node's own 429
REVERT = 3  # JSON-RPC, EIP-1474
_REVERT = re.compile("revert", re.I)


class NodeFailed(Exception):
    """The node gave no answer. Its text never holds the node's URL."""


class CallReverted(Exception):
    """The chain's own answer to a call: it reverts. The text names the contract's reason, if it gave one."""


@dataclass(slots=True)
class _Waiting:
    ask: Ask
    said: "asyncio.Future[Said]" = field(repr=False)


class Node:
    """One network's node. Use it from one event loop, and close it."""

    def __init__(self, network: str, url: str) -> None:
        self.network = network
        self._name = chains.hide_credentials(url)
        self._node = lanes_node.Node(network, url)
        self._waiting: deque[_Waiting] = deque()
        self._requests: set[asyncio.Task[None]] = set()
        self._chain_checked = False

    def __repr__(self) -> str:
        return f"Node({self.network!r}, {self._name!r})"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._node.aclose()

    async def check_chain(self) -> None:
        """Refuse a node of another chain than its network's, once it answers. Raises NodeFailed."""
        if not self._chain_checked:
            told = f"eip155:{read_int(await self.ask('eth_chainId'))}"
            if told != self.network:
                raise NodeFailed(f"the node configured for {self.network} is one of {told}")
            self._chain_checked = True

    async def ask(self, method: str, *params: object) -> Any:
        """Return one question's answer. Raises NodeFailed, and CallReverted for a call that reverts."""
        (answer,) = await self.ask_all([Ask(method, params)])
        if isinstance(answer, CallReverted):
            raise answer
        return answer

    async def ask_all(self, asks: Sequence[Ask]) -> list[Any]:
        """Return the answers in order; one may be a CallReverted, as a value.

        Questions change nothing, so they are asked again where no answer comes. Raises NodeFailed.
        """
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                said = await asyncio.gather(*(self._enqueue(ask) for ask in asks))
                if attempt == ATTEMPTS_MAX or not any(one.code == LIMIT_EXCEEDED for one in said):
                    return [_read(one) for one in said]
            except ChainUnreachable as error:  # its text names the node's host, which is nobody's business
                if attempt == ATTEMPTS_MAX:
                    raise NodeFailed(f"it gave no answer ({type(error).__name__})") from None
            await asyncio.sleep(random.uniform(0, min(WAIT_SECONDS_MAX, 0.1 * 2**attempt)))  # noqa: S311
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def get_receipt(self, transaction_hash: str) -> Receipt | None:
        """Return a mined transaction's receipt; None where the node has none. Raises NodeFailed."""
        answer = await self.ask("eth_getTransactionReceipt", transaction_hash)
        try:
            return None if answer is None else read_receipt(answer)
        except Exception:  # whatever is wrong with it
            raise NodeFailed("it answered with no receipt") from None

    def _enqueue(self, ask: Ask) -> "asyncio.Future[Said]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Said] = loop.create_future()
        if len(self._waiting) >= WAITING_MAX:
            future.set_exception(NodeFailed("too many questions wait for it already"))
            return future
        self._waiting.append(_Waiting(ask, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        while self._waiting and len(self._requests) < REQUESTS_MAX:
            batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
            request = asyncio.create_task(self._send(batch))
            self._requests.add(request)
            request.add_done_callback(self._go_on)

    def _go_on(self, request: "asyncio.Task[None]") -> None:
        self._requests.discard(request)
        self._flush()

    async def _send(self, batch: list[_Waiting]) -> None:
        try:
            answers: Sequence[Said | Exception] = await self._node.ask_all([one.ask for one in batch])
        except Exception as error:  # whatever it is, nobody must wait for ever
            answers = [error] * len(batch)
        for one, answer in zip(batch, answers, strict=True):
            if one.said.done():  # whoever asked has gone
                continue
            if isinstance(answer, Exception):
                one.said.set_exception(answer)
            else:
                one.said.set_result(answer)


def _read(said: Said) -> Any:
    if said.error is None:
        return said.result
    if said.code == REVERT or _REVERT.search(said.error):
        text = said.error if _REVERT.search(said.error) else f"execution reverted: {said.error}"
        return CallReverted(text)
    raise NodeFailed(f"it answered: {said.error}")


def read_int(answer: object) -> int:
    """Return the number a node answered. Raises NodeFailed for anything else."""
    try:
        return int(cast(str, answer), 16)
    except (TypeError, ValueError):
        raise NodeFailed("it answered with no number") from None


def read_bytes(answer: object) -> bytes:
    """Return the bytes a node answered. Raises NodeFailed for anything else."""
    try:
        return bytes.fromhex(cast(str, answer).removeprefix("0x"))
    except (AttributeError, TypeError, ValueError):
        raise NodeFailed("it answered with no bytes") from None
