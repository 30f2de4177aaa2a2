"""Paid requests over HTTP, each with a durable usage row, against the same app without the paywall."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from tollbook import embedded
from tollbook.books.payments import payments, tokens
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.books.payments.wire import App, Receive, Scope, Send
from tollbook.core.database import Database
from tollbook.migrate import Folder, apply

SOURCE = Path(__file__).parents[1] / "src" / "tollbook"
ROUNDS = 5
SECONDS = 3
CONNECTIONS = 256
QUOTA = 1_000_000_000
GOALS = {"bare ASGI": 0.6, "FastAPI": 0.9}
APPS = {"bare ASGI": "bare", "FastAPI": "fastapi"}


def make_app() -> App:
    """The app that uvicorn serves in the child process, chosen by BENCH_APP and BENCH_DATABASE_URL."""

    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    app: App = bare
    if os.environ["BENCH_APP"] == "fastapi":
        from fastapi import FastAPI

        app = api = FastAPI()

        @api.get("/hello")
        async def hello() -> str:  # pyright: ignore[reportUnusedFunction] - FastAPI has it
            return "ok"

    url = os.environ.get("BENCH_DATABASE_URL")
    if not url:
        return app
    payee = Payee("eip155:8453", "0x" + "22" * 20)
    return Paywall(
        app, routes={"GET /hello": PaidRoute("$0.01")}, payees=[payee],
        facilitator="http://127.0.0.1:9", database_url=url,
    )  # fmt: skip


async def sell_token(url: str) -> str:
    """A settled payment's access token, with a quota that no run exhausts."""
    now = datetime.now(UTC)
    offer = payments.Offer(
        network="eip155:8453", chain="base", asset="0x" + "11" * 20, decimals=6, amount=10_000,
        from_address="0x" + "33" * 20, to_address="0x" + "22" * 20, nonce="0x" + secrets.token_hex(32),
        tx_hash=None, scheme="exact", endpoint="GET /hello", requests_allocated=QUOTA,
        lifetime=timedelta(hours=1), valid_before=now + timedelta(minutes=1),
    )  # fmt: skip
    async with Database(url) as database, database.write() as tx:
        payment = await payments.reserve(tx, offer, now=now)
        await payments.settle(
            tx, payment.payment_id, tx_hash=None, block_number=None, confirmations=None, now=now
        )
        return (await tokens.issue(tx, payment.payment_id, now=now)).secret


@contextlib.contextmanager
def serving(app: str, url: str | None) -> Generator[int]:
    """The app in a process of its own, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"BENCH_APP": app, "BENCH_DATABASE_URL": url or ""}
    command = [
        sys.executable, "-m", "uvicorn", "--factory", "paid_http:make_app",
        "--app-dir", str(Path(__file__).parent),
        "--port", str(port), "--log-level", "error", "--no-access-log",
    ]  # fmt: skip
    server = subprocess.Popen(command, env=environment)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(20)


def load(port: int, secret: str, seconds: float, path: str = "/hello") -> float:
    """Requests a second that were answered 200, by CONNECTIONS keep-alive connections in a closed loop."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return asyncio.run(_load(port, secret, seconds, path))
    command = [
        wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "-H", f"Authorization: Bearer {secret}",
        f"http://127.0.0.1:{port}{path}",
    ]  # fmt: skip
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in report:
        raise RuntimeError(report)
    return float(report.partition("Requests/sec:")[2].split()[0])


async def _load(port: int, secret: str, seconds: float, path: str) -> float:
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {secret}\r\n\r\n".encode()
    end = time.monotonic() + seconds
    counts = await asyncio.gather(*(_ask(port, request, end) for _ in range(CONNECTIONS)))
    return sum(counts) / seconds


async def _ask(port: int, request: bytes, end: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    count = 0
    while time.monotonic() < end:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        count += 1
    writer.close()
    return count


def main() -> None:
    """Print, for each kind of app, requests a second with and without the paywall and their ratio."""
    with embedded.throwaway() as server:
        url = server.url()
        apply(url, [Folder("core", SOURCE / "core/migrations"),
                    Folder("payments", SOURCE / "books/payments/migrations")], backup=False)  # fmt: skip
        secret = asyncio.run(sell_token(url))
        tool = "wrk" if shutil.which("wrk") else "a Python load generator, itself the limit: install wrk"
        print(f"paid over HTTP, {CONNECTIONS} connections, medians of {ROUNDS} rounds of {SECONDS} s, {tool}")
        for name, app in APPS.items():
            ratios: list[float] = []
            unprotected: list[float] = []
            free_rates: list[float] = []
            paid_rates: list[float] = []
            with serving(app, None) as free, serving(app, url) as paid:
                for port in (free, paid):
                    load(port, secret, 1)
                for _ in range(ROUNDS):
                    free_rates.append(load(free, secret, SECONDS))
                    paid_rates.append(load(paid, secret, SECONDS))
                    ratios.append(paid_rates[-1] / free_rates[-1])
                    if app == "bare":
                        unprotected.append(load(paid, secret, SECONDS, "/free") / free_rates[-1])
            print(json.dumps({
                "app": name, "free_per_second": round(statistics.median(free_rates)),
                "paid_per_second": round(statistics.median(paid_rates)),
                "ratio": round(statistics.median(ratios), 3), "goal": GOALS[name],
            }))  # fmt: skip
            if unprotected:
                print(f"an unprotected route keeps {statistics.median(unprotected):.3f} of the app's rate")
        with psycopg.connect(url) as connection:
            row = connection.execute(
                "SELECT (SELECT sum(requests_used) FROM payments.x402_payments),"
                " (SELECT count(*) FROM payments.x402_usage)"
            ).fetchone()
        print(f"requests taken from the quota, and usage rows on disk: {row}")


if __name__ == "__main__":
    main()
