"""Commands over HTTP: the reference's JSON, answered once and again, listed, taken back, tried again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import pytest

from fixtures.orders import fail_command, tell_no_limits
from tollbook.books.settlement import commands
from tollbook.core import clock, keys
from tollbook.core.database import Database
from tollbook.entrypoints.api import create_api

PAYEE = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
SEED = {  # as the reference's manual testing has it
    "command_id": "test-1763757000",
    "workflow_id": "test-workflow",
    "account_ref": "test-account",
    "asset_symbol": "ETH",
    "amount": "0.001",
}

WRONG: list[dict[str, Any]] = [
    *({"amount": text} for text in (
        "NaN", "Infinity", "-Infinity", "-1", "+1", "1e3", "1_000", "0", "0.0", "", " 1", "1 ", "1\n", "٣",
        "1,5", ".5", "5.", "01", "0x10", "0." + "0" * 18 + "1", "1" + "0" * 20, "1" * 39, 5, 1.5, None,
        "1" * 9999,
    )),
    *({"command_id": text} for text in ("", " ", "a b", "a/b", "..", "a\\b", "a\tb", "ü", "a\x00", 7)),
    {"command_id": "x" * 129},
    *({"payee": text} for text in (
        "0x70997970c51812dc3A010C7d01b50e0d17dc79C8", PAYEE[:-1], PAYEE + "0", PAYEE[2:], "alice",
        "0x" + "0" * 40, "0xZZ997970C51812dc3A010C7d01b50e0d17dc79C8",
    )),
    {"payer": "bob"},
    {"asset": "0x12"},
    {"workflow_id": "x" * 129},
    {"account_ref": "a'b"},
    {"asset_symbol": "US DC"},
    {"chain_id": -1},
    {"chain_id": 1 << 63},
    {"chain_id": "1"},
    {"chain_id": 1.0},
    {"network": "solana"},
    {"network": "nowhere"},
    {"network": "base", "chain_id": 1},
    {"expires_at": "tomorrow"},
    {"expires_at": "2026-01-01T00:00:00"},
    {"expires_at": 1700000000},
    {"ammount": "1"},
]  # fmt: skip


@pytest.fixture
async def client(database_url: str, database: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with database.write() as tx:
        grant = await keys.create(
            tx, name="test", scopes=["settlement:read", "settlement:write"], now=clock.now()
        )
    headers = {"Authorization": f"Bearer {grant.secret}"}
    app = create_api(database_url, books=["settlement"])
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test", headers=headers
        ) as opened,
    ):
        yield opened


@pytest.mark.parametrize("path", ["/commands/ingest", "/v1/settlement/commands"])
async def test_the_reference_s_json_is_accepted_and_read_back(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json=SEED)
    assert (answer.status_code, answer.json()) == (
        202,
        {"status": "accepted", "command_id": SEED["command_id"]},
    )
    told = (await client.get(f"/commands/{SEED['command_id']}")).json()
    assert told == {"command_id": SEED["command_id"], "status": "received"}
    shown = (await client.get(f"/v1/settlement/commands/{SEED['command_id']}")).json()
    assert shown["command"]["amount"] == "0.001"
    assert [move["to_status"] for move in shown["history"]] == ["received"]


async def test_sent_again_it_is_answered_again_and_with_other_content_refused(
    client: httpx.AsyncClient, database: Database
) -> None:
    first = await client.post("/commands/ingest", json=SEED)
    again = await client.post("/v1/settlement/commands", json=SEED | {"amount": "0.0010"})
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    other = await client.post("/commands/ingest", json=SEED | {"amount": "999"})
    assert other.status_code == 422
    assert other.json()["type"] == "urn:tollbook:problem:command-reused"
    async with database.read() as tx:
        assert (await commands.get(tx, SEED["command_id"])).amount is not None
        assert await tx.value("SELECT count(*) FROM core.journal") == 1


async def test_while_the_first_is_being_received_the_second_is_told_so(
    client: httpx.AsyncClient, database_url: str
) -> None:
    with psycopg.connect(database_url) as twin:
        twin.execute(
            "INSERT INTO settlement.settlement_commands (command_id, workflow_id, account_ref, status) "
            "VALUES ('test-1763757000', 'w', 'a', 'RECEIVED')"
        )
        answer = await client.post("/commands/ingest", json=SEED)
        assert answer.status_code == 409
        assert answer.json()["type"] == "urn:tollbook:problem:command-busy"
        assert answer.headers["retry-after"] == "1"


async def test_what_is_wrong_is_refused_and_leaves_nothing(
    client: httpx.AsyncClient, database: Database
) -> None:
    for change in WRONG:
        answer = await client.post("/commands/ingest", json=SEED | change)
        assert answer.status_code == 422, change
        assert answer.headers["content-type"] == "application/problem+json"
    listed = await client.post("/v1/settlement/commands/bulk", json=[SEED | change for change in WRONG])
    assert {result["status"] for result in listed.json()["results"]} == {"rejected"}
    async with database.read() as tx:
        assert not await commands.page(tx)


async def test_an_unwritten_body_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post("/commands/ingest", content=b"invalid json")).status_code == 422
    assert (await client.post("/commands/ingest", content=b"")).status_code == 422


async def test_without_a_key_for_it_nothing_is_done(client: httpx.AsyncClient, database: Database) -> None:
    async with database.write() as tx:
        reader = await keys.create(tx, name="r", scopes=["settlement:read"], now=clock.now())
    bare = {"Authorization": ""}
    only_reads = {"Authorization": f"Bearer {reader.secret}"}
    for path in (
        "/commands/ingest",
        "/v1/settlement/commands",
        "/v1/settlement/commands/bulk",
        "/v1/settlement/commands/x/cancel",
        "/v1/settlement/commands/x/retry",
    ):
        assert (await client.post(path, json=SEED, headers=bare)).status_code == 401
        assert (await client.post(path, json=SEED, headers=only_reads)).status_code == 403
    for path in ("/commands/x", "/v1/settlement/commands", "/v1/settlement/commands/x"):
        assert (await client.get(path, headers=bare)).status_code == 401


async def test_what_there_is_not_is_not_found(client: httpx.AsyncClient) -> None:
    for path in ("/commands/nothing", "/v1/settlement/commands/nothing"):
        assert (await client.get(path)).status_code == 404
    for verb in ("cancel", "retry"):
        assert (await client.post(f"/v1/settlement/commands/nothing/{verb}")).status_code == 404


async def test_pages_give_every_command_once_whatever_comes_meanwhile(client: httpx.AsyncClient) -> None:
    lines = [SEED | {"command_id": f"c-{nth}", "workflow_id": f"w-{nth % 2}"} for nth in range(7)]
    await client.post("/v1/settlement/commands/bulk", json=lines)  # one transaction: all at the same time
    found: list[str] = []
    cursor = None
    while True:
        asked = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/v1/settlement/commands", params=asked)).json()
        found += [item["command_id"] for item in page["items"]]
        await client.post("/commands/ingest", json=SEED | {"command_id": f"later-{len(found)}"})
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(found) == [f"c-{nth}" for nth in range(7)]
    few = (await client.get("/v1/settlement/commands", params={"workflow_id": "w-1"})).json()["items"]
    assert {item["command_id"] for item in few} == {"c-1", "c-3", "c-5"}
    none = await client.get("/v1/settlement/commands", params={"status": "settled", "payee": PAYEE})
    assert none.json()["items"] == []
    assert (await client.get("/v1/settlement/commands", params={"cursor": "!"})).status_code == 400
    assert (await client.get("/v1/settlement/commands", params={"payee": "x"})).status_code == 400


async def test_a_command_is_taken_back_before_it_is_executed_and_not_after(
    client: httpx.AsyncClient, database: Database
) -> None:
    await client.post("/commands/ingest", json=SEED)
    path = f"/v1/settlement/commands/{SEED['command_id']}"
    cancelled = (await client.post(f"{path}/cancel", json={"reason": "not needed"})).json()
    assert (cancelled["status"], cancelled["error"]) == ("cancelled", "not needed")
    assert (await client.post(f"{path}/cancel")).status_code == 409
    history = (await client.get(path)).json()["history"]
    assert [(move["to_status"], move["reason"]) for move in history] == [
        ("received", None),
        ("cancelled", "not needed"),
    ]
    await client.post("/commands/ingest", json=SEED | {"command_id": "failed", "payee": PAYEE})
    async with database.write() as tx:
        await fail_command(tx, "failed")
        await tell_no_limits(tx)
    assert (await client.post("/v1/settlement/commands/failed/cancel")).status_code == 409
    retried = (await client.post("/v1/settlement/commands/failed/retry")).json()
    assert (retried["status"], retried["round"]) == ("validated", 1)
    assert (await client.post("/v1/settlement/commands/failed/retry")).status_code == 409


async def test_a_dry_run_keeps_nothing(
    client: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOLLBOOK_RPC_URLS", raising=False)
    told = (await client.post("/v1/settlement/commands/simulate", json=[SEED])).json()
    assert [(one["command_id"], one["would"]) for one in told] == [(SEED["command_id"], "be refused")]
    wrong = await client.post("/v1/settlement/commands/simulate", json=[SEED | {"amount": "0"}])
    assert wrong.status_code == 422
    async with database.read() as tx:
        assert not await commands.page(tx)


async def test_sixteen_at_once_with_one_id_are_one_command(
    client: httpx.AsyncClient, database: Database
) -> None:
    answers = await asyncio.gather(*(client.post("/commands/ingest", json=SEED) for _ in range(16)))
    assert {answer.status_code for answer in answers} == {202}
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    async with database.read() as tx:
        assert await tx.value("SELECT count(*) FROM core.journal") == 1
