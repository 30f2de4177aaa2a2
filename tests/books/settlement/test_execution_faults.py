"""Execution with nodes that err, lie, keep silent or take back, and books that forget: never paid twice."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from eth_account.signers.local import LocalAccount

from fixtures.lanes import send_elsewhere
from fixtures.rpc_proxy import Proxy, play_proxy
from fixtures.settling import FICKLE, PURSE, QUICK, Payroll, make_payroll, order_odd, take_turn
from tollbook.books.settlement import execution, jobs, limits
from tollbook.core import clock
from tollbook.core.chains import ChainUnreachable, Receipt
from tollbook.core.database import Database
from tollbook.core.lanes import mend as lanes_mend
from tollbook.core.lanes.node import Node
from tollbook.core.local_chain import LocalChain

SEND = "eth_sendRawTransaction"
RECEIPT = "eth_getTransactionReceipt"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing need not be missing for ten minutes."""
    monkeypatch.setattr(lanes_mend, "BEHIND_SECONDS", 0.0)


async def test_a_sure_refusal_leaves_it_executed_and_it_is_sent_later(proxied: tuple[Payroll, Proxy]) -> None:
    payroll, proxy = proxied
    command_id = await payroll.order()
    await payroll.validate()
    proxy.refusals = {SEND: ["txpool is full", "txpool is full"]}
    async with payroll.open_desk() as desk:
        await desk.send()
        refused = await payroll.get(command_id)
        assert (refused.status, refused.attempts, refused.tx_hash) == ("executed", 1, None)
        assert "txpool is full" in str(refused.error)
        [settled] = await payroll.settle(desk, command_id)
    assert (settled.status, settled.attempts) == ("settled", 2)
    assert len(payroll.list_transfers()) == 1


async def test_what_is_refused_for_ever_fails_in_the_end_and_says_why(
    proxied: tuple[Payroll, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    payroll, proxy = proxied
    monkeypatch.setattr(execution, "ATTEMPTS_MAX", 3)
    command_id = await payroll.order()
    await payroll.validate()
    proxy.refusals = {SEND: ["txpool is full"] * 20}
    async with payroll.open_desk() as desk:
        [failed] = await payroll.settle(desk, command_id)
    assert (failed.status, failed.attempts) == ("failed", 3)
    assert "Nothing was sent" in str(failed.error)
    assert "txpool is full" in str(failed.error)
    assert payroll.list_transfers() == []


async def test_who_has_no_gas_money_waits_until_there_is_some_and_it_is_said_once(
    proxied: tuple[Payroll, Proxy], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    payroll, proxy = proxied
    monkeypatch.setattr(execution, "ATTEMPTS_MAX", 3)
    monkeypatch.setattr(execution, "PAUSES_MAX", 2)
    command_id = await payroll.order()
    await payroll.validate()
    proxy.refusals = {SEND: ["insufficient funds for gas"] * 6}
    async with payroll.open_desk() as desk:
        for _ in range(5):
            await payroll.make_due()
            await take_turn(desk)
        waiting = await payroll.get(command_id)
        assert (waiting.status, waiting.attempts) == ("executed", 2)
        assert "cannot pay for gas" in str(waiting.error)
        [settled] = await payroll.settle(desk, command_id)
    assert settled.status == "settled"
    assert len(payroll.list_transfers()) == 1
    assert sum("cannot pay for gas" in one.message for one in caplog.records) == 1


@pytest.mark.parametrize("how", ["lost", "silent"])
async def test_an_answer_that_is_lost_costs_nobody_anything(
    proxied: tuple[Payroll, Proxy], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    payroll, proxy = proxied
    monkeypatch.setattr("tollbook.core.lanes.SUBMIT_SECONDS_MAX", 0.3)
    command_id = await payroll.order()
    await payroll.validate()
    async with payroll.open_desk() as desk:
        if how == "lost":
            proxy.lost_answers = {SEND}
        else:
            proxy.silent = {SEND}
        await desk.send()
        assert (await payroll.get(command_id)).status == "executed"
        proxy.lost_answers, proxy.silent = set(), set()
        await payroll.make_due()
        [settled] = await payroll.settle(desk, command_id)
    assert settled.status == "settled"
    assert len(payroll.list_transfers()) == 1


async def test_a_node_that_took_what_it_said_it_refused_makes_nobody_pay_twice(
    proxied: tuple[Payroll, Proxy],
) -> None:
    """A token's transfer is known by its mark, the coin's by the hash that was dropped."""
    payroll, proxy = proxied
    ids = [await payroll.order(), await payroll.order("0.0000001", asset_symbol="ETH")]
    await payroll.validate()
    proxy.false_refusals = {SEND: ["insufficient funds for gas", "txpool is full"]}
    async with payroll.open_desk() as desk:
        found = await payroll.settle(desk, *ids)
    assert {one.status for one in found} == {"settled"}
    assert len(payroll.list_transfers()) == 1
    assert int(payroll.chain.call("eth_getBalance", found[1].payee, "latest"), 16) == 10**11


async def test_a_receipt_that_is_nonsense_or_another_ones_settles_nothing(
    proxied: tuple[Payroll, Proxy],
) -> None:
    payroll, proxy = proxied
    ids = [await payroll.order()]
    await payroll.validate()
    async with payroll.open_desk() as desk:
        await payroll.settle(desk, ids[0])
        ids += [await payroll.order() for _ in range(2)]
        await payroll.validate()
        other = payroll.chain.call(RECEIPT, (await payroll.get(ids[0])).tx_hash)
        await desk.send()
        await desk.mend()
        proxy.lies = {RECEIPT: [{"status": "0x1"}, other]}
        assert await desk.judge() == 0
        assert {(await payroll.get(one)).status for one in ids[1:]} == {"executed"}
        found = await payroll.settle(desk, *ids)
    assert {one.status for one in found} == {"settled"}
    assert len({one.tx_hash for one in found}) == 3


async def test_a_node_that_is_away_stops_nothing_for_good(
    proxied: tuple[Payroll, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    payroll, proxy = proxied
    command_id = await payroll.order()
    await payroll.validate()
    monkeypatch.setattr("tollbook.core.chains.ATTEMPTS_MAX", 1)
    everything = {SEND, "eth_blockNumber", "eth_getLogs", "eth_call", "eth_gasPrice", RECEIPT}
    stop = asyncio.Event()
    async with payroll.open_desk() as desk:
        proxy.lost_answers = everything
        with pytest.raises(ChainUnreachable):
            await desk.send()
        working = asyncio.create_task(desk.work(stop))
        await asyncio.sleep(0.1)
        proxy.lost_answers = set()
        [settled] = await payroll.wait_for(command_id)
        stop.set()
        await working
    assert settled.status == "settled"
    assert len(payroll.list_transfers()) == 1


async def test_a_transfer_that_is_stuck_offers_more_and_is_settled_by_the_hash_it_was_mined_under(
    database: Database, own_chain: LocalChain
) -> None:
    own_chain.ensure_token()
    payroll = make_payroll(database, own_chain)
    command_id = await payroll.order()
    await payroll.validate()
    own_chain.call("evm_setAutomine", False)
    async with payroll.open_desk(pace=replace(QUICK, stuck_seconds=0.0)) as desk:
        await desk.send()
        sent = (await payroll.get(command_id)).tx_hash
        offered = int(own_chain.call("eth_getTransactionByHash", sent)["maxFeePerGas"], 16)
        own_chain.call("anvil_setNextBlockBaseFeePerGas", hex(offered * 2))
        own_chain.call("evm_mine")
        await desk.mend()
        own_chain.call("evm_mine")
        [settled] = await payroll.settle(desk, command_id)
    assert settled.tx_hash != sent
    assert own_chain.call(RECEIPT, settled.tx_hash)["status"] == "0x1"
    assert len(payroll.list_transfers()) == 1


async def test_books_that_forgot_what_they_paid_do_not_pay_it_again(
    database: Database, chain: LocalChain, token: str, back_up: Callable[[Database], str]
) -> None:
    """Restored from a backup of before: the chain remembers, by the marks."""
    assert token
    payroll = make_payroll(database, chain)
    payee = "0x" + secrets.token_hex(20)
    ids = [await payroll.order("3", payee=payee) for _ in range(3)]
    await payroll.validate()
    copy = back_up(database)
    async with payroll.open_desk() as desk:
        paid = await payroll.settle(desk, *ids)
    async with Database(copy) as books:
        restored = replace(payroll, database=books)
        another = await restored.order("3", payee=payee)
        await restored.validate()
        async with restored.open_desk() as desk:
            found = await restored.settle(desk, *ids, another)
    assert {one.status for one in found} == {"settled"}
    assert [one.tx_hash for one in found[:3]] == [one.tx_hash for one in paid]
    assert payroll.count_paid(found[0]) == 12_000_000, "once each"


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("comes_back", [False, True])
async def test_what_a_deep_reorganisation_takes_back_is_opened_and_paid_again_once(
    database: Database, own_chain: LocalChain, comes_back: bool
) -> None:
    own_chain.ensure_token()
    payroll = make_payroll(database, own_chain)
    before = own_chain.call("evm_snapshot")
    command_id = await payroll.order()
    await payroll.validate()
    async with payroll.open_desk() as desk:
        [settled] = await payroll.settle(desk, command_id)
        raw = own_chain.call("eth_getRawTransactionByHash", settled.tx_hash)
        own_chain.call("evm_revert", before)
        own_chain.call("anvil_mine", "0x3")  # other blocks under the same numbers
        assert payroll.list_transfers() == []
        await desk.mend()
        await desk.reopen()
        assert (await payroll.get(command_id)).status == "executed"
        if comes_back:
            own_chain.call(SEND, raw)
        for _ in range(5):
            await payroll.make_due()
            await take_turn(desk)
        [again] = await payroll.settle(desk, command_id)
    assert len(payroll.list_transfers()) == 1
    assert (again.tx_hash == settled.tx_hash) == comes_back
    steps = ["received", "validated", "executed", "settled", "executed", "settled"]
    assert await payroll.list_steps(command_id) == steps


async def test_what_a_deep_reorganisation_moves_to_another_block_before_it_is_judged_is_settled(
    database: Database, own_chain: LocalChain
) -> None:
    """The lanes called it final in a block that the chain does not have any more."""
    own_chain.ensure_token()
    payroll = make_payroll(database, own_chain)
    command_id = await payroll.order()
    await payroll.validate()
    before = own_chain.call("evm_snapshot")
    async with payroll.open_desk() as desk:
        await desk.send()
        await desk.mend()
        sent = await payroll.get(command_id)
        raw = own_chain.call("eth_getRawTransactionByHash", sent.tx_hash)
        own_chain.call("evm_revert", before)
        own_chain.call("anvil_mine", "0x2")
        own_chain.call(SEND, raw)
        [settled] = await payroll.settle(desk, command_id)
    assert (settled.status, settled.tx_hash) == ("settled", sent.tx_hash)
    assert len(payroll.list_transfers()) == 1


@pytest.mark.usefixtures("at_once")
async def test_what_was_taken_back_while_nobody_looked_is_found_when_a_worker_starts(
    database: Database, own_chain: LocalChain
) -> None:
    own_chain.ensure_token()
    payroll = make_payroll(database, own_chain)
    before = own_chain.call("evm_snapshot")
    command_id = await payroll.order()
    await payroll.validate()
    async with payroll.open_desk() as desk:
        [settled] = await payroll.settle(desk, command_id)
        own_chain.call("evm_revert", before)
        own_chain.call("anvil_mine", "0x3")
        await desk.mend()
        send_elsewhere(own_chain, payroll.operators[0], 0)
        await desk.mend()
        await desk.mend()
        assert await jobs.reopen_forgone(database) == 1
        await payroll.make_due()
        [again] = await payroll.settle(desk, command_id)
    assert again.tx_hash != settled.tx_hash
    assert len(payroll.list_transfers()) == 1


async def test_a_nonce_that_a_stranger_used_is_no_payment_and_is_not_paid_twice(
    database: Database, own_chain: LocalChain, operator: LocalAccount
) -> None:
    own_chain.ensure_token()
    own_chain.mint(operator.address, PURSE)
    payroll = Payroll(database, own_chain, [operator], own_chain.url)
    async with play_proxy(own_chain.url) as proxy:
        payroll.url = proxy.url
        command_id = await payroll.order()
        await payroll.validate()
        async with payroll.open_desk() as desk:
            proxy.refusals = {SEND: ["the node is confused"]}
            await desk.send()
            send_elsewhere(own_chain, operator, 0)
            await desk.mend()
            await payroll.make_due()
            [settled] = await payroll.settle(desk, command_id)
    assert settled.status == "settled"
    assert len(payroll.list_transfers()) == 1


async def test_who_was_slow_does_not_end_a_round_that_he_knows_nothing_of(
    database: Database, chain: LocalChain, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While he reads that the first round's transfer was reverted, it has been tried again."""
    assert token
    payroll = make_payroll(database, chain)
    command_id = await order_odd(payroll, FICKLE)
    async with payroll.open_desk() as slow, payroll.open_desk() as quick:
        await quick.send()
        await quick.mend()
        read = execution.read_receipts

        async def read_slowly(node: Node, hashes: Sequence[str]) -> list[Receipt | None]:
            receipts = await read(node, hashes)
            if node is slow.node:
                await quick.judge()
                async with database.write() as tx:
                    await limits.retry(tx, command_id, now=clock.now())
                chain.call("evm_setAutomine", False)
                await quick.send()
            return receipts

        monkeypatch.setattr(execution, "read_receipts", read_slowly)
        try:
            assert await slow.judge() == 0
        finally:
            chain.call("evm_setAutomine", True)
            chain.call("evm_mine")
        again = await payroll.get(command_id)
    assert (again.status, again.round) == ("executed", 1)


async def test_while_nothing_is_under_way_the_node_is_left_alone(proxied: tuple[Payroll, Proxy]) -> None:
    payroll, proxy = proxied
    async with payroll.open_desk(pace=replace(QUICK, calm_seconds=60.0)) as desk:
        await take_turn(desk)
        proxy.asked.clear()
        for _ in range(3):
            await take_turn(desk)
        assert proxy.asked == []
        command_id = await payroll.order()
        await payroll.validate()
        await payroll.settle(desk, command_id)
    assert SEND in proxy.asked
