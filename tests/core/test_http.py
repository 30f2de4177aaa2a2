"""The frame of the API: every answer that is no success is a problem, and nothing inner leaks."""

import logging
import uuid
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel

from tollbook.core import clock, http, keys
from tollbook.core.database import Database
from tollbook.core.errors import Refusal


class TooHot(Refusal):
    reason = "too-hot"
    status = 409


class Tea(BaseModel):
    cups: int


def make_app(database: Database) -> FastAPI:
    app = FastAPI()
    http.install(app, database)
    router = APIRouter(route_class=http.IdempotentRoute)
    brewed: list[Tea] = []

    @router.post("/teas", status_code=201, dependencies=[http.require("teas:write")])
    async def brew(tea: Tea) -> dict[str, int]:
        brewed.append(tea)
        return {"number": len(brewed)}

    @router.get("/hot")
    async def hot() -> None:
        raise TooHot("Wait until it has cooled.", degrees=99)

    @router.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the secret recipe")

    app.include_router(router)
    return app


@pytest.fixture
async def client(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(database))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
        yield opened


async def authorize(database: Database, *scopes: str) -> dict[str, str]:
    async with database.write() as tx:
        grant = await keys.create(tx, name="test", scopes=scopes, now=clock.now())
    return {"Authorization": f"Bearer {grant.secret}"}


def check_problem(answer: httpx.Response, status: int, reason: str) -> dict[str, object]:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"].startswith("req_")
    problem = answer.json()
    assert problem["type"] == f"urn:tollbook:problem:{reason}"
    assert problem["status"] == status
    assert problem["detail"]
    return problem


async def test_a_refusal_is_a_problem_with_its_details(client: httpx.AsyncClient) -> None:
    problem = check_problem(await client.get("/hot"), 409, "too-hot")
    assert problem["degrees"] == 99


async def test_an_unknown_route_and_a_wrong_method_are_problems(client: httpx.AsyncClient) -> None:
    check_problem(await client.get("/nowhere"), 404, "not-found")
    check_problem(await client.delete("/hot"), 405, "method-not-allowed")


async def test_what_breaks_is_logged_and_tells_nothing_but_its_number(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await client.get("/broken")
    problem = check_problem(answer, 500, "unexpected")
    assert "recipe" not in answer.text
    assert str(problem["request_id"]) in caplog.text
    assert "recipe" in caplog.text


async def test_a_field_that_is_wrong_is_named_and_not_repeated(
    client: httpx.AsyncClient, database: Database
) -> None:
    headers = await authorize(database, "teas:write")
    answer = await client.post("/teas", json={"cups": "tbk_a-secret"}, headers=headers)
    problem = check_problem(answer, 422, "request-invalid")
    assert [error["field"] for error in problem["errors"]] == ["body.cups"]
    assert "tbk_a-secret" not in answer.text


async def test_a_body_beyond_the_bound_is_refused(client: httpx.AsyncClient) -> None:
    check_problem(await client.post("/teas", content=b"x" * (http.BODY_BYTES_MAX + 1)), 413, "body-too-large")


async def test_a_route_asks_for_a_key_with_its_scope(client: httpx.AsyncClient, database: Database) -> None:
    unknown = await client.post("/teas", json={"cups": 1})
    check_problem(unknown, 401, "key-unknown")
    assert unknown.headers["www-authenticate"] == "Bearer"
    headers = await authorize(database, "teas:read")
    check_problem(await client.post("/teas", json={"cups": 1}, headers=headers), 403, "scope-missing")
    headers = await authorize(database, "*")
    assert (await client.post("/teas", json={"cups": 1}, headers=headers)).status_code == 201


async def test_a_post_sent_again_is_answered_again_and_done_once(
    client: httpx.AsyncClient, database: Database
) -> None:
    headers = {**await authorize(database, "teas:write"), "Idempotency-Key": str(uuid.uuid4())}
    first = await client.post("/teas", json={"cups": 2}, headers=headers)
    again = await client.post("/teas", json={"cups": 2}, headers=headers)
    assert (first.status_code, first.json()) == (again.status_code, again.json()) == (201, {"number": 1})
    assert first.headers["content-type"] == again.headers["content-type"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    other = await client.post("/teas", json={"cups": 3}, headers=headers)
    check_problem(other, 422, "idempotency-key-reused")
    new = await client.post("/teas", json={"cups": 3}, headers={**headers, "Idempotency-Key": "k" * 20})
    assert new.json() == {"number": 2}


async def test_a_revoked_key_gets_no_answer_again(client: httpx.AsyncClient, database: Database) -> None:
    headers = {**await authorize(database, "teas:write"), "Idempotency-Key": str(uuid.uuid4())}
    await client.post("/teas", json={"cups": 2}, headers=headers)
    async with database.write() as tx:
        [key] = await keys.page(tx)
        await keys.revoke(tx, key.key_id, now=clock.now())
    check_problem(await client.post("/teas", json={"cups": 2}, headers=headers), 401, "key-revoked")


async def test_a_key_without_the_scope_gets_no_answer_that_another_key_got(
    client: httpx.AsyncClient, database: Database
) -> None:
    name = {"Idempotency-Key": str(uuid.uuid4())}
    await client.post("/teas", json={"cups": 2}, headers={**await authorize(database, "*"), **name})
    other = {**await authorize(database, "teas:read"), **name}
    check_problem(await client.post("/teas", json={"cups": 2}, headers=other), 403, "scope-missing")
