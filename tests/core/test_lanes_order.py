"""Statements about many transactions at once meet in one order: one of them waits, and none fails."""

import asyncio
import secrets
from datetime import timedelta
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount

from fixtures.lanes import key_of, make_call, send_elsewhere
from fixtures.rpc_proxy import Proxy
from tollbook.core.database import Database
from tollbook.core.lanes import Lanes, nonces, transactions
from tollbook.core.lanes.keys import Fees
from tollbook.core.lanes.transactions import Signed
from tollbook.core.local_chain import NETWORK, LocalChain

SENDER = "0x" + "11" * 20
CALLS = 500
ROUNDS = 8
LOOKS_MAX = 1_000


async def test_signing_asking_again_and_sweeping_the_same_ones_wait_for_each_other(
    database: Database,
) -> None:
    async with database.write() as tx:
        await nonces.jump(tx, NETWORK, SENDER, 0, 0)

    async def sweep() -> None:
        async with database.write() as tx:
            await nonces.free_abandoned(tx, NETWORK, timedelta(0))

    for _ in range(ROUNDS):
        calls = [make_call() for _ in range(CALLS)]
        taken = await nonces.take_nonces(database, NETWORK, [SENDER], calls)
        signed = [
            Signed(
                transaction_id=one.transaction_id,
                purpose=one.purpose,
                sender=SENDER,
                nonce=one.nonce or 0,
                hash="0x" + secrets.token_hex(32),
                raw=b"",
                sealed_call=b"",
                gas=30_000,
                fees=Fees(1, 1),
            )
            for one in sorted(taken, key=lambda one: one.purpose, reverse=True)
        ]
        outcomes = await asyncio.gather(
            transactions.record_signed(database, signed),
            nonces.take_nonces(database, NETWORK, [SENDER], calls),
            sweep(),
            sweep(),
            return_exceptions=True,
        )
        assert not [one for one in outcomes if isinstance(one, BaseException)]


async def test_processes_with_the_same_keys_in_another_order_sweep_at_the_same_time(
    database: Database, chain: LocalChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, urls, jump = [key_of(chain.make_account()) for _ in range(2)], {NETWORK: chain.url}, nonces.jump
    async with Lanes(database, urls, keys) as one, Lanes(database, urls, keys[::-1]) as other:
        await one.mend()

        async def jump_slowly(*args: Any) -> None:
            await jump(*args)
            await asyncio.sleep(0.1)

        monkeypatch.setattr(nonces, "jump", jump_slowly)
        await asyncio.gather(one.mend(), other.mend())


async def test_who_asks_again_for_what_gets_another_nonce_just_now_waits_for_it(
    database: Database,
    own_chain: LocalChain,
    proxy: Proxy,
    operator: LocalAccount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who asks has the rows and then the lane: in the other order each would wait for the other one."""
    displaced, sender, take_one = make_call(), operator.address.lower(), nonces.take_one
    asking: list[asyncio.Task[Any]] = []

    async def take_while_asked(*arguments: Any) -> int:
        nonce = await take_one(*arguments)
        calls = [displaced, make_call()]
        asking.append(asyncio.create_task(nonces.take_nonces(database, NETWORK, [sender], calls)))
        await wait_until_one_is_locked_out(database)
        return nonce

    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], lost_seconds=0.0) as lanes:
        proxy.refusals = {"eth_sendRawTransaction": ["the node is confused"]}
        await lanes.submit(displaced)
        send_elsewhere(own_chain, operator, 0)
        monkeypatch.setattr(nonces, "take_one", take_while_asked)
        assert (await lanes.mend()).reissued == 1
        await asyncio.gather(*asking)


async def wait_until_one_is_locked_out(database: Database) -> None:
    for _ in range(LOOKS_MAX):
        async with database.statement() as tx:  # within a transaction the answer would stay the same
            if await tx.value(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ):
                return
        await asyncio.sleep(0.02)
    raise AssertionError("nobody waits for a lock")


async def test_a_nonce_that_is_given_back_while_gaps_are_closed_is_not_lost(database: Database) -> None:
    """It was given back before, was lost and came back, and a node refuses it just now."""
    async with database.write() as tx:
        await nonces.jump(tx, NETWORK, SENDER, 0, 0)
    [taken] = await nonces.take_nonces(database, NETWORK, [SENDER], [make_call()])
    hash_ = "0x" + secrets.token_hex(32)
    signed = Signed(taken.transaction_id, taken.purpose, SENDER, 0, hash_, b"", b"", 30_000, Fees(1, 1))
    await transactions.record_signed(database, [signed])
    async with database.write() as tx:
        await tx.execute(
            "INSERT INTO core.lane_gaps (network, sender, nonce) VALUES (%(network)s, %(sender)s, 0)",
            {"network": NETWORK, "sender": SENDER},
        )
    async with database.write() as giving:
        assert await nonces.free(giving, {taken.transaction_id: hash_})
        async with database.write() as closing:
            await nonces.close_held(closing, NETWORK)
    async with database.read() as tx:
        assert await tx.value("SELECT count(*) FROM core.lane_gaps") == 1
