"""Lanes and nodes that keep silent, count nonsense, or have forgotten: nothing stalls, no nonsense stays."""

import asyncio

import pytest
from eth_account.signers.local import LocalAccount

from fixtures.facilitator import DEAD
from fixtures.lanes import count_paid, key_of, make_call, mine, send_elsewhere
from fixtures.rpc_proxy import COUNT, Proxy
from tollbook.core import ids, telemetry
from tollbook.core import lanes as lanes_room
from tollbook.core.chains import ChainUnreachable
from tollbook.core.database import Database
from tollbook.core.lanes import Lanes, SubmissionOpen, find_keyless, receipts
from tollbook.core.lanes import mend as lanes_mend
from tollbook.core.lanes import network as lanes_network
from tollbook.core.lanes import node as lanes_node
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, LocalChain

SEND = "eth_sendRawTransaction"
NO_MATTER = "the node is confused"  # an answer that may mean anything
NOW = {"lost_seconds": 0.0}
ABSURD = hex(10**9)


async def test_a_node_that_keeps_silent_leaves_a_submission_open_and_holds_up_nobody(
    database: Database,
    own_chain: LocalChain,
    proxy: Proxy,
    operator: LocalAccount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes_room, "SUBMIT_SECONDS_MAX", 0.5)
    calls = [make_call() for _ in range(250)]  # more than two batches
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        proxy.silent = {SEND}
        answers = await asyncio.gather(*map(lanes.submit, calls), return_exceptions=True)
        assert {type(answer) for answer in answers} == {SubmissionOpen}
        proxy.silent = set()
        late = make_call()
        monkeypatch.setattr(lanes_room, "SUBMIT_SECONDS_MAX", 20)
        sent = await lanes.submit(late)
        monkeypatch.setattr(lanes_network, "RESERVED_SECONDS_MAX", 0.0)
        while (await lanes.mend()).resent:
            pass
        await mine(lanes, sent)
        for one in await asyncio.gather(*map(lanes.submit, calls)):
            await mine(lanes, one)
    assert [count_paid(own_chain, call) for call in [*calls, late]] == [1] * 251


async def test_purposes_of_unclear_outcome_that_are_asked_for_again_ask_no_node(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    calls = [make_call() for _ in range(20)]
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        proxy.refusals = {SEND: [NO_MATTER] * 20}
        sent = await asyncio.gather(*map(lanes.submit, calls))
        proxy.asked.clear()
        again = await asyncio.gather(*map(lanes.submit, calls))
        assert SEND not in proxy.asked
        assert [(one.hash, one.status) for one in again] == [(one.hash, "signed") for one in sent]


async def test_a_network_that_is_down_keeps_no_other_from_being_mended(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    call = make_call()
    urls = {"eip155:8453": DEAD, NETWORK: proxy.url}
    async with Lanes(database, urls, [key_of(operator)], **NOW) as lanes:
        proxy.refusals = {SEND: [NO_MATTER]}
        sent = await lanes.submit(call)
        with pytest.raises(ChainUnreachable):
            await lanes.mend()
        await mine(lanes, sent)


async def test_a_sweep_leaves_a_silent_node_alone_after_a_few_answers_are_lost(
    database: Database,
    own_chain: LocalChain,
    proxy: Proxy,
    operator: LocalAccount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = [make_call() for _ in range(10)]
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        proxy.refusals = {SEND: [NO_MATTER] * 10}
        await asyncio.gather(*map(lanes.submit, calls))
        proxy.asked.clear()
        proxy.lost_answers, proxy.refusals = {SEND}, {SEND: [NO_MATTER] * 10}
        with pytest.raises(ChainUnreachable):
            await lanes.mend()
        assert proxy.asked.count(SEND) == lanes_mend.SILENCES_MAX


async def test_a_count_that_is_nonsense_once_is_not_believed(
    database: Database,
    own_chain: LocalChain,
    proxy: Proxy,
    operator: LocalAccount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes_network, "LEAP_SECONDS", 0.0)
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        proxy.lies = {COUNT: [ABSURD, ABSURD]}
        assert (await mine(lanes, await lanes.submit(make_call()))).nonce == 0
        proxy.lies = {COUNT: [ABSURD, ABSURD, hex(10**8), hex(10**8)]}
        with pytest.raises(ChainUnreachable):
            await lanes.mend()
        assert (await mine(lanes, await lanes.submit(make_call()))).nonce == 1


async def test_a_key_that_was_much_used_elsewhere_is_believed(
    database: Database, own_chain: LocalChain, operator: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_network, "LEAP_SECONDS", 0.0)
    own_chain.call("anvil_setNonce", operator.address, hex(50_000))
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)]) as lanes:
        assert (await mine(lanes, await lanes.submit(make_call()))).nonce == 50_000


async def test_who_holds_a_nonce_is_written_down_before_the_node_forgets(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    call = make_call()
    async with Lanes(
        database, {NETWORK: proxy.url}, [key_of(operator)], confirmations={NETWORK: 3}, **NOW
    ) as lanes:
        proxy.refusals = {SEND: [NO_MATTER]}
        sent = await lanes.submit(call)
        send_elsewhere(own_chain, operator, 0)
        assert (await lanes.mend()).reissued == 0
        proxy.forgetful = True
        own_chain.call("anvil_mine", "0x2")
        assert (await lanes.mend()).reissued == 1
        assert (await mine(lanes, sent)).nonce == 1
    assert count_paid(own_chain, call) == 1


async def test_open_transactions_of_a_key_that_was_removed_are_told_once(
    database: Database,
    own_chain: LocalChain,
    proxy: Proxy,
    operator: LocalAccount,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = own_chain.make_account(wei=GAS_MONEY_WEI)
    proxy.refusals = {SEND: [NO_MATTER] * 2}
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        await asyncio.gather(lanes.submit(make_call()), lanes.submit(make_call()))
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(other)], **NOW) as lanes:
        assert [(await lanes.mend()).keyless for _ in range(2)] == [2, 2]
        async with database.read() as tx:
            [waiting] = await find_keyless(tx, lanes.addresses)
    assert (waiting.network, waiting.sender, waiting.count) == (NETWORK, operator.address.lower(), 2)
    told = [one for one in caplog.records if "whose key is not here" in one.getMessage()]
    assert len(told) == 1
    assert operator.address.lower() in told[0].getMessage()
    assert telemetry.KEYLESS.labels(NETWORK)._value.get() == 2


async def test_an_id_that_was_made_twice_fails_no_batch(
    database: Database, own_chain: LocalChain, operator: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = iter([7, 7, 7, 8])
    monkeypatch.setattr(ids, "make", lambda: next(made))
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)]) as lanes:
        sent = await asyncio.gather(lanes.submit(make_call()), lanes.submit(make_call()))
        assert {one.transaction_id for one in sent} == {7, 8}


def test_a_lane_asks_a_node_no_longer_than_a_caller_waits() -> None:
    assert lanes_node.REQUEST_SECONDS_MAX < lanes_room.SUBMIT_SECONDS_MAX


async def test_one_of_which_the_node_talks_nonsense_holds_up_no_other(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    first = own_chain.call("eth_getBlockByNumber", "0x0", False)
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        proxy.refusals = {SEND: [NO_MATTER] * 2}
        displaced, lost = [await lanes.submit(make_call()) for _ in range(2)]
        send_elsewhere(own_chain, operator, 0)
        proxy.answers = {"eth_getBlockByNumber": {key: first[key] for key in ("hash", "baseFeePerGas")}}
        mended = await lanes.mend()
        assert (mended.unclear, mended.resent) == (1, 1)
        await mine(lanes, lost)
        proxy.answers = {}
        assert (await lanes.mend()).reissued == 1
        await mine(lanes, displaced)


async def test_what_is_never_mined_hides_no_later_one_from_who_waits(
    database: Database, own_chain: LocalChain, operator: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "ASKED_MAX", 1)  # more wait than are asked for at once,
    monkeypatch.setattr(receipts, "POLL_SECONDS_MAX", 0.0)  # and each is due again by then
    own_chain.call("evm_setAutomine", False)
    other = own_chain.make_account()
    own_chain.set_gas_money(other.address)
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator), key_of(other)], **NOW) as lanes:
        stuck = await lanes.submit(make_call(sender=operator.address.lower()))
        own_chain.call("anvil_dropTransaction", stuck.hash)
        waiting = asyncio.create_task(lanes.wait(stuck.transaction_id, seconds_max=60))
        await asyncio.sleep(0.05)
        sent = await lanes.submit(make_call(sender=other.address.lower()))
        own_chain.call("evm_mine")
        await mine(lanes, sent)
        assert sent.transaction_id != stuck.transaction_id
        waiting.cancel()
