"""Execution by nodes that lied before and workers that come late: what is over is not paid once more."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from fixtures.lanes import send_elsewhere
from fixtures.rpc_proxy import Proxy
from fixtures.settling import (
    PURSE,
    WEI,
    Payroll,
    come_out,
    count_wei,
    hide_next,
    make_payroll,
    order_coin,
    take_turn,
)
from tollbook.books.settlement import execution
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.lanes import transactions
from tollbook.core.lanes.network import NetworkLanes
from tollbook.core.local_chain import GAS_MONEY_WEI, LocalChain

SEND = "eth_sendRawTransaction"
COUNT, LOOK_UP = "eth_getTransactionCount", "eth_getTransactionByHash"


@pytest.fixture
def payroll(database: Database, chain: LocalChain, token: str) -> Payroll:
    """A payroll of one account."""
    assert token
    return make_payroll(database, chain)


async def test_a_node_that_hid_what_it_took_and_a_worker_that_died_make_nobody_pay_twice(
    proxied: tuple[Payroll, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    payroll, proxy = proxied
    command_id = await order_coin(payroll)
    payroll.chain.call("evm_setAutomine", False)
    proxy.false_refusals = {SEND: ["txpool is full"]}
    async with payroll.open_desk() as desk:
        await desk.send()
        with monkeypatch.context() as patch:
            patch.setattr(transactions, "record_signed", _die)
            proxy.answers = {LOOK_UP: None, COUNT: "0x0"}  # the node does not tell of it
            await payroll.make_due()
            await desk.resume()
    proxy.answers = {}
    payroll.chain.call("evm_mine")
    payroll.chain.call("evm_setAutomine", True)
    async with payroll.database.write() as tx:
        await tx.execute(
            "UPDATE core.transactions SET created_at = %(then)s WHERE status = 'reserved'",
            {"then": clock.now() - timedelta(minutes=1)},
        )
    async with payroll.open_desk() as desk:
        await payroll.make_due()
        [settled] = await payroll.settle(desk, command_id)
    assert settled.status == "settled"
    assert count_wei(payroll, settled.payee) == WEI


async def test_what_a_node_took_though_it_said_it_did_not_holds_up_no_other_command(
    proxied: tuple[Payroll, Proxy],
) -> None:
    """It waits for a block that may never come, and is known by its hash."""
    payroll, proxy = proxied
    await order_coin(payroll)
    payroll.chain.call("evm_setAutomine", False)
    proxy.false_refusals = {SEND: ["txpool is full"]}
    async with payroll.open_desk() as desk:
        await desk.send()
        other = await payroll.order("1")
        await payroll.validate()
        await desk.send()
        assert (await payroll.get(other)).status == "executed"
        payroll.chain.call("evm_mine")
        payroll.chain.call("evm_setAutomine", True)
        [settled] = await payroll.settle(desk, other, hurry=True)
    assert (settled.status, payroll.count_paid(settled)) == ("settled", 1_000_000)


async def test_what_a_node_took_though_it_said_it_did_not_is_looked_after_as_any_other(
    proxied: tuple[Payroll, Proxy],
) -> None:
    """Or nobody offers more for it when no block takes it: for the lanes it was never sent."""
    payroll, proxy = proxied
    command_id = await order_coin(payroll)
    payroll.chain.call("evm_setAutomine", False)
    proxy.false_refusals = {SEND: ["txpool is full"]}
    async with payroll.open_desk() as desk:
        await desk.send()
        await payroll.make_due()
        await desk.resume()
        sent = await desk.lanes.find(f"command:0:{command_id}")
        assert (sent and sent.status, (await payroll.get(command_id)).tx_hash) == ("sent", sent and sent.hash)
        settled = await come_out(payroll, desk, command_id)
    assert (settled.status, count_wei(payroll, settled.payee)) == ("settled", WEI)


async def test_what_a_node_took_and_hides_is_not_paid_from_another_account_as_well(
    proxied: tuple[Payroll, Proxy],
) -> None:
    payroll, proxy = proxied
    another = payroll.chain.make_account(amount=2 * PURSE, wei=0)
    payroll.operators.append(another)
    command_id = await payroll.order()
    await payroll.validate()
    hide_next(payroll, proxy)
    async with payroll.open_desk() as desk:
        await desk.send()
        payroll.chain.set_gas_money(another.address)  # it is the fuller one
        await payroll.make_due()
        await take_turn(desk)
        settled = await come_out(payroll, desk, command_id)
    assert (settled.status, payroll.count_paid(settled)) == ("settled", 1_000_000)


async def test_what_a_node_took_and_hides_is_not_paid_by_who_has_other_keys(
    proxied: tuple[Payroll, Proxy],
) -> None:
    payroll, proxy = proxied
    another = payroll.chain.make_account(amount=PURSE, wei=GAS_MONEY_WEI)
    command_id = await payroll.order()
    await payroll.validate()
    hide_next(payroll, proxy)
    async with payroll.open_desk() as desk:
        await desk.send()
    payroll.operators[0] = another
    async with payroll.open_desk() as desk:
        await payroll.make_due()
        await take_turn(desk)
        waiting = await payroll.get(command_id)
        settled = await come_out(payroll, desk, command_id)
    assert "configure it again" in str(waiting.error)
    assert (settled.status, payroll.count_paid(settled)) == ("settled", 1_000_000)


async def test_once_its_nonce_is_anothers_for_good_it_is_paid_from_whichever_account_can(
    proxied: tuple[Payroll, Proxy],
) -> None:
    payroll, proxy = proxied
    command_id = await order_coin(payroll)
    proxy.refusals = {SEND: ["txpool is full"]}
    async with payroll.open_desk() as desk:
        await desk.send()
        other = await order_coin(payroll)
        await desk.send()
        for _ in range(100):
            await desk.mend()
            await desk.judge()
            if (await payroll.get(other)).status == "settled":
                break
    payroll.chain.set_gas_money(payroll.operators[0].address, 0)
    payroll.operators.append(payroll.chain.make_account(wei=GAS_MONEY_WEI))
    async with payroll.open_desk() as desk:
        await payroll.make_due()
        [settled] = await payroll.settle(desk, command_id)
    assert (settled.status, count_wei(payroll, settled.payee)) == ("settled", WEI)


async def test_what_was_begun_and_cannot_be_paid_any_more_holds_up_nobody(
    proxied: tuple[Payroll, Proxy],
) -> None:
    """It waits for money, perhaps for ever: what is left is for those that it is enough for."""
    payroll, proxy = proxied
    large = await payroll.order(str(GAS_MONEY_WEI // 2 // 10**18), asset_symbol="ETH")
    await payroll.validate()
    proxy.refusals = {SEND: ["txpool is full"]}
    async with payroll.open_desk() as desk:
        await desk.send()
        payroll.chain.set_gas_money(payroll.operators[0].address, GAS_MONEY_WEI // 4)
        small = await order_coin(payroll)
        await payroll.make_due()
        [settled] = await payroll.settle(desk, small)
    assert (settled.status, (await payroll.get(large)).status) == ("settled", "executed")


async def test_what_was_begun_and_waits_for_a_stranger_says_so(proxied: tuple[Payroll, Proxy]) -> None:
    payroll, proxy = proxied
    command_id = await order_coin(payroll)
    payroll.chain.call("evm_setAutomine", False)
    proxy.refusals = {SEND: ["txpool is full"]}
    async with payroll.open_desk() as desk:
        await desk.send()
        send_elsewhere(payroll.chain, payroll.operators[0], 0)
        await payroll.make_due()
        await desk.resume()
        waiting = await payroll.get(command_id)
    assert waiting.status == "executed"
    assert "these books do not know" in str(waiting.error)


async def _die(*_: Any) -> set[int]:
    raise RuntimeError("killed")


async def test_who_stood_still_does_not_pay_what_another_one_said_to_have_failed(
    payroll: Payroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that is frozen has a clock that stands still too: no time-out of its own tells it."""
    monkeypatch.setattr(execution, "ATTEMPTS_MAX", 0)
    command_id = await order_coin(payroll)
    there, go_on = asyncio.Event(), asyncio.Event()
    issue = NetworkLanes.issue

    async def issue_late(lanes: NetworkLanes, *calls: Any, **options: Any) -> Any:
        there.set()
        await go_on.wait()
        return await issue(lanes, *calls, **options)

    async with payroll.open_desk() as frozen, payroll.open_desk() as other:
        with monkeypatch.context() as patch:
            patch.setattr(NetworkLanes, "issue", issue_late)
            sending = asyncio.create_task(frozen.send())
            await there.wait()
        await payroll.make_due()
        await other.resume()
        assert (await payroll.get(command_id)).status == "failed"
        go_on.set()
        await sending
    failed = await payroll.get(command_id)
    assert (failed.status, count_wei(payroll, failed.payee)) == ("failed", 0)
