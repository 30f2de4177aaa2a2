"""Refunds that a restored database forgot: the chain still has them, and money moves once."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
from eth_account.signers.local import LocalAccount

from fixtures.lanes import send_elsewhere
from fixtures.reconciling import AMOUNT, Bought, Shop
from fixtures.refunding import Copy, open_desk
from fixtures.rpc_proxy import play_proxy
from tollbook.books.payments import refunds
from tollbook.books.payments.errors import PaymentNotInState
from tollbook.books.payments.evm_refunds import EvmPurse
from tollbook.books.payments.refund_desk import RefundDesk
from tollbook.books.payments.refund_purse import RefundMustWait
from tollbook.books.payments.refunds import Refund
from tollbook.core import clock
from tollbook.core.chains import Chain
from tollbook.core.database import Database
from tollbook.core.lanes import NodeRefusedTransaction
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, LocalChain

PURSE = 1_000_000_000


@pytest.fixture
async def shop(database: Database, chain: LocalChain, token: str, payer: LocalAccount) -> AsyncIterator[Shop]:
    assert token
    async with Chain(NETWORK, chain.url) as node:
        bank = chain.make_account(amount=PURSE, wei=GAS_MONEY_WEI)
        yield Shop(database, chain, node, payer, chain.make_account(), bank)


@asynccontextmanager
async def restored(shop: Shop, url: str) -> AsyncGenerator[Shop]:
    """The same shop on the books of a backup; the database that it had is gone."""
    async with Database(url) as database:
        yield Shop(database, shop.chain, shop.node, shop.payer, shop.seller, shop.bank, shop.bought)


async def send_back(shop: Shop, bought: Bought, amount: int | None = None) -> Refund:
    async with open_desk(shop) as desk:
        return await desk.refund(bought.payment_id, amount=amount, reason=None)


async def list_refunds(shop: Shop, bought: Bought) -> list[Refund]:
    async with shop.database.read() as tx:
        return await refunds.page(tx, payment_id=bought.payment_id)


def balance(shop: Shop) -> int:
    return shop.chain.read_balance(shop.payer.address)


async def test_a_forgotten_refund_that_is_asked_for_again_moves_money_once(shop: Shop, back_up: Copy) -> None:
    bought = await shop.buy()
    before, url = balance(shop), back_up(shop.database)
    first = await send_back(shop, bought)
    async with restored(shop, url) as again:
        assert await list_refunds(again, bought) == []
        second = await send_back(again, bought)
        assert (second.status, second.tx_hash, second.amount) == ("done", first.tx_hash, AMOUNT)
        assert balance(shop) == before + AMOUNT
        assert (await again.payment(bought)).settlement == "refunded"
        assert (await again.reconcile()).differences == []
        with pytest.raises(PaymentNotInState):
            await send_back(again, bought)


async def test_two_forgotten_parts_that_are_asked_for_again_move_money_once_each(
    shop: Shop, back_up: Copy
) -> None:
    bought = await shop.buy()
    before, url = balance(shop), back_up(shop.database)
    sent = [await send_back(shop, bought, amount) for amount in (3_000, 2_000)]
    async with restored(shop, url) as again:
        for amount in (3_000, 2_000):
            assert (await send_back(again, bought, amount)).status == "done"
        assert balance(shop) == before + 5_000
        assert {each.tx_hash for each in await list_refunds(again, bought)} == {each.tx_hash for each in sent}
        assert (await send_back(again, bought)).amount == 5_000
        assert balance(shop) == before + AMOUNT
        assert (await again.reconcile()).differences == []


@pytest.mark.parametrize("asked", [None, 8_000])
async def test_what_does_not_fit_beside_forgotten_refunds_is_refused_and_says_why(
    shop: Shop, back_up: Copy, asked: int | None
) -> None:
    bought = await shop.buy()
    before, url = balance(shop), back_up(shop.database)
    sent = await send_back(shop, bought, 3_000)
    async with restored(shop, url) as again:
        refused = await send_back(again, bought, asked)
        assert (refused.status, sent.tx_hash in str(refused.error)) == ("failed", True)
        found = {each.refund_id: each.status for each in await list_refunds(again, bought)}
        assert found == {sent.refund_id: "done", refused.refund_id: "failed"}
        assert (await send_back(again, bought)).amount == AMOUNT - 3_000
        assert balance(shop) == before + AMOUNT
        assert (await again.reconcile()).differences == []


@pytest.mark.parametrize("was", ["requested", "sent"])
async def test_a_refund_that_was_on_its_way_when_the_backup_was_taken_is_sent_once(
    shop: Shop, back_up: Copy, was: str
) -> None:
    bought = await shop.buy()
    before = balance(shop)
    async with shop.database.write() as tx:
        asked = await refunds.request(tx, bought.payment_id, amount=5, reason=None, now=clock.now())
        if was == "sent":
            await refunds.mark_sent(tx, asked.refund_id, now=clock.now())
    url = back_up(shop.database)
    async with open_desk(shop) as desk:
        done = await desk.carry_out(asked.refund_id)
    async with restored(shop, url) as again, open_desk(again) as desk:
        same = await desk.carry_out(asked.refund_id)
        assert (same.status, same.tx_hash) == ("done", done.tx_hash)
        assert balance(shop) == before + 5
        assert (await again.reconcile()).differences == []


async def test_what_a_former_key_sent_back_is_not_sent_by_the_new_one(shop: Shop, back_up: Copy) -> None:
    earlier, bought = await shop.buy(), await shop.buy()
    await send_back(shop, earlier)
    before, url = balance(shop), back_up(shop.database)
    sent = await send_back(shop, bought)
    new = shop.chain.make_account(amount=PURSE, wei=GAS_MONEY_WEI)
    async with restored(shop, url) as again, open_desk(again, new) as desk:
        same = await desk.refund(bought.payment_id, amount=None, reason=None)
        assert (same.status, same.tx_hash) == ("done", sent.tx_hash)
    assert balance(shop) == before + AMOUNT


async def test_the_reconciler_books_what_was_forgotten_by_itself(shop: Shop, back_up: Copy) -> None:
    earlier, bought = await shop.buy(), await shop.buy()
    await send_back(shop, earlier)
    url = back_up(shop.database)
    sent = await send_back(shop, bought, 4_000)
    async with restored(shop, url) as again:
        assert (await again.reconcile()).differences == []
        (found,) = await list_refunds(again, bought)
        assert (found.refund_id, found.status, found.tx_hash) == (sent.refund_id, "done", sent.tx_hash)
        assert (await again.payment(bought)).refunded_amount == 4_000


async def test_a_refund_of_a_payment_that_was_forgotten_too_counts_when_that_is_back(
    shop: Shop, back_up: Copy
) -> None:
    await send_back(shop, await shop.buy())
    url = back_up(shop.database)
    bought = await shop.buy()
    before = balance(shop)
    sent = await send_back(shop, bought)
    async with restored(shop, url) as again:
        seen = {each.kind: each for each in (await again.reconcile()).differences}
        assert set(seen) == {"foreign_transfer", "refund_forgotten"}
        assert (seen["refund_forgotten"].status, seen["refund_forgotten"].tx_hash) == ("open", sent.tx_hash)
        back = await again.reserve(bought.signed)
        row = await again.ask(back, status="unknown", tx_hash=bought.tx_hash)
        assert row.tx_hash == bought.tx_hash
        await again.reconcile()
        await again.reconcile()
        payment = await again.payment(back)
        assert (payment.settlement, payment.refunded_amount) == ("refunded", AMOUNT)
        assert {each.status for each in await again.differences()} == {"mended"}
        assert balance(shop) == before + AMOUNT


async def test_what_was_asked_for_under_one_id_is_that_refund_when_its_asker_died_before_he_heard(
    shop: Shop, back_up: Copy
) -> None:
    earlier, bought = await shop.buy(), await shop.buy()
    await send_back(shop, earlier)
    before, url = balance(shop), back_up(shop.database)
    for amount in (5, 5):
        await send_back(shop, bought, amount)
    async with restored(shop, url) as again, open_desk(again) as desk:
        await again.reconcile()
        asked: list[Refund] = []
        for key in (7, 7, 8, 7):  # the id that an Idempotency-Key stands for
            async with again.database.write() as tx:
                asked.append(
                    await refunds.request(
                        tx, bought.payment_id, amount=5, reason=None, refund_id=key, now=clock.now()
                    )
                )
            await desk.carry_out(asked[-1].refund_id)
        assert len({each.refund_id for each in asked}) == 2
        assert asked[0] == asked[1] == asked[3]
    assert balance(shop) == before + 10


async def test_nothing_is_sent_while_a_transaction_waits_that_the_books_do_not_know(
    shop: Shop, back_up: Copy
) -> None:
    bought = await shop.buy()
    before, url = balance(shop), back_up(shop.database)
    shop.chain.call("evm_setAutomine", False)
    try:
        async with open_desk(shop, wait_seconds_max=0.2) as desk:
            assert (await desk.refund(bought.payment_id, amount=None, reason=None)).status == "sent"
        async with restored(shop, url) as again, open_desk(again) as desk:
            with pytest.raises(RefundMustWait):
                await desk.refund(bought.payment_id, amount=None, reason=None)
            (waiting,) = await list_refunds(again, bought)
            assert waiting.status == "requested"
            shop.chain.call("evm_mine")
            assert (await desk.carry_out(waiting.refund_id)).status == "done"
    finally:
        shop.chain.call("evm_setAutomine", True)
    assert balance(shop) == before + AMOUNT


async def displace(shop: Shop, bought: Bought, back_up: Copy) -> tuple[Refund, str]:
    """A refund that waits under a nonce that a stranger took; and a backup from before that."""
    shop.chain.call("evm_setAutomine", False)
    try:
        async with open_desk(shop, wait_seconds_max=0.2) as desk:
            waiting = await desk.refund(bought.payment_id, amount=5, reason=None)
        url = back_up(shop.database)
        used = int(shop.chain.call("eth_getTransactionCount", shop.bank.address, "latest"), 16)
        send_elsewhere(shop.chain, shop.bank, used)
        shop.chain.call("evm_mine")
    finally:
        shop.chain.call("evm_setAutomine", True)
    return waiting, url


async def test_a_refund_whose_nonce_went_to_another_is_looked_for_before_it_is_sent_again(
    shop: Shop, back_up: Copy
) -> None:
    """The backup has it under a nonce that a stranger took; the chain has it under the next one."""
    bought = await shop.buy()
    before = balance(shop)
    waiting, url = await displace(shop, bought, back_up)
    for books in (shop.database.url, url):
        async with restored(shop, books) as again, open_desk(again) as desk:
            await desk.purses[shop.node.network].mend()
            assert (await desk.carry_out(waiting.refund_id)).status == "done"
    assert balance(shop) == before + 5


class LatePurse(EvmPurse):
    """What it saw as begun, somebody else has dropped by the time it is asked to go on."""

    async def has_begun(self, refund: Refund) -> bool:
        """See Purse."""
        begun = await super().has_begun(refund)
        await self.mend()
        return begun


async def test_what_was_dropped_while_it_was_looked_at_is_not_sent_without_a_look(
    shop: Shop, back_up: Copy
) -> None:
    bought = await shop.buy()
    before = balance(shop)
    waiting, url = await displace(shop, bought, back_up)
    for books in (shop.database.url, url):
        async with restored(shop, books) as again, open_desk(again) as desk:
            usual = desk.purses[NETWORK]
            assert isinstance(usual, EvmPurse)
            late = LatePurse(usual.lanes, {NETWORK: shop.node}, 5.0)
            desk = RefundDesk(again.database, {NETWORK: late}, desk.watchers)
            await desk.carry_out(waiting.refund_id)
            assert (await desk.carry_out(waiting.refund_id)).status == "done"
    assert balance(shop) == before + 5


class SlowPurse(EvmPurse):
    """A block comes just before its accounts are looked at."""

    async def find_sender(self, refund: Refund, mark: bytes) -> str:
        """See Purse."""
        for chain in self.chains.values():
            await chain.ask("evm_mine")
        return await super().find_sender(refund, mark)


async def test_what_waits_while_the_chain_is_read_is_not_sent_as_well(shop: Shop, back_up: Copy) -> None:
    bought = await shop.buy()
    before, url = balance(shop), back_up(shop.database)
    shop.chain.call("evm_setAutomine", False)
    try:
        async with open_desk(shop, wait_seconds_max=0.2) as desk:
            await desk.refund(bought.payment_id, amount=5, reason=None)
        async with restored(shop, url) as again, open_desk(again, wait_seconds_max=0.2) as desk:
            usual = desk.purses[NETWORK]
            assert isinstance(usual, EvmPurse)
            purse = SlowPurse(usual.lanes, {NETWORK: shop.node}, 0.2)
            with pytest.raises(RefundMustWait):
                await RefundDesk(again.database, {NETWORK: purse}, desk.watchers).refund(
                    bought.payment_id, amount=5, reason=None
                )
            shop.chain.call("evm_mine")
    finally:
        shop.chain.call("evm_setAutomine", True)
    assert balance(shop) == before + 5


async def test_a_refund_that_a_node_took_and_hides_is_not_sent_from_another_account_as_well(
    shop: Shop,
) -> None:
    bought = await shop.buy()
    before = balance(shop)
    another = shop.chain.make_account(amount=PURSE, wei=GAS_MONEY_WEI)
    shop.chain.call("evm_setAutomine", False)
    try:
        async with play_proxy(shop.chain.url) as proxy:
            proxy.secretive, proxy.false_refusals = True, {"eth_sendRawTransaction": ["txpool is full"]}
            async with open_desk(shop, url=proxy.url) as desk:
                with pytest.raises(NodeRefusedTransaction):
                    await desk.refund(bought.payment_id, amount=None, reason=None)
            (waiting,) = await list_refunds(shop, bought)
            async with open_desk(shop, another, wait_seconds_max=0.2, url=proxy.url) as desk:
                with pytest.raises(RefundMustWait):
                    await desk.carry_out(waiting.refund_id)
        shop.chain.call("evm_mine")
    finally:
        shop.chain.call("evm_setAutomine", True)
    async with open_desk(shop, another) as desk:
        assert (await desk.carry_out(waiting.refund_id)).status == "done"
    assert balance(shop) == before + AMOUNT
