"""The paywall, with real money on a real chain, the official clients and real PostgreSQL."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import httpx
import psycopg
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from x402.http.utils import (
    decode_payment_required_header,
    decode_payment_response_header,
)
from x402.schemas import PaymentRequirements

from clients.pay import pay_with_node, paying_client
from fixtures.serve import serve
from fixtures.storefront import PRICE, REQUESTS, Shop, ask, bearer, make_app, sign_for
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.core.chains import Token
from tollbook.core.local_chain import NETWORK, TOKEN_NAME, TOKEN_VERSION, LocalChain


@pytest.fixture
async def shop(
    chain: LocalChain, token: str, operator: LocalAccount, seller: LocalAccount, database_url: str
) -> AsyncIterator[Shop]:
    facilitator = InProcessFacilitator({NETWORK: chain.url}, "0x" + operator.key.hex(), database_url)
    shop = Shop("", database_url, seller.address, token)
    app = make_app(shop)
    app.add_middleware(
        Paywall,  # pyright: ignore[reportArgumentType]
        payees=[Payee(NETWORK, seller.address, Token(token, "TUSD", 6, TOKEN_NAME, TOKEN_VERSION))],
        routes={
            "GET /weather/{city}": PaidRoute("$0.01", requests=REQUESTS),
            "GET /upfront": PaidRoute("$0.01", requests=REQUESTS, settle="before"),
            "GET /broken": PaidRoute("$0.01", requests=REQUESTS),
            "GET /stream": PaidRoute("$0.01"),
            "GET /fragile": PaidRoute("$0.01", settle="before"),
        },
        facilitator=facilitator,
        database_url=database_url,
    )
    async with serve(app) as url:
        shop.url = url
        yield shop
    await facilitator.aclose()


async def test_a_free_route_is_left_alone(shop: Shop) -> None:
    answer = await ask(shop, "/free")
    assert (answer.status_code, answer.json()) == (200, "free")
    assert "payment-required" not in answer.headers


async def test_without_payment_the_answer_says_how_to_pay(shop: Shop) -> None:
    answer = await ask(shop, "/weather/rome")
    assert answer.status_code == 402
    assert answer.headers["cache-control"] == "no-store"
    required = decode_payment_required_header(answer.headers["PAYMENT-REQUIRED"])
    (asked,) = required.accepts
    assert isinstance(asked, PaymentRequirements)
    assert (asked.network, asked.amount, asked.pay_to) == (NETWORK, str(PRICE), shop.seller)
    assert required.resource is not None
    assert required.resource.url == f"{shop.url}/weather/rome"
    assert answer.json()["type"] == "urn:tollbook:problem:payment-required"
    assert shop.runs == []


async def test_the_python_client_pays_and_its_token_buys_the_rest(
    shop: Shop, chain: LocalChain, payer: LocalAccount
) -> None:
    async with paying_client(payer, shop.token, base_url=shop.url, timeout=30) as client:
        paid = await client.get("/weather/rome")
    assert paid.status_code == 200
    receipt = decode_payment_response_header(paid.headers["PAYMENT-RESPONSE"])
    assert receipt.success
    bought = (receipt.extensions or {})["tollbook"]
    secret = paid.headers["PAYMENT-TOKEN"]
    assert bought["accessToken"] == secret
    assert bought["requestsRemaining"] == REQUESTS - 1
    assert chain.read_balance(shop.seller) == PRICE
    assert paid.headers["cache-control"] == "private"
    for left in range(REQUESTS - 2, -1, -1):
        answer = await ask(shop, "/weather/oslo", **bearer(secret))
        assert (answer.status_code, answer.headers["PAYMENT-REQUESTS-REMAINING"]) == (200, str(left))
    spent = await ask(shop, "/weather/oslo", **bearer(secret))
    assert spent.status_code == 402
    assert decode_payment_required_header(spent.headers["PAYMENT-REQUIRED"]).error == "token-spent"
    assert len(shop.runs) == REQUESTS
    assert shop.query("SELECT count(*) FROM payments.x402_usage WHERE status_code = 200") == [(REQUESTS,)]
    assert shop.query("SELECT status, settlement, requests_used FROM payments.x402_payments") == [
        ("used", "settled", REQUESTS)
    ]


async def test_the_typescript_client_pays_unmodified(
    shop: Shop, chain: LocalChain, payer: LocalAccount
) -> None:
    (answer,) = await pay_with_node(f"{shop.url}/weather/rome", payer, shop.token)
    assert answer["status"] == 200
    assert answer["settled"]["success"] is True
    assert chain.read_balance(shop.seller) == PRICE


async def test_upfront_settles_before_the_handler_runs(shop: Shop, payer: LocalAccount) -> None:
    async with paying_client(payer, shop.token, base_url=shop.url, timeout=30) as client:
        paid = await client.get("/upfront")
    assert paid.status_code == 200
    assert shop.runs == ["upfront"]


@pytest.mark.parametrize("status", [400, 404, 500, 503])
async def test_a_handler_that_refuses_costs_nothing_and_the_payment_can_be_used_again(
    shop: Shop, chain: LocalChain, payer: LocalAccount, status: int
) -> None:
    header = await sign_for(shop, "/broken?status=0", payer)
    refused = await ask(shop, f"/broken?status={status}", PAYMENT_SIGNATURE=header)
    assert refused.status_code == status
    assert chain.read_balance(shop.seller) == 0
    good = await ask(shop, "/broken?status=200", PAYMENT_SIGNATURE=header)
    assert good.status_code == 200
    assert chain.read_balance(shop.seller) == PRICE


async def test_a_handler_that_raises_gives_the_request_back(shop: Shop, payer: LocalAccount) -> None:
    header = await sign_for(shop, "/broken?status=0", payer)
    paid = await ask(shop, "/broken?status=200", PAYMENT_SIGNATURE=header)
    secret = paid.headers["PAYMENT-TOKEN"]
    for status in (599, 500):
        assert (await ask(shop, f"/broken?status={status}", **bearer(secret))).status_code == 500
    for _ in range(REQUESTS - 1):
        assert (await ask(shop, "/broken?status=200", **bearer(secret))).status_code == 200
    assert (await ask(shop, "/broken?status=200", **bearer(secret))).status_code == 402


async def test_ten_copies_of_one_payment_count_once(
    shop: Shop, chain: LocalChain, payer: LocalAccount
) -> None:
    header = await sign_for(shop, "/weather/rome", payer)
    answers = await asyncio.gather(*(ask(shop, "/weather/rome", PAYMENT_SIGNATURE=header) for _ in range(10)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200] + [409] * 9
    assert shop.runs == ["rome"]
    assert chain.read_balance(shop.seller) == PRICE
    again = await ask(shop, "/weather/rome", PAYMENT_SIGNATURE=header)
    assert again.status_code == 409
    assert again.json()["payment_id"].startswith("pay_")


async def test_no_payment_is_taken_for_an_answer_without_a_body(
    shop: Shop, chain: LocalChain, payer: LocalAccount
) -> None:
    header = await sign_for(shop, "/weather/rome", payer)
    async with httpx.AsyncClient(base_url=shop.url, timeout=60) as client:
        refused = await client.head("/weather/rome", headers={"PAYMENT-SIGNATURE": header})
    assert refused.status_code == 402
    assert shop.runs == []
    assert (await ask(shop, "/weather/rome", PAYMENT_SIGNATURE=header)).status_code == 200
    assert chain.read_balance(shop.seller) == PRICE


async def test_a_burst_on_one_token_admits_exactly_what_was_bought(shop: Shop, payer: LocalAccount) -> None:
    header = await sign_for(shop, "/weather/rome", payer)
    secret = (await ask(shop, "/weather/rome", PAYMENT_SIGNATURE=header)).headers["PAYMENT-TOKEN"]
    answers = await asyncio.gather(*(ask(shop, "/weather/rome", **bearer(secret)) for _ in range(40)))
    codes = [answer.status_code for answer in answers]
    assert (codes.count(200), codes.count(402)) == (REQUESTS - 1, 40 - REQUESTS + 1)
    assert len(shop.runs) == REQUESTS


async def test_row_l_a_stream_arrives_while_it_is_made(shop: Shop, payer: LocalAccount) -> None:
    header = await sign_for(shop, "/stream", payer)
    async with (
        httpx.AsyncClient(base_url=shop.url, timeout=30) as client,
        client.stream("GET", "/stream", headers={"PAYMENT-SIGNATURE": header}) as answer,
    ):
        chunks = answer.aiter_raw()
        assert await anext(chunks) == b"data: first\n\n"
        assert not shop.release.is_set()
        assert shop.query("SELECT settlement FROM payments.x402_payments") == [("settled",)]
        shop.release.set()
        assert await anext(chunks) == b"data: last\n\n"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"network": "eip155:1"}, "network"),
        ({"amount": "9999"}, "amount"),
        ({"pay_to": "0x" + "33" * 20}, "recipient"),
    ],
)
async def test_a_payment_of_other_terms_is_refused(
    shop: Shop, payer: LocalAccount, change: dict[str, str], word: str
) -> None:
    header = json.loads(base64.b64decode(await sign_for(shop, "/weather/rome", payer)))
    header["accepted"][{"pay_to": "payTo"}.get(next(iter(change)), next(iter(change)))] = next(
        iter(change.values())
    )
    answer = await ask(
        shop, "/weather/rome", PAYMENT_SIGNATURE=base64.b64encode(json.dumps(header).encode()).decode()
    )
    assert answer.status_code == 402
    assert word in answer.json()["detail"]
    assert shop.query("SELECT count(*) FROM payments.x402_payments") == [(0,)]


async def tampered(shop: Shop, payer: LocalAccount, **fields: str) -> httpx.Response:
    header = json.loads(base64.b64decode(await sign_for(shop, "/weather/rome", payer)))
    header["payload"]["authorization"].update(fields)
    text = base64.b64encode(json.dumps(header).encode()).decode()
    return await ask(shop, "/weather/rome", PAYMENT_SIGNATURE=text)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"validBefore": "1"}, "invalid_exact_evm_payload_authorization_valid_before"),
        ({"validAfter": "99999999999"}, "invalid_exact_evm_payload_authorization_valid_after"),
        ({"value": "1"}, None),
        ({"to": "0x" + "33" * 20}, None),
        ({"nonce": "0x12"}, None),
        ({"from": "0x" + "44" * 20}, None),
    ],
)
async def test_an_authorization_that_is_not_good_is_refused(
    shop: Shop, payer: LocalAccount, fields: dict[str, str], code: str | None
) -> None:
    answer = await tampered(shop, payer, **fields)
    assert answer.status_code == 402
    if code is not None:
        assert answer.json()["code"] == code
    assert shop.runs == []
    assert shop.query("SELECT count(*) FROM payments.x402_payments") == [(0,)]


async def test_a_payer_without_money_is_refused(shop: Shop) -> None:
    header = await sign_for(shop, "/weather/rome", Account.create())
    answer = await ask(shop, "/weather/rome", PAYMENT_SIGNATURE=header)
    assert answer.status_code == 402
    assert "insufficient" in answer.json()["code"]


@pytest.mark.parametrize("header", ["%%%", "e30=", "A" * 20_000])
async def test_a_malformed_payment_is_a_problem_that_says_so(shop: Shop, header: str) -> None:
    answer = await ask(shop, "/weather/rome", PAYMENT_SIGNATURE=header)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert "PAYMENT-SIGNATURE" in answer.json()["detail"]


async def test_unknown_foreign_and_revoked_tokens_are_refused(shop: Shop, payer: LocalAccount) -> None:
    unknown = await ask(shop, "/weather/rome", **bearer("tbk_" + "x" * 43))
    assert (unknown.status_code, unknown.json()["type"]) == (401, "urn:tollbook:problem:token-unknown")
    header = await sign_for(shop, "/weather/rome", payer)
    secret = (await ask(shop, "/weather/rome", PAYMENT_SIGNATURE=header)).headers["PAYMENT-TOKEN"]
    foreign = await ask(shop, "/upfront", **bearer(secret))
    assert (foreign.status_code, foreign.json()["type"]) == (401, "urn:tollbook:problem:token-foreign")
    with psycopg.connect(shop.database_url) as connection:
        connection.execute("UPDATE payments.x402_tokens SET revoked_at = now()")
    revoked = await ask(shop, "/weather/rome", **bearer(secret))
    assert (revoked.status_code, revoked.json()["type"]) == (401, "urn:tollbook:problem:token-revoked")


async def test_another_bearer_is_not_ours_to_judge(shop: Shop) -> None:
    assert (await ask(shop, "/weather/rome", **bearer("eyJ.somebody.elses"))).status_code == 402
    assert (await ask(shop, "/free", **bearer("eyJ.somebody.elses"))).status_code == 200


@pytest.mark.parametrize("fall", ["raise", "answer"])
async def test_who_paid_upfront_and_got_a_failure_keeps_his_request(
    shop: Shop, payer: LocalAccount, fall: str
) -> None:
    header = await sign_for(shop, "/fragile", payer)
    failed = await ask(shop, f"/fragile?fall={fall}", PAYMENT_SIGNATURE=header)
    assert failed.status_code == 500
    assert decode_payment_response_header(failed.headers["PAYMENT-RESPONSE"]).success
    secret = failed.headers["PAYMENT-TOKEN"]
    assert (await ask(shop, "/fragile", **bearer(secret))).text == "yes"
    assert (await ask(shop, "/fragile", **bearer(secret))).status_code == 402


@pytest.mark.parametrize(
    "path", ["/weather/rome%0A", "/weather/rome/", "/api/weather/rome", "/api/api/weather/x"]
)
async def test_no_spelling_of_a_path_is_free(
    token: str, seller: LocalAccount, database_url: str, path: str
) -> None:
    shop = Shop("", database_url, seller.address, token)
    app = make_app(shop)
    app.root_path = "/api"
    app.add_middleware(
        Paywall,  # pyright: ignore[reportArgumentType]
        payees=[Payee(NETWORK, seller.address)],
        routes={"GET /weather/{city}": PaidRoute("$0.01")},
        facilitator="http://127.0.0.1:9",
        database_url=database_url,
    )
    async with serve(app) as url:
        shop.url = url
        assert (await ask(shop, path)).status_code != 200
    assert shop.runs == []


async def test_a_paywall_inside_a_mount_guards_its_app(
    token: str, seller: LocalAccount, database_url: str
) -> None:
    shop = Shop("", database_url, seller.address, token)
    inner = make_app(shop)
    inner.add_middleware(
        Paywall,  # pyright: ignore[reportArgumentType]
        payees=[Payee(NETWORK, seller.address)],
        routes={"GET /weather/{city}": PaidRoute("$0.01")},
        facilitator="http://127.0.0.1:9",
        database_url=database_url,
    )
    outer = FastAPI()
    outer.mount("/sub", inner)
    async with serve(outer) as url:
        shop.url = url
        assert (await ask(shop, "/sub/weather/rome")).status_code == 402
        assert (await ask(shop, "/sub/free")).status_code == 200
    assert shop.runs == []
