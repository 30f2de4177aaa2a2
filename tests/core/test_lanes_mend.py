"""Lanes among faults: lost answers, kills, stuck and displaced transactions, vanished blocks."""

import asyncio
import random
import secrets
from datetime import timedelta

import psycopg
import pytest
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from fixtures.lanes import count_paid, count_used, find, key_of, make_call, mine, send_elsewhere
from fixtures.rpc_proxy import Proxy
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.lanes import (
    Lanes,
    NodeRefusedTransaction,
    NonceAwaited,
    Transaction,
    nonces,
    transactions,
)
from tollbook.core.lanes.keys import Fees
from tollbook.core.lanes.transactions import Signed
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, LocalChain

SEND = "eth_sendRawTransaction"
NO_MATTER = "the node is confused"  # an answer that may mean anything
NOW = {"lost_seconds": 0.0}


async def test_a_lost_answer_is_found_again_and_nothing_is_sent_twice(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    call = make_call()
    proxy.lost_answers = {SEND}
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        sent = await lanes.submit(call)
        assert sent.status == "signed"
        again = await lanes.submit(call)
        assert (again.transaction_id, again.hash) == (sent.transaction_id, sent.hash)
        mined = await mine(lanes, sent)
        assert mined.hash == sent.hash
    assert count_paid(own_chain, call) == 1
    assert count_used(own_chain, operator) == 1


async def test_a_sweep_finds_what_nobody_waited_for(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    calls = [make_call() for _ in range(5)]
    proxy.lost_answers = {SEND}
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        await asyncio.gather(*map(lanes.submit, calls))
        mended = await lanes.mend()
        assert (mended.mined, mended.resent, mended.unclear) == (5, 0, 0)
        assert {(await find(lanes, call.purpose)).status for call in calls} == {"mined"}
    assert [count_paid(own_chain, call) for call in calls] == [1] * 5


async def test_a_transaction_that_was_not_taken_frees_its_nonce(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    refused, other = make_call(), make_call()
    proxy.refusals = {SEND: ["txpool is full"]}
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)]) as lanes:
        with pytest.raises(NodeRefusedTransaction, match="txpool is full"):
            await lanes.submit(refused)
        assert (await find(lanes, refused.purpose)).status == "dropped"
        assert (await mine(lanes, await lanes.submit(other))).nonce == 0
        assert (await mine(lanes, await lanes.submit(refused))).nonce == 1
    assert count_paid(own_chain, refused) == 1


async def test_a_gap_below_waiting_transactions_is_closed(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    first, second = sorted((make_call(), make_call()), key=lambda call: call.purpose)
    proxy.refusals = {SEND: ["txpool is full"]}
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        answers = await asyncio.gather(lanes.submit(first), lanes.submit(second), return_exceptions=True)
        assert isinstance(answers[0], NodeRefusedTransaction)
        assert isinstance(answers[1], Transaction)
        assert answers[1].nonce == 1
        assert (await lanes.wait(answers[1].transaction_id, seconds_max=0.3)).status == "sent"
        assert (await lanes.mend()).filled == 1
        await mine(lanes, answers[1])
        assert (await lanes.mend()).filled == 0
        assert (await mine(lanes, await lanes.submit(first))).nonce == 2


async def test_a_sweep_over_a_lane_without_waiting_transactions_frees_no_nonce(
    database: Database, chain: LocalChain, operator: LocalAccount
) -> None:
    """Nonces above the highest are no gaps: a second batch would be given them once more."""
    async with Lanes(database, {NETWORK: chain.url}, [key_of(operator)], **NOW) as lanes:
        await lanes.mend()
        async with database.read() as tx:
            assert await tx.value("SELECT count(*) FROM core.lane_gaps") == 0
        for _ in range(3):
            await asyncio.gather(*(lanes.submit(make_call()) for _ in range(2)))


async def test_who_reserved_under_one_key_does_not_sign_for_the_next_one(database: Database) -> None:
    call, slow, quick = make_call(), "0x" + "01" * 20, "0x" + "02" * 20
    async with database.write() as tx:
        for sender in (slow, quick):
            await nonces.jump(tx, NETWORK, sender, 0, 0)
    [taken] = await nonces.take_nonces(database, NETWORK, [slow], [call])
    async with database.write() as tx:
        await nonces.free_abandoned(tx, NETWORK, timedelta())
    [again] = await nonces.take_nonces(database, NETWORK, [quick], [call])
    assert (taken.nonce, again.nonce, again.taken) == (0, 0, True)
    signed = Signed(
        taken.transaction_id, call.purpose, slow, 0, "0x" + "ab" * 32, b"", b"", call.gas, Fees(1, 1)
    )
    assert await transactions.record_signed(database, [signed]) == set()


async def test_a_key_with_more_than_a_sweep_takes_does_not_hide_another_ones(database: Database) -> None:
    gone, here = "0x" + "01" * 20, "0x" + "02" * 20
    for sender, count in ((gone, 3), (here, 1)):
        async with database.write() as tx:
            await nonces.jump(tx, NETWORK, sender, 0, 0)
        calls = [make_call() for _ in range(count)]
        taken = await nonces.take_nonces(database, NETWORK, [sender], calls)
        await transactions.record_signed(
            database,
            [
                Signed(
                    one.transaction_id,
                    one.purpose,
                    sender,
                    one.nonce or 0,
                    "0x" + secrets.token_hex(32),
                    b"",
                    b"",
                    1,
                    Fees(1, 1),
                )
                for one in taken
            ],
        )
    async with database.read() as tx:
        found = await transactions.find_unfinished(
            tx, NETWORK, statuses=["signed"], sent_before=clock.now(), limit=2
        )
    assert [(one.sender, one.nonce) for one in found] == [(gone, 0), (here, 0)]


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_goes_wrong_each_call_is_paid_once(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount, seed: int
) -> None:
    chance = random.Random(seed)
    calls = [make_call() for _ in range(40)]
    said = [NO_MATTER, "txpool is full", "insufficient funds for gas", "already known", "nonce too low"]
    keys = [key_of(operator), key_of(own_chain.make_account(wei=GAS_MONEY_WEI))]
    async with (
        Lanes(database, {NETWORK: proxy.url}, keys, **NOW) as one,
        Lanes(database, {NETWORK: proxy.url}, keys, **NOW) as other,
    ):
        for _ in range(6):
            proxy.refusals = {SEND: chance.choices(said, k=chance.randrange(12))}
            proxy.lost_answers = {SEND} if chance.random() < 0.3 else set()
            if chance.random() < 0.3:
                used = int(own_chain.call("eth_getTransactionCount", operator.address, "pending"), 16)
                send_elsewhere(own_chain, operator, used)
            some = chance.sample(calls, 20)
            steps = [lanes.submit(call) for call in some for lanes in (one, other)]
            await asyncio.gather(*steps, one.mend(), other.mend(), return_exceptions=True)
        proxy.refusals, proxy.lost_answers = {}, set()
        for _ in range(3):
            await asyncio.gather(one.mend(), other.mend())
        mined = [await mine(one, await one.submit(call)) for call in calls]
    assert [count_paid(own_chain, call) for call in calls] == [1] * len(calls)
    assert len({(transaction.sender, transaction.nonce) for transaction in mined}) == len(calls)


async def test_a_caller_that_gives_up_does_not_take_its_transaction_along(
    database: Database, chain: LocalChain, operator: LocalAccount
) -> None:
    call = make_call()
    async with Lanes(database, {NETWORK: chain.url}, [key_of(operator)]) as lanes:
        caller = asyncio.create_task(lanes.submit(call))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await mine(lanes, await lanes.submit(call))
    assert count_paid(chain, call) == 1


async def test_a_nonce_that_was_used_elsewhere_is_given_up_when_that_is_final(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    call = make_call()
    async with Lanes(
        database, {NETWORK: proxy.url}, [key_of(operator)], confirmations={NETWORK: 3}, **NOW
    ) as lanes:
        proxy.refusals = {SEND: [NO_MATTER]}
        sent = await lanes.submit(call)
        assert (sent.status, sent.nonce) == ("signed", 0)
        send_elsewhere(own_chain, operator, 0)
        mended = await lanes.mend()
        assert (mended.reissued, mended.unclear) == (0, 0)
        assert (await find(lanes, call.purpose)).nonce == 0
        own_chain.call("anvil_mine", "0x2")
        assert (await lanes.mend()).reissued == 1
        again = await mine(lanes, sent)
        assert (again.transaction_id, again.nonce) == (sent.transaction_id, 1)
    assert count_paid(own_chain, call) == 1


async def test_a_replacement_that_a_restored_database_forgot_is_found_and_not_paid_again(
    database: Database, own_chain: LocalChain, operator: LocalAccount
) -> None:
    own_chain.call("evm_setAutomine", False)
    call = make_call()
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)], **NOW) as lanes:
        sent = await lanes.submit(call)
        bump = {"to": to_checksum_address(call.to), "value": 1, "gas": call.gas}
        forgotten = send_elsewhere(own_chain, operator, 0, **bump)
        own_chain.call("evm_mine")
        own_chain.call("evm_setAutomine", True)
        for _ in range(2):
            await lanes.mend()
        found = await find(lanes, call.purpose)
        assert (found.transaction_id, found.status, found.hash) == (sent.transaction_id, "mined", forgotten)
    assert count_paid(own_chain, call) == 1


async def test_a_displaced_transaction_stays_open_where_the_node_cannot_tell(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    """The node knows that the nonce is used, and neither by whom nor where: it may have been ours."""
    call = make_call()
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        proxy.refusals = {SEND: [NO_MATTER]}
        await lanes.submit(call)
        own_chain.call("anvil_setNonce", operator.address, "0x1")
        assert (await lanes.mend()).unclear == 1
        assert (await find(lanes, call.purpose)).status == "signed"


async def test_a_nonce_taken_in_the_pool_is_not_fought_for(
    database: Database, own_chain: LocalChain, operator: LocalAccount
) -> None:
    own_chain.call("evm_setAutomine", False)
    call = make_call()
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)], **NOW) as lanes:
        await lanes.submit(make_call())
        send_elsewhere(own_chain, operator, 1)
        sent = await lanes.submit(call)
        assert sent.nonce == 2
        own_chain.call("evm_mine")
        await mine(lanes, sent)
    assert count_paid(own_chain, call) == 1


async def test_what_a_stranger_sent_and_no_block_takes_is_said_once_with_what_to_do(
    database: Database, own_chain: LocalChain, operator: LocalAccount, caplog: pytest.LogCaptureFixture
) -> None:
    """All that is sent from here waits behind it."""
    own_chain.call("evm_setAutomine", False)
    send_elsewhere(own_chain, operator, 0)
    async with Lanes(
        database, {NETWORK: own_chain.url}, [key_of(operator)], stuck_seconds=0.0, **NOW
    ) as lanes:
        assert (await lanes.submit(make_call())).nonce == 1
        for _ in range(3):
            await lanes.mend()
        async with database.read() as tx:
            made = await tx.value("SELECT count(*) FROM core.transactions")
        assert made == 1, "nobody fights for its nonce"
    [told] = [one.message for one in caplog.records if "not of these books" in one.message]
    assert operator.address.lower() in told
    assert "nonce 0" in told


async def test_a_nonce_that_the_node_lets_nobody_have_costs_one_row_and_not_one_a_sweep(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    """What it said it refused waits under it for everybody to see, and it wants more for a replacement."""
    own_chain.call("evm_setAutomine", False)
    proxy.false_refusals = {SEND: ["txpool is full"]}
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        with pytest.raises(NodeRefusedTransaction):
            await lanes.submit(make_call(purpose="command:0:c-1"))
        assert (await lanes.submit(make_call())).nonce == 1
        for _ in range(3):
            await lanes.mend()
        async with database.read() as tx:
            purposes = await tx.dicts("SELECT purpose FROM core.transactions ORDER BY purpose")
    assert len(purposes) == 3, purposes


async def test_of_several_free_nonces_the_one_that_is_to_be_used_up_is(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    proxy.refusals = {SEND: ["txpool is full"] * 2}
    calls = [make_call(purpose=f"command:0:c-{number}") for number in range(2)]
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        await asyncio.gather(*map(lanes.submit, calls), return_exceptions=True)
        refused = await find(lanes, calls[1].purpose)
        assert refused.nonce == 1
        for _ in range(2):  # once more is no harm
            await lanes.displace(refused)
        await lanes.mend()  # what it waits for now
    own_chain.call("evm_mine")
    assert count_used(own_chain, operator) == 2
    assert [count_paid(own_chain, call) for call in calls] == [0, 0]


async def test_what_a_node_took_and_hides_is_never_paid_beside_what_is_sent_for_it_again(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    """It said that it refused it, and another call has the nonce by now, as far as anybody can see."""
    own_chain.call("evm_setAutomine", False)
    call, other = make_call(purpose="command:0:c-1"), make_call()
    proxy.secretive, proxy.false_refusals = True, {SEND: ["txpool is full"]}
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        with pytest.raises(NodeRefusedTransaction):
            await lanes.submit(call)
        proxy.lies = {SEND: ["0x" + "ab" * 32]}
        assert (await lanes.submit(other)).nonce == 0
        with pytest.raises(NonceAwaited, match="nonce 0"):
            await lanes.submit(call)
        own_chain.call("evm_mine")
        own_chain.call("evm_setAutomine", True)
        assert (await lanes.mend()).reissued == 1
        assert (await lanes.submit(call)).nonce == 0
        for _ in range(2):
            await lanes.mend()
        assert [(await find(lanes, one.purpose)).status for one in (call, other)] == ["mined", "mined"]
    assert [count_paid(own_chain, one) for one in (call, other)] == [1, 1]


@pytest.mark.parametrize("said", ["replacement transaction underpriced", "nonce too low"])
async def test_what_could_pay_twice_keeps_its_nonce_though_a_node_says_that_it_is_taken(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount, said: str
) -> None:
    """It may be the very one that has it: who stands before a node asked twice, and told what came last."""
    own_chain.call("evm_setAutomine", False)
    call = make_call(purpose="command:0:c-1")
    proxy.secretive, proxy.false_refusals = True, {SEND: [said]}
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        await lanes.submit(call)
        own_chain.call("evm_mine")
        own_chain.call("evm_setAutomine", True)
        for _ in range(3):
            await lanes.mend()
        assert (await find(lanes, call.purpose)).status == "mined"
    assert count_paid(own_chain, call) == 1


async def test_what_a_node_refused_gets_its_own_nonce_back_and_not_the_lowest(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    calls = [make_call(purpose=f"refund:{number}") for number in range(3)]
    proxy.refusals = {SEND: ["txpool is full"] * 3}
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        await asyncio.gather(*map(lanes.submit, calls), return_exceptions=True)
        sent = [await lanes.submit(call) for call in reversed(calls)]
        assert [one.nonce for one in sent] == [2, 1, 0]
        await asyncio.gather(*(mine(lanes, one) for one in sent))
    assert [count_paid(own_chain, call) for call in calls] == [1, 1, 1]


async def test_a_restored_database_catches_up_with_the_chain(
    database: Database, own_chain: LocalChain, operator: LocalAccount
) -> None:
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)]) as lanes:
        for _ in range(3):
            await mine(lanes, await lanes.submit(make_call()))
    async with database.write() as tx:
        await tx.execute("DELETE FROM core.transactions WHERE nonce > 0")
        await tx.execute("UPDATE core.lanes SET next_nonce = 1 WHERE next_nonce = 3")
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)]) as lanes:
        assert (await mine(lanes, await lanes.submit(make_call()))).nonce == 3


async def test_a_vanished_block_puts_its_transactions_on_their_way_again(
    database: Database, own_chain: LocalChain, operator: LocalAccount
) -> None:
    calls = [make_call() for _ in range(2)]
    before = own_chain.call("evm_snapshot")
    async with Lanes(
        database, {NETWORK: own_chain.url}, [key_of(operator)], confirmations={NETWORK: 3}, **NOW
    ) as lanes:
        for call in calls:
            mined = await mine(lanes, await lanes.submit(call))
            assert mined.confirmed_at is None
        own_chain.call("evm_revert", before)
        assert [count_paid(own_chain, call) for call in calls] == [0, 0]
        own_chain.call("anvil_mine", "0x3")  # other blocks under the same numbers
        mended = await lanes.mend()
        assert (mended.orphaned, mended.resent, mended.confirmed) == (2, 2, 0)
        for call in calls:
            await mine(lanes, await find(lanes, call.purpose))
        own_chain.call("anvil_mine", "0x2")
        assert (await lanes.mend()).confirmed == 2
        assert {(await find(lanes, call.purpose)).confirmed_at is not None for call in calls} == {True}
    assert [count_paid(own_chain, call) for call in calls] == [1, 1]


async def test_a_dump_shows_no_call_and_no_key(
    database: Database, own_chain: LocalChain, operator: LocalAccount
) -> None:
    own_chain.call("evm_setAutomine", False)
    secret = bytes.fromhex("5ec4e7") * 20
    call = make_call(data=secret, gas=60_000)
    async with Lanes(
        database, {NETWORK: own_chain.url}, [key_of(operator)], confirmations={NETWORK: 2}, **NOW
    ) as lanes:
        sent = await lanes.submit(call)
        dump = dump_data(database.url)
        assert sent.hash in dump
        assert secret.hex() not in dump
        assert bytes(operator.key).hex() not in dump
        raw = own_chain.call("eth_getTransactionByHash", sent.hash)
        assert raw["r"][2:] not in dump
        for text in (repr(lanes), repr(call), repr(sent)):
            assert secret.hex() not in text
            assert bytes(operator.key).hex() not in text
        own_chain.call("evm_mine")
        await mine(lanes, sent)
        own_chain.call("evm_mine")
        assert (await lanes.mend()).confirmed == 1
    with psycopg.connect(database.url) as connection:
        kept = connection.execute("SELECT count(sealed_call) FROM core.transactions").fetchone()
    assert kept == (0,)


def dump_data(url: str) -> str:
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT t::text FROM core.transactions t").fetchall()
    return "\n".join(row[0] for row in rows)


async def test_a_late_refusal_frees_nothing_that_was_issued_anew(database: Database) -> None:
    call, key = make_call(), "0x" + "01" * 20
    async with database.write() as tx:
        await nonces.jump(tx, NETWORK, key, 0, 0)

    async def sign() -> Signed:
        [taken] = await nonces.take_nonces(database, NETWORK, [key], [call])
        assert taken.nonce is not None
        hash_ = "0x" + secrets.token_hex(32)
        signed = Signed(
            taken.transaction_id, call.purpose, key, taken.nonce, hash_, b"", b"", call.gas, Fees(1, 1)
        )
        assert await transactions.record_signed(database, [signed]) == {taken.transaction_id}
        return signed

    first = await sign()
    async with database.write() as tx:  # a stranger has its nonce
        assert await transactions.drop(tx, first.transaction_id, first.hash, sends=1)
        await nonces.jump(tx, NETWORK, key, 1, 1)
    again = await sign()
    assert again.transaction_id == first.transaction_id
    async with database.write() as tx:
        assert await nonces.free(tx, {first.transaction_id: first.hash}) == set()
        assert not await transactions.drop(tx, first.transaction_id, first.hash, sends=1)
        assert await nonces.free(tx, {again.transaction_id: again.hash}) == {again.transaction_id}


async def test_who_displaced_it_once_is_not_taken_for_who_displaced_it_now(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    call = make_call(purpose="refund:1")
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        proxy.refusals = {SEND: [NO_MATTER]}
        await lanes.submit(call)
        send_elsewhere(own_chain, operator, 0)
        assert (await lanes.mend()).dropped == 1  # it is for its owner to send again
        assert (await lanes.submit(call)).nonce == 1
        proxy.lies = {"eth_getTransactionReceipt": [None]}  # one node of several lags
        assert (await lanes.mend()).dropped == 0
        await lanes.mend()
        assert (await find(lanes, call.purpose)).status == "mined"
    assert count_paid(own_chain, call) == 1
