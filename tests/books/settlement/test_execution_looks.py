"""Looking first: what the chain shows to have been paid is not paid anew, whoever has forgotten it."""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_utils.address import to_checksum_address

from fixtures.lanes import send_elsewhere
from fixtures.settling import FICKLE, Payroll, later, make_payroll, order_odd, take_turn
from tollbook.books.settlement import jobs, limits, looks
from tollbook.core import clock
from tollbook.core.chains import Chain, ChainUnreachable
from tollbook.core.database import Database
from tollbook.core.lanes import mend as lanes_mend
from tollbook.core.lanes.network import NetworkLanes
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, TOKEN_ADDRESS, LocalChain

TRANSFER_FROM = "0x23b872dd"
LOGS = "eth_getLogs"


@pytest.fixture
def payroll(database: Database, own_chain: LocalChain) -> Payroll:
    own_chain.ensure_token()
    return make_payroll(database, own_chain)


async def test_a_stranger_who_copies_a_mark_does_not_hide_the_payment(
    payroll: Payroll, back_up: Callable[[Database], str]
) -> None:
    """Anybody may move nothing of the operator's, by transferFrom, and write behind it what he likes."""
    command_id = await payroll.order("3")
    await payroll.validate()
    copy = back_up(payroll.database)
    chain, operator = payroll.chain, payroll.operators[0].address
    async with payroll.open_desk() as desk:
        [paid] = await payroll.settle(desk, command_id)
    mark = chain.call("eth_getTransactionByHash", paid.tx_hash)["input"][-2 * looks.MARK_BYTES :]
    nothing = encode(["address", "address", "uint256"], [operator, "0x" + "5c" * 20, 0]).hex()
    stranger = chain.make_account(wei=GAS_MONEY_WEI)
    data = TRANSFER_FROM + nothing + mark
    send_elsewhere(chain, stranger, 0, to=to_checksum_address(TOKEN_ADDRESS), data=data, gas=200_000)
    chain.call("evm_mine")
    assert len(payroll.list_transfers()) == 2
    async with Database(copy) as books:
        restored = replace(payroll, database=books)
        async with restored.open_desk() as desk:
            [found] = await restored.settle(desk, command_id)
    assert found.tx_hash == paid.tx_hash
    assert payroll.count_paid(found) == 3_000_000, "once"


async def test_a_command_that_restored_books_have_forgotten_is_not_paid_again_when_it_is_sent_again(
    payroll: Payroll, back_up: Callable[[Database], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await payroll.order()
    await payroll.validate()
    async with payroll.open_desk() as desk:
        await payroll.settle(desk, before)
        copy = back_up(payroll.database)
        order: dict[str, Any] = {"command_id": "c-sent-again", "payee": "0x" + secrets.token_hex(20)}
        await payroll.order("3", **order)
        await payroll.validate()
        [paid] = await payroll.settle(desk, "c-sent-again")
    payroll.chain.call("evm_mine")
    payroll.chain.call("evm_increaseTime", 7200)
    payroll.chain.call("evm_mine")
    # As if it were sent again an hour later:
    monkeypatch.setattr(looks, "find_block_before", _an_hour_later(looks.find_block_before))
    async with Database(copy) as books:
        restored = replace(payroll, database=books)
        await restored.order("3", **order)
        await restored.validate()
        async with restored.open_desk() as desk:
            [found] = await restored.settle(desk, "c-sent-again")
    assert found.tx_hash == paid.tx_hash
    assert payroll.count_paid(found) == 3_000_000, "once"


async def test_restored_books_wait_for_what_they_do_not_know_and_a_block_may_still_take(
    payroll: Payroll, back_up: Callable[[Database], str]
) -> None:
    """What was sent just before they were restored is in no block yet, where its mark could be read."""
    command_id = await payroll.order("3")
    await payroll.validate()
    copy = back_up(payroll.database)
    payroll.chain.call("evm_setAutomine", False)
    async with payroll.open_desk() as desk:
        await desk.send()
        sent = await payroll.get(command_id)
    async with Database(copy) as books:
        restored = replace(payroll, database=books)
        another = await restored.order("1")
        await restored.validate()
        async with restored.open_desk() as desk:
            await desk.send()
            await desk.resume()
            waiting = [await restored.get(one) for one in (command_id, another)]
            assert {one.status for one in waiting} == {"validated"}
            assert all("do not know" in str(one.error) for one in waiting)
            payroll.chain.call("evm_mine")
            payroll.chain.call("evm_setAutomine", True)
            found, other = await restored.settle(desk, command_id, another)
    assert (found.tx_hash, payroll.count_paid(found)) == (sent.tx_hash, 3_000_000)
    assert (other.status, payroll.count_paid(other)) == ("settled", 1_000_000)


def _an_hour_later(find_block_before: Callable[..., Any]) -> Callable[..., Any]:
    began_at = clock.now()

    async def find(chain: Chain, moment: datetime, newest: int) -> int:
        # What was received by the restored books is an hour younger than what they remember.
        is_new = moment + looks.CLOCKS_APART_MAX > began_at
        return await find_block_before(chain, moment + timedelta(hours=1 if is_new else 0), newest)

    return find


async def test_what_was_looked_at_is_kept_though_the_node_gives_up_on_the_rest(
    payroll: Payroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else a long look at a node that bounds its requests never ends, and nobody is paid."""
    monkeypatch.setattr(looks, "BLOCKS_KEPT", 10)
    command_id = await payroll.order()
    await payroll.validate()
    payroll.chain.call("anvil_mine", "0x64")
    asked = 0
    ask = Chain.ask

    async def ask_three_times(chain: Chain, method: str, *params: object, **options: Any) -> Any:
        nonlocal asked
        asked += method == LOGS
        if method == LOGS and asked % 4 == 0:
            raise ChainUnreachable(NETWORK, payroll.url, "so many in a minute")
        return await ask(chain, method, *params, **options)

    monkeypatch.setattr(Chain, "ask", ask_three_times)
    async with payroll.open_desk() as desk:
        for _ in range(20):
            with suppress(ChainUnreachable):
                await desk.send()
    assert (await payroll.get(command_id)).status == "executed"


async def test_where_all_that_was_found_matters_it_is_not_read_again_and_again(
    payroll: Payroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = 0
    find = looks.find_block_before

    async def begin(chain: Chain, moment: datetime, newest: int) -> int:
        nonlocal began
        began += 1
        return await find(chain, moment, newest)

    monkeypatch.setattr(looks, "find_block_before", begin)
    monkeypatch.setattr(looks, "FOUND_MAX", 0)
    async with payroll.open_desk() as desk:
        monkeypatch.setattr(desk.lookout, "_room", 0)
        for _ in range(6):
            command_id = await payroll.order()
            await payroll.validate()
            await payroll.settle(desk, command_id)
    assert began <= 2


async def test_a_round_that_may_come_back_keeps_the_next_one_waiting_and_not_for_ever(
    payroll: Payroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_mend, "BEHIND_SECONDS", 0.0)
    chain, operator = payroll.chain, payroll.operators[0]
    command_id = await order_odd(payroll, FICKLE)
    before = chain.call("evm_snapshot")
    async with payroll.open_desk() as desk:
        [failed] = await payroll.settle(desk, command_id)
        chain.call("evm_revert", before)
        chain.call("anvil_mine", "0x3")
        await desk.mend()
        async with payroll.database.write() as tx:
            await limits.retry(tx, command_id, now=clock.now())
        chain.call("evm_setAutomine", False)
        for _ in range(3):
            await payroll.make_due()
            await take_turn(desk)
        pool = chain.call("txpool_content")["pending"]
        waiting = [one for of_account in pool.values() for one in of_account.values()]
        assert [one["to"] for one in waiting] == [operator.address.lower()], "its nonce is given to nothing"
        chain.call("evm_setAutomine", True)
        chain.call("evm_mine")
        for _ in range(5):
            await payroll.make_due()
            await take_turn(desk)
        [again] = await payroll.settle(desk, command_id)
    assert (again.status, again.round) == ("failed", 1)
    assert again.tx_hash != failed.tx_hash


async def test_what_is_about_to_be_sent_is_not_said_to_have_failed_since_its_time_is_over(
    payroll: Payroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever began it in time is slow, or whoever looks after it has a clock that is fast."""
    over = later(60)
    command_id = await payroll.order(expires_at=over)
    await payroll.validate()
    begun, go_on = asyncio.Event(), asyncio.Event()
    issue = NetworkLanes.issue

    async def issue_slowly(lanes: NetworkLanes, *calls: Any, **options: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await issue(lanes, *calls, **options)

    monkeypatch.setattr(NetworkLanes, "issue", issue_slowly)
    async with payroll.open_desk() as slow, payroll.open_desk() as other:
        sending = asyncio.create_task(slow.send())
        await begun.wait()
        await payroll.make_due()
        with monkeypatch.context() as fast:
            fast.setattr(clock, "now", lambda: over)
            await other.resume()
        go_on.set()
        await sending
        [ended] = await payroll.settle(slow, command_id)
    assert (ended.status, payroll.count_paid(ended)) == ("settled", 1_000_000)


async def test_what_the_chain_alone_says_to_be_paid_is_not_opened_since_the_lanes_dropped_it(
    payroll: Payroll,
) -> None:
    """A node took what it said it refused, after the lanes had lost an earlier one."""
    command_id = await payroll.order()
    await payroll.validate()
    async with payroll.open_desk() as desk:
        await desk.send()
        paid = await payroll.get(command_id)
        async with payroll.database.write() as tx:
            await tx.execute(
                "UPDATE core.transactions SET status = 'dropped', block_hash = NULL, confirmed_at = NULL "
                "WHERE purpose = %(purpose)s",
                {"purpose": f"command:0:{command_id}"},
            )
        await payroll.make_due()
        [settled] = await payroll.settle(desk, command_id)
    assert settled.tx_hash == paid.tx_hash
    assert await jobs.reopen_forgone(payroll.database) == 0
    assert (await payroll.get(command_id)).status == "settled"
