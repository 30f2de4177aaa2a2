"""A payment buys one request and its answer, which its payer gets again; nobody else does."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
import psycopg
import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.responses import Response
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header
from x402.schemas import PaymentPayload

from clients.pay import make_x402_client
from fixtures.serve import serve
from tollbook.books.payments import answers, payments
from tollbook.books.payments.errors import NotRecorded
from tollbook.books.payments.facilitator.in_process import Facilitator, SettlementUnknown
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.books.payments.purchases import ANSWERS_KEPT
from tollbook.books.payments.sellers import _Copy
from tollbook.books.payments.usage import Meter
from tollbook.books.payments.wire import read_body
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.errors import DatabaseUnreachable, Refusal
from tollbook.core.local_chain import NETWORK, LocalChain

PRICE = 10_000
LONG = answers.BODY_BYTES_MAX + 1


@dataclass
class Shop:
    """A paid app that is being served, what its handlers saw, and how its facilitator behaves."""

    facilitator: "Moody"
    database_url: str
    seller: str
    token: str
    url: str = ""
    runs: list[str] = field(default_factory=list[str])
    slow: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(sql.encode()).fetchall()


class Moody:
    """The real facilitator, whose answers to `settle` are lost as often as wanted."""

    def __init__(self, real: Facilitator) -> None:
        self.real = real
        self.verify, self.supported, self.aclose = real.verify, real.supported, real.aclose
        self.lose = 0
        self.transaction = ""  # instead of the real one
        self.settles = 0

    async def settle(self, payload: Any, requirements: Any) -> Any:
        self.settles += 1
        answer = await self.real.settle(payload, requirements)
        if self.lose:
            self.lose -= 1
            raise SettlementUnknown(NETWORK, "", "settlement_pending", "its answer is lost")
        return answer.model_copy(update={"transaction": self.transaction}) if self.transaction else answer


def make_app(shop: Shop) -> FastAPI:
    app = FastAPI()

    @app.get("/once/{what}")
    async def once(what: str) -> dict[str, Any]:
        shop.runs.append(what)
        return {"what": what, "run": len(shop.runs)}

    @app.post("/dear")
    @app.post("/once")
    async def post(request: Request) -> Response:
        shop.runs.append("post")
        return Response(await request.body())

    @app.get("/long")
    async def long() -> Response:
        shop.runs.append("long")
        return PlainTextResponse("x" * LONG)

    @app.get("/slow")
    async def slow() -> str:
        shop.runs.append("slow")
        await shop.slow.wait()
        return "at last"

    @app.get("/turns")
    async def turns() -> Response:
        shop.runs.append("turns")
        if len(shop.runs) == 1:
            await shop.slow.wait()
            return PlainTextResponse("no", 404)
        shop.slow.set()
        await shop.over.wait()
        return PlainTextResponse("yes")

    @app.get("/stream")
    @app.get("/brittle")
    async def stream(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            shop.runs.append("stream")
            yield b"all that is worth anything"
            await asyncio.sleep(30)

        is_over = shop.runs and request.url.path == "/brittle"
        return PlainTextResponse("no", 500) if is_over else StreamingResponse(body())

    @app.get("/upfront")
    async def upfront() -> Response:
        shop.runs.append("upfront")
        return PlainTextResponse("no" if len(shop.runs) == 1 else "yes", 500 if len(shop.runs) == 1 else 200)

    return app


@pytest.fixture
async def shop(
    chain: LocalChain, token: str, seller: LocalAccount, database_url: str, in_process: Facilitator
) -> AsyncIterator[Shop]:
    shop = Shop(Moody(in_process), database_url, seller.address, token)
    app = make_app(shop)
    app.add_middleware(
        Paywall,  # pyright: ignore[reportArgumentType]
        payees=[Payee(NETWORK, seller.address)],
        routes={
            "GET /once/{what}": PaidRoute("$0.01"),
            "POST /once": PaidRoute("$0.01", requests=3),
            "GET /long": PaidRoute("$0.01", requests=2),
            "GET /slow": PaidRoute("$0.01"),
            "GET /stream": PaidRoute("$0.01"),
            "GET /brittle": PaidRoute("$0.01", settle="before"),
            "GET /turns": PaidRoute("$0.01"),
            "GET /upfront": PaidRoute("$0.01", settle="before"),
            "POST /dear": PaidRoute("$0.01", settle="before"),
        },
        facilitator=shop.facilitator,
        database_url=database_url,
    )
    async with serve(app) as url:
        shop.url = url
        yield shop


async def ask(shop: Shop, path: str, header: str = "", method: str = "GET", **options: Any) -> httpx.Response:
    headers = {"PAYMENT-SIGNATURE": header} if header else {}
    async with httpx.AsyncClient(base_url=shop.url, timeout=30) as client:
        return await client.request(method, path, headers=headers, **options)


async def sign_payment(shop: Shop, path: str, payer: LocalAccount, method: str = "GET") -> PaymentPayload:
    """What the SDK's client signs when it is answered 402 there."""
    asked = decode_payment_required_header((await ask(shop, path, method=method)).headers["PAYMENT-REQUIRED"])
    payload = await make_x402_client(payer, shop.token).create_payment_payload(asked)
    assert isinstance(payload, PaymentPayload)
    return payload


async def sign(shop: Shop, path: str, payer: LocalAccount, method: str = "GET") -> str:
    return encode_payment_signature_header(await sign_payment(shop, path, payer, method))


async def test_row_k_a_lost_answer_is_given_again_and_costs_nothing_more(
    shop: Shop, chain: LocalChain, payer: LocalAccount
) -> None:
    header = await sign(shop, "/once/rain", payer)
    first = await ask(shop, "/once/rain", header)
    again = await ask(shop, "/once/rain", header)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == first.json()
    assert again.headers["PAYMENT-REPLAYED"] == "true"
    assert again.headers["PAYMENT-RESPONSE"] == first.headers["PAYMENT-RESPONSE"]
    assert "private" in again.headers["Cache-Control"]
    assert shop.runs == ["rain"]
    assert chain.read_balance(shop.seller) == PRICE
    assert shop.query("SELECT count(*) FROM payments.x402_usage") == [(1,)]


async def test_row_a_ten_copies_at_once_run_the_handler_once_and_are_answered_alike(
    shop: Shop, chain: LocalChain, payer: LocalAccount
) -> None:
    header = await sign(shop, "/once/rain", payer)
    answered = await asyncio.gather(*(ask(shop, "/once/rain", header) for _ in range(10)))
    assert {answer.status_code for answer in answered} == {200}
    assert len({answer.text for answer in answered}) == 1
    assert shop.runs == ["rain"]
    assert shop.facilitator.settles == 1
    assert chain.read_balance(shop.seller) == PRICE


async def test_row_b_ten_copies_at_once_of_a_payment_before_the_handler_settle_once(
    shop: Shop, chain: LocalChain, payer: LocalAccount
) -> None:
    shop.runs.append("so that it works at the first time")
    header = await sign(shop, "/upfront", payer)
    answered = await asyncio.gather(*(ask(shop, "/upfront", header) for _ in range(10)))
    assert {(answer.status_code, answer.text) for answer in answered} == {(200, "yes")}
    assert shop.runs[1:] == ["upfront"]
    assert shop.facilitator.settles == 1
    assert chain.read_balance(shop.seller) == PRICE


async def test_a_copy_is_told_that_the_first_is_still_at_work(
    shop: Shop, payer: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tollbook.books.payments.purchases.WAIT_SECONDS_MAX", 0.1)
    header = await sign(shop, "/slow", payer)
    first = asyncio.create_task(ask(shop, "/slow", header))
    while not shop.runs:  # noqa: ASYNC110 - the handler says so in a list
        await asyncio.sleep(0.01)
    copy = await ask(shop, "/slow", header)
    assert (copy.status_code, copy.json()["type"]) == (503, "urn:tollbook:problem:payment-in-progress")
    assert int(copy.headers["Retry-After"]) >= 1
    assert copy.json()["payment_id"].startswith("pay_")
    shop.slow.set()
    assert (await first).json() == "at last"
    assert (await ask(shop, "/slow", header)).json() == "at last"
    assert shop.runs == ["slow"]


async def test_who_was_taken_over_does_not_let_go_of_what_is_not_his_any_more(
    shop: Shop, chain: LocalChain, payer: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the first one's process stands still, or cannot reach the database, for longer than HOLD."""
    monkeypatch.setattr(answers, "HOLD", timedelta(0))
    header = await sign(shop, "/turns", payer)
    first = asyncio.create_task(ask(shop, "/turns", header))
    while not shop.runs:  # noqa: ASYNC110 - the handler says so in a list
        await asyncio.sleep(0.01)
    second = asyncio.create_task(ask(shop, "/turns", header))
    assert (await first).status_code == 404
    shop.over.set()
    assert (await second).text == "yes"
    assert chain.read_balance(shop.seller) == PRICE
    assert shop.query("SELECT settlement FROM payments.x402_payments") == [("settled",)]


async def test_row_h_a_lost_answer_of_the_facilitator_is_no_fresh_402(
    shop: Shop, chain: LocalChain, payer: LocalAccount
) -> None:
    shop.facilitator.lose = 1
    header = await sign(shop, "/once/rain", payer)
    lost = await ask(shop, "/once/rain", header)
    assert (lost.status_code, lost.json()["type"]) == (503, "urn:tollbook:problem:settlement-unknown")
    assert "PAYMENT-REQUIRED" not in lost.headers
    assert "Retry-After" in lost.headers
    assert shop.query("SELECT status FROM payments.x402_settlements") == [("unknown",)]
    again = await ask(shop, "/once/rain", header)
    assert again.status_code == 200
    assert again.json()["what"] == "rain"
    assert chain.read_balance(shop.seller) == PRICE
    rows = "SELECT p.settlement, s.status FROM payments.x402_payments p, payments.x402_settlements s"
    assert shop.query(rows) == [("settled", "settled")]
    assert shop.query("SELECT count(*) FROM payments.x402_usage") == [(1,)]


@pytest.mark.parametrize("is_cleaned_up", [False, True])
async def test_who_comes_late_for_what_was_unknown_is_served(
    shop: Shop, payer: LocalAccount, database: Database, is_cleaned_up: bool
) -> None:
    shop.facilitator.lose = 1
    header = await sign(shop, "/once/rain", payer)
    assert (await ask(shop, "/once/rain", header)).status_code == 503
    [(payment_id,)] = shop.query("SELECT payment_id FROM payments.x402_payments")
    async with database.write() as tx:  # as the reconciler books it, two days ago
        await payments.settle(
            tx, payment_id, tx_hash=None, block_number=1, confirmations=1, now=clock.now() - timedelta(days=2)
        )
        if is_cleaned_up:
            assert await tx.value("SELECT payments.cleanup_expired_x402_payments()") == 1
    assert (await ask(shop, "/once/rain", header)).status_code == 200
    assert shop.query("SELECT status, requests_used FROM payments.x402_payments") == [("used", 1)]


async def test_who_paid_is_served_whatever_a_facilitator_calls_his_transaction(
    shop: Shop, payer: LocalAccount
) -> None:
    shop.facilitator.transaction = "operation 7"
    assert (await ask(shop, "/once/rain", await sign(shop, "/once/rain", payer))).status_code == 200
    assert shop.query("SELECT settlement, tx_hash FROM payments.x402_payments") == [("settled", None)]


async def test_a_payment_buys_no_other_request(shop: Shop, payer: LocalAccount) -> None:
    header = await sign(shop, "/once/rain", payer)
    assert (await ask(shop, "/once/rain", header)).status_code == 200
    for path in ("/once/snow", "/once/rain?more=1"):
        refused = await ask(shop, path, header)
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:tollbook:problem:payment-bound")
    assert shop.runs == ["rain"]


async def test_a_payment_is_bound_to_the_body_it_came_with(shop: Shop, payer: LocalAccount) -> None:
    header = await sign(shop, "/once", payer, "POST")
    first = await ask(shop, "/once", header, "POST", content=b"a" * 70_000)
    assert first.content == b"a" * 70_000
    assert (await ask(shop, "/once", header, "POST", content=b"b")).status_code == 409
    assert (await ask(shop, "/once", header, "POST", content=b"a" * 70_000)).content == first.content
    assert shop.runs == ["post"]


@pytest.mark.parametrize(("version", "bound_to"), [("1.1", b""), ("2", b"body"), ("3", b"body")])
async def test_a_body_needs_no_header_from_http_2_on(version: str, bound_to: bytes) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"body", "more_body": False}

    body, again = await read_body({}, {"type": "http", "http_version": version}, receive)
    assert body == bound_to
    assert (await again())["body"] == b"body"


async def test_a_request_that_broke_off_takes_no_payment_with_it(
    shop: Shop, chain: LocalChain, payer: LocalAccount
) -> None:
    header = await sign(shop, "/dear", payer, "POST")
    url = httpx.URL(shop.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST /dear HTTP/1.1\r\nHost: shop\r\nContent-Length: 9\r\nPAYMENT-SIGNATURE: {header}\r\n\r\n"
    writer.write(head.encode() + b"half")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await asyncio.sleep(0.5)
    whole = await ask(shop, "/dear", header, "POST", content=b"half+half")
    assert (whole.status_code, whole.content) == (200, b"half+half")
    assert chain.read_balance(shop.seller) == PRICE


async def test_the_payment_of_one_route_buys_no_other_of_the_same_price(
    shop: Shop, chain: LocalChain, payer: LocalAccount
) -> None:
    header = await sign(shop, "/once/rain", payer)
    refused = await ask(shop, "/slow", header)
    assert refused.status_code == 402
    assert "another route" in refused.json()["detail"]
    assert chain.read_balance(shop.seller) == 0


async def test_who_read_the_payment_off_the_chain_gets_nothing(shop: Shop, payer: LocalAccount) -> None:
    payment = await sign_payment(shop, "/once/rain", payer)
    header = encode_payment_signature_header(payment)
    assert (await ask(shop, "/once/rain", header)).status_code == 200
    read = payment.model_copy(update={"extensions": None})
    for copied in (
        read,
        payment.model_copy(update={"extensions": {"tollbook": {"info": {"challenge": "x" * 32}}}}),
    ):
        stolen = await ask(shop, "/once/rain", encode_payment_signature_header(copied))
        assert stolen.status_code == 409
        assert "PAYMENT-TOKEN" not in stolen.headers
        assert "rain" not in stolen.json().values()


async def test_without_a_secret_in_the_header_its_answer_is_not_given_again(
    shop: Shop, payer: LocalAccount
) -> None:
    payment = (await sign_payment(shop, "/once/rain", payer)).model_copy(update={"extensions": None})
    header = encode_payment_signature_header(payment)
    assert (await ask(shop, "/once/rain", header)).status_code == 200
    again = await ask(shop, "/once/rain", header)
    assert (again.status_code, again.json()["type"]) == (409, "urn:tollbook:problem:payment-already-counted")


async def test_of_an_answer_too_long_to_keep_the_token_is_given_again(
    shop: Shop, payer: LocalAccount
) -> None:
    header = await sign(shop, "/long", payer)
    first = await ask(shop, "/long", header)
    assert len(first.content) == LONG
    again = await ask(shop, "/long", header)
    assert (again.status_code, again.json()["type"]) == (409, "urn:tollbook:problem:answer-gone")
    assert again.headers["PAYMENT-TOKEN"] == first.headers["PAYMENT-TOKEN"]
    assert shop.runs == ["long"]


async def test_who_hangs_up_before_the_end_is_not_served_for_ever(shop: Shop, payer: LocalAccount) -> None:
    header = await sign(shop, "/stream", payer)
    codes: list[int] = []
    for _ in range(answers.BROKEN_MAX + 3):
        async with (
            httpx.AsyncClient(base_url=shop.url, timeout=30) as client,
            client.stream("GET", "/stream", headers={"PAYMENT-SIGNATURE": header}) as answer,
        ):
            codes.append(answer.status_code)
            await anext(answer.aiter_raw())
    assert codes == [200] * (answers.BROKEN_MAX + 1) + [409] * 2
    assert len(shop.runs) == answers.BROKEN_MAX + 1
    assert shop.query("SELECT count(*) FROM payments.x402_usage") == [(1,)]


async def test_an_answer_made_again_that_fails_gives_back_nothing(shop: Shop, payer: LocalAccount) -> None:
    header = await sign(shop, "/brittle", payer)
    async with (
        httpx.AsyncClient(base_url=shop.url, timeout=30) as client,
        client.stream("GET", "/brittle", headers={"PAYMENT-SIGNATURE": header}) as answer,
    ):
        await anext(answer.aiter_raw())
    assert (await ask(shop, "/brittle", header)).status_code == 500
    assert shop.query("SELECT requests_used FROM payments.x402_payments") == [(1,)]


async def test_what_failed_and_was_then_had_by_token_is_not_had_by_the_payment_too(
    shop: Shop, payer: LocalAccount
) -> None:
    header = await sign(shop, "/upfront", payer)
    failed = await ask(shop, "/upfront", header)
    async with httpx.AsyncClient(base_url=shop.url, timeout=30) as client:
        bearer = {"Authorization": f"Bearer {failed.headers['PAYMENT-TOKEN']}"}
        assert (await client.get("/upfront", headers=bearer)).text == "yes"
    again = await ask(shop, "/upfront", header)
    assert (again.status_code, again.json()["type"]) == (402, "urn:tollbook:problem:token-spent")
    assert shop.query("SELECT requests_used FROM payments.x402_payments") == [(1,)]


@pytest.mark.parametrize(
    ("step", "refusal"), [("record", NotRecorded()), ("admit_first", DatabaseUnreachable("it went away"))]
)
async def test_who_paid_and_was_not_answered_because_the_database_went_away_is_served_later(
    shop: Shop, payer: LocalAccount, monkeypatch: pytest.MonkeyPatch, step: str, refusal: Refusal
) -> None:
    """The request was taken, and that was not heard of."""
    real = getattr(Meter, step)

    async def go_away(*args: Any, **options: Any) -> Any:
        await real(*args, **options)
        monkeypatch.undo()
        raise refusal

    header = await sign(shop, "/once/rain", payer)
    monkeypatch.setattr(Meter, step, go_away)
    assert (await ask(shop, "/once/rain", header)).status_code == 503
    assert shop.query("SELECT requests_used FROM payments.x402_payments") == [(1,)]
    assert (await ask(shop, "/once/rain", header)).json()["what"] == "rain"
    assert shop.query("SELECT requests_used FROM payments.x402_payments") == [(1,)]


def test_a_file_that_the_server_sends_is_the_end_of_its_answer() -> None:
    copy = _Copy()
    assert copy.add({"type": "http.response.start", "status": 200, "headers": []}) is None
    answer = copy.add({"type": "http.response.pathsend", "path": "/a/file"})
    assert answer is not None
    assert not answer.whole


async def test_who_paid_upfront_and_met_a_failure_asks_again_with_the_same_payment(
    shop: Shop, chain: LocalChain, payer: LocalAccount
) -> None:
    header = await sign(shop, "/upfront", payer)
    assert (await ask(shop, "/upfront", header)).status_code == 500
    assert (await ask(shop, "/upfront", header)).text == "yes"
    assert (await ask(shop, "/upfront", header)).text == "yes"
    assert shop.runs == ["upfront", "upfront"]
    assert chain.read_balance(shop.seller) == PRICE
    assert shop.query("SELECT requests_used, status FROM payments.x402_payments") == [(1, "used")]


async def test_what_is_kept_opens_only_for_who_has_the_payment(shop: Shop, payer: LocalAccount) -> None:
    payment = await sign_payment(shop, "/once/secretword", payer)
    await ask(shop, "/once/secretword", encode_payment_signature_header(payment))
    dump = json.dumps(shop.query("SELECT to_jsonb(a), to_jsonb(s), to_jsonb(p) FROM payments.x402_answers a, "
                                 "payments.x402_settlements s, payments.x402_payments p"))  # fmt: skip
    (sealed,) = shop.query("SELECT sealed_answer FROM payments.x402_answers")[0]
    assert b"secretword" not in sealed
    assert "secretword" not in dump
    assert payment.payload["signature"][2:] not in dump


async def test_after_its_window_an_answer_is_forgotten(
    shop: Shop, payer: LocalAccount, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = await sign(shop, "/once/rain", payer)
    await ask(shop, "/once/rain", header)
    assert await answers.forget(database) == 0
    later = clock.now() + ANSWERS_KEPT + answers.HOLD
    monkeypatch.setattr(clock, "now", lambda: later)
    assert await answers.forget(database) == 1
    assert (await ask(shop, "/once/rain", header)).status_code == 409
