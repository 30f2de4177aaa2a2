"""Purchases by channel, through the paywall: usage, refusals, copies, refunds, requests that were cut off."""

import asyncio
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg
import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI, Response
from x402 import x402Client
from x402.http.middleware.fastapi import set_settlement_overrides
from x402.http.utils import (
    decode_payment_response_header,
    decode_payment_signature_header,
    encode_payment_signature_header,
)
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme as BatchClient
from x402.mechanisms.evm.batch_settlement.errors import ERR_CHANNEL_BUSY
from x402.mechanisms.evm.batch_settlement.server.storage import Channel
from x402.mechanisms.evm.signers import EthAccountSignerWithRPC
from x402.schemas import SettleResponse

from clients.bare_sdk import PRICE, make_buyer, shop_at, sign_for
from fixtures.schemes import query, selling
from fixtures.serve import serve
from tollbook.books.payments.facilitator.in_process import Facilitator, InProcessFacilitator
from tollbook.books.payments.payments import Payment
from tollbook.books.payments.paywall import Paywall
from tollbook.books.payments.schemes.channel_purchases import ChannelPurchases
from tollbook.books.payments.schemes.channels import claim, find_owners
from tollbook.core.database import Database, WriteTx
from tollbook.core.errors import DatabaseUnreachable
from tollbook.core.local_chain import NETWORK, LocalChain
from tollbook.core.stores import PostgresChannelStorage

SCHEME = "batch-settlement"
SHOP = "http://shop"


def make_app(runs: list[str]) -> FastAPI:
    app = FastAPI()

    @app.get("/ticks")
    async def ticks(response: Response, used: str | None = None, status: int = 200) -> str:
        runs.append("tick")
        response.status_code = status
        if used is not None:
            set_settlement_overrides(response, {"amount": used})
        return "tick"

    return app


def read_channel(database_url: str) -> Channel:
    [channel] = PostgresChannelStorage(database_url).list()
    return channel


def read_booked(database_url: str) -> list[tuple[Any, ...]]:
    return query(
        database_url, "SELECT amount::int, settlement FROM payments.x402_payments ORDER BY payment_id"
    )


def let_time_pass(database_url: str) -> None:
    """Whatever a dead process held is held no more."""
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE payments.x402_answers SET held_until = now() - interval '1 s'")
        connection.execute("UPDATE payments.x402_settlements SET held_until = now() - interval '1 s'")
        connection.execute("UPDATE stores.channels SET pending_expires_at = 0 WHERE pending_id IS NOT NULL")
        connection.execute("DELETE FROM stores.channel_turns")


async def test_each_request_is_charged_and_booked_at_what_it_used(
    schemes_chain: LocalChain,
    facilitator: Facilitator,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    async with (
        selling(make_app([]), seller, facilitator, database_url, scheme=SCHEME) as paywall,
        shop_at(paywall, make_buyer(payer)) as client,
    ):
        answers = [
            await client.get("/ticks", params={"used": used} if used else {})
            for used in ("250", None, "0", "50%", None)
        ]
    assert [answer.status_code for answer in answers] == [200] * 5
    charged = [250, PRICE, 0, 500, PRICE]
    assert read_booked(database_url) == [(amount, "settled") for amount in charged]
    settlements = [decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"]) for answer in answers]
    assert [one.extra and one.extra["chargedAmount"] for one in settlements] == [
        str(each) for each in charged
    ]
    assert read_channel(database_url).charged_cumulative_amount == str(sum(charged))
    assert schemes_chain.read_balance(seller.address) == 0
    await claim(PostgresChannelStorage(database_url), facilitator, NETWORK)
    assert schemes_chain.read_balance(seller.address) == sum(charged)


async def test_a_request_that_is_refused_by_the_app_is_charged_nothing_and_frees_the_channel(
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    async with (
        selling(make_app([]), seller, in_process, database_url, scheme=SCHEME) as paywall,
        shop_at(paywall, make_buyer(payer)) as client,
    ):
        for status in (200, 404, 500, 200):
            assert (await client.get("/ticks", params={"status": status})).status_code == status
        assert (await client.get("/ticks", params={"used": "1001"})).status_code == 500
        assert (await client.get("/ticks")).status_code == 200
    assert read_channel(database_url).charged_cumulative_amount == str(3 * PRICE)
    assert [outcome for _, outcome in read_booked(database_url)].count("settled") == 3


async def test_copies_of_a_request_run_once_are_charged_once_and_answered_alike(
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    runs: list[str] = []
    async with selling(make_app(runs), seller, in_process, database_url, scheme=SCHEME) as paywall:
        buyer = make_buyer(payer)
        async with shop_at(paywall, buyer) as client:
            assert (await client.get("/ticks")).status_code == 200
        header = {"PAYMENT-SIGNATURE": await sign_for(paywall, "/ticks", buyer)}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(paywall), base_url=SHOP) as client:
            copies = await asyncio.gather(*(client.get("/ticks", headers=header) for _ in range(5)))
            again = await client.get("/ticks", headers=header)
            elsewhere = await client.get("/ticks?used=0", headers=header)
    assert [answer.status_code for answer in (*copies, again)] == [200] * 6
    assert len({answer.headers["PAYMENT-RESPONSE"] for answer in (*copies, again)}) == 1
    assert elsewhere.status_code == 409
    assert len(runs) == 2
    assert read_channel(database_url).charged_cumulative_amount == str(2 * PRICE)


async def test_a_channel_can_be_filled_by_permit2(
    in_process: InProcessFacilitator,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
    schemes_chain: LocalChain,
) -> None:
    async with (
        selling(make_app([]), seller, in_process, database_url, "permit2", scheme=SCHEME) as paywall,
        shop_at(paywall, make_buyer(permit2_payer)) as client,
    ):
        for _ in range(2):
            assert (await client.get("/ticks")).status_code == 200
    channel = read_channel(database_url)
    assert (channel.charged_cumulative_amount, channel.balance) == (str(2 * PRICE), str(10 * PRICE))


async def test_a_payer_gets_back_what_is_left_in_his_channel_and_the_seller_what_was_charged(
    database: Database,
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    purse = schemes_chain.read_balance(payer.address)
    runs: list[str] = []
    buyer = make_buyer(payer, schemes_chain.url)
    batch = BatchClient(EthAccountSignerWithRPC(payer, schemes_chain.url))
    async with selling(make_app(runs), seller, in_process, database_url, scheme=SCHEME) as paywall:
        async with shop_at(paywall, buyer) as client:
            for _ in range(3):
                assert (await client.get("/ticks")).status_code == 200
        async with serve(paywall) as url:
            refund = await asyncio.to_thread(batch.refund, f"{url}/ticks")
    assert refund.success, refund
    assert refund.amount == str(7 * PRICE)
    assert schemes_chain.read_balance(payer.address) == purse - 3 * PRICE
    assert len(runs) == 3
    assert len(read_booked(database_url)) == 3
    async with database.read() as tx:
        owners = await find_owners(tx, NETWORK)
    assert PostgresChannelStorage(database_url).list() == []
    [swept] = await claim(PostgresChannelStorage(database_url), in_process, NETWORK, owners)
    assert (swept.vouchers, swept.problem) == (0, None)
    assert schemes_chain.read_balance(seller.address) == 3 * PRICE


class Killed(BaseException):
    """As a kill would: nothing after that moment is done, and what was in memory is gone."""


@contextmanager
def killed(method: str, *, after: bool = False) -> Generator[None]:
    """Purchases end before, or right after, a step of theirs."""
    step = getattr(ChannelPurchases, method)

    async def die(self: ChannelPurchases, *arguments: Any) -> Any:
        if after:
            await step(self, *arguments)
        raise Killed

    async def dead(*_: Any, **__: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as dying:
        for name in ("release", "let_go", "_free"):
            dying.setattr(ChannelPurchases, name, dead)
        dying.setattr(ChannelPurchases, method, die)
        yield


@dataclass
class Life:
    """One seller after another: what is in memory dies with each."""

    facilitator: Facilitator
    buyer: x402Client
    seller: LocalAccount
    database_url: str
    runs: list[str] = field(default_factory=list)

    def sell(self) -> AbstractAsyncContextManager[Paywall]:
        app = make_app(self.runs)
        return selling(app, self.seller, self.facilitator, self.database_url, scheme=SCHEME)

    async def buy(self) -> None:
        async with self.sell() as paywall, shop_at(paywall, self.buyer) as client:
            assert (await client.get("/ticks")).status_code == 200

    async def sign(self) -> str:
        async with self.sell() as paywall:
            return await sign_for(paywall, "/ticks", self.buyer)

    async def present(self, signed: str) -> httpx.Response:
        async with (
            self.sell() as paywall,
            httpx.AsyncClient(transport=httpx.ASGITransport(paywall), base_url=SHOP) as client,
        ):
            return await client.get("/ticks", headers={"PAYMENT-SIGNATURE": signed})


@pytest.fixture
def life(
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> Life:
    return Life(in_process, make_buyer(payer), seller, database_url)


@pytest.mark.parametrize(
    ("method", "after"), [("_ask", False), ("_book_settlement", False), ("_book_settlement", True)]
)
@pytest.mark.parametrize("first", [True, False])
async def test_a_request_that_was_cut_off_is_answered_and_charged_once_when_it_is_presented_again(
    method: str, after: bool, first: bool, life: Life
) -> None:
    if not first:
        await life.buy()
    signed = await life.sign()
    with killed(method, after=after), pytest.raises(Killed):
        await life.present(signed)
    let_time_pass(life.database_url)
    answer = await life.present(signed)
    assert answer.status_code == 200, answer.text
    charges = 1 if first else 2
    assert read_channel(life.database_url).charged_cumulative_amount == str(charges * PRICE)
    assert read_booked(life.database_url) == [(PRICE, "settled")] * charges


async def test_a_request_that_was_cut_off_does_not_take_the_charge_of_another_for_its_own(life: Life) -> None:
    await life.buy()
    signed = await life.sign()
    with killed("_ask"), pytest.raises(Killed):
        await life.present(signed)
    let_time_pass(life.database_url)
    await life.buy()
    assert len(life.runs) == 3
    answer = await life.present(signed)
    assert answer.status_code == 402
    assert len(life.runs) == 3
    assert read_channel(life.database_url).charged_cumulative_amount == str(2 * PRICE)
    assert sorted(read_booked(life.database_url)) == [(PRICE, "failed"), *[(PRICE, "settled")] * 2]


async def test_who_hangs_up_leaves_the_channel_to_the_next(life: Life) -> None:
    await life.buy()
    app, asked = FastAPI(), asyncio.Event()

    @app.get("/ticks")
    async def ticks() -> None:
        asked.set()
        await asyncio.Event().wait()

    async with (
        selling(app, life.seller, life.facilitator, life.database_url, scheme=SCHEME) as paywall,
        shop_at(paywall, life.buyer) as client,
    ):
        waiting = asyncio.create_task(client.get("/ticks"))
        await asked.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert read_channel(life.database_url).pending_request is None
    await life.buy()
    assert read_channel(life.database_url).charged_cumulative_amount == str(2 * PRICE)


async def test_a_request_that_outlasts_its_reservation_is_not_charged_what_another_signed_for(
    life: Life,
) -> None:
    await life.buy()
    go_on, waits = asyncio.Event(), asyncio.Event()
    app = FastAPI()

    @app.get("/slow")
    async def slow() -> None:
        waits.set()
        await go_on.wait()

    @app.get("/quick")
    async def quick() -> None:
        pass

    async with (
        selling(app, life.seller, life.facilitator, life.database_url, scheme=SCHEME) as paywall,
        shop_at(paywall, life.buyer) as client,
    ):
        first = asyncio.create_task(client.get("/slow"))
        await waits.wait()
        let_time_pass(life.database_url)
        assert (await client.get("/quick")).status_code == 200  # by the same voucher
        go_on.set()
        answer = await first
    assert (answer.status_code, answer.json()["code"]) == (402, ERR_CHANNEL_BUSY)
    assert read_channel(life.database_url).charged_cumulative_amount == str(2 * PRICE)
    assert sorted(read_booked(life.database_url)) == [(PRICE, "failed"), *[(PRICE, "settled")] * 2]


@pytest.mark.parametrize(
    "change",
    [
        {"voucher": {"signature": "0x" + "11" * 65}},
        {"voucher": {"signature": "0x"}},
        {"voucher": {"signature": 7}},
        {"voucher": {"maxClaimableAmount": str(2**128)}},
        {"voucher": {"maxClaimableAmount": "-1"}},
        {"voucher": {"maxClaimableAmount": str(5 * PRICE)}},
        {"voucher": {"channelId": "0x" + "00" * 32}},
        {"channelConfig": {"payer": "nobody"}},
        {"channelConfig": {"withdrawDelay": 1}},
        {"channelConfig": None},
        {"type": "refund"},
        {"type": "claim", "claims": []},
        {"type": "settle"},
    ],
    ids=str,
)
async def test_what_the_payer_did_not_sign_so_is_refused_and_touches_no_channel(
    change: dict[str, Any],
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    runs: list[str] = []
    buyer = make_buyer(payer)
    async with selling(make_app(runs), seller, in_process, database_url, scheme=SCHEME) as paywall:
        async with shop_at(paywall, buyer) as client:
            assert (await client.get("/ticks")).status_code == 200
            before = read_channel(database_url)
        payment = decode_payment_signature_header(await sign_for(paywall, "/ticks", buyer))
        for name, value in change.items():
            inner = payment.payload.get(name)
            payment.payload[name] = inner | value if isinstance(inner, dict) and value is not None else value
        header = {"PAYMENT-SIGNATURE": encode_payment_signature_header(payment)}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(paywall), base_url=SHOP) as client:
            answer = await client.get("/ticks", headers=header)
    assert answer.status_code == 402, answer.text
    assert runs == ["tick"]
    after = read_channel(database_url)
    assert (after.charged_cumulative_amount, after.balance) == (
        before.charged_cumulative_amount,
        before.balance,
    )
    assert after.pending_request is None


async def test_a_charge_whose_commit_was_not_answered_is_booked_once(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    await life.buy()
    name, times = "_settle_once", [0]
    settle_once = getattr(ChannelPurchases, name)

    async def unheard(
        self: ChannelPurchases, tx: WriteTx, payment_id: int, answer: SettleResponse
    ) -> Payment:
        times[0] += 1
        if times[0] > 1:
            return await settle_once(self, tx, payment_id, answer)
        async with Database(life.database_url) as database, database.write() as committed:
            await settle_once(self, committed, payment_id, answer)
        raise DatabaseUnreachable("it went away while it committed")

    monkeypatch.setattr(ChannelPurchases, name, unheard)
    await life.buy()
    assert times == [2]
    assert read_channel(life.database_url).charged_cumulative_amount == str(2 * PRICE)
    assert read_booked(life.database_url) == [(PRICE, "settled")] * 2
