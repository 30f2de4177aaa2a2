"""Commands taken in, over HTTP, against a plain COPY of the same rows into the same table.

A line is parsed, checked, given one spelling and hashed; inserted once, whatever is sent again; told to the
journal; and answered when it is on disk. COPY is measured twice, with rows that are ready: with the table's
triggers off, when nobody is told of them, and with them on.
"""

import asyncio
import gc
import json
import multiprocessing
import socket
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import psycopg
import uvicorn
from eth_utils.address import to_checksum_address

from tollbook.books.settlement import intake, requests
from tollbook.books.settlement.routes import BULK
from tollbook.core import clock, keys
from tollbook.core.database import Database
from tollbook.embedded import throwaway
from tollbook.entrypoints.api import create_api
from tollbook.entrypoints.migrations import find_folders
from tollbook.migrate import apply

ROUNDS = 3
LINES = 50_000
PAYEES = 1_000
SINGLES = 1_500
CLIENTS = 32
GOAL = 0.5
COLUMNS = (
    "command_id, workflow_id, account_ref, payer, payee, asset_symbol, amount_numeric, chain_id, asset, "
    "expires_at, fingerprint"
)
SUBJECTS = ("COPY, nobody told", "COPY, journal told", "NDJSON over HTTP", "single POSTs over HTTP")


def make_lines(prefix: str, count: int) -> list[bytes]:
    """Commands as a payroll has them: one payer, a thousand payees, each amount another."""
    payees = [to_checksum_address(f"0x{nth + 1:040x}") for nth in range(PAYEES)]
    return [
        json.dumps(
            {
                "command_id": f"{prefix}-{nth:08d}",
                "workflow_id": f"payroll-{prefix}",
                "account_ref": f"acct-{nth % PAYEES}",
                "asset_symbol": "USDC",
                "amount": f"{nth + 1}.25",
                "payer": "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
                "payee": payees[nth % PAYEES],
                "chain_id": 8453,
            }
        ).encode()
        for nth in range(count)
    ]


def copy(url: str, lines: Sequence[bytes], *, told: bool) -> float:
    """Rows a second of one COPY of rows that are ready."""
    orders = [order for order in requests.read_lines(lines) if isinstance(order, requests.Order)]
    text = "".join(map(intake.write_row, orders))
    with psycopg.connect(url) as connection:
        connection.execute(f"SET session_replication_role = {'origin' if told else 'replica'}".encode())
        began = time.perf_counter()
        with connection.cursor().copy(
            f"COPY settlement.settlement_commands ({COLUMNS}) FROM STDIN".encode()
        ) as sink:
            sink.write(text)
        connection.commit()
        return len(orders) / (time.perf_counter() - began)


def serve(url: str, told: Connection) -> None:
    """The API in a process of its own, until it is ended."""
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:  # or else asyncio leaves Nagle's delay on
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # whoever comes before it serves waits
        told.send(listener.getsockname()[1])
        gc.collect()
        gc.freeze()  # as `tollbook up` does
        config = uvicorn.Config(create_api(url), log_level="error", ws="none")
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


async def send_stream(port: int, secret: str, lines: Sequence[bytes]) -> float:
    """Lines a second of one stream, until its last result is here."""
    body = b"\n".join(lines)
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    writer.write(make_head(BULK, secret, "application/x-ndjson", len(body)) + body)
    await reader.readuntil(b"\r\n\r\n")
    end = f'{{"lines":{len(lines)},"accepted":{len(lines)},"replayed":0,'.encode()
    tail = b""
    while end not in tail:
        part = await reader.read(1 << 20)
        assert part
        tail = tail[-len(end) :] + part
    elapsed = time.perf_counter() - began
    writer.close()
    return len(lines) / elapsed


async def send_singles(port: int, secret: str, lines: Sequence[bytes]) -> float:
    """Commands a second of so many clients, each sending one after another."""
    left = list(lines)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left:
            body = left.pop()
            writer.write(make_head("/v1/settlement/commands", secret, "application/json", len(body)) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 202 " in head.partition(b"\r\n")[0]
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return len(lines) / (time.perf_counter() - began)


def make_head(path: str, secret: str, kind: str, length: int) -> bytes:
    """A request's head."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


async def make_key(url: str) -> str:
    """The secret of a key that may send commands."""
    async with Database(url) as database, database.write() as tx:
        return (await keys.create(tx, name="b", scopes=["settlement:write"], now=clock.now())).secret


def measure(url: str, port: int, secret: str) -> dict[str, list[float]]:
    """Every subject in turn, round by round: what disturbs one disturbs all."""
    rates: dict[str, list[float]] = {subject: [] for subject in SUBJECTS}
    asyncio.run(send_stream(port, secret, make_lines("warm", 5_000)))
    for nth in range(ROUNDS):
        rates[SUBJECTS[0]].append(copy(url, make_lines(f"bare{nth}", LINES), told=False))
        rates[SUBJECTS[1]].append(copy(url, make_lines(f"told{nth}", LINES), told=True))
        rates[SUBJECTS[2]].append(asyncio.run(send_stream(port, secret, make_lines(f"http{nth}", LINES))))
        rates[SUBJECTS[3]].append(asyncio.run(send_singles(port, secret, make_lines(f"one{nth}", SINGLES))))
    return rates


def main() -> None:
    """Measure and print."""
    with throwaway() as server:
        url = server.url()
        apply(url, find_folders(), backup=False)
        ours, theirs = multiprocessing.Pipe()
        serving = multiprocessing.get_context("spawn").Process(target=serve, args=(url, theirs), daemon=True)
        serving.start()
        try:
            rates = measure(server.url(user="postgres"), ours.recv(), asyncio.run(make_key(url)))
        finally:
            serving.kill()
            serving.join()
    bare, told = (rates[subject] for subject in SUBJECTS[:2])
    for subject, found in rates.items():
        print(f"{subject:24} {statistics.median(found):10,.0f} commands/s")
    for subject, base in (("a COPY that tells nobody", bare), ("a COPY that tells the journal", told)):
        ratio = statistics.median(one / other for one, other in zip(rates[SUBJECTS[2]], base, strict=True))
        print(f"NDJSON against {subject}: {ratio:.2f} (goal {GOAL})")


if __name__ == "__main__":
    main()
