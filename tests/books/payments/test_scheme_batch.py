"""Payment channels (scheme batch-settlement): what the bare SDK does, and what a paywall makes of it."""

import asyncio

import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from x402.http.utils import decode_payment_required_header
from x402.mechanisms.evm.batch_settlement.errors import ERR_CHANNEL_BUSY
from x402.mechanisms.evm.batch_settlement.server.scheme import BatchSettlementEvmScheme

from clients.bare_sdk import (
    PRICE,
    BareFacilitator,
    make_batch_scheme,
    make_buyer,
    make_option,
    sell_with_bare_sdk,
    shop_at,
)
from tollbook.core.local_chain import LocalChain

REQUESTS = 8


@pytest.fixture
def bare_facilitator(schemes_chain: LocalChain, operator: LocalAccount) -> BareFacilitator:
    return BareFacilitator(schemes_chain, operator)


def make_app(work_seconds: float = 0.0) -> FastAPI:
    app = FastAPI()

    @app.get("/ticks")
    async def ticks() -> str:
        await asyncio.sleep(work_seconds)
        return "tick"

    return app


def sell_ticks_bare(
    facilitator: BareFacilitator,
    seller: LocalAccount,
    batch: BatchSettlementEvmScheme,
    work_seconds: float = 0.0,
) -> FastAPI:
    option = make_option("batch-settlement", seller)
    return sell_with_bare_sdk(make_app(work_seconds), facilitator, {"GET /ticks": option}, batch)


async def test_row_o_with_the_bare_sdk_one_of_eight_parallel_requests_is_served(
    schemes_chain: LocalChain, bare_facilitator: BareFacilitator, payer: LocalAccount, seller: LocalAccount
) -> None:
    app = sell_ticks_bare(bare_facilitator, seller, make_batch_scheme(seller), work_seconds=0.3)
    async with shop_at(app, make_buyer(payer, schemes_chain.url)) as client:
        assert (await client.get("/ticks")).status_code == 200
        answers = await asyncio.gather(*(client.get("/ticks") for _ in range(REQUESTS)))
    served = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 402]
    assert (len(served), len(refused)) == (1, REQUESTS - 1)
    reasons = {decode_payment_required_header(answer.headers["PAYMENT-REQUIRED"]).error for answer in refused}
    assert reasons == {ERR_CHANNEL_BUSY}


async def test_row_p_with_the_bare_sdk_a_restart_of_both_sides_forgets_what_was_signed(
    schemes_chain: LocalChain, bare_facilitator: BareFacilitator, payer: LocalAccount, seller: LocalAccount
) -> None:
    batch = make_batch_scheme(seller)
    async with shop_at(sell_ticks_bare(bare_facilitator, seller, batch), make_buyer(payer)) as client:
        for _ in range(5):
            assert (await client.get("/ticks")).status_code == 200
    [channel] = batch.get_storage().list()
    assert channel.charged_cumulative_amount == str(5 * PRICE)

    batch = make_batch_scheme(seller)
    async with shop_at(sell_ticks_bare(bare_facilitator, seller, batch), make_buyer(payer)) as client:
        assert (await client.get("/ticks")).status_code == 200
    [forgotten] = batch.get_storage().list()
    assert forgotten.channel_id == channel.channel_id
    assert forgotten.charged_cumulative_amount == str(PRICE)  # five were served before, one of six is owed
    assert forgotten.balance == str(20 * PRICE)  # and the payer deposited twice
