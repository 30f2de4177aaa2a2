"""Webhooks to a sink on this machine: deliveries per second beside a bare httpx client, and how late."""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import aiohttp
import httpx
import psycopg
from standardwebhooks import Webhook

import tollbook
from tollbook.core import clock, journal
from tollbook.core.database import Database
from tollbook.core.journal import Fact
from tollbook.core.settings import Settings
from tollbook.core.webhooks import jobs, rules, subscriptions
from tollbook.core.webhooks.sender import WINDOW_MAX
from tollbook.core.webhooks.signing import make_secret, sign
from tollbook.embedded import throwaway

SOURCE = Path(tollbook.__file__).parent
MIGRATIONS = (SOURCE / "core" / "migrations", SOURCE / "books" / "payments" / "migrations")
EVENTS = 10_000
EVENTS_A_COMMIT = 100
POSTS = 2_000
AT_ONCE = (1, 8, WINDOW_MAX)
ENDPOINTS = 10
RATE = 100
SECONDS = 20
GOAL = 0.7
WAIT_SECONDS_MAX = 120
KEY = "5a" * 32


class Sink(asyncio.Protocol):
    """An HTTP server that answers 200 to everything, and notes when what was recorded when arrived."""

    late: list[float] = []  # noqa: RUF012 - one for all connections
    count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the line."""
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer each whole request in the buffer."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or b"0")
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        said = b"ok"
        if head.startswith(b"get"):
            said = json.dumps({"count": Sink.count, "late": Sink.late}).encode()
            Sink.count, Sink.late = (0, []) if b"reset" in head.split(b"\r\n")[0] else (Sink.count, Sink.late)
        else:
            Sink.count += 1
            at = body.partition(b'"timestamp":"')[2][:27].decode()
            Sink.late.append(time.time() - datetime.fromisoformat(at).timestamp())
        assert isinstance(self.transport, asyncio.Transport)
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(said), said))


async def serve() -> None:
    """Serve the sink, and say where."""
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def count(sink: str) -> int:
    """How much has arrived, without asking for more than that."""
    async with aiohttp.ClientSession() as session, session.get(f"{sink}/stats") as answer:
        return int((await answer.json(content_type=None))["count"])


async def collect(sink: str) -> list[float]:
    """How late each was, and begin anew."""
    async with aiohttp.ClientSession() as session, session.get(f"{sink}/reset") as answer:
        return list((await answer.json(content_type=None))["late"])


def make_fact(number: int) -> Fact:
    """A fact as payments write them, each of its own subject."""
    return Fact(
        "payments", "payment.settled", f"pay_{number}", "eip155:8453", "0x" + "a" * 40, 10_000,
        "0x" + "b" * 40, "0x" + "c" * 40,
        {"tx_hash": "0x" + "d" * 64, "endpoint": "GET /weather/{city}", "requests": 100},
    )  # fmt: skip


async def post_bare(sink: str, at_once: int) -> float:
    """The limit: the same body, signed beforehand, by httpx, as many at once as that."""
    entry = journal.Entry(journal.Position(1, 1, 1), clock.now(), make_fact(1))
    body = rules.write_body("payments.payment.settled", clock.now(), rules.describe(entry))
    headers = sign([Webhook(make_secret())], "msg_" + "a" * 26, body, now=clock.now())
    left = iter(range(POSTS))
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(limits=limits, headers={"content-type": "application/json"}) as client:

        async def work() -> None:
            for _ in left:
                answer = await client.post(sink, content=body.encode(), headers=headers)
                assert answer.status_code == 200

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(at_once)))
        return POSTS / (time.perf_counter() - began)


@asynccontextmanager
async def telling(database: Database) -> AsyncGenerator[None]:
    """The service of the worker, as it runs there."""
    stop = asyncio.Event()
    running = asyncio.create_task(jobs.tell(database, Settings(), stop))
    try:
        yield
    finally:
        stop.set()
        await running


async def subscribe(database: Database, sink: str, endpoints: int) -> None:
    """So many endpoints for everything of payments, and none besides."""
    async with database.write() as tx:
        for one in await subscriptions.find_all(tx):
            await subscriptions.remove(tx, one.subscription_id)
        for number in range(endpoints):
            await subscriptions.create(
                tx,
                url=f"{sink}/{number}",
                event_types=["payments.*"],
                key=bytes.fromhex(KEY),
                now=clock.now(),
            )


async def deliver(database: Database, sink: str, endpoints: int) -> float:
    """From the journal to the sink, everything that a worker does; deliveries a second."""
    await subscribe(database, sink, endpoints)
    events = EVENTS // endpoints
    for first in range(0, events, EVENTS_A_COMMIT):
        async with database.write() as tx:
            await journal.append(tx, [make_fact(first + n) for n in range(EVENTS_A_COMMIT)])
    began = time.perf_counter()
    async with asyncio.timeout(WAIT_SECONDS_MAX), telling(database):
        while await count(sink) < events * endpoints:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
        elapsed = time.perf_counter() - began
    await collect(sink)
    return events * endpoints / elapsed


async def measure_lag(database: Database, sink: str) -> tuple[float, float, int]:
    """p50 and p99 in milliseconds, from the fact's writing to its arrival, at RATE events a second."""
    await subscribe(database, sink, 1)
    async with asyncio.timeout(WAIT_SECONDS_MAX), telling(database):
        await asyncio.sleep(2)
        await collect(sink)
        began = time.perf_counter()
        for number in range(RATE * SECONDS):
            await asyncio.sleep(max(0, began + number / RATE - time.perf_counter()))
            async with database.write() as tx:
                await journal.append(tx, [make_fact(number)])
        while await count(sink) < RATE * SECONDS:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    late = sorted(await collect(sink))
    return statistics.median(late) * 1000, late[int(len(late) * 0.99)] * 1000, len(late)


async def main() -> None:
    """Print the limit, what we deliver, and how late."""
    sinking = await asyncio.create_subprocess_exec(sys.executable, __file__, "sink", stdout=subprocess.PIPE)
    assert sinking.stdout is not None
    sink = f"http://127.0.0.1:{(await sinking.stdout.readline()).decode().strip()}"
    try:
        with throwaway() as server:
            for file in (file for folder in MIGRATIONS for file in sorted(folder.glob("*.up.sql"))):
                with psycopg.connect(server.url()) as connection:
                    connection.execute(file.read_bytes())
            async with Database(server.url()) as database:
                bare = {at_once: await post_bare(sink, at_once) for at_once in AT_ONCE}
                await collect(sink)
                rates = {endpoints: await deliver(database, sink, endpoints) for endpoints in (1, ENDPOINTS)}
                p50, p99, events = await measure_lag(database, sink)
    finally:
        sinking.kill()
        await sinking.wait()
    base = max(bare.values())
    for at_once, rate in bare.items():
        print(f"{f'bare httpx, {at_once} at once':50}{rate:>8,.0f}/s")
    for endpoints, rate in rates.items():
        name = f"webhooks, journal to sink, {endpoints} endpoint(s)"
        print(f"{name:50}{rate:>8,.0f}/s   {rate / base:.2f} of the best of httpx, goal {GOAL}")
    print(f"{f'journal to delivery, {RATE} events/s, {events} events':50}p50 {p50:.1f} ms, p99 {p99:.1f} ms")


if __name__ == "__main__":
    os.environ |= {
        "TOLLBOOK_SECRET_KEY": KEY,
        "TOLLBOOK_WEBHOOKS_ALLOW_HTTP": "1",
        "TOLLBOOK_WEBHOOKS_ALLOW_NETWORKS": "127.0.0.0/8",
    }
    asyncio.run(serve() if sys.argv[1:] == ["sink"] else main())
