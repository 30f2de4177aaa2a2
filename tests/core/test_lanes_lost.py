"""Lanes on a chain that takes back what was final: a deep reorganisation, a development chain begun anew."""

import asyncio
import logging
import random
from contextlib import suppress

import pytest
from eth_account.signers.local import LocalAccount

from fixtures.lanes import count_paid, find, key_of, make_call, mine, play_own_chain, send_elsewhere
from fixtures.rpc_proxy import Proxy
from tollbook.core.database import Database
from tollbook.core.lanes import Lanes, Transaction
from tollbook.core.lanes import mend as lanes_mend
from tollbook.core.local_chain import CHAIN_ID, NETWORK, LocalChain, LocalChainFailed

NOW = {"lost_seconds": 0.0}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing need not be missing for ten minutes."""
    monkeypatch.setattr(lanes_mend, "BEHIND_SECONDS", 0.0)


async def send_and_mine(lanes: Lanes, count: int = 1) -> list[Transaction]:
    """Final ones: on this network the first block is enough."""
    mined = [await mine(lanes, await lanes.submit(make_call())) for _ in range(count)]
    assert all(one.confirmed_at is not None for one in mined)
    return mined


async def read(lanes: Lanes, transaction: Transaction) -> str:
    return (await find(lanes, transaction.purpose)).status


@pytest.mark.usefixtures("at_once")
async def test_a_reorganisation_deeper_than_is_waited_for_stalls_no_lane(
    database: Database, own_chain: LocalChain, operator: LocalAccount, caplog: pytest.LogCaptureFixture
) -> None:
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)], **NOW) as lanes:
        [kept] = await send_and_mine(lanes)
        before = own_chain.call("evm_snapshot")
        gone = await send_and_mine(lanes, 2)
        own_chain.call("evm_revert", before)
        own_chain.call("anvil_mine", "0x3")  # other blocks under the same numbers
        assert (await lanes.mend()).lost == 2
        assert "on the chain no more" in caplog.text
        assert (await read(lanes, kept), await read(lanes, gone[0])) == ("mined", "lost")
        late = make_call()
        assert (await mine(lanes, await lanes.submit(late))).nonce == 1
        await lanes.mend()
        # The first one's nonce is another's for good; the second one's is not.
        assert [await read(lanes, one) for one in gone] == ["dropped", "lost"]
    assert count_paid(own_chain, late) == 1


@pytest.mark.usefixtures("at_once")
async def test_what_a_reorganisation_took_back_is_paid_once_even_if_somebody_sends_it_again(
    database: Database, own_chain: LocalChain, operator: LocalAccount
) -> None:
    call = make_call()
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)], **NOW) as lanes:
        before = own_chain.call("evm_snapshot")
        sent = await mine(lanes, await lanes.submit(call))
        raw = own_chain.call("eth_getRawTransactionByHash", sent.hash)
        own_chain.call("evm_revert", before)
        own_chain.call("anvil_mine", "0x3")
        assert (await lanes.mend()).lost == 1
        assert (await lanes.submit(call)).status == "lost"  # not issued anew: the old one may still come
        own_chain.call("eth_sendRawTransaction", raw)
        assert (await lanes.mend()).mined == 1
        again = await find(lanes, call.purpose)
        assert (again.status, again.hash, again.nonce) == ("mined", sent.hash, sent.nonce)
        await send_and_mine(lanes)
    assert count_paid(own_chain, call) == 1


@pytest.mark.usefixtures("at_once")
async def test_a_purpose_whose_nonce_went_to_another_may_be_issued_anew(
    database: Database, own_chain: LocalChain, operator: LocalAccount
) -> None:
    call = make_call()
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)], **NOW) as lanes:
        before = own_chain.call("evm_snapshot")
        sent = await mine(lanes, await lanes.submit(call))
        own_chain.call("evm_revert", before)
        own_chain.call("anvil_mine", "0x3")
        await lanes.mend()
        await send_and_mine(lanes)
        await lanes.mend()
        again = await mine(lanes, await lanes.submit(call))
        assert (again.transaction_id, again.nonce) == (sent.transaction_id, 1)
    assert count_paid(own_chain, call) == 1


@pytest.mark.usefixtures("at_once")
async def test_the_nonce_of_a_lost_one_may_go_to_a_stranger(
    database: Database, own_chain: LocalChain, operator: LocalAccount
) -> None:
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)], **NOW) as lanes:
        before = own_chain.call("evm_snapshot")
        [gone] = await send_and_mine(lanes)
        own_chain.call("evm_revert", before)
        own_chain.call("anvil_mine", "0x3")
        assert (await lanes.mend()).lost == 1
        send_elsewhere(own_chain, operator, 0)
        assert (await lanes.mend()).dropped == 1
        assert await read(lanes, gone) == "dropped"


async def test_ten_minutes_pass_before_anything_is_called_lost(
    database: Database,
    own_chain: LocalChain,
    operator: LocalAccount,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert lanes_mend.BEHIND_SECONDS == 600
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)], **NOW) as lanes:
        before = own_chain.call("evm_snapshot")
        await send_and_mine(lanes)
        own_chain.call("evm_revert", before)
        own_chain.call("anvil_mine", "0x3")
        for _ in range(2):
            assert (await lanes.mend()).lost == 0
        told = [one for one in caplog.records if "the books have" in one.getMessage()]
        assert [one.levelno for one in told] == [logging.WARNING]
        monkeypatch.setattr(lanes_mend, "BEHIND_SECONDS", 0.0)
        assert (await lanes.mend()).lost == 1


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("knows", ["eth_getTransactionReceipt", "eth_getTransactionByHash", "its block"])
async def test_a_node_that_counts_too_few_and_still_knows_it_loses_nothing(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount, knows: str
) -> None:
    """Behind one address may be several nodes, and one of them may lag."""
    unknown = {"eth_getTransactionReceipt", "eth_getTransactionByHash"} - {knows}
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        [mined] = await send_and_mine(lanes)
        proxy.answers = dict.fromkeys(unknown) | {"eth_getTransactionCount": "0x0"}
        if knows != "its block":  # another one under its number
            proxy.answers["eth_getBlockByNumber"] = own_chain.call("eth_getBlockByNumber", "0x0", False)
        assert (await lanes.mend()).lost == 0
        assert await read(lanes, mined) == "mined"


@pytest.mark.usefixtures("at_once")
async def test_a_node_whose_head_lags_loses_nothing(
    database: Database,
    own_chain: LocalChain,
    proxy: Proxy,
    operator: LocalAccount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes_mend, "REHEARSAL", "eip155:1337")  # this one is a real network for once
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        before = own_chain.call("evm_snapshot")
        [mined] = await send_and_mine(lanes)
        own_chain.call("evm_revert", before)
        assert (await lanes.mend()).lost == 0
        assert await read(lanes, mined) == "mined"
        own_chain.call("anvil_mine", "0x2")
        assert (await lanes.mend()).lost == 1


@pytest.mark.usefixtures("at_once")
async def test_a_local_chain_that_was_rolled_back_needs_no_new_blocks(
    database: Database, own_chain: LocalChain, operator: LocalAccount
) -> None:
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)], **NOW) as lanes:
        before = own_chain.call("evm_snapshot")
        await send_and_mine(lanes, 2)
        own_chain.call("evm_revert", before)
        assert (await lanes.mend()).lost == 2
        await send_and_mine(lanes)


async def test_a_chain_that_was_begun_anew_is_named_once_and_goes_on_at_once(
    database: Database, operator: LocalAccount, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = make_call()
    with play_own_chain(operator) as former:
        async with Lanes(database, {NETWORK: former.url}, [key_of(operator)], **NOW) as lanes:
            gone = await send_and_mine(lanes, 3)
            former.call("evm_setAutomine", False)
            await lanes.submit(waiting)
    await asyncio.sleep(1)  # first blocks differ by their time, in whole seconds
    with play_own_chain(operator) as anew:
        async with Lanes(database, {NETWORK: anew.url}, [key_of(operator)], **NOW) as lanes:
            late = [await lanes.submit(make_call()) for _ in range(2)]
            for _ in range(4):
                await lanes.mend()
            for one in late:
                await mine(lanes, one)
            # What was not mined on the former chain is sent on this one.
            assert (await mine(lanes, await find(lanes, waiting.purpose))).nonce == 3
            await lanes.mend()
            assert {await read(lanes, one) for one in gone} == {"dropped"}
            assert count_paid(anew, waiting) == 1
            async with Lanes(database, {NETWORK: anew.url}, [key_of(operator)], **NOW) as other:
                await other.mend()
    told = [one for one in caplog.records if "another chain than" in one.getMessage()]
    assert [one.levelno for one in told] == [logging.ERROR]
    assert CHAIN_ID == 31337  # the same number: only its first block tells it from the former one


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", [0, 12, 13, 14])
async def test_whatever_a_chain_takes_back_each_call_is_paid_once(
    database: Database, own_chain: LocalChain, operator: LocalAccount, seed: int
) -> None:
    """Blocks vanish at random, and somebody sends again what he saw of us, in any order."""
    chance, keys = random.Random(seed), [key_of(operator)]
    calls, raws = [make_call() for _ in range(12)], dict[str, str | None]()
    async with (
        Lanes(database, {NETWORK: own_chain.url}, keys, **NOW) as one,
        Lanes(database, {NETWORK: own_chain.url}, keys, **NOW) as other,
    ):
        for _ in range(8):
            before = own_chain.call("evm_snapshot")
            sent = await asyncio.gather(*map(one.submit, chance.sample(calls, 4)))
            for each in sent:
                raws[each.purpose] = own_chain.call("eth_getRawTransactionByHash", each.hash)
            await asyncio.gather(one.mend(), other.mend())
            if chance.random() < 0.6:
                own_chain.call("evm_revert", before)
            for purpose in chance.sample(sorted(raws), len(raws) // 2):
                with suppress(LocalChainFailed):
                    if (await find(one, purpose)).status != "dropped":  # that was final, and is for good
                        own_chain.call("eth_sendRawTransaction", raws[purpose])
            await asyncio.gather(one.mend(), other.mend())
        for _ in range(40):
            await asyncio.gather(one.mend(), other.mend())
            again = await asyncio.gather(*map(one.submit, calls))
            if all(each.status in ("sent", "mined") for each in again):
                break
            await send_and_mine(one)  # a lost one waits until its nonce is another's
        for each in again:
            await mine(one, each)
    assert [count_paid(own_chain, call) for call in calls] == [1] * len(calls)


@pytest.mark.usefixtures("at_once")
async def test_one_that_came_back_and_is_taken_again_stalls_nothing(
    database: Database, own_chain: LocalChain, operator: LocalAccount
) -> None:
    """Once it was final, nobody has its call any more: it cannot be sent anew."""
    deep = {"confirmations": {NETWORK: 2}, **NOW}
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)], **deep) as lanes:
        before = own_chain.call("evm_snapshot")
        sent = await mine(lanes, await lanes.submit(make_call()))
        raw = own_chain.call("eth_getRawTransactionByHash", sent.hash)
        own_chain.call("evm_mine")
        assert (await lanes.mend()).confirmed == 1
        own_chain.call("evm_revert", before)
        own_chain.call("anvil_mine", "0x3")
        assert (await lanes.mend()).lost == 1
        again = own_chain.call("evm_snapshot")
        own_chain.call("eth_sendRawTransaction", raw)
        assert (await lanes.mend()).mined == 1
        own_chain.call("evm_revert", again)
        own_chain.call("anvil_mine", "0x3")
        await lanes.mend()
        assert await read(lanes, sent) == "lost"
        late = make_call()
        await mine(lanes, await lanes.submit(late))
        await lanes.mend()
    assert count_paid(own_chain, late) == 1
