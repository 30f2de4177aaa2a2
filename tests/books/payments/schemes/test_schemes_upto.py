"""Charging by usage (scheme upto): from what the handler says to what is booked and moved."""

import json
from contextlib import suppress
from typing import Any

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI, Response
from hypothesis import given
from hypothesis import strategies as st
from x402.http.middleware.fastapi import set_settlement_overrides
from x402.http.utils import decode_payment_response_header

from clients.bare_sdk import PRICE, make_buyer, shop_at, sign_for
from clients.pay import require
from fixtures.schemes import query, selling
from tollbook.books.payments.facilitator.in_process import (
    Facilitator,
    InProcessFacilitator,
    SettlementUnknown,
)
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.books.payments.rules import WrongPaywall, compile_tolls
from tollbook.books.payments.schemes.upto import UsageUnreadable, read_usage, take_usage
from tollbook.core.local_chain import NETWORK, TOKEN_ADDRESS, LocalChain

MOST = require(TOKEN_ADDRESS, "0x" + "11" * 20, amount=5_000, scheme="upto")


@pytest.mark.parametrize(
    ("said", "charged"),
    [
        ("2500", 2_500),
        (2500, 2_500),
        ("50%", 2_500),
        ("$0.002", 2_000),
        ("0", 0),
        ("5000", 5_000),
        ("0.01%", 0),
    ],
)
def test_usage_is_minor_units_or_a_share_or_dollars(said: object, charged: int) -> None:
    assert read_usage(json.dumps({"amount": said}).encode(), MOST, 6) == charged


def test_a_handler_that_says_nothing_of_an_amount_charges_the_price() -> None:
    assert read_usage(b"{}", MOST, 6) == 5_000


@pytest.mark.parametrize("said", ["5001", "101%", "$0.006", "-1", "a lot", "", "1.5", "-50%", True, [1]])
def test_usage_beyond_the_price_or_of_no_amount_charges_nothing(said: object) -> None:
    with pytest.raises(UsageUnreadable):
        read_usage(json.dumps({"amount": said}).encode(), MOST, 6)


@given(st.binary(max_size=200))
def test_whatever_the_header_holds_no_more_than_the_price_is_charged(usage: bytes) -> None:
    with suppress(UsageUnreadable):
        assert 0 <= read_usage(usage, MOST, 6) <= 5_000


def test_the_usage_header_is_taken_out_of_the_answer() -> None:
    kept = [(b"content-type", b"text/plain"), (b"x-used", b"1")]
    assert take_usage([kept[0], (b"Settlement-Overrides", b"{}"), kept[1]]) == (kept, b"{}")
    assert take_usage(kept) == (kept, None)


def make_app(status: int = 200) -> FastAPI:
    app = FastAPI()

    @app.get("/words")
    async def words(response: Response, used: str | None = None) -> str:
        if used is not None:
            set_settlement_overrides(response, {"amount": used})
        response.status_code = status
        return "words"

    return app


@pytest.mark.parametrize(
    ("used", "moved"), [("250", 250), ("50%", 500), ("$0.0002", 200), ("0", 0), (None, PRICE)]
)
async def test_what_was_used_is_charged_moved_and_booked(
    used: str | None,
    moved: int,
    schemes_chain: LocalChain,
    facilitator: Facilitator,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    async with (
        selling(make_app(), seller, facilitator, database_url, scheme="upto") as paywall,
        shop_at(paywall, make_buyer(permit2_payer)) as client,
    ):
        answer = await client.get("/words", params={"used": used} if used else {})
    assert answer.status_code == 200, answer.text
    assert "settlement-overrides" not in answer.headers
    settlement = decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"])
    assert (settlement.success, settlement.amount) == (True, str(moved))
    assert bool(settlement.transaction) == (moved > 0)
    assert schemes_chain.read_balance(seller.address) == moved
    assert query(database_url, "SELECT scheme, amount, settlement FROM payments.x402_payments") == [
        ("upto", moved, "settled")
    ]
    assert query(database_url, "SELECT amount_moved, status FROM payments.x402_settlements") == [
        (moved, "settled")
    ]


@pytest.mark.parametrize(("used", "status"), [("1001", 200), ("a lot", 200), ("250", 404)])
async def test_usage_that_cannot_be_charged_and_refusals_cost_nothing(
    used: str,
    status: int,
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    async with (
        selling(make_app(status), seller, in_process, database_url, scheme="upto") as paywall,
        shop_at(paywall, make_buyer(permit2_payer)) as client,
    ):
        answer = await client.get("/words", params={"used": used})
    assert answer.status_code == (500 if status == 200 else status)
    assert schemes_chain.read_balance(seller.address) == 0
    assert query(database_url, "SELECT status FROM payments.x402_payments") == [("failed",)]


@pytest.mark.parametrize("scheme", ["upto", "batch-settlement"])
def test_by_usage_nobody_pays_before_the_handler(scheme: Any) -> None:
    terms = PaidRoute("$0.01", scheme=scheme, settle="before")
    with pytest.raises(WrongPaywall, match="after the handler"):
        compile_tolls({"GET /words": terms}, [Payee("base", "0x" + "11" * 20)])


@pytest.mark.parametrize("scheme", ["upto", "batch-settlement"])
def test_by_usage_a_payment_buys_one_request(scheme: Any) -> None:
    """The others would come with its token, and nobody would charge what they use."""
    terms = PaidRoute("$0.01", scheme=scheme, requests=2)
    with pytest.raises(WrongPaywall, match="charged by itself"):
        compile_tolls({"GET /words": terms}, [Payee("base", "0x" + "11" * 20)])


@pytest.mark.parametrize(
    ("scheme", "transfer", "method"),
    [("exact", "eip3009", None), ("exact", "permit2", "permit2"), ("upto", "eip3009", "permit2")],
)
def test_the_terms_say_how_the_money_is_taken(scheme: Any, transfer: Any, method: str | None) -> None:
    payee = Payee("base", "0x" + "11" * 20, transfer=transfer)
    [toll] = compile_tolls({"GET /words": PaidRoute("$0.01", scheme=scheme)}, [payee]).all
    [option] = toll.options
    assert option.requirements.scheme == scheme
    assert option.requirements.extra.get("assetTransferMethod") == method


@pytest.mark.parametrize("scheme", ["upto", "batch-settlement"])
async def test_a_route_whose_scheme_no_facilitator_serves_is_closed_and_the_others_are_not(
    scheme: Any, seller: LocalAccount, in_process: InProcessFacilitator, database_url: str
) -> None:
    paywall = Paywall(
        make_app(),
        routes={"GET /words": PaidRoute("$0.001", scheme=scheme), "GET /other": PaidRoute("$0.001")},
        payees=[Payee("base", seller.address)],  # the facilitator serves the local chain alone
        facilitator=in_process,
        database_url=database_url,
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(paywall), base_url="http://shop") as client:
        words, other = await client.get("/words"), await client.get("/other")
    await paywall.close()
    assert (words.status_code, words.json()["type"]) == (503, "urn:tollbook:problem:scheme-not-served")
    assert other.status_code == 402


async def test_usage_that_was_once_asked_to_be_settled_is_asked_for_again_whatever_a_second_answer_uses(
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, used, settle = FastAPI(), ["300", "0"], in_process.settle

    @app.get("/words")
    async def words(response: Response) -> str:
        set_settlement_overrides(response, {"amount": used.pop(0)})
        return "words"

    async def lose_answer(*asked: Any) -> Any:
        monkeypatch.setattr(in_process, "settle", settle)
        answer = await settle(*asked)
        raise SettlementUnknown(NETWORK, answer.transaction, "settlement_pending", "its answer was lost")

    monkeypatch.setattr(in_process, "settle", lose_answer)
    async with selling(app, seller, in_process, database_url, scheme="upto") as paywall:
        header = {"PAYMENT-SIGNATURE": await sign_for(paywall, "/words", make_buyer(permit2_payer))}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(paywall), base_url="http://shop"
        ) as client:
            answers = [await client.get("/words", headers=header) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, 200]
    assert schemes_chain.read_balance(seller.address) == 300
    booked = query(database_url, "SELECT amount::int, settlement FROM payments.x402_payments")
    assert booked == [(300, "settled")]
