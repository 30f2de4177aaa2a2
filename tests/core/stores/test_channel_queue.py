"""Rows o and p on the real scheme: parallel requests on a channel are all served, restarts lose nothing."""

import asyncio
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from x402 import x402Client, x402ResourceServer, x402ResourceServerSync
from x402.http.clients.httpx import x402AsyncTransport
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
from tollbook.core.stores.channel_queue import EXTENSION
from tollbook.core.stores.sealing import KEY_BYTES

REQUESTS = 8


@dataclass
class Shop:
    """The SDK's middleware before a route that takes its time, with our storage and queue."""

    connections: Connections
    chain: LocalChain
    facilitator: BareFacilitator
    payer: LocalAccount
    seller: LocalAccount
    key: bytes | None = None

    def __post_init__(self) -> None:
        self.storage = PostgresChannelStorage(self.connections, key=self.key)

    def open(self, *, seconds_max: float = 30) -> FastAPI:
        """An instance of the seller's app, with a memory of its own."""
        app, server = FastAPI(), x402ResourceServer(self.facilitator)
        storage = PostgresChannelStorage(self.connections, key=self.key)
        scheme = make_batch_scheme(self.seller, storage)
        server.register(NETWORK, scheme)
        storage.queue(server, scheme, seconds_max=seconds_max)
        option = make_option("batch-settlement", self.seller)
        routes = {route: RouteConfig(accepts=option) for route in ("GET /ticks", "GET /failures")}

        @app.get("/ticks")
        async def ticks() -> str:
            await asyncio.sleep(0.05)
            return "tick"

        @app.get("/failures")
        async def failures() -> None:
            raise LookupError

        app.middleware("http")(payment_middleware(routes, server))
        return app

    def make_buyer(self) -> x402Client:
        """A process of the buyer, with a memory of its own."""
        return make_buyer(self.payer, self.chain.url)

    def visit(self, app: FastAPI | None = None) -> httpx.AsyncClient:
        return shop_at(app or self.open(), self.make_buyer())

    def read_charged(self) -> list[int]:
        return [int(channel.charged_cumulative_amount) for channel in self.storage.list()]


@pytest.fixture
def shop(
    connections: Connections,
    schemes_chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
) -> Shop:
    return Shop(connections, schemes_chain, BareFacilitator(schemes_chain, operator), payer, seller)


async def buy(client: httpx.AsyncClient, times: int) -> list[int]:
    answers = await asyncio.gather(*(client.get("/ticks") for _ in range(times)))
    return [answer.status_code for answer in answers]


@pytest.mark.parametrize("requests", [REQUESTS, 4 * REQUESTS])
async def test_row_o_parallel_requests_on_one_channel_are_all_served(requests: int, shop: Shop) -> None:
    async with shop.visit() as client:
        assert await buy(client, 1) == [200]
        assert await buy(client, requests) == [200] * requests
    assert shop.read_charged() == [(1 + requests) * PRICE]


async def test_row_o_at_two_instances_of_the_sellers_app(shop: Shop) -> None:
    buyer = shop.make_buyer()
    async with shop_at(shop.open(), buyer) as one, shop_at(shop.open(), buyer) as two:
        assert await buy(one, 1) == [200]
        found = await asyncio.gather(buy(one, REQUESTS // 2), buy(two, REQUESTS // 2))
    assert found == [[200] * (REQUESTS // 2)] * 2
    assert shop.read_charged() == [(1 + REQUESTS) * PRICE]


async def test_who_was_told_the_state_is_not_overtaken_on_his_way_back(shop: Shop) -> None:
    told, go_back = asyncio.Event(), asyncio.Event()

    class Dawdler(httpx.ASGITransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if x402AsyncTransport.RECOVERY_KEY in request.extensions:
                told.set()
                await go_back.wait()
            return await super().handle_async_request(request)

    app = shop.open()
    slow = httpx.AsyncClient(
        transport=x402AsyncTransport(shop.make_buyer(), Dawdler(app)), base_url="http://shop", timeout=30
    )
    async with shop.visit(app) as quick, slow:
        assert await buy(quick, 2) == [200] * 2
        first = asyncio.create_task(buy(slow, 1))
        await told.wait()
        second = asyncio.create_task(buy(quick, 1))  # knows the state as well, and is not out of date
        done, _ = await asyncio.wait([second], timeout=0.3)
        assert not done
        go_back.set()
        assert await asyncio.gather(first, second) == [[200], [200]]
    assert shop.read_charged() == [4 * PRICE]


async def test_who_was_told_the_state_and_stays_away_holds_up_nobody_for_long(shop: Shop) -> None:
    app = shop.open()
    forgetful = shop_at(app, make_buyer(shop.payer))  # cannot read the chain, so it does not come back
    async with shop.visit(app) as client, forgetful:
        assert await buy(client, 1) == [200]
        assert await buy(forgetful, 1) == [402]
        assert await buy(client, 2) == [200] * 2
    assert shop.read_charged() == [3 * PRICE]


async def test_buyers_who_all_come_out_of_date_are_told_the_state_one_after_another(shop: Shop) -> None:
    app = shop.open()
    async with AsyncExitStack() as stack:
        # Five processes of one buyer; four know what the chain knows.
        first, *others = [await stack.enter_async_context(shop.visit(app)) for _ in range(5)]
        assert await buy(first, 2) == [200] * 2
        found = await asyncio.gather(*(buy(client, 1) for client in others))
    assert found == [[200]] * 4
    assert shop.read_charged() == [6 * PRICE]


async def test_the_first_requests_of_a_channel_wait_for_its_deposit(shop: Shop) -> None:
    async with shop.visit() as client:
        assert await buy(client, 3) == [200] * 3
    assert shop.read_charged() == [3 * PRICE]
    assert shop.facilitator.calls.count("settle") == 1


async def test_a_request_that_waits_too_long_is_refused_as_ever_and_charged_nothing(shop: Shop) -> None:
    async with shop.visit(shop.open(seconds_max=0)) as client:
        assert await buy(client, 1) == [200]
        found = await buy(client, REQUESTS)
    assert found.count(402) > 0
    assert shop.read_charged() == [(1 + found.count(200)) * PRICE]


async def test_a_handler_that_fails_leaves_the_channel_to_the_next(shop: Shop) -> None:
    async with shop.visit() as client:
        assert await buy(client, 1) == [200]
        with pytest.raises(Exception, match="Failed to handle payment"):
            await client.get("/failures")
        assert await buy(client, 1) == [200]
    assert shop.read_charged() == [2 * PRICE]


async def test_the_reservation_of_a_process_that_died_ends_with_its_time(shop: Shop) -> None:
    async with shop.visit() as client:
        assert await buy(client, 1) == [200]
        (channel,) = shop.storage.list()
        channel.pending_request = PendingRequest("0xdead", str(2 * PRICE), int(time.time() * 1000) + 500)
        shop.storage.update_channel(channel.channel_id, lambda _: channel)
        assert await buy(client, 1) == [200]
    assert shop.read_charged() == [2 * PRICE]


@pytest.mark.parametrize("key", [None, secrets.token_bytes(KEY_BYTES)], ids=["open", "sealed"])
async def test_row_p_after_both_sides_restart_the_channel_goes_on_and_all_of_it_is_claimed(
    key: bytes | None, shop: Shop
) -> None:
    shop.key = key
    for bought in (5, 3):  # each time a new seller and a new buyer, who know what the database knows
        channels = PostgresClientChannelStorage(shop.connections, owner=shop.payer.address, key=key)
        async with shop_at(shop.open(), make_buyer(shop.payer, channels=channels)) as client:
            assert [(await client.get("/ticks")).status_code for _ in range(bought)] == [200] * bought
    storage = PostgresChannelStorage(shop.connections, key=key)
    assert [channel.charged_cumulative_amount for channel in storage.list()] == [str(8 * PRICE)]
    assert shop.facilitator.calls.count("settle") == 1  # one deposit

    scheme = make_batch_scheme(shop.seller, storage)
    config = ChannelManagerConfig(scheme, shop.facilitator, shop.seller.address, TOKEN_ADDRESS, NETWORK)
    await BatchSettlementChannelManager(config).claim_and_settle()
    assert shop.chain.read_balance(shop.seller.address) == 8 * PRICE


def test_row_o_on_the_sdks_synchronous_server(shop: Shop) -> None:
    storage, channels = shop.storage, InMemoryClientChannelStorage()
    scheme = make_batch_scheme(shop.seller, storage)
    server = x402ResourceServerSync(shop.facilitator._facilitator)
    server.register(NETWORK, scheme)
    server.initialize()
    storage.queue(server, scheme)
    option = make_option("batch-settlement", shop.seller)
    config = ResourceConfig(
        scheme=option.scheme,
        pay_to=shop.seller.address,
        price=option.price,
        network=NETWORK,
        max_timeout_seconds=60,
    )
    (requirements,) = server.build_payment_requirements(config)
    buyer = BatchClient(EthAccountSigner(shop.payer), BatchSettlementEvmSchemeOptions(storage=channels))

    def sign(challenge: str) -> PaymentPayload:
        for channel in storage.list():  # what the answer, or the refusal, tells the buyer
            channels.set(
                channel.channel_id,
                BatchSettlementClientContext(channel.charged_cumulative_amount, channel.balance),
            )
        payload = buyer.create_payment_payload(requirements)
        extensions = {EXTENSION: {"info": {"challenge": challenge}}}  # of his 402, by which he is known
        return PaymentPayload(x402_version=2, accepted=requirements, payload=payload, extensions=extensions)

    def serve(payload: PaymentPayload) -> bool:
        if not server.verify_payment(payload, requirements).is_valid:
            return False
        time.sleep(0.05)
        return server.settle_payment(payload, requirements).success

    def buy_one(challenge: str, payload: PaymentPayload) -> bool:
        try:
            return serve(payload)
        except PaymentAbortedError:  # out of date by now: sign again, once
            return serve(sign(challenge))

    assert serve(sign("first"))
    four = [f"buyer {number}" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(buy_one, four, [sign(one) for one in four])) == [True] * 4
    assert shop.read_charged() == [5 * PRICE]
