"""The paywall with what is behind it elsewhere, or down."""

import asyncio
from typing import Any

import httpx
import pytest
from eth_account.signers.local import LocalAccount

from clients.pay import paying_client
from fixtures.serve import serve
from fixtures.storefront import PRICE, REQUESTS, Shop, ask, bearer, make_app, sign_for
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.books.payments.facilitator.server import facilitator_app
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.core.errors import DatabaseUnreachable
from tollbook.core.local_chain import NETWORK, LocalChain


async def test_the_facilitator_may_be_somewhere_else(
    chain: LocalChain,
    token: str,
    operator: LocalAccount,
    seller: LocalAccount,
    payer: LocalAccount,
    database_url: str,
) -> None:
    facilitator = InProcessFacilitator({NETWORK: chain.url}, "0x" + operator.key.hex(), database_url)
    shop = Shop("", database_url, seller.address, token)
    app = make_app(shop)
    async with serve(facilitator_app(facilitator)) as facilitator_url:
        app.add_middleware(
            Paywall,  # pyright: ignore[reportArgumentType]
            payees=[Payee(NETWORK, seller.address)],
            routes={"GET /weather/{city}": PaidRoute("$0.01", requests=REQUESTS)},
            facilitator=facilitator_url,
            database_url=database_url,
        )
        async with serve(app) as url, paying_client(payer, token, base_url=url, timeout=30) as client:
            assert (await client.get("/weather/rome")).status_code == 200
    await facilitator.aclose()
    assert chain.read_balance(seller.address) == PRICE


async def test_an_unreachable_facilitator_moves_nothing_and_says_to_try_again(
    token: str, seller: LocalAccount, payer: LocalAccount, database_url: str
) -> None:
    shop = Shop("", database_url, seller.address, token)
    app = make_app(shop)
    app.add_middleware(
        Paywall,  # pyright: ignore[reportArgumentType]
        payees=[Payee(NETWORK, seller.address)],
        routes={"GET /weather/{city}": PaidRoute("$0.01")},
        facilitator="http://127.0.0.1:9",
        database_url=database_url,
    )
    async with serve(app) as url:
        shop.url = url
        header = await sign_for(shop, "/weather/rome", payer)
        answer = await ask(shop, "/weather/rome", PAYMENT_SIGNATURE=header)
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:tollbook:problem:payment-postponed"
    assert "Retry-After" in answer.headers


async def test_an_unreachable_database_lets_nobody_in(token: str, seller: LocalAccount) -> None:
    shop = Shop("", "postgresql://127.0.0.1:9/nowhere", seller.address, token)
    app = make_app(shop)
    app.add_middleware(
        Paywall,  # pyright: ignore[reportArgumentType]
        payees=[Payee(NETWORK, seller.address)],
        routes={"GET /weather/{city}": PaidRoute("$0.01")},
        facilitator="http://127.0.0.1:9",
        database_url=shop.database_url,
    )
    async with serve(app) as url:
        shop.url = url
        answer = await ask(shop, "/weather/rome", **bearer("tbk_" + "x" * 43))
        assert (await ask(shop, "/free")).status_code == 200
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:tollbook:problem:database-unreachable"
    assert shop.runs == []


async def test_requests_that_wait_for_the_books_together_are_refused_together(
    token: str, seller: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after another, each would wait as long as the database is waited for."""
    opened = arrived = 0
    all_there = asyncio.Event()

    async def open_books(_: Paywall) -> None:
        nonlocal opened
        opened += 1
        await all_there.wait()
        raise DatabaseUnreachable("it is down")

    monkeypatch.setattr(Paywall, "_open_books", open_books)
    paywall = Paywall(
        make_app(Shop("", "", seller.address, token)),
        payees=[Payee(NETWORK, seller.address)],
        routes={"GET /weather/{city}": PaidRoute("$0.01")},
        facilitator="http://127.0.0.1:9",
        database_url="postgresql://127.0.0.1:9/nowhere",
    )

    async def arrive(*request: Any) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 5:
            asyncio.get_running_loop().call_later(0.05, all_there.set)
        await paywall(*request)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(arrive), base_url="http://shop") as client:
        together = await asyncio.gather(*(client.get("/weather/rome") for _ in range(5)))
        later = await client.get("/weather/rome")
    assert {answer.status_code for answer in (*together, later)} == {503}
    assert opened == 2
