"""Commands that were begun and end without paying: nothing of them comes after that was said."""

import asyncio
from typing import Any

import pytest

from fixtures import lanes
from fixtures.lanes import send_elsewhere
from fixtures.rpc_proxy import Proxy
from fixtures.settling import (
    PURSE,
    WEI,
    Payroll,
    come_out,
    count_wei,
    hide_next,
    look_again,
    make_payroll,
    order_coin,
)
from tollbook.books.settlement import due, endings, execution, limits
from tollbook.books.settlement.commands import Command
from tollbook.books.settlement.errors import CommandNotInState
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.lanes import transactions
from tollbook.core.lanes.network import NetworkLanes
from tollbook.core.local_chain import GAS_MONEY_WEI, LocalChain

SEND = "eth_sendRawTransaction"


@pytest.fixture
def payroll(database: Database, chain: LocalChain, token: str) -> Payroll:
    """A payroll of one account."""
    assert token
    return make_payroll(database, chain)


async def cancel(payroll: Payroll, command_id: str, **options: Any) -> Command:
    async with payroll.database.write() as tx:
        return await endings.cancel(tx, command_id, "paid by hand", now=clock.now(), **options)


def count_used(payroll: Payroll) -> int:
    return lanes.count_used(payroll.chain, payroll.operators[0])


async def test_what_was_begun_and_waits_for_money_is_cancelled_at_once(
    payroll: Payroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it was ever signed: there is nothing that could come."""
    monkeypatch.setattr(execution, "SUBMIT_SECONDS_MAX", -1.0)  # as if who began it had died there
    command_id = await order_coin(payroll)
    payroll.chain.set_gas_money(payroll.operators[0].address, GAS_MONEY_WEI)
    async with payroll.open_desk() as desk:
        await desk.send()
        payroll.chain.set_gas_money(payroll.operators[0].address, 0)
        await look_again(payroll, desk, times=1)
        waiting = await payroll.get(command_id)
        assert (waiting.status, "Fill one" in str(waiting.error)) == ("executed", True)
        cancelled = await cancel(payroll, command_id)
        payroll.chain.set_gas_money(payroll.operators[0].address, GAS_MONEY_WEI)
        monkeypatch.undo()
        await look_again(payroll, desk)
    assert (cancelled.status, cancelled.error) == ("cancelled", "paid by hand")
    assert await payroll.list_steps(command_id) == ["received", "validated", "executed", "cancelled"]
    assert count_wei(payroll, cancelled.payee) == 0


async def test_a_worker_that_is_about_to_send_what_is_cancelled_meanwhile_sends_nothing(
    payroll: Payroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    command_id = await order_coin(payroll)
    there, go_on = asyncio.Event(), asyncio.Event()
    issue = NetworkLanes.issue

    async def issue_late(lanes: NetworkLanes, *calls: Any) -> Any:
        there.set()
        await go_on.wait()
        return await issue(lanes, *calls)

    monkeypatch.setattr(NetworkLanes, "issue", issue_late)
    async with payroll.open_desk() as desk:
        sending = asyncio.create_task(desk.send())
        await there.wait()
        assert (await cancel(payroll, command_id)).status == "cancelled"
        go_on.set()
        await sending
        await look_again(payroll, desk)
    cancelled = await payroll.get(command_id)
    assert (cancelled.status, count_wei(payroll, cancelled.payee)) == ("cancelled", 0)


async def test_what_has_its_nonce_is_not_cancelled_any_more(
    payroll: Payroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    command_id = await order_coin(payroll)
    sign = transactions.record_signed

    async def cancel_first(*arguments: Any) -> set[int]:
        with pytest.raises(CommandNotInState):
            await cancel(payroll, command_id)
        return await sign(*arguments)

    monkeypatch.setattr(transactions, "record_signed", cancel_first)
    async with payroll.open_desk() as desk:
        await desk.send()
        with pytest.raises(CommandNotInState):
            await cancel(payroll, command_id, although_it_may_come=True)
        [settled] = await payroll.settle(desk, command_id)
    assert (settled.status, count_wei(payroll, settled.payee)) == ("settled", WEI)


async def test_what_a_node_refused_is_cancelled_once_its_nonce_is_used_and_never_sent_again(
    proxied: tuple[Payroll, Proxy],
) -> None:
    payroll, proxy = proxied
    command_id = await order_coin(payroll)
    proxy.refusals = {SEND: ["insufficient funds for gas"]}
    async with payroll.open_desk() as desk:
        await desk.send()
        asked = await cancel(payroll, command_id)
        assert (asked.status, "Not sent any more" in str(asked.error)) == ("executed", True)
        [cancelled] = await payroll.settle(desk, command_id)
    assert (cancelled.status, cancelled.error, cancelled.tx_hash) == ("cancelled", "paid by hand", None)
    assert (count_wei(payroll, cancelled.payee), count_used(payroll)) == (0, 1), "by what moves nothing"


async def test_what_comes_out_although_it_was_to_be_cancelled_is_settled_and_not_said_to_be_cancelled(
    proxied: tuple[Payroll, Proxy],
) -> None:
    payroll, proxy = proxied
    command_id = await order_coin(payroll)
    hide_next(payroll, proxy)
    async with payroll.open_desk() as desk:
        await desk.send()
        await cancel(payroll, command_id)
        await look_again(payroll, desk)
        assert (await payroll.get(command_id)).status == "executed"
        ended = await come_out(payroll, desk, command_id)
    assert (ended.status, count_wei(payroll, ended.payee)) == ("settled", WEI)


async def test_what_is_given_up_is_not_said_to_have_failed_while_a_node_may_bring_it_yet(
    proxied: tuple[Payroll, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever hears that it failed pays by other means, or tries it again."""
    payroll, proxy = proxied
    monkeypatch.setattr(execution, "ATTEMPTS_MAX", 1)
    command_id = await order_coin(payroll)
    hide_next(payroll, proxy)
    async with payroll.open_desk() as desk:
        await desk.send()
        await look_again(payroll, desk)
        waiting = await payroll.get(command_id)
        assert (waiting.status, "when the nonce is used" in str(waiting.error)) == ("executed", True)
        ended = await come_out(payroll, desk, command_id)
    assert (ended.status, count_wei(payroll, ended.payee)) == ("settled", WEI)
    assert "failed" not in await payroll.list_steps(command_id)


async def test_what_is_given_up_fails_when_its_nonce_is_used_for_good_and_not_before(
    proxied: tuple[Payroll, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    payroll, proxy = proxied
    monkeypatch.setattr(execution, "ATTEMPTS_MAX", 1)
    command_id = await order_coin(payroll)
    proxy.refusals = {SEND: ["txpool is full"]}
    async with payroll.open_desk(confirmations=3) as desk:
        await desk.send()
        await look_again(payroll, desk)
        payroll.chain.call("evm_mine")
        await look_again(payroll, desk)
        assert count_used(payroll) == 1
        assert (await payroll.get(command_id)).status == "executed", "a reorganisation may bring it yet"
        payroll.chain.call("anvil_mine", "0x2")
        await look_again(payroll, desk, times=1)
        failed = await payroll.get(command_id)
        assert (failed.status, "txpool is full" in str(failed.error)) == ("failed", True)
        async with payroll.database.write() as tx:
            await limits.retry(tx, command_id, now=clock.now())
        await desk.send()
        payroll.chain.call("anvil_mine", "0x3")
        [settled] = await payroll.settle(desk, command_id)
    assert (settled.status, count_wei(payroll, settled.payee)) == ("settled", WEI)


@pytest.fixture
async def keyless(proxied: tuple[Payroll, Proxy]) -> tuple[Payroll, str]:
    """A payroll of another account than the one under whose nonce a node refused its command."""
    payroll, proxy = proxied
    command_id = await order_coin(payroll)
    proxy.refusals = {SEND: ["txpool is full"]}
    async with payroll.open_desk() as desk:
        await desk.send()
    payroll.operators.append(payroll.operators[0])
    payroll.operators[0] = payroll.chain.make_account(amount=PURSE, wei=GAS_MONEY_WEI)
    return payroll, command_id


async def test_what_waits_for_a_key_that_is_gone_says_so_and_ends_at_the_operators_risk(
    keyless: tuple[Payroll, str],
) -> None:
    payroll, command_id = keyless
    former = payroll.operators.pop().address.lower()
    async with payroll.open_desk() as desk:
        await look_again(payroll, desk)
        waiting = await payroll.get(command_id)
        for part in (f"nonce 0 of {former}", "key of that account is not here", "--although-it-may-come"):
            assert part in str(waiting.error)
        asked = await cancel(payroll, command_id)
        await look_again(payroll, desk)
        assert (asked.status, (await payroll.get(command_id)).status) == ("executed", "executed")
        cancelled = await cancel(payroll, command_id, although_it_may_come=True)
        await look_again(payroll, desk)
    assert (cancelled.status, count_wei(payroll, cancelled.payee)) == ("cancelled", 0)


async def test_what_waits_for_a_key_that_is_gone_is_paid_once_its_nonce_was_used_elsewhere(
    keyless: tuple[Payroll, str],
) -> None:
    payroll, command_id = keyless
    former = payroll.operators.pop()
    send_elsewhere(payroll.chain, former, 0)
    async with payroll.open_desk() as desk:
        await payroll.make_due()
        [settled] = await payroll.settle(desk, command_id)
    assert (settled.status, count_wei(payroll, settled.payee)) == ("settled", WEI)


async def test_what_may_be_on_its_way_from_an_account_whose_key_is_gone_says_so(
    proxied: tuple[Payroll, Proxy],
) -> None:
    payroll, proxy = proxied
    command_id = await order_coin(payroll)
    proxy.refusals = {SEND: ["the node is confused"]}
    async with payroll.open_desk() as desk:
        await desk.send()
    former = payroll.operators[0]
    payroll.operators[0] = payroll.chain.make_account(wei=GAS_MONEY_WEI)
    async with payroll.open_desk() as desk:
        await look_again(payroll, desk)
    waiting = await payroll.get(command_id)
    assert (waiting.status, "whose key is not here" in str(waiting.error)) == ("executed", True)
    payroll.operators[0] = former
    async with payroll.open_desk() as desk:
        await payroll.make_due()
        [settled] = await payroll.settle(desk, command_id)
    assert (settled.status, settled.error, count_wei(payroll, settled.payee)) == ("settled", None, WEI)


async def test_what_was_signed_since_the_chain_was_looked_at_is_not_ended_by_that_look(
    proxied: tuple[Payroll, Proxy],
) -> None:
    """A slow worker saw that nothing of it can come; by now another one had it refused under a new nonce."""
    payroll, proxy = proxied
    command_id = await order_coin(payroll)
    proxy.refusals = {SEND: ["txpool is full"]}
    async with payroll.open_desk() as desk:
        await desk.send()
        seen = await desk.lanes.find(f"command:0:{command_id}")
        send_elsewhere(payroll.chain, payroll.operators[0], 0)
        payroll.chain.call("evm_mine")
        hide_next(payroll, proxy)
        await payroll.make_due()
        await desk.resume()
        is_barred = False
        async with payroll.database.write() as tx:
            is_barred = await endings.bar(tx, await due.get(tx, command_id), seen)
        assert not is_barred
        ended = await come_out(payroll, desk, command_id)
    assert (ended.status, count_wei(payroll, ended.payee)) == ("settled", WEI)
