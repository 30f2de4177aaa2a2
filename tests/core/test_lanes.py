"""Lanes: a purpose is one transaction, nonces never stall, refusals are told at once and heal."""

import asyncio
import secrets

from eth_account.signers.local import LocalAccount

from tollbook.core.database import Database
from tollbook.core.lanes import Call, Lanes
from tollbook.core.local_chain import NETWORK, LocalChain


def make_call(**changes: object) -> Call:
    fields: dict[str, object] = {
        "network": NETWORK,
        "purpose": "test " + secrets.token_hex(8),
        "to": "0x" + secrets.token_hex(20),
        "data": b"",
        "gas": 30_000,
        "value": 1,
    }
    return Call(**(fields | changes))  # pyright: ignore[reportArgumentType]


def key_of(account: LocalAccount) -> str:
    return "0x" + bytes(account.key).hex()


async def test_a_call_is_sent_and_mined(
    database: Database, chain: LocalChain, operator: LocalAccount
) -> None:
    async with Lanes(database, {NETWORK: chain.url}, [key_of(operator)]) as lanes:
        sent = await lanes.submit(make_call())
        assert (sent.status, sent.nonce, sent.sender) == ("sent", 0, operator.address.lower())
        mined = await lanes.wait(sent.transaction_id, seconds_max=10)
        assert mined.status == "mined"
        assert mined.succeeded
        assert mined.fee_paid == mined.gas_used * int(
            chain.call("eth_getTransactionReceipt", mined.hash)["effectiveGasPrice"], 16
        )
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
        await one.wait(sent[0].transaction_id, seconds_max=10)
    assert int(chain.call("eth_getBalance", call.to, "latest"), 16) == 1
    assert int(chain.call("eth_getTransactionCount", operator.address, "pending"), 16) == 1
