"""The answer to a stream of commands: it reads what comes and tells what became of it, both at once."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tollbook.books.settlement import bulk
from tollbook.core.database import Database
from tollbook.core.errors import Refusal

NDJSON = "application/x-ndjson"
RESULTS_BYTES_MAX = 64 * 1024 * 1024  # told and not read yet
STALL_SECONDS_MAX = 60.0  # between two parts of a stream


class StreamStalled(Refusal):
    """Nothing more came, and no end."""

    reason = "stream-stalled"
    status = 408


class ClientGone(Exception):
    """Nobody is there to be answered."""


class Results(Response):
    """Reading never waits for a client that sends all before it reads: what is told waits meanwhile.

    Starlette's StreamingResponse would read the request itself, to learn whether the client has gone.
    """

    media_type = NDJSON

    def __init__(self, database: Database) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._database = database
        self._begun = False
        self._told = bytearray()
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer it. The head leaves with the first results, so that a refusal before them is one."""
        taking = asyncio.create_task(self._take(receive))
        try:
            await self._send(taking, send)
        except ClientGone:
            return
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    async def _send(self, taking: asyncio.Task[None], send: Send) -> None:
        while not taking.done() or self._told:
            await self._news.wait()
            self._news.clear()
            part, self._told = bytes(self._told), bytearray()
            self._room.set()
            if part and not self._begun:
                self._begun = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if part:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        taking.result()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _take(self, receive: Receive) -> None:
        try:
            counts = await bulk.take_stream(self._database, _read_parts(receive), self._tell)
            await self._tell(bulk.show_end(counts))
        except Refusal as refusal:
            if not self._begun and not self._told:
                raise
            await self._tell(bulk.show_refusal(refusal))
        finally:
            self._news.set()

    async def _tell(self, results: bytes) -> None:
        self._told += results
        self._news.set()
        while len(self._told) > RESULTS_BYTES_MAX:
            self._room.clear()
            await self._room.wait()


async def _read_parts(receive: Receive) -> AsyncGenerator[bytes]:
    """The body's parts. Raises StreamStalled, ClientGone."""
    more = True
    while more:
        try:
            async with asyncio.timeout(STALL_SECONDS_MAX):
                message = await receive()
        except TimeoutError:
            raise StreamStalled(
                f"Nothing came for {STALL_SECONDS_MAX:.0f} s. What was told is kept; send the rest again."
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        more = message.get("more_body", False)
