"""Taking commands in: each id once, however many sessions send it, one by one or in chunks."""

import asyncio
import random
from dataclasses import fields
from datetime import UTC, datetime
from decimal import Decimal

import psycopg
import pytest
from psycopg.errors import CheckViolation, RestrictViolation

from fixtures.orders import begin_command
from tollbook.books.settlement import commands, due, intake
from tollbook.books.settlement.errors import CommandBusy, CommandMalformed, CommandReused
from tollbook.books.settlement.intake import Gate, Received
from tollbook.books.settlement.requests import CommandRequest, Order, read
from tollbook.core import clock
from tollbook.core.database import Database

PAYEE = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"


def make_order(name: str, amount: str = "1.5") -> Order:
    return read(CommandRequest(command_id=name, workflow_id="w", amount=amount, payee=PAYEE, chain_id=8453))


async def count(database: Database, table: str) -> int:
    async with database.read() as tx:
        if table == "journal":
            return await tx.value("SELECT count(*) FROM core.journal WHERE book = 'settlement'")
        return await tx.value("SELECT count(*) FROM settlement.settlement_commands")


async def test_one_and_many_are_written_alike(database: Database) -> None:
    await intake.take(database, make_order("one"))
    await intake.take_all(database, [make_order("two")])
    async with database.read() as tx:
        one, two = await commands.get(tx, "one"), await commands.get(tx, "two")
    assert (one.amount, one.payee, one.chain_id, one.status) == (
        Decimal("1.5"), PAYEE.lower(), 8453, "received",
    )  # fmt: skip
    differing = {"command_id", "received_at", "last_updated", "next_attempt_at"}
    for name in {one.name for one in fields(commands.Command)} - differing:
        assert getattr(one, name) == getattr(two, name), name


async def test_a_chunk_keeps_the_good_and_tells_of_each_other(database: Database) -> None:
    await intake.take_all(database, [make_order("here"), make_order("changed")])
    found = await intake.take_all(
        database,
        [
            make_order("new"),
            make_order("here"),
            make_order("changed", "2"),
            make_order("new"),
            make_order("new", "3"),
            make_order("last"),
        ],
    )
    assert found[0] == Received("new", replayed=False)
    assert found[1] == Received("here", replayed=True)
    assert isinstance(found[2], CommandReused)
    assert found[3] == Received("new", replayed=True)
    assert isinstance(found[4], CommandReused)
    assert found[5] == Received("last", replayed=False)
    assert await count(database, "commands") == await count(database, "journal") == 4


async def test_sixteen_sessions_with_one_id_make_one_command(database_url: str) -> None:
    """The reference's check-then-insert broke in 300 of 320 calls of this kind."""
    async with Database(database_url, connections_max=16) as database:
        for nth in range(10):
            name = f"c{nth}"
            found = await asyncio.gather(*(intake.take(database, make_order(name)) for _ in range(16)))
            assert sorted(one.replayed for one in found) == [False] + [True] * 15
        assert await count(database, "journal") == 10


async def test_at_the_gate_one_that_cannot_be_kept_spoils_none_of_those_beside_it(database: Database) -> None:
    gate = Gate(database)
    orders = [make_order(f"c{nth % 30}") for nth in range(60)]
    poison = make_order("poison")._replace(expires_at=datetime.max.replace(tzinfo=UTC), amount="nonsense")
    *found, refused = await asyncio.gather(
        *(gate.take(order) for order in orders), gate.take(poison), return_exceptions=True
    )
    assert isinstance(refused, CommandMalformed)
    assert [one for one in found if isinstance(one, Received) and not one.replayed] == [
        Received(f"c{nth}", replayed=False) for nth in range(30)
    ]
    assert await count(database, "commands") == await count(database, "journal") == 30
    with pytest.raises(CommandReused):
        await gate.take(make_order("c0", "2"))


async def test_who_waits_at_the_gate_of_a_database_that_is_gone_is_told(
    database: Database, database_url: str
) -> None:
    gate = Gate(Database(database_url))  # never opened
    told = await asyncio.gather(
        gate.take(make_order("a")), gate.take(make_order("b")), return_exceptions=True
    )
    assert all(isinstance(one, Exception) for one in told)


async def test_chunks_that_overlap_in_any_order_take_each_command_once(database_url: str) -> None:
    names = [f"c{nth}" for nth in range(40)]
    chance = random.Random(5)
    async with Database(database_url, connections_max=8) as database:
        chunks = [
            [make_order(name) for name in chance.sample(names, 30)] + [make_order(f"own{nth}")]
            for nth in range(8)
        ]
        found = await asyncio.gather(*(intake.take_all(database, chunk) for chunk in chunks))
        received = [one for results in found for one in results if isinstance(one, Received)]
        assert len(received) == sum(len(chunk) for chunk in chunks)
        new = [one.command_id for one in received if not one.replayed]
        assert (
            len(new) == len(set(new)) == await count(database, "commands") == await count(database, "journal")
        )


async def test_of_a_chunk_only_what_another_session_is_inserting_is_busy(
    database: Database, database_url: str
) -> None:
    with psycopg.connect(database_url) as twin:
        twin.execute(
            "INSERT INTO settlement.settlement_commands (command_id, workflow_id, account_ref) "
            "VALUES ('busy', 'w', 'a')"
        )
        found = await intake.take_all(database, [make_order("free"), make_order("busy")])
        assert found[0] == Received("free", replayed=False)
        assert isinstance(found[1], CommandBusy)
    # The twin came first after all, with other content.
    with pytest.raises(CommandReused):
        await intake.take(database, make_order("busy"))


async def test_the_reference_s_nine_columns_are_enough_and_are_told_as_all_are(
    database: Database, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            """
            INSERT INTO settlement.settlement_commands (
                command_id, workflow_id, account_ref, payer, payee, asset_symbol, amount_numeric, status,
                last_updated)
            VALUES ('plain', 'wf', 'acct', NULL, NULL, 'USDC', 100.5, 'RECEIVED', now())
            """
        )
    async with database.write() as tx:
        assert (await commands.get(tx, "plain")).status == "received"
        assert [one.command_id for one in await due.find_received(tx, clock.now(), 10)] == ["plain"]
    assert await count(database, "journal") == 1
    # What it asked for nobody wrote down: so nothing is the same.
    (found,) = await intake.take_all(database, [make_order("plain")])
    assert isinstance(found, CommandReused)
    with pytest.raises(CommandReused):
        await intake.take(database, make_order("plain"))


async def test_the_database_itself_refuses_what_nobody_may_do(database: Database, database_url: str) -> None:
    await intake.take(database, make_order("c"))
    async with database.write() as tx:
        await begin_command(tx, "c")
    with psycopg.connect(database_url, autocommit=True) as connection:
        for change in (
            "amount_numeric = 999", "payee = NULL", "command_id = 'd'", "status = 'received'",
            "expires_at = now()", "status = 'expired'", "amount_minor = 5", "asset = NULL",
        ):  # fmt: skip
            with pytest.raises(RestrictViolation):
                connection.execute(
                    f"UPDATE settlement.settlement_commands SET {change} WHERE command_id = 'c'".encode()
                )
        with pytest.raises(RestrictViolation):
            connection.execute("DELETE FROM settlement.settlement_commands")
        with pytest.raises(CheckViolation):
            connection.execute("UPDATE settlement.settlement_commands SET status = 'settled'")
        for amount in ("'NaN'", "0", "-1"):
            with pytest.raises(CheckViolation):
                connection.execute(
                    "INSERT INTO settlement.settlement_commands (command_id, workflow_id, account_ref,"
                    f" amount_numeric) VALUES ('x', '', '', {amount})".encode()
                )
        for time in ("expires_at", "received_at", "last_updated"):  # no worker could read it
            with pytest.raises(CheckViolation):
                connection.execute(
                    "INSERT INTO settlement.settlement_commands (command_id, workflow_id, account_ref,"
                    f" {time}) VALUES ('x', '', '', 'infinity')".encode()
                )
        with pytest.raises(RestrictViolation):
            connection.execute(
                "INSERT INTO settlement.settlement_commands (command_id, workflow_id, account_ref, status)"
                " VALUES ('x', '', '', 'settled')"
            )
