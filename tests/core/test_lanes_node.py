"""A node asked in batches: what is sure of a request that ended badly."""

import asyncio

import pytest

from tollbook.core.lanes.node import AnswerLost, Ask, Node
from tollbook.core.local_chain import NETWORK

NO_BATCHES = b'{"jsonrpc": "2.0", "id": null, "error": {"code": -32000, "message": "upstream timed out"}}'


async def test_a_node_that_went_away_after_it_had_the_batch_may_have_done_it() -> None:
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        server.close()
        writer.write(b"HTTP/1.1 504 Gateway Timeout\r\nconnection: close\r\n")
        writer.write(b"content-length: %d\r\n\r\n%s" % (len(NO_BATCHES), NO_BATCHES))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    node = Node(NETWORK, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        with pytest.raises(AnswerLost):
            await node.ask_all([Ask("eth_sendRawTransaction", ("0x01",))] * 2)
    finally:
        await node.aclose()
        server.close()
