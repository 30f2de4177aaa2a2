"""The socket that servers listen on."""

import asyncio
import socket

from fixtures.running import find_port
from tollbook.entrypoints.serving import listening


async def test_an_answer_s_body_does_not_wait_until_its_head_is_acknowledged() -> None:
    """Nagle's algorithm held each answer on an open connection back for 40 ms."""
    delayed = asyncio.get_running_loop().create_future()

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = writer.get_extra_info("socket")
        delayed.set_result(not there.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with listening("127.0.0.1", port := find_port()) as listener:
        async with await asyncio.start_server(accept, sock=listener):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            assert not await delayed
            writer.close()
