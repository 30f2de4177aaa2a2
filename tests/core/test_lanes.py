"""Lanes: a purpose is one transaction, nonces never stall, refusals are told at once and heal."""

import asyncio
import json
import socket
from contextlib import AsyncExitStack
from dataclasses import replace

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fixtures.lanes import count_paid, find, key_of, make_call, mine, send_elsewhere
from fixtures.serve import serve
from tollbook.core.chains import ChainUnreachable
from tollbook.core.database import Database
from tollbook.core.lanes import CallMalformed, Lanes, NoGasMoney, PurposeBarred, PurposeReused, endings
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, LocalChain


async def test_a_call_is_sent_and_mined(
    database: Database, chain: LocalChain, operator: LocalAccount
) -> None:
    async with Lanes(database, {NETWORK: chain.url}, [key_of(operator)]) as lanes:
        sent = await lanes.submit(make_call())
        assert (sent.status, sent.nonce, sent.sender) == ("sent", 0, operator.address.lower())
        mined = await lanes.wait(sent.transaction_id, seconds_max=60)
        assert mined.status == "mined"
        assert mined.succeeded
        price = int(chain.call("eth_getTransactionReceipt", mined.hash)["effectiveGasPrice"], 16)
        assert mined.gas_used == 21_000
        assert mined.fee_paid == 21_000 * price
        assert mined.receipt is not None
        assert mined.confirmed_at is not None


async def test_ten_copies_of_a_purpose_are_one_transaction(
    database: Database, chain: LocalChain, operator: LocalAccount
) -> None:
    call = make_call()
    async with (
        Lanes(database, {NETWORK: chain.url}, [key_of(operator)]) as one,
        Lanes(database, {NETWORK: chain.url}, [key_of(operator)]) as other,
    ):
        sent = await asyncio.gather(*(lanes.submit(call) for _ in range(5) for lanes in (one, other)))
        assert len({transaction.transaction_id for transaction in sent}) == 1
        assert len({transaction.hash for transaction in sent}) == 1
        await one.wait(sent[0].transaction_id, seconds_max=60)
    assert int(chain.call("eth_getBalance", call.to, "latest"), 16) == 1
    assert int(chain.call("eth_getTransactionCount", operator.address, "pending"), 16) == 1


async def test_another_call_under_the_same_purpose_is_refused(
    database: Database, chain: LocalChain, operator: LocalAccount
) -> None:
    call = make_call()
    async with Lanes(database, {NETWORK: chain.url}, [key_of(operator)]) as lanes:
        sent = await lanes.submit(call)
        with pytest.raises(PurposeReused):
            await lanes.submit(replace(call, value=2))
        assert (await lanes.submit(call)).hash == sent.hash
        again = await lanes.find(call.purpose)
        assert again is not None
        assert again.transaction_id == sent.transaction_id
        assert await lanes.find("never heard of") is None


async def test_a_purpose_that_is_barred_is_never_sent_and_one_that_is_in_hand_is_not_barred(
    database: Database, chain: LocalChain, operator: LocalAccount
) -> None:
    barred, sent = make_call(), make_call()
    async with Lanes(database, {NETWORK: chain.url}, [key_of(operator)]) as lanes:
        await lanes.submit(sent)
        for _ in range(2):  # once more is no harm
            async with database.write() as tx:
                assert await endings.bar(tx, NETWORK, barred.purpose) == []
                assert await endings.bar(tx, NETWORK, sent.purpose) is None
        with pytest.raises(PurposeBarred):
            await lanes.submit(barred)
        await mine(lanes, await find(lanes, sent.purpose))
    assert (count_paid(chain, barred), count_paid(chain, sent)) == (0, 1)


async def test_two_hundred_calls_from_three_pools_leave_no_gap(
    database_url: str, chain: LocalChain, operator: LocalAccount
) -> None:
    calls = [make_call() for _ in range(200)]
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(Database(database_url, connections_max=4)) for _ in range(3)]
        three = [
            await stack.enter_async_context(Lanes(pool, {NETWORK: chain.url}, [key_of(operator)]))
            for pool in pools
        ]
        sent = await asyncio.gather(*(three[n % 3].submit(call) for n, call in enumerate(calls)))
        mined = await asyncio.gather(
            *(three[n % 3].wait(one.transaction_id, seconds_max=60) for n, one in enumerate(sent))
        )
    assert {one.status for one in mined} == {"mined"}
    assert sorted(one.nonce for one in mined if one.nonce is not None) == list(range(200))
    assert all(int(chain.call("eth_getBalance", call.to, "latest"), 16) == 1 for call in calls)


async def test_calls_are_spread_over_the_keys_and_a_pinned_one_is_not(
    database: Database, chain: LocalChain
) -> None:
    accounts = [chain.make_account(wei=GAS_MONEY_WEI) for _ in range(3)]
    async with Lanes(database, {NETWORK: chain.url}, [key_of(one) for one in accounts]) as lanes:
        sent = [await lanes.submit(make_call()) for _ in range(6)]
        assert {one.sender for one in sent} == set(lanes.addresses)
        pinned = [await lanes.submit(make_call(sender=accounts[1].address)) for _ in range(3)]
        assert {one.sender for one in pinned} == {accounts[1].address.lower()}


async def test_an_empty_account_is_named_at_once_and_heals_when_funded(
    database: Database, chain: LocalChain
) -> None:
    empty = chain.make_account()
    calls = [make_call() for _ in range(3)]
    async with Lanes(database, {NETWORK: chain.url}, [key_of(empty)]) as lanes:
        refusals = await asyncio.gather(*map(lanes.submit, calls), return_exceptions=True)
        assert [type(refusal) for refusal in refusals] == [NoGasMoney] * 3
        assert empty.address.lower() in str(refusals[0])
        assert NETWORK in str(refusals[0])
        dropped = await lanes.find(calls[0].purpose)
        assert dropped is not None
        assert dropped.status == "dropped"
        chain.set_gas_money(empty.address)
        sent = await asyncio.gather(*map(lanes.submit, calls))
        mined = await asyncio.gather(*(lanes.wait(one.transaction_id, seconds_max=60) for one in sent))
        assert {one.status for one in mined} == {"mined"}
        assert sorted(one.nonce for one in mined if one.nonce is not None) == [0, 1, 2]


async def test_a_reverted_transaction_is_mined_and_did_not_succeed(
    database: Database, chain: LocalChain, operator: LocalAccount, token: str
) -> None:
    async with Lanes(database, {NETWORK: chain.url}, [key_of(operator)]) as lanes:
        sent = await lanes.submit(make_call(to=token, value=0, data=b"\xde\xad\xbe\xef", gas=100_000))
        mined = await lanes.wait(sent.transaction_id, seconds_max=60)
        assert (mined.status, mined.succeeded) == ("mined", False)
        assert mined.gas_used is not None


async def test_waiting_ends_when_its_time_is_over(database: Database, operator: LocalAccount) -> None:
    with LocalChain.start(block_time=60) as slow:
        slow.set_gas_money(operator.address)
        async with Lanes(database, {NETWORK: slow.url}, [key_of(operator)]) as lanes:
            sent = await lanes.submit(make_call())
            waited = await lanes.wait(sent.transaction_id, seconds_max=0.3)
            assert (waited.status, waited.receipt) == ("sent", None)
            slow.call("evm_mine")
            assert (await lanes.wait(sent.transaction_id, seconds_max=60)).status == "mined"


async def test_who_begins_to_wait_while_others_are_answered_is_answered_too(
    database: Database, chain: LocalChain, operator: LocalAccount
) -> None:
    async with Lanes(database, {NETWORK: chain.url}, [key_of(operator)]) as lanes:
        sent = await lanes.submit(make_call())
        receipts = lanes._queues[NETWORK].receipts  # pyright: ignore[reportPrivateUsage] - as many turns as that takes
        waiting = [asyncio.create_task(receipts.wait(sent.transaction_id, sent.hashes))]
        while not waiting[0].done():
            await asyncio.sleep(0)
            waiting.append(asyncio.create_task(receipts.wait(sent.transaction_id, sent.hashes)))
        async with asyncio.timeout(60):
            assert {mined.status for mined in await asyncio.gather(*waiting)} == {"mined"}


async def test_a_key_used_elsewhere_moves_its_lane_forward(
    database: Database, chain: LocalChain, operator: LocalAccount
) -> None:
    async with Lanes(database, {NETWORK: chain.url}, [key_of(operator)]) as lanes:
        first = await lanes.submit(make_call())
        await lanes.wait(first.transaction_id, seconds_max=60)
        for nonce in (1, 2):
            send_elsewhere(chain, operator, nonce)
        second = await lanes.submit(make_call())
        mined = await lanes.wait(second.transaction_id, seconds_max=60)
        assert (mined.status, mined.nonce) == ("mined", 3)


async def test_a_node_that_is_not_there_takes_no_nonce(
    database: Database, chain: LocalChain, operator: LocalAccount
) -> None:
    call = make_call()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/secret-path"
        async with Lanes(database, {NETWORK: url}, [key_of(operator)]) as lanes:
            with pytest.raises(ChainUnreachable) as refusal:
                await lanes.submit(call)
            assert "secret-path" not in str(refusal.value)
            assert await lanes.find(call.purpose) is None
    async with Lanes(database, {NETWORK: chain.url}, [key_of(operator)]) as lanes:
        assert (await lanes.submit(call)).nonce == 0


async def test_a_node_of_another_chain_is_refused(
    database: Database, chain: LocalChain, operator: LocalAccount
) -> None:
    async with Lanes(database, {"eip155:8453": chain.url}, [key_of(operator)]) as lanes:
        with pytest.raises(ChainUnreachable, match="another chain"):
            await lanes.submit(make_call(network="eip155:8453"))


@pytest.mark.parametrize(
    "changes",
    [
        {"purpose": ""},
        {"purpose": "p" * 201},
        {"gas": 20_999},
        {"value": -1},
        {"data": bytes(128 * 1024 + 1)},
    ],
)
def test_a_call_that_fits_no_transaction_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CallMalformed):
        make_call(**changes).check()


async def test_an_empty_account_is_passed_over_where_another_has_money(
    database: Database, chain: LocalChain, operator: LocalAccount
) -> None:
    keys = [key_of(chain.make_account()), key_of(operator), key_of(chain.make_account())]
    async with Lanes(database, {NETWORK: chain.url}, keys) as lanes:
        sent = await asyncio.gather(*(lanes.submit(make_call()) for _ in range(5)))
        sent += [await lanes.submit(make_call()) for _ in range(3)]
        assert {one.sender for one in sent} == {operator.address.lower()}
        assert sorted(one.nonce for one in sent if one.nonce is not None) == list(range(8))


async def test_a_purpose_that_was_sent_is_known_while_the_node_is_away(
    database: Database, operator: LocalAccount
) -> None:
    call = make_call()
    with LocalChain.start() as own:
        own.set_gas_money(operator.address)
        async with Lanes(database, {NETWORK: own.url}, [key_of(operator)]) as lanes:
            sent = await lanes.submit(call)
    async with Lanes(database, {NETWORK: own.url}, [key_of(operator)]) as lanes:
        again = await lanes.submit(call)
        assert (again.transaction_id, again.hash) == (sent.transaction_id, sent.hash)
        with pytest.raises(ChainUnreachable):
            await lanes.submit(make_call())
        with pytest.raises(PurposeReused):
            await lanes.submit(replace(call, value=2))


async def test_a_node_that_knows_no_batches_is_asked_one_by_one(
    database: Database, chain: LocalChain, operator: LocalAccount
) -> None:
    async def forward(request: Request) -> Response:
        asked = await request.body()
        if asked.startswith(b"["):
            return Response('{"jsonrpc": "2.0", "id": null, "error": {"code": -32600, "message": "batch"}}')
        async with httpx.AsyncClient(timeout=60) as client:
            return Response((await client.post(chain.url, json=json.loads(asked))).content)

    async with (
        serve(Starlette(routes=[Route("/", forward, methods=["POST"])])) as url,
        Lanes(database, {NETWORK: url}, [key_of(operator)]) as lanes,
    ):
        sent = await asyncio.gather(*(lanes.submit(make_call()) for _ in range(3)))
        mined = await asyncio.gather(*(lanes.wait(one.transaction_id, seconds_max=60) for one in sent))
        assert {one.status for one in mined} == {"mined"}
