"""Rows o and p on the real scheme: parallel requests on a channel are all served, restarts lose nothing."""

import asyncio
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from x402 import x402ResourceServer, x402ResourceServerSync
from x402.http.middleware.fastapi import payment_middleware
from x402.http.types import RouteConfig
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme as BatchClient
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmSchemeOptions
from x402.mechanisms.evm.batch_settlement.client.storage import (
    BatchSettlementClientContext,
    InMemoryClientChannelStorage,
)
from x402.mechanisms.evm.batch_settlement.server.channel_manager import BatchSettlementChannelManager
from x402.mechanisms.evm.batch_settlement.server.channel_manager_common import ChannelManagerConfig
from x402.mechanisms.evm.batch_settlement.server.storage import PendingRequest
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentAbortedError, PaymentPayload, ResourceConfig

from clients.bare_sdk import PRICE, BareFacilitator, make_batch_scheme, make_buyer, make_option, shop_at
from tollbook.core.local_chain import NETWORK, TOKEN_ADDRESS, LocalChain
from tollbook.core.stores import Connections, PostgresChannelStorage, PostgresClientChannelStorage
from tollbook.core.stores.sealing import KEY_BYTES

REQUESTS = 8


@pytest.fixture
def facilitator(schemes_chain: LocalChain, operator: LocalAccount) -> BareFacilitator:
    return BareFacilitator(schemes_chain, operator)


def open_shop(
    facilitator: BareFacilitator,
    seller: LocalAccount,
    storage: PostgresChannelStorage,
    *,
    seconds_max: float = 30,
) -> FastAPI:
    """The SDK's middleware before a route that takes its time, with our storage and queue."""
    app = FastAPI()

    @app.get("/ticks")
    async def ticks() -> str:
        await asyncio.sleep(0.05)
        return "tick"

    @app.get("/failures")
    async def failures() -> None:
        raise LookupError

    server = x402ResourceServer(facilitator)
    scheme = make_batch_scheme(seller, storage)
    server.register(NETWORK, scheme)
    storage.queue(server, scheme, seconds_max=seconds_max)
    routes = {
        route: RouteConfig(accepts=make_option("batch-settlement", seller))
        for route in ("GET /ticks", "GET /failures")
    }
    app.middleware("http")(payment_middleware(routes, server))
    return app


async def buy(client: httpx.AsyncClient, times: int) -> list[int]:
    answers = await asyncio.gather(*(client.get("/ticks") for _ in range(times)))
    return [answer.status_code for answer in answers]


def read_charged(storage: PostgresChannelStorage) -> list[int]:
    return [int(channel.charged_cumulative_amount) for channel in storage.list()]


async def test_row_o_eight_parallel_requests_on_one_channel_are_all_served(
    connections: Connections,
    schemes_chain: LocalChain,
    facilitator: BareFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    storage = PostgresChannelStorage(connections)
    app = open_shop(facilitator, seller, storage)
    async with shop_at(app, make_buyer(payer, schemes_chain.url)) as client:
        assert await buy(client, 1) == [200]
        assert await buy(client, REQUESTS) == [200] * REQUESTS
    assert read_charged(storage) == [(1 + REQUESTS) * PRICE]


async def test_row_o_at_two_instances_of_the_sellers_app(
    connections: Connections,
    schemes_chain: LocalChain,
    facilitator: BareFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    buyer = make_buyer(payer, schemes_chain.url)
    storages = [PostgresChannelStorage(connections) for _ in range(2)]
    shops = [shop_at(open_shop(facilitator, seller, storage), buyer) for storage in storages]
    async with shops[0] as one, shops[1] as two:
        assert await buy(one, 1) == [200]
        found = await asyncio.gather(buy(one, REQUESTS // 2), buy(two, REQUESTS // 2))
    assert found == [[200] * (REQUESTS // 2)] * 2
    assert read_charged(storages[0]) == [(1 + REQUESTS) * PRICE]


async def test_buyers_who_all_come_out_of_date_are_told_the_state_one_after_another(
    connections: Connections,
    schemes_chain: LocalChain,
    facilitator: BareFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    storage = PostgresChannelStorage(connections)
    app = open_shop(facilitator, seller, storage)
    async with AsyncExitStack() as stack:
        # Five processes of one buyer, each with a memory of its own; four know what the chain knows.
        buyers = [make_buyer(payer, schemes_chain.url) for _ in range(5)]
        first, *others = [await stack.enter_async_context(shop_at(app, buyer)) for buyer in buyers]
        assert await buy(first, 2) == [200] * 2
        found = await asyncio.gather(*(buy(client, 1) for client in others))
    assert found == [[200]] * 4
    assert read_charged(storage) == [6 * PRICE]


async def test_the_first_requests_of_a_channel_wait_for_its_deposit(
    connections: Connections,
    schemes_chain: LocalChain,
    facilitator: BareFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    storage = PostgresChannelStorage(connections)
    async with shop_at(
        open_shop(facilitator, seller, storage), make_buyer(payer, schemes_chain.url)
    ) as client:
        assert await buy(client, 3) == [200] * 3
    assert read_charged(storage) == [3 * PRICE]
    assert facilitator.calls.count("settle") == 1


async def test_a_request_that_waits_too_long_is_refused_as_ever_and_charged_nothing(
    connections: Connections,
    schemes_chain: LocalChain,
    facilitator: BareFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    storage = PostgresChannelStorage(connections)
    app = open_shop(facilitator, seller, storage, seconds_max=0)
    async with shop_at(app, make_buyer(payer, schemes_chain.url)) as client:
        assert await buy(client, 1) == [200]
        found = await buy(client, REQUESTS)
    assert found.count(402) > 0
    assert read_charged(storage) == [(1 + found.count(200)) * PRICE]


async def test_a_handler_that_fails_leaves_the_channel_to_the_next(
    connections: Connections,
    schemes_chain: LocalChain,
    facilitator: BareFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    storage = PostgresChannelStorage(connections)
    async with shop_at(
        open_shop(facilitator, seller, storage), make_buyer(payer, schemes_chain.url)
    ) as client:
        assert await buy(client, 1) == [200]
        with pytest.raises(Exception, match="Failed to handle payment"):
            await client.get("/failures")
        assert await buy(client, 1) == [200]
    assert read_charged(storage) == [2 * PRICE]


async def test_the_reservation_of_a_process_that_died_ends_with_its_time(
    connections: Connections,
    schemes_chain: LocalChain,
    facilitator: BareFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    storage = PostgresChannelStorage(connections)
    async with shop_at(
        open_shop(facilitator, seller, storage), make_buyer(payer, schemes_chain.url)
    ) as client:
        assert await buy(client, 1) == [200]
        (channel,) = storage.list()
        channel.pending_request = PendingRequest("0xdead", str(2 * PRICE), int(time.time() * 1000) + 500)
        storage.update_channel(channel.channel_id, lambda _: channel)
        assert await buy(client, 1) == [200]
    assert read_charged(storage) == [2 * PRICE]


@pytest.mark.parametrize("sealed", [False, True])
async def test_row_p_after_both_sides_restart_the_channel_goes_on_and_all_of_it_is_claimed(
    sealed: bool,
    connections: Connections,
    schemes_chain: LocalChain,
    facilitator: BareFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    key = secrets.token_bytes(KEY_BYTES) if sealed else None
    for bought in (5, 3):  # each time a new seller and a new buyer, who know what the database knows
        channels = PostgresClientChannelStorage(connections, owner=payer.address, key=key)
        storage = PostgresChannelStorage(connections, key=key)
        app = open_shop(facilitator, seller, storage)
        async with shop_at(app, make_buyer(payer, channels=channels)) as client:
            assert [(await client.get("/ticks")).status_code for _ in range(bought)] == [200] * bought
    assert read_charged(storage) == [8 * PRICE]
    assert facilitator.calls.count("settle") == 1  # one deposit

    scheme = make_batch_scheme(seller, PostgresChannelStorage(connections, key=key))
    config = ChannelManagerConfig(scheme, facilitator, seller.address, TOKEN_ADDRESS, NETWORK)
    await BatchSettlementChannelManager(config).claim_and_settle()
    assert schemes_chain.read_balance(seller.address) == 8 * PRICE


def test_row_o_on_the_sdks_synchronous_server(
    connections: Connections, facilitator: BareFacilitator, payer: LocalAccount, seller: LocalAccount
) -> None:
    storage, channels = PostgresChannelStorage(connections), InMemoryClientChannelStorage()
    scheme = make_batch_scheme(seller, storage)
    server = x402ResourceServerSync(facilitator._facilitator)
    server.register(NETWORK, scheme)
    server.initialize()
    storage.queue(server, scheme)
    option = make_option("batch-settlement", seller)
    config = ResourceConfig(
        scheme=option.scheme,
        pay_to=seller.address,
        price=option.price,
        network=NETWORK,
        max_timeout_seconds=60,
    )
    (requirements,) = server.build_payment_requirements(config)
    buyer = BatchClient(EthAccountSigner(payer), BatchSettlementEvmSchemeOptions(storage=channels))

    def sign() -> PaymentPayload:
        for channel in storage.list():  # what the answer, or the refusal, tells the buyer
            channels.set(
                channel.channel_id,
                BatchSettlementClientContext(channel.charged_cumulative_amount, channel.balance),
            )
        payload = buyer.create_payment_payload(requirements)
        return PaymentPayload(x402_version=2, accepted=requirements, payload=payload)

    def serve(payload: PaymentPayload) -> bool:
        if not server.verify_payment(payload, requirements).is_valid:
            return False
        time.sleep(0.05)
        return server.settle_payment(payload, requirements).success

    def buy_one(payload: PaymentPayload) -> bool:
        try:
            return serve(payload)
        except PaymentAbortedError:  # out of date by now: sign again, once
            return serve(sign())

    assert serve(sign())
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(buy_one, [sign() for _ in range(4)])) == [True] * 4
    assert read_charged(storage) == [5 * PRICE]
