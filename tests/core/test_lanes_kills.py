"""Lanes whose process is killed: the next one finishes what it began, and nothing is sent twice."""

import asyncio
import signal
import sys
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount

from fixtures.lanes import count_paid, count_used, find, key_of, make_call, mine, send_elsewhere
from fixtures.rpc_proxy import Proxy
from tollbook.core.database import Database
from tollbook.core.lanes import Call, Lanes
from tollbook.core.lanes import network as lanes_network
from tollbook.core.local_chain import NETWORK, LocalChain

SEND = "eth_sendRawTransaction"
NO_MATTER = "the node is confused"  # an answer that may mean anything
NOW = {"lost_seconds": 0.0}

# Ends itself without a trace where a step of a submit, or of a sweep, would begin.
KILLED = """
import asyncio, os, signal, sys
from tollbook.core.lanes import network as lanes_network
from tollbook.core.lanes import transactions
from tollbook.core.database import Database
from tollbook.core.lanes import Call, Lanes
from tollbook.core.lanes.node import Node

url, rpc, key, purpose, to, moment = sys.argv[1:]

async def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    ask_all = Node.ask_all
    async def ask(node, asks):
        sending = asks and asks[0].method == "eth_sendRawTransaction"
        if sending and moment == "before broadcast":
            await die()
        said = await ask_all(node, asks)
        if sending and moment == "after broadcast":
            await die()
        return said
    Node.ask_all = ask
    if moment == "before signing":
        transactions.record_signed = die
    async with Database(url) as database, Lanes(
        database, {"eip155:31337": rpc}, [key], lost_seconds=0
    ) as lanes:
        if to:
            await lanes.submit(Call("eip155:31337", purpose, to, b"", 30_000, 1))
        else:
            await lanes.mend()

asyncio.run(main())
"""


async def be_killed(
    database: Database, chain: LocalChain, operator: LocalAccount, moment: str, call: Call | None = None
) -> None:
    """Submit a call, or sweep, in a process that ends itself at that moment."""
    work = [call.purpose, call.to] if call else ["", ""]
    arguments = [database.url, chain.url, key_of(operator), *work, moment]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, *arguments)
    assert await process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["before signing", "before broadcast", "after broadcast"])
async def test_a_killed_process_leaves_one_transaction_or_none(
    database: Database, own_chain: LocalChain, operator: LocalAccount, moment: str, monkeypatch: Any
) -> None:
    call = make_call()
    await be_killed(database, own_chain, operator, moment, call)
    monkeypatch.setattr(lanes_network, "RESERVED_SECONDS_MAX", 0.0)
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)], **NOW) as lanes:
        left = await find(lanes, call.purpose)
        assert left.status == ("reserved" if moment == "before signing" else "signed")
        sweeps = await asyncio.gather(*(lanes.mend() for _ in range(3)))
        if moment == "before signing":
            assert sum(mended.abandoned for mended in sweeps) == 1
            assert (await find(lanes, call.purpose)).status == "dropped"
        else:
            assert (await mine(lanes, left)).hash == left.hash
        assert (await mine(lanes, await lanes.submit(call))).nonce == 0
        assert (await lanes.mend()).resent == 0
    assert count_paid(own_chain, call) == 1
    assert count_used(own_chain, operator) == 1


async def test_a_purpose_that_a_dead_process_reserved_is_sent_and_holds_up_no_other(
    database: Database, own_chain: LocalChain, operator: LocalAccount, monkeypatch: Any
) -> None:
    call, other = make_call(), make_call()
    await be_killed(database, own_chain, operator, "before signing", call)
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)]) as lanes:
        reserved = asyncio.create_task(lanes.submit(call))
        sent = await lanes.submit(other)
        assert not reserved.done()
        monkeypatch.setattr(lanes_network, "RESERVED_SECONDS_MAX", 0.0)
        assert (await reserved).nonce == 0
        await mine(lanes, sent)
    assert [count_paid(own_chain, one) for one in (call, other)] == [1, 1]


@pytest.mark.parametrize("moment", ["before broadcast", "after broadcast"])
@pytest.mark.parametrize("why", ["lost", "displaced", "stuck"])
async def test_a_sweep_that_is_killed_is_finished_by_the_next_one(
    database: Database,
    own_chain: LocalChain,
    proxy: Proxy,
    operator: LocalAccount,
    moment: str,
    why: str,
) -> None:
    """A displaced one has its new nonce by then: nobody but a sweep would ever send it again."""
    call = make_call()
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        proxy.refusals = {SEND: [NO_MATTER]}
        sent = await lanes.submit(call)
        if why == "displaced":
            send_elsewhere(own_chain, operator, 0)
        if why == "stuck":  # it costs more by now: the sweep bumps it
            own_chain.call("anvil_setNextBlockBaseFeePerGas", hex(100 * 10**9))
            own_chain.call("evm_mine")
        await be_killed(database, own_chain, operator, moment)
        assert (await find(lanes, call.purpose)).status == "signed"
        await lanes.mend()
        mined = await mine(lanes, sent)
        assert (mined.transaction_id, mined.nonce) == (sent.transaction_id, 1 if why == "displaced" else 0)
        assert (mined.hash == sent.hash) == (why == "lost")
    assert count_paid(own_chain, call) == 1
