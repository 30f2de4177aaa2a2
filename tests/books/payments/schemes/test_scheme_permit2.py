"""Exact payments by Permit2, for tokens that know no EIP-3009, through the paywall."""

import asyncio

from eth_account.signers.local import LocalAccount
from fastapi import FastAPI

from clients.bare_sdk import PRICE, make_buyer, shop_at, sign_for
from fixtures.schemes import approve_permit2, query, selling
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.core.local_chain import LocalChain


def make_app(runs: list[str]) -> FastAPI:
    app = FastAPI()

    @app.get("/weather")
    async def weather() -> str:
        runs.append("weather")
        return "dry"

    return app


async def test_a_permit2_payment_buys_and_is_booked(
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    async with (
        selling(make_app([]), seller, in_process, database_url, "permit2") as paywall,
        shop_at(paywall, make_buyer(permit2_payer)) as client,
    ):
        answer = await client.get("/weather")
    assert answer.status_code == 200, answer.text
    assert schemes_chain.read_balance(seller.address) == PRICE
    [booked] = query(database_url, "SELECT scheme, amount, settlement, nonce FROM payments.x402_payments")
    assert booked[:3] == ("exact", PRICE, "settled")
    assert booked[3].startswith("permit2:")


async def test_copies_of_a_permit2_payment_run_once_and_are_broadcast_once(
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    permit2_payer: LocalAccount,
    operator: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    runs: list[str] = []
    async with selling(make_app(runs), seller, in_process, database_url, "permit2") as paywall:
        buyer = make_buyer(permit2_payer)
        async with shop_at(paywall, buyer) as client:
            header = await sign_for(paywall, "/weather", buyer)
            copies = (client.get("/weather", headers={"PAYMENT-SIGNATURE": header}) for _ in range(5))
            answers = await asyncio.gather(*copies)
    assert [answer.status_code for answer in answers] == [200] * 5
    assert runs == ["weather"]
    assert schemes_chain.read_balance(seller.address) == PRICE
    assert int(schemes_chain.call("eth_getTransactionCount", operator.address, "latest"), 16) == 1


async def test_a_payer_who_approved_too_little_is_refused_before_the_app_runs(
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    runs: list[str] = []
    approve_permit2(schemes_chain, permit2_payer.address, PRICE - 1)
    async with (
        selling(make_app(runs), seller, in_process, database_url, "permit2") as paywall,
        shop_at(paywall, make_buyer(permit2_payer)) as client,
    ):
        answer = await client.get("/weather")
    assert (answer.status_code, answer.json()["code"], runs) == (402, "permit2_allowance_required", [])
    assert query(database_url, "SELECT 1 FROM payments.x402_payments") == []
