"""Refunds: whole or in part, never above what was paid, sent once, on a real chain."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from eth_account.signers.local import LocalAccount

from fixtures.payments import pay
from fixtures.reconciling import AMOUNT, Shop
from fixtures.refunding import open_desk
from tollbook.books.payments import payments, refunds
from tollbook.books.payments.errors import PaymentNotInState, TokenExpired
from tollbook.books.payments.refund_desk import RefundDesk
from tollbook.books.payments.refund_purse import RefundPurseEmpty
from tollbook.books.payments.refunds import RefundTooLarge
from tollbook.books.payments.usage import Meter
from tollbook.core import clock
from tollbook.core.chains import Chain, UnknownNetwork
from tollbook.core.database import Database
from tollbook.core.errors import Refusal
from tollbook.core.lanes import NoGasMoney
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, LocalChain

PURSE = 1_000_000_000
AT_ONCE = 8


@pytest.fixture
async def shop(database: Database, chain: LocalChain, token: str, payer: LocalAccount) -> AsyncIterator[Shop]:
    assert token
    async with Chain(NETWORK, chain.url) as node:
        bank = chain.make_account(amount=PURSE, wei=GAS_MONEY_WEI)
        yield Shop(database, chain, node, payer, chain.make_account(), bank)


@pytest.fixture
async def desk(shop: Shop) -> AsyncIterator[RefundDesk]:
    async with open_desk(shop) as desk:
        yield desk


async def read_stats(shop: Shop) -> tuple[object, object]:
    async with shop.database.write() as tx:
        await tx.value("SELECT payments.update_x402_analytics()")
        hours = await tx.value(
            "SELECT sum(refunded_amount)::bigint FROM payments.x402_analytics WHERE watermark IS NULL"
        )
        day = await tx.value("SELECT refunded_amount_usdc * 1000000 FROM payments.v_x402_stats_24h")
    return hours, int(day)


async def test_what_the_chain_took_back_is_not_sent_back_too(shop: Shop, desk: RefundDesk) -> None:
    bought, before = await shop.buy(), shop.chain.read_balance(shop.payer.address)
    async with shop.database.write() as tx:
        asked = await refunds.request(tx, bought.payment_id, amount=None, reason=None, now=clock.now())
        await payments.reverse(tx, bought.payment_id, "orphaned for good", now=clock.now())
    refund = await desk.carry_out(asked.refund_id)
    assert (refund.status, refund.tx_hash) == ("failed", None)
    assert "reversed" in (refund.error or "")
    assert shop.chain.read_balance(shop.payer.address) == before


async def test_a_whole_refund_pays_the_payer_and_ends_the_payment(shop: Shop, desk: RefundDesk) -> None:
    bought = await shop.buy()
    before = shop.chain.read_balance(shop.payer.address)
    refund = await desk.refund(bought.payment_id, amount=None, reason="it was cold")
    assert (refund.status, refund.amount, refund.from_address) == (
        "done",
        AMOUNT,
        shop.bank.address.lower(),
    )
    assert shop.chain.read_balance(shop.payer.address) == before + AMOUNT
    payment = await shop.payment(bought)
    assert (payment.status, payment.settlement, payment.refunded_amount) == ("expired", "refunded", AMOUNT)
    assert await read_stats(shop) == (AMOUNT, AMOUNT)
    assert (await shop.reconcile()).differences == []
    with pytest.raises(PaymentNotInState):
        await desk.refund(bought.payment_id, amount=None, reason=None)


async def test_a_partial_refund_keeps_the_payment_until_nothing_is_left(shop: Shop, desk: RefundDesk) -> None:
    bought = await shop.buy()
    await desk.refund(bought.payment_id, amount=1_000, reason=None)
    payment = await shop.payment(bought)
    assert (payment.status, payment.settlement, payment.refunded_amount) == ("verified", "settled", 1_000)
    assert await read_stats(shop) == (1_000, 1_000)
    with pytest.raises(RefundTooLarge) as refusal:
        await desk.refund(bought.payment_id, amount=AMOUNT - 999, reason=None)
    assert refusal.value.details["rest"] == str(AMOUNT - 1_000)
    await desk.refund(bought.payment_id, amount=None, reason=None)
    payment = await shop.payment(bought)
    assert (payment.settlement, payment.refunded_amount) == ("refunded", AMOUNT)
    assert (await shop.reconcile()).differences == []


async def test_many_at_once_never_send_more_than_was_paid(shop: Shop, desk: RefundDesk) -> None:
    bought = await shop.buy()
    before = shop.chain.read_balance(shop.payer.address)
    answers = await asyncio.gather(
        *(desk.refund(bought.payment_id, amount=3_000, reason=None) for _ in range(AT_ONCE)),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers].count(RefundTooLarge) == AT_ONCE - 3
    assert shop.chain.read_balance(shop.payer.address) == before + 9_000


async def test_one_refund_carried_out_by_many_is_sent_once(shop: Shop, desk: RefundDesk) -> None:
    bought = await shop.buy()
    before = shop.chain.read_balance(shop.payer.address)
    async with shop.database.write() as tx:
        asked = await refunds.request(tx, bought.payment_id, amount=5, reason=None, now=clock.now())
    async with open_desk(shop) as other:
        done = await asyncio.gather(*(at.carry_out(asked.refund_id) for at in (desk, other) * 3))
    assert {refund.status for refund in done} == {"done"}
    assert len({refund.tx_hash for refund in done}) == 1
    assert shop.chain.read_balance(shop.payer.address) == before + 5
    async with shop.database.read() as tx:
        kinds = await tx.dicts(
            """
            SELECT kind FROM core.journal
            WHERE kind IN ('refund.sent', 'payment.refunded') ORDER BY entry_id
            """
        )
    assert [row["kind"] for row in kinds] == ["refund.sent", "payment.refunded"]


async def test_while_all_of_its_money_is_on_the_way_back_a_payment_buys_nothing(shop: Shop) -> None:
    bought = await shop.buy()
    async with shop.database.write() as tx:
        asked = await refunds.request(tx, bought.payment_id, amount=None, reason=None, now=clock.now())
    async with Meter(shop.database.url) as meter:
        with pytest.raises(TokenExpired):
            await meter.admit_first(bought.payment_id)
        async with shop.database.write() as tx:
            await refunds.fail(tx, asked.refund_id, "no money", was="requested", now=clock.now())
        assert (await meter.admit_first(bought.payment_id)).payment_id == bought.payment_id


async def test_an_empty_purse_is_refused_by_name_and_the_sum_is_free_again(shop: Shop) -> None:
    bought = await shop.buy()
    poor = shop.chain.make_account(wei=GAS_MONEY_WEI)
    async with open_desk(shop, poor) as desk:
        with pytest.raises(RefundPurseEmpty):
            await desk.refund(bought.payment_id, amount=None, reason=None)
        async with shop.database.read() as tx:
            (failed,) = await refunds.page(tx, payment_id=bought.payment_id)
        assert (failed.status, failed.error) == ("failed", "refund-purse-empty")
        shop.chain.mint(poor.address, AMOUNT)
        done = await desk.refund(bought.payment_id, amount=None, reason=None)
    assert done.status == "done"


async def test_a_refund_without_gas_money_waits_and_heals(shop: Shop) -> None:
    bought = await shop.buy()
    dry = shop.chain.make_account(amount=PURSE)
    async with open_desk(shop, dry) as desk:
        with pytest.raises(NoGasMoney):
            await desk.refund(bought.payment_id, amount=None, reason=None)
        async with shop.database.read() as tx:
            (waiting,) = await refunds.find_open(tx)
        assert waiting.status == "sent"
        shop.chain.set_gas_money(dry.address, GAS_MONEY_WEI)
        assert (await desk.carry_out(waiting.refund_id)).status == "done"


async def test_what_cannot_go_back_is_refused(shop: Shop, desk: RefundDesk) -> None:
    elsewhere = await pay(shop.database)
    with pytest.raises(UnknownNetwork):
        await desk.refund(elsewhere.payment_id, amount=None, reason=None)
    unpaid = await shop.reserve(shop.sign())
    with pytest.raises(PaymentNotInState):
        await desk.refund(unpaid.payment_id, amount=None, reason=None)
    bought = await shop.buy()
    for amount in (0, -1, AMOUNT + 1):
        with pytest.raises(Refusal):
            await desk.refund(bought.payment_id, amount=amount, reason=None)
    async with shop.database.read() as tx:
        assert await refunds.page(tx) == []
        assert (await payments.get(tx, bought.payment_id)).refunded_amount == 0


async def test_a_refund_that_fails_frees_its_sum_once(shop: Shop) -> None:
    bought = await shop.buy()
    async with shop.database.write() as tx:
        asked = await refunds.request(tx, bought.payment_id, amount=None, reason=None, now=clock.now())
    async with shop.database.write() as tx:
        assert not await refunds.fail(tx, asked.refund_id, "x", was="sent", now=clock.now())
        assert await refunds.fail(tx, asked.refund_id, "x", was="requested", now=clock.now())
        assert not await refunds.fail(tx, asked.refund_id, "x", was="requested", now=clock.now())
        again = await refunds.request(tx, bought.payment_id, amount=None, reason=None, now=clock.now())
    assert again.amount == AMOUNT
