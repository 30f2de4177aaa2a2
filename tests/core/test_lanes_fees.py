"""What lanes offer for gas, and what becomes of transactions that it is too little for."""

import asyncio

import pytest
from eth_account.signers.local import LocalAccount

from fixtures.lanes import count_paid, find, key_of, make_call, mine
from fixtures.rpc_proxy import Proxy
from tollbook.core.chains import NETWORKS, Network, find_network
from tollbook.core.database import Database
from tollbook.core.lanes import FeesAboveCap, Lanes, NoGasMoney
from tollbook.core.lanes.fees import GWEI, FeePolicy
from tollbook.core.lanes.keys import Fees
from tollbook.core.lanes.node import Node
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, LocalChain

SEND = "eth_sendRawTransaction"
NO_MATTER = "the node is confused"  # an answer that may mean anything
NOW = {"lost_seconds": 0.0}


async def test_a_stuck_transaction_offers_more_until_a_block_takes_it(
    database: Database, own_chain: LocalChain, operator: LocalAccount
) -> None:
    own_chain.call("evm_setAutomine", False)
    calls = [make_call() for _ in range(3)]
    async with Lanes(database, {NETWORK: own_chain.url}, [key_of(operator)], stuck_seconds=0, **NOW) as lanes:
        sent = await asyncio.gather(*map(lanes.submit, calls))
        offered = int(own_chain.call("eth_getTransactionByHash", sent[0].hash)["maxFeePerGas"], 16)
        own_chain.call("anvil_setNextBlockBaseFeePerGas", hex(offered * 2))
        own_chain.call("evm_mine")
        assert (await lanes.wait(sent[0].transaction_id, seconds_max=0.2)).status == "sent"
        assert (await lanes.mend()).bumped == 3
        bumped = await find(lanes, calls[0].purpose)
        assert bumped.hash != sent[0].hash
        assert bumped.hashes == [sent[0].hash, bumped.hash]
        assert (bumped.nonce, bumped.status) == (sent[0].nonce, "sent")
        own_chain.call("evm_mine")
        mined = [await mine(lanes, one) for one in sent]
        assert mined[0].hash == bumped.hash
    assert [count_paid(own_chain, call) for call in calls] == [1, 1, 1]


async def test_a_transaction_mined_under_an_older_hash_is_noticed(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    own_chain.call("evm_setAutomine", False)
    call = make_call()
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], stuck_seconds=0, **NOW) as lanes:
        sent = await lanes.submit(call)
        proxy.refusals = {SEND: [NO_MATTER]}
        assert (await lanes.mend()).bumped == 0
        assert len((await find(lanes, call.purpose)).hashes) == 2
        own_chain.call("evm_mine")
        assert (await lanes.mend()).mined == 1
        mined = await find(lanes, call.purpose)
        assert (mined.status, mined.hash) == ("mined", sent.hash)


async def test_no_fee_above_the_cap_is_offered(
    database: Database, own_chain: LocalChain, operator: LocalAccount
) -> None:
    own_chain.call("evm_setAutomine", False)
    cap = 3 * 10**9
    async with Lanes(
        database, {NETWORK: own_chain.url}, [key_of(operator)], fee_per_gas_max=cap, stuck_seconds=0, **NOW
    ) as lanes:
        sent = await lanes.submit(make_call())
        offered = own_chain.call("eth_getTransactionByHash", sent.hash)
        assert int(offered["maxFeePerGas"], 16) == cap
        mended = await lanes.mend()
        assert (mended.bumped, mended.above_cap) == (0, 1)


async def test_a_chain_that_stands_still_is_not_offered_ever_more() -> None:
    policy, wanted = FeePolicy(Node(NETWORK, "http://127.0.0.1:9"), 500 * GWEI, GWEI), Fees(1_000, 10)
    offered: list[Fees] = [wanted]
    while len(offered) < 100 and (more := policy.bump(offered[-1], wanted)) is not None:
        offered.append(more)
    assert 5_000 < offered[-1].fee_max <= 10_000


async def test_a_signed_one_that_the_account_cannot_pay_goes_on_when_funded(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    call = make_call()
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], **NOW) as lanes:
        proxy.refusals = {SEND: [NO_MATTER]}
        sent = await lanes.submit(call)
        own_chain.set_gas_money(operator.address, 0)
        assert (await lanes.mend()).no_gas_money == 1
        with pytest.raises(NoGasMoney):
            await lanes.submit(make_call())
        own_chain.set_gas_money(operator.address, GAS_MONEY_WEI)
        assert (await lanes.mend()).resent == 1
        await mine(lanes, sent)
    assert count_paid(own_chain, call) == 1


async def test_a_node_that_asks_for_an_absurd_tip_does_not_empty_the_account(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    proxy.answers = {"eth_maxPriorityFeePerGas": hex(10_000 * GWEI)}
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)]) as lanes:
        sent = await lanes.submit(make_call())
    offered = own_chain.call("eth_getTransactionByHash", sent.hash)
    assert int(offered["maxPriorityFeePerGas"], 16) == find_network(NETWORK).tip_gwei_max * GWEI


@pytest.mark.parametrize("network", [one for one in NETWORKS.values() if not one.is_solana], ids=str)
def test_every_network_has_a_cap_that_a_settlement_survives(network: Network) -> None:
    assert 0 < network.tip_gwei_max < network.gas_gwei_max <= 2_000
    assert find_network("base").gas_gwei_max == find_network("arbitrum").gas_gwei_max == 5


async def test_an_operator_may_set_the_cap(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount
) -> None:
    proxy.answers = {"eth_getBlockByNumber": {"hash": "0x" + "ab" * 32, "baseFeePerGas": hex(501 * GWEI)}}
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)]) as lanes:
        with pytest.raises(FeesAboveCap):
            await lanes.submit(make_call())
    higher = 600 * GWEI
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], fee_per_gas_max=higher) as lanes:
        sent = await lanes.submit(make_call())
    assert int(own_chain.call("eth_getTransactionByHash", sent.hash)["maxFeePerGas"], 16) == higher
