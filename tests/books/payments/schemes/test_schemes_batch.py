"""Payment channels (scheme batch-settlement): what the bare SDK does, and what a paywall makes of it."""

import asyncio

import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from x402 import x402Client
from x402.http import x402HTTPClient
from x402.http.utils import decode_payment_required_header, encode_payment_response_header
from x402.mechanisms.evm.batch_settlement.errors import ERR_CHANNEL_BUSY, ERR_CUMULATIVE_AMOUNT_MISMATCH
from x402.mechanisms.evm.batch_settlement.server.scheme import BatchSettlementEvmScheme
from x402.schemas import PaymentPayload, PaymentRequired, PaymentRequirements, SettleResponse

from clients.bare_sdk import (
    PRICE,
    BareFacilitator,
    make_batch_scheme,
    make_buyer,
    make_option,
    sell_with_bare_sdk,
    shop_at,
)
from clients.pay import pay_with_node, require
from fixtures.schemes import query, selling
from fixtures.serve import serve
from tollbook.books.payments.facilitator.in_process import FacilitatorUnreachable, InProcessFacilitator
from tollbook.books.payments.schemes.batch import Channels, find_channel_fault
from tollbook.books.payments.schemes.channels import claim, list_channels
from tollbook.core.local_chain import NETWORK, TOKEN_ADDRESS, LocalChain
from tollbook.core.stores import PostgresChannelStorage

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


@pytest.mark.parametrize("requests", [REQUESTS, 4 * REQUESTS])
async def test_row_o_parallel_requests_on_one_channel_are_all_served_and_each_is_charged_once(
    requests: int,
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    purse = schemes_chain.read_balance(payer.address)
    async with (
        selling(make_app(0.1), seller, in_process, database_url, scheme="batch-settlement") as paywall,
        shop_at(paywall, make_buyer(payer, schemes_chain.url)) as client,
    ):
        assert (await client.get("/ticks")).status_code == 200
        answers = await asyncio.gather(*(client.get("/ticks") for _ in range(requests)))
    assert [answer.status_code for answer in answers] == [200] * requests
    [channel] = PostgresChannelStorage(database_url).list()
    assert channel.charged_cumulative_amount == str((requests + 1) * PRICE)
    assert schemes_chain.read_balance(payer.address) == purse - int(channel.balance)
    booked = query(
        database_url,
        "SELECT count(*), sum(amount), count(DISTINCT tx_hash) FROM payments.x402_payments"
        " WHERE settlement = 'settled' AND scheme = 'batch-settlement'",
    )
    assert booked == [(requests + 1, (requests + 1) * PRICE, 0)]


async def test_row_o_parallel_requests_of_the_typescript_client_are_all_served(
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    variables = {"PAY_RPC": schemes_chain.url, "PAY_TIMES": str(REQUESTS)}
    async with (
        selling(make_app(0.1), seller, in_process, database_url, scheme="batch-settlement") as paywall,
        serve(paywall) as url,
    ):
        ticks = f"{url}/ticks"
        answers = await pay_with_node(ticks, payer, TOKEN_ADDRESS, "pay_channel.mjs", **variables)
    assert answers == [200] * (1 + REQUESTS)
    [channel] = PostgresChannelStorage(database_url).list()
    assert channel.charged_cumulative_amount == str((1 + REQUESTS) * PRICE)


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


async def test_row_p_after_a_restart_of_both_sides_nothing_that_was_signed_is_forgotten(
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    purse = schemes_chain.read_balance(payer.address)
    for _ in range(2):  # each time new processes' worth of objects, with nothing in memory
        async with (
            selling(make_app(), seller, in_process, database_url, scheme="batch-settlement") as paywall,
            shop_at(paywall, make_buyer(payer, schemes_chain.url)) as client,
        ):
            for _ in range(5):
                assert (await client.get("/ticks")).status_code == 200
    storage = PostgresChannelStorage(database_url)
    [channel] = storage.list()
    assert channel.charged_cumulative_amount == str(10 * PRICE)
    assert schemes_chain.read_balance(payer.address) == purse - 10 * PRICE  # one deposit of ten prices
    [done] = await claim(storage, in_process, NETWORK)
    assert (done.amount, done.problem) == (10 * PRICE, None)
    assert schemes_chain.read_balance(seller.address) == 10 * PRICE


@pytest.fixture
def channels(database_url: str, bare_facilitator: BareFacilitator) -> Channels:
    return Channels(database_url, bare_facilitator, bare_facilitator.get_supported())


async def sign(buyer: x402Client, terms: PaymentRequirements) -> PaymentPayload:
    payment = await buyer.create_payment_payload(PaymentRequired(accepts=[terms]))
    assert isinstance(payment, PaymentPayload)
    return payment


@pytest.fixture
def terms(channels: Channels, seller: LocalAccount) -> PaymentRequirements:
    return channels.complete(require(TOKEN_ADDRESS, seller.address, PRICE, scheme="batch-settlement"))


async def pay(
    channels: Channels, buyer: x402Client, terms: PaymentRequirements, amount: int = PRICE
) -> SettleResponse:
    """One request's payment as a paywall takes it, and its answer as the buyer's client reads it."""
    payment = await sign(buyer, terms)
    assert find_channel_fault(payment, terms) is None
    assert (await channels.verify(payment, terms)).reason is None
    charged = await channels.charge(payment, terms, amount)
    header = encode_payment_response_header(charged)
    await x402HTTPClient(buyer).process_payment_result(payment, {"PAYMENT-RESPONSE": header}.get, 200)
    return charged


async def test_a_deposit_opens_a_channel_and_vouchers_draw_on_it_without_a_facilitator(
    channels: Channels, bare_facilitator: BareFacilitator, payer: LocalAccount, terms: PaymentRequirements
) -> None:
    buyer = make_buyer(payer)
    answers = [await pay(channels, buyer, terms) for _ in range(3)]
    assert [answer.extra["chargedAmount"] for answer in answers if answer.extra] == [str(PRICE)] * 3
    assert bare_facilitator.calls == ["verify", "settle"]
    [channel] = channels.storage.list()
    assert channel.charged_cumulative_amount == str(3 * PRICE)


async def test_a_request_is_charged_what_it_used_and_the_next_voucher_goes_on_from_there(
    channels: Channels, payer: LocalAccount, terms: PaymentRequirements
) -> None:
    buyer = make_buyer(payer)
    await pay(channels, buyer, terms)
    await pay(channels, buyer, terms, amount=250)
    await pay(channels, buyer, terms, amount=0)
    await pay(channels, buyer, terms)
    [channel] = channels.storage.list()
    assert channel.charged_cumulative_amount == str(2 * PRICE + 250)


async def test_a_cancelled_request_is_charged_nothing_and_leaves_the_channel_free(
    channels: Channels, payer: LocalAccount, terms: PaymentRequirements
) -> None:
    buyer = make_buyer(payer)
    await pay(channels, buyer, terms)
    payment = await sign(buyer, terms)
    assert (await channels.verify(payment, terms)).reason is None
    await channels.cancel(payment, terms)
    [channel] = channels.storage.list()
    assert (channel.charged_cumulative_amount, channel.pending_request) == (str(PRICE), None)
    assert (await channels.verify(await sign(buyer, terms), terms)).reason is None


async def test_a_voucher_that_is_out_of_date_is_told_the_channels_state(
    channels: Channels, payer: LocalAccount, terms: PaymentRequirements
) -> None:
    await pay(channels, make_buyer(payer), terms)
    forgetful = await sign(make_buyer(payer), terms)
    standing = await channels.verify(forgetful, terms)
    assert standing.reason == ERR_CUMULATIVE_AMOUNT_MISMATCH
    assert standing.terms.extra["channelState"]["chargedCumulativeAmount"] == str(PRICE)
    assert "channelState" not in terms.extra


@pytest.mark.parametrize(
    "change",
    [
        {"type": "claim"},
        {"voucher": {}},
        {"voucher": {"channelId": "0x" + "00" * 32, "maxClaimableAmount": "1", "signature": "0x"}},
        {"channelConfig": {}},
        {"channelConfig": None},
        {"deposit": {"amount": "a lot"}},
    ],
)
async def test_a_payload_that_is_no_channels_payment_is_a_fault(
    change: dict[str, object], payer: LocalAccount, terms: PaymentRequirements
) -> None:
    payment = await sign(make_buyer(payer), terms)
    assert (
        find_channel_fault(payment.model_copy(update={"payload": payment.payload | change}), terms)
        is not None
    )


async def test_what_channels_owe_is_claimed_and_paid_out_in_two_transactions(
    channels: Channels,
    bare_facilitator: BareFacilitator,
    schemes_chain: LocalChain,
    seller: LocalAccount,
    terms: PaymentRequirements,
) -> None:
    for _ in range(2):
        buyer = make_buyer(schemes_chain.make_account(amount=100 * PRICE))
        for _ in range(3):
            await pay(channels, buyer, terms)
    assert [channel.unclaimed for channel in list_channels(channels.storage)] == [3 * PRICE] * 2
    [done] = await claim(channels.storage, bare_facilitator, NETWORK)
    assert (done.vouchers, done.amount, done.problem) == (2, 6 * PRICE, None)
    assert len(done.claim_transactions) == 1
    assert done.sweep_transaction is not None
    assert schemes_chain.read_balance(seller.address) == 6 * PRICE
    assert [channel.unclaimed for channel in list_channels(channels.storage)] == [0, 0]

    [again] = await claim(channels.storage, bare_facilitator, NETWORK)
    assert (again.vouchers, again.claim_transactions, again.sweep_transaction, again.problem) == (
        0,
        [],
        None,
        None,
    )
    assert await claim(channels.storage, bare_facilitator, "eip155:8453") == []


async def test_a_sweep_that_failed_is_made_up_for_by_the_next_claim(
    channels: Channels,
    bare_facilitator: BareFacilitator,
    schemes_chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    terms: PaymentRequirements,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await pay(channels, make_buyer(payer), terms)

    async def settle_claims_only(
        payload: PaymentPayload, requirements: PaymentRequirements
    ) -> SettleResponse:
        if payload.payload["type"] == "settle":
            raise FacilitatorUnreachable("the node is away")
        return await BareFacilitator.settle(bare_facilitator, payload, requirements)

    with monkeypatch.context() as broken:
        broken.setattr(bare_facilitator, "settle", settle_claims_only)
        [done] = await claim(channels.storage, bare_facilitator, NETWORK)
    assert done.amount == PRICE
    assert done.problem is not None
    assert schemes_chain.read_balance(seller.address) == 0
    [again] = await claim(channels.storage, bare_facilitator, NETWORK)
    assert (again.amount, again.problem) == (0, None)
    assert schemes_chain.read_balance(seller.address) == PRICE
