"""The API as a whole: health, readiness, metrics, its description, and API keys over HTTP."""

import json
import re
import uuid
from collections.abc import AsyncIterator

import httpx
import psycopg
import pytest
from fastapi import FastAPI

from tollbook.books.payments.settings import PaymentsSettings
from tollbook.core import clock, keys
from tollbook.core.database import Database
from tollbook.entrypoints.api import create_api


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[FastAPI]:
    made = create_api(database_url, PaymentsSettings(routes={}, payees=[], rpc_urls={}))
    async with made.router.lifespan_context(made):
        yield made


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as opened:
        yield opened


async def authorize(database: Database, *scopes: str) -> dict[str, str]:
    async with database.write() as tx:
        grant = await keys.create(tx, name="test", scopes=scopes, now=clock.now())
    return {"Authorization": f"Bearer {grant.secret}"}


async def test_it_is_alive_and_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ready"}


async def test_without_the_books_it_is_alive_and_not_ready(
    client: httpx.AsyncClient, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP TABLE payments.x402_payments CASCADE")
    assert (await client.get("/healthz")).status_code == 200
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:tollbook:problem:not-migrated"


async def test_metrics_count_requests_by_route_and_never_by_path(client: httpx.AsyncClient) -> None:
    await client.get("/healthz")
    await client.get("/invented/by/a/caller")
    text = (await client.get("/metrics")).text
    assert 'tollbook_http_requests_total{method="GET",route="/healthz",status="200"}' in text
    assert 'tollbook_pool{state="size"}' in text
    assert "tollbook_latency_seconds_bucket" in text
    assert "invented" not in text


async def test_the_description_is_openapi_31_and_names_every_route(client: httpx.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()
    assert described["openapi"].startswith("3.1")
    assert {
        "/v1/payments",
        "/v1/payments/{pay_id}",
        "/v1/payments/{pay_id}/refunds",
        "/v1/payments/stats",
        "/v1/payments/top-payers",
        "/v1/payments/endpoints",
        "/v1/payments/tokens",
        "/v1/payments/tokens/{tok_id}/revoke",
        "/v1/payments/cleanup",
        "/v1/payments/analytics",
        "/v1/settlement/commands",
        "/v1/settlement/commands/bulk",
        "/v1/settlement/commands/simulate",
        "/v1/settlement/commands/{command_id}",
        "/v1/settlement/commands/{command_id}/cancel",
        "/v1/settlement/commands/{command_id}/retry",
        "/commands/ingest",
        "/commands/{command_id}",
        "/v1/keys",
        "/v1/keys/{key_id}/revoke",
        "/healthz",
        "/readyz",
        "/metrics",
    } == {path for path in described["paths"] if not path.startswith("/v1/webhooks")}
    for path, verbs in described["paths"].items():
        for verb, operation in verbs.items():
            assert "application/problem+json" in operation["responses"]["default"]["content"], (path, verb)


async def test_no_book_is_read_or_written_without_a_key(client: httpx.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()
    asked = 0
    for path, verbs in described["paths"].items():
        for verb in verbs:
            # A payer who presents a transaction signs for it, and needs no key.
            if not path.startswith(("/v1/", "/commands/")) or (path, verb) == ("/v1/payments", "post"):
                continue
            shown = re.sub(r"\{(\w+?)_(id|name)\}", r"\1_0000000000005", path)
            answer = await client.request(verb, shown, json={})
            assert (answer.status_code, answer.json()["title"]) == (401, "key unknown"), (path, verb)
            asked += 1
    assert asked > 10


async def test_a_key_is_made_used_listed_and_revoked(client: httpx.AsyncClient, database: Database) -> None:
    admin = await authorize(database, "*")
    made = await client.post("/v1/keys", json={"name": "mine", "scopes": ["keys:read"]}, headers=admin)
    assert made.status_code == 201
    assert made.json()["secret"].startswith("tbkey_")
    mine = {"Authorization": f"Bearer {made.json()['secret']}"}
    listed = await client.get("/v1/keys", headers=mine)
    assert [key["name"] for key in listed.json()["items"]] == ["mine", "test"]
    assert "secret" not in listed.text
    key_id = made.json()["key"]["key_id"]
    assert key_id.startswith("key_")
    revoked = await client.post(f"/v1/keys/{key_id}/revoke", headers=admin)
    assert revoked.json()["revoked_at"] is not None
    assert (await client.get("/v1/keys", headers=mine)).status_code == 401
    again = await client.post(f"/v1/keys/{key_id}/revoke", headers=admin)
    assert (again.status_code, again.json()["title"]) == (409, "key already revoked")


async def test_a_key_cannot_make_one_that_may_do_more(client: httpx.AsyncClient, database: Database) -> None:
    clerk = await authorize(database, "keys:write", "keys:read")
    answer = await client.post("/v1/keys", json={"name": "more", "scopes": ["*"]}, headers=clerk)
    assert (answer.status_code, answer.json()["title"]) == (403, "scope missing")


async def test_a_key_made_twice_by_one_idempotency_key_is_one_key_and_the_secret_comes_again(
    client: httpx.AsyncClient, database: Database
) -> None:
    headers = {**await authorize(database, "*"), "Idempotency-Key": str(uuid.uuid4())}
    wanted = {"name": "once", "scopes": ["payments:read"]}
    first = await client.post("/v1/keys", json=wanted, headers=headers)
    again = await client.post("/v1/keys", json=wanted, headers=headers)
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    listed = await client.get("/v1/keys", headers=headers)
    assert [key["name"] for key in listed.json()["items"]] == ["once", "test"]


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ({"name": "x"}, 422),
        ({"name": "", "scopes": ["*"]}, 422),
        ({"name": "x", "scopes": ["everything"]}, 422),
        ({"name": "x", "scopes": ["*"], "expires_at": "2020-01-01T00:00:00Z"}, 422),
        ({"name": "x", "scopes": ["*"], "expires_at": "2099-01-01T00:00:00"}, 422),
        ({"name": "x", "scopes": ["*"], "colour": "red"}, 422),
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(
    client: httpx.AsyncClient, database: Database, wanted: dict[str, object], status: int
) -> None:
    answer = await client.post("/v1/keys", json=wanted, headers=await authorize(database, "*"))
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_text_that_cannot_be_stored_is_refused(client: httpx.AsyncClient, database: Database) -> None:
    admin = await authorize(database, "*")
    for name in ("nul\x00nul", "\ud800"):
        body = json.dumps({"name": name, "scopes": ["*"]})
        answer = await client.post("/v1/keys", content=body, headers=admin)
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    answer = await client.get("/v1/payments?network=%00", headers=admin)
    assert (answer.status_code, answer.json()["title"]) == (422, "text unstorable")


async def test_malformed_ids_and_cursors_are_refused(client: httpx.AsyncClient, database: Database) -> None:
    admin = await authorize(database, "*")
    for wrong in ("5", "key_5", "pay_0000000000005", "key_zzzzzzzzzzzzz"):
        assert (await client.post(f"/v1/keys/{wrong}/revoke", headers=admin)).status_code == 404
    assert (await client.get("/v1/keys?cursor=nonsense", headers=admin)).status_code == 400
    assert (await client.get("/v1/keys?limit=201", headers=admin)).status_code == 422
