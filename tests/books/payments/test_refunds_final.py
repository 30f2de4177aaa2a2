"""Refunds wait until their payment is final; one that the chain took back is not sent back too."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from fixtures.authorizations import transfer
from fixtures.lanes import count_used, key_of, send_elsewhere
from fixtures.reconciling import AMOUNT, Bought, Shop, make_hash
from fixtures.refunding import open_desk
from fixtures.rpc_proxy import play_proxy
from tollbook.books.payments import evm_refunds, payments, refunds, truth
from tollbook.books.payments.reconciler import movements
from tollbook.books.payments.refund_desk import RefundDesk
from tollbook.books.payments.refund_purse import RefundMustWait
from tollbook.core import clock
from tollbook.core.chains import Chain
from tollbook.core.database import Database
from tollbook.core.lanes import NodeRefusedTransaction
from tollbook.core.lanes.network import NetworkLanes
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, LocalChain
from tollbook.entrypoints import cli

PURSE = 1_000_000_000
DEPTH = 3


@pytest.fixture
def own_chain() -> Iterator[LocalChain]:
    """A chain whose past may be changed."""
    with LocalChain.start() as running:
        running.ensure_token()
        yield running


@pytest.fixture
async def shop(
    database: Database, own_chain: LocalChain, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shop]:
    """A shop on a network whose blocks are final when they are three deep."""
    for module in (truth, movements, evm_refunds):
        monkeypatch.setattr(module, "count_confirmations", lambda _: DEPTH)
    async with Chain(NETWORK, own_chain.url) as node:
        bank = own_chain.make_account(amount=PURSE, wei=GAS_MONEY_WEI)
        payer = own_chain.make_account(amount=PURSE)
        yield Shop(database, own_chain, node, payer, own_chain.make_account(), bank)


@pytest.fixture
async def desk(shop: Shop) -> AsyncIterator[RefundDesk]:
    async with open_desk(shop, confirmations=DEPTH) as desk:
        yield desk


def balance(shop: Shop) -> int:
    return shop.chain.read_balance(shop.payer.address)


async def count_asked(shop: Shop, bought: Bought) -> int:
    async with shop.database.read() as tx:
        return int(
            await tx.value(
                "SELECT refund_asked FROM payments.x402_payments WHERE payment_id = %(id)s",
                {"id": bought.payment_id},
            )
        )


async def test_a_refund_is_sent_when_its_payment_is_as_deep_as_the_network_asks_for(
    shop: Shop, desk: RefundDesk
) -> None:
    bought = await shop.buy()
    before = balance(shop)
    asked = await desk.refund(bought.payment_id, amount=None, reason=None)
    assert (asked.status, await count_asked(shop, bought)) == ("requested", AMOUNT)
    shop.chain.call("evm_mine")
    assert (await desk.carry_out(asked.refund_id)).status == "requested"
    assert balance(shop) == before
    shop.chain.call("evm_mine")
    assert (await desk.carry_out(asked.refund_id)).status == "done"
    assert balance(shop) == before + AMOUNT


async def test_what_the_ledger_has_confirmed_is_not_looked_up_again(shop: Shop, desk: RefundDesk) -> None:
    bought = await shop.buy()
    shop.chain.call("anvil_mine", hex(DEPTH))
    await shop.reconcile()
    assert (await shop.settlement(bought)).confirmed_at is not None
    await shop.run("UPDATE payments.x402_payments SET tx_hash = %(hash)s", hash=make_hash())
    assert (await desk.refund(bought.payment_id, amount=None, reason=None)).status == "done"


async def test_what_was_claimed_waits_for_its_own_transaction(shop: Shop, desk: RefundDesk) -> None:
    claimed = await shop.claim(transfer(shop.chain, shop.payer, shop.seller.address, AMOUNT))
    asked = await desk.refund(claimed.payment_id, amount=None, reason=None)
    assert asked.status == "requested"
    shop.chain.call("anvil_mine", hex(DEPTH))
    assert (await desk.carry_out(asked.refund_id)).status == "done"


async def test_what_a_channel_paid_waits_for_the_block_in_which_it_was_accepted(
    shop: Shop, desk: RefundDesk
) -> None:
    bought = await shop.reserve(shop.sign(), scheme="batch-settlement", nonce=f"channel:{make_hash()}:5:0")
    async with shop.database.write() as tx:
        await payments.settle(
            tx, bought.payment_id, tx_hash=None, block_number=None, confirmations=None, now=clock.now()
        )
    shop.chain.call("evm_mine")
    asked = await desk.refund(bought.payment_id, amount=None, reason=None)
    assert asked.status == "requested"
    shop.chain.call("anvil_mine", hex(2 * DEPTH), hex(60))
    assert (await desk.carry_out(asked.refund_id)).status == "done"


async def test_reconcile_goes_on_with_refunds_where_it_has_the_key(
    shop: Shop, desk: RefundDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    bought = await shop.buy()
    before, asked = balance(shop), await desk.refund(bought.payment_id, amount=None, reason=None)
    shop.chain.call("anvil_mine", hex(DEPTH))
    monkeypatch.setenv("DATABASE_URL", shop.database.url)
    monkeypatch.setenv("TOLLBOOK_RPC_URLS", json.dumps({NETWORK: shop.chain.url}))

    def reconcile() -> None:
        with suppress(SystemExit):
            cli.run(["payments", "reconcile"])

    await asyncio.to_thread(reconcile)
    async with shop.database.read() as tx:
        assert (await refunds.get(tx, asked.refund_id)).status == "requested"
    monkeypatch.setenv("TOLLBOOK_FACILITATOR_KEY", key_of(shop.bank))
    await asyncio.to_thread(reconcile)
    async with shop.database.read() as tx:
        assert (await refunds.get(tx, asked.refund_id)).status == "done"
    assert balance(shop) == before + AMOUNT


@pytest.mark.parametrize("was", ["requested", "sent"])
async def test_a_refund_of_what_a_reorganisation_took_back_fails_and_says_why(
    shop: Shop, desk: RefundDesk, was: str
) -> None:
    snapshot = shop.chain.call("evm_snapshot")
    bought = await shop.buy()
    asked = await desk.refund(bought.payment_id, amount=4_000, reason=None)
    assert asked.status == "requested"
    if was == "sent":  # by a process that died before it made a transaction
        async with shop.database.write() as tx:
            assert await refunds.mark_sent(tx, asked.refund_id, now=clock.now())
    assert shop.chain.call("evm_revert", snapshot)
    shop.chain.call("anvil_mine", hex(DEPTH))
    before = balance(shop)
    assert (await desk.carry_out(asked.refund_id)).status == was  # a node may lag behind
    await shop.run(
        """
        UPDATE payments.x402_refunds SET requested_at = requested_at - %(age)s, sent_at = sent_at - %(age)s
        """,
        age=timedelta(minutes=11),
    )
    failed = await desk.carry_out(asked.refund_id)
    assert failed.status == "failed"
    assert f"does not have the payment's transaction {bought.tx_hash}" in str(failed.error)
    assert (balance(shop), await count_asked(shop, bought)) == (before, 0)


async def test_what_was_sent_by_one_who_died_is_not_sent_for_a_reversed_payment(
    shop: Shop, desk: RefundDesk
) -> None:
    bought = await shop.buy()
    asked = await desk.refund(bought.payment_id, amount=4_000, reason=None)
    async with shop.database.write() as tx:
        eleven_minutes_ago = clock.now() - timedelta(minutes=11)
        assert await refunds.mark_sent(tx, asked.refund_id, now=eleven_minutes_ago)
        await payments.reverse(tx, bought.payment_id, "orphaned for good", now=clock.now())
    before = balance(shop)
    failed = await desk.carry_out(asked.refund_id)
    assert (failed.status, "reversed" in str(failed.error)) == ("failed", True)
    assert balance(shop) == before


@pytest.mark.parametrize("shows", [False, True])
async def test_a_refund_that_a_node_took_and_said_it_refused_is_adopted_or_waited_for(
    shop: Shop, desk: RefundDesk, *, shows: bool
) -> None:
    """The sum is not free again while it may come: whoever asks for another refund would be paid twice."""
    bought = await shop.buy()
    shop.chain.call("anvil_mine", hex(DEPTH))
    before = balance(shop)
    shop.chain.call("evm_setAutomine", False)
    async with (
        play_proxy(shop.chain.url) as proxy,
        open_desk(shop, url=proxy.url, confirmations=DEPTH, wait_seconds_max=0.0) as deceived,
    ):
        proxy.secretive, proxy.false_refusals = not shows, {"eth_sendRawTransaction": ["txpool is full"]}
        with pytest.raises(NodeRefusedTransaction):
            await deceived.refund(bought.payment_id, amount=4_000, reason=None)
        async with shop.database.read() as tx:
            [refund_id] = [one.refund_id for one in await refunds.find_open(tx)]
        if not shows:
            await shop.run(
                "UPDATE payments.x402_refunds SET sent_at = sent_at - %(age)s", age=timedelta(minutes=11)
            )
            async with shop.database.write() as tx:
                await payments.reverse(tx, bought.payment_id, "orphaned for good", now=clock.now())
        assert (await deceived.carry_out(refund_id)).status == "sent"
        shop.chain.call("evm_setAutomine", True)
        shop.chain.call("evm_mine")
    assert balance(shop) == before + 4_000
    if shows:
        assert (await desk.carry_out(refund_id)).status == "done"


async def test_a_refund_that_waits_for_a_key_that_is_gone_is_paid_once_its_nonce_was_used_elsewhere(
    shop: Shop,
) -> None:
    bought = await shop.buy()
    shop.chain.call("anvil_mine", hex(DEPTH))
    before, another = balance(shop), shop.chain.make_account(amount=PURSE, wei=GAS_MONEY_WEI)
    async with (
        play_proxy(shop.chain.url) as proxy,
        open_desk(shop, url=proxy.url, confirmations=DEPTH) as refused,
    ):
        proxy.refusals = {"eth_sendRawTransaction": ["txpool is full"]}
        with pytest.raises(NodeRefusedTransaction):
            await refused.refund(bought.payment_id, amount=4_000, reason=None)
    async with shop.database.read() as tx:
        [refund_id] = [one.refund_id for one in await refunds.find_open(tx)]
    async with open_desk(shop, another, confirmations=DEPTH) as desk:
        with pytest.raises(RefundMustWait, match="use that nonce"):
            await desk.carry_out(refund_id)
        send_elsewhere(shop.chain, shop.bank, count_used(shop.chain, shop.bank))
        shop.chain.call("anvil_mine", hex(DEPTH))
        assert (await desk.carry_out(refund_id)).status == "done"
    assert balance(shop) == before + 4_000


async def test_who_stood_still_does_not_send_back_what_another_one_gave_up(
    shop: Shop, desk: RefundDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    bought = await shop.buy()
    asked = await desk.refund(bought.payment_id, amount=4_000, reason=None)
    shop.chain.call("anvil_mine", hex(DEPTH))
    before, reached, go_on, issue = balance(shop), asyncio.Event(), asyncio.Event(), NetworkLanes.issue

    async def issue_late(lanes: NetworkLanes, *calls: Any, **options: Any) -> Any:
        reached.set()
        await go_on.wait()
        return await issue(lanes, *calls, **options)

    async with open_desk(shop, confirmations=DEPTH) as frozen:
        monkeypatch.setattr(NetworkLanes, "issue", issue_late)
        sending = asyncio.create_task(frozen.carry_out(asked.refund_id))
        await reached.wait()
        async with shop.database.write() as tx:
            await tx.execute(
                "UPDATE payments.x402_refunds SET sent_at = sent_at - %(age)s", {"age": timedelta(minutes=11)}
            )
            await payments.reverse(tx, bought.payment_id, "orphaned for good", now=clock.now())
        assert (await desk.carry_out(asked.refund_id)).status == "failed"
        go_on.set()
        await asyncio.gather(sending, return_exceptions=True)
    assert balance(shop) == before


async def test_a_refund_that_a_reorganisation_takes_back_is_sent_again_and_by_nobody_else(
    shop: Shop, desk: RefundDesk
) -> None:
    bought = await shop.buy()
    shop.chain.call("anvil_mine", hex(DEPTH))
    before, snapshot = balance(shop), shop.chain.call("evm_snapshot")
    done = await desk.refund(bought.payment_id, amount=None, reason=None)
    assert shop.chain.call("evm_revert", snapshot)
    shop.chain.call("anvil_mine", hex(DEPTH))
    shop.chain.call("evm_setAutomine", False)
    await desk.purses[NETWORK].mend()  # its block is gone: it is on its way again
    (seen,) = (await shop.reconcile()).differences
    assert (seen.kind, seen.status, "Do nothing by hand" in seen.note) == ("refund_not_landed", "open", True)
    shop.chain.call("evm_setAutomine", True)
    shop.chain.call("evm_mine")
    await desk.purses[NETWORK].mend()
    assert (await shop.reconcile()).open_count == 0
    assert balance(shop) == before + AMOUNT
    # Fees that were raised on the way give it another hash.
    await shop.run("UPDATE payments.x402_refunds SET tx_hash = %(hash)s", hash=make_hash())
    await shop.reconcile()
    assert (await shop.reconcile()).open_count == 0
    async with shop.database.read() as tx:
        assert (await refunds.get(tx, done.refund_id)).tx_hash == done.tx_hash
