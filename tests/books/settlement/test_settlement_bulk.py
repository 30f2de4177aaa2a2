"""Many commands at once: a stream of lines is told of as it comes, and nothing wrong spoils what is right."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from fixtures.serve import serve
from tollbook.books.settlement import bulk, streams
from tollbook.books.settlement.routes import BULK
from tollbook.core import clock, keys
from tollbook.core.database import Database
from tollbook.entrypoints.api import create_api

NDJSON = {"content-type": "application/x-ndjson"}


@pytest.fixture
async def url(database_url: str) -> AsyncIterator[str]:
    async with serve(create_api(database_url, books=["settlement"])) as address:
        yield address


@pytest.fixture
async def client(url: str, database: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with database.write() as tx:
        grant = await keys.create(tx, name="test", scopes=["settlement:write"], now=clock.now())
    headers = {"Authorization": f"Bearer {grant.secret}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as opened:
        yield opened


def make_line(nth: int, **changes: object) -> bytes:
    return json.dumps({"command_id": f"c{nth}", "amount": f"{nth + 1}.5", **changes}).encode()


def read_results(answer: httpx.Response) -> tuple[list[dict[str, object]], dict[str, int]]:
    *results, counts = [json.loads(line) for line in answer.text.splitlines()]
    return results, counts


async def test_each_line_has_its_result_and_the_last_one_counts(client: httpx.AsyncClient) -> None:
    lines = [
        make_line(0), b"", make_line(1, amount="NaN"), b"nonsense", make_line(0), make_line(0, amount="7"),
        b" " * 9_000 + b"x", make_line(2, workflow_id="w" * 9_000), b"\xff", make_line(3) + b"\r",
    ]  # fmt: skip
    answer = await client.post(BULK, content=b"\n".join(lines), headers=NDJSON)
    results, counts = read_results(answer)
    told = [(result["line"], result["status"], result.get("reason")) for result in results]
    assert told == [
        (1, "accepted", None),
        (3, "rejected", "command-malformed"),
        (4, "rejected", "command-malformed"),
        (5, "accepted", None),
        (6, "rejected", "command-reused"),
        (7, "rejected", "command-malformed"),
        (8, "rejected", "command-malformed"),
        (9, "rejected", "command-malformed"),
        (10, "accepted", None),
    ]
    assert results[3]["replayed"] is True
    assert counts == {"lines": 9, "accepted": 3, "replayed": 1, "rejected": 6}


async def test_a_stream_beyond_every_other_body_is_taken_and_its_repeat_makes_nothing(
    client: httpx.AsyncClient, database: Database
) -> None:
    lines = [make_line(nth, workflow_id="w" * 100) for nth in range(6_000)]  # 1 MB, four times the bound

    async def send() -> AsyncIterator[bytes]:
        body = b"\n".join(lines)
        for start in range(0, len(body), 50_000):  # cut anywhere, also within lines
            yield body[start : start + 50_000]

    for replayed in (0, 6_000):
        results, counts = read_results(await client.post(BULK, content=send(), headers=NDJSON))
        assert [result["command_id"] for result in results] == [f"c{nth}" for nth in range(6_000)]
        assert counts == {"lines": 6_000, "accepted": 6_000, "replayed": replayed, "rejected": 0}
    async with database.read() as tx:
        assert await tx.value("SELECT count(DISTINCT subject) FROM core.journal") == 6_000
        assert await tx.value("SELECT count(*) FROM core.journal") == 6_000


async def test_results_are_told_before_the_stream_has_ended(client: httpx.AsyncClient) -> None:
    """A client that waits for each result before it sends the next is served: nothing is held back."""
    told = asyncio.Queue[bytes]()

    async def send() -> AsyncIterator[bytes]:
        yield make_line(0) + b"\n"
        assert json.loads(await told.get())["command_id"] == "c0"
        yield make_line(1) + b"\n"
        assert json.loads(await told.get())["command_id"] == "c1"

    # httpx sends all before it reads; so the request is written by hand.
    parts = client.base_url.host, client.base_url.port
    reader, writer = await asyncio.open_connection(*parts)
    head = f"POST {BULK} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    head += f"Content-Type: application/x-ndjson\r\nAuthorization: {client.headers['authorization']}\r\n\r\n"
    writer.write(head.encode())

    async def hear() -> None:
        while line := await reader.readline():
            if line.startswith(b'{"line"'):
                told.put_nowait(line)

    hearing = asyncio.create_task(hear())
    async with asyncio.timeout(120):
        async for part in send():
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    writer.write(b"0\r\n\r\n")
    writer.close()
    hearing.cancel()


async def test_who_goes_away_within_a_line_leaves_the_whole_lines_and_no_half(
    client: httpx.AsyncClient, database: Database
) -> None:
    async def send() -> AsyncIterator[bytes]:
        yield make_line(0) + b"\n" + make_line(1)[:20]
        async with asyncio.timeout(120):
            while True:
                async with database.read() as tx:
                    if await tx.value("SELECT count(*) FROM settlement.settlement_commands"):
                        raise ConnectionError

    with pytest.raises(ConnectionError):
        await client.post(BULK, content=send(), headers=NDJSON)
    async with database.read() as tx:
        assert await tx.value("SELECT array_agg(command_id) FROM settlement.settlement_commands") == ["c0"]


async def test_a_body_of_another_kind_or_too_large_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post(BULK, content=b"x")).status_code == 415
    assert (await client.post(BULK, json={"command_id": "c"})).status_code == 422
    assert (
        await client.post(BULK, content=b"[", headers={"content-type": "application/json"})
    ).status_code == 422
    huge = b"[" + b" " * (8 * 1024 * 1024) + b"]"
    answer = await client.post(BULK, content=huge, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    empty = await client.post(BULK, content=b"\n \n", headers=NDJSON)
    assert empty.json() == {"lines": 0, "accepted": 0, "replayed": 0, "rejected": 0}


async def test_a_stream_of_too_many_lines_is_given_up_and_says_so(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "LINES_MAX", 10)
    body = b"\n".join(make_line(nth) for nth in range(12))
    answer = await client.post(BULK, content=body, headers=NDJSON)
    assert answer.status_code == 413
    assert answer.json()["type"] == "urn:tollbook:problem:stream-too-long"


async def test_a_stream_that_stalls_is_told_of_what_it_brought_and_then_broken_off(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STALL_SECONDS_MAX", 0.3)
    told = asyncio.Event()

    async def send() -> AsyncIterator[bytes]:
        yield make_line(0) + b"\n"
        await told.wait()

    async with asyncio.timeout(120):
        sending = asyncio.create_task(client.post(BULK, content=send(), headers=NDJSON))
        await asyncio.sleep(0.6)
        told.set()
        first, last = [json.loads(line) for line in (await sending).text.splitlines()]
    assert first["status"] == "accepted"
    assert (last["status"], last["reason"]) == ("broken", "stream-stalled")


def test_a_line_is_cut_as_whole_however_it_comes_in_parts() -> None:
    long = b" " * 9_000 + make_line(1)
    body = b"\n".join([make_line(0), b"", long, b"  ", make_line(2)])
    for size in (1, 7, 8_192, 9_000, len(body)):
        cutter, lines = bulk.LineCutter(), list[tuple[int, bytes]]()
        for start in range(0, len(body), size):
            lines += cutter.feed(body[start : start + size])
        lines += cutter.feed(b"", is_last=True)
        assert [number for number, _ in lines] == [1, 3, 5], size
        assert (lines[0][1], lines[2][1]) == (make_line(0), make_line(2))
        assert len(lines[1][1]) == bulk.LINE_BYTES_MAX + 1
