"""Execution on a real chain: what is validated is paid once, by whom and what the chain shows decides the end."""

import asyncio

from fixtures.settling import make_payroll
from tollbook.core.database import Database
from tollbook.core.local_chain import LocalChain


async def test_a_command_is_validated_paid_and_settled_with_its_proof(
    database: Database, chain: LocalChain, token: str
) -> None:
    assert token
    payroll = make_payroll(database, chain)
    command_id = await payroll.order("12.5")
    assert await payroll.validate() == 1
    async with payroll.open_desk() as desk:
        [settled] = await payroll.settle(desk, command_id)
    assert (settled.status, settled.amount_minor, payroll.count_paid(settled)) == (
        "settled", 12_500_000, 12_500_000,
    )  # fmt: skip
    assert await payroll.list_steps(command_id) == ["received", "validated", "executed", "settled"]
    assert settled.tx_hash is not None
    receipt = chain.call("eth_getTransactionReceipt", settled.tx_hash)
    assert receipt["from"] == payroll.operators[0].address.lower()
    async with database.read() as tx:
        told = await tx.dicts(
            "SELECT kind, amount, details->>'tx_hash' AS tx_hash FROM core.journal "
            "WHERE book = 'settlement' ORDER BY entry_id"
        )
    assert [one["kind"] for one in told] == ["received", "validated", "executed", "confirmed"]
    assert (told[-1]["amount"], told[-1]["tx_hash"]) == (12_500_000, settled.tx_hash)


async def test_a_hundred_commands_are_paid_together_once_each(
    database: Database, chain: LocalChain, token: str
) -> None:
    assert token
    payroll = make_payroll(database, chain, accounts=2)
    ids = await asyncio.gather(*(payroll.order() for _ in range(100)))
    await payroll.validate()
    async with payroll.open_desk() as desk:
        settled = await payroll.settle(desk, *ids)
    assert {one.status for one in settled} == {"settled"}
    assert len(payroll.list_transfers()) == 100
    assert len(set(payroll.list_transfers())) == 100
