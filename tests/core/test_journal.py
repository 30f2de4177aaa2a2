"""The journal: nothing is missed, nothing is read twice, nothing is changed."""

import asyncio
import itertools
from typing import Any, LiteralString

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tollbook.core import journal
from tollbook.core.database import Database, Params, Row, WriteTx
from tollbook.core.journal import Fact, Position

_readers = itertools.count()

Plan = list[tuple[int, int, bool]]


def fact(subject: str, *, amount: int | None = None) -> Fact:
    return Fact("payments", "payment.settled", subject, "eip155:8453", "0xa", amount, "0xb", "0xc", {"n": 1})


async def take(database: Database, reader: str, limit: int = 1_000) -> list[str]:
    async with database.write() as tx:
        entries = await journal.read(tx, reader, limit)
        if entries:
            await journal.advance(tx, reader, entries[-1].position)
        return [entry.fact.subject for entry in entries]


async def test_facts_come_back_as_they_were_written_and_in_order(database: Database) -> None:
    facts = [fact(str(number), amount=10**77 + number) for number in range(30)]
    async with database.write() as tx:
        await journal.append(tx, facts)
    async with database.write() as tx:
        assert [entry.fact for entry in await journal.read(tx, "ledger")] == facts


async def test_a_fact_of_a_transaction_that_rolls_back_never_was(database: Database) -> None:
    async def refused() -> None:
        async with database.write() as tx:
            await journal.append(tx, [fact("never")])
            raise LookupError("changed our mind")

    with pytest.raises(LookupError):
        await refused()
    assert await take(database, "ledger") == []


async def test_a_fact_that_commits_late_is_not_missed(database: Database) -> None:
    async with database.write() as late:
        await journal.append(late, [fact("late")])
        async with database.write() as early:
            await journal.append(early, [fact("early")])
        assert await take(database, "ledger") == []  # "late" has the lower position and is still unsure
    assert await take(database, "ledger") == ["late", "early"]
    assert await take(database, "ledger") == []


class Explained(WriteTx):
    """Tells how statements that ask were carried out."""

    plan = ""

    async def all(self, sql: LiteralString, params: Params | None = None, *, into: type[Row]) -> list[Row]:
        assert into
        await self.value(sql, params)
        return []

    async def value(self, sql: LiteralString, params: Params | None = None) -> Any:
        rows = await self.dicts("EXPLAIN (ANALYZE, COSTS OFF) " + sql, params)
        self.plan = "\n".join(row["QUERY PLAN"] for row in rows)


async def test_what_waits_for_an_open_transaction_is_not_looked_through_again_and_again(
    database: Database,
) -> None:
    await take(database, "ledger")
    async with database.write() as late:
        await journal.append(late, [fact("late")])
        async with database.write() as early:
            await journal.append(early, [fact("early") for _ in range(50)])
        async with database.write() as written:
            await written.execute("SET LOCAL enable_seqscan = off")
            tx = Explained(written.connection)
            for search in (journal.has_news(tx, "ledger"), journal.read(tx, "ledger")):
                await search
                assert "Index Cond" in tx.plan
                assert "Removed by Filter" not in tx.plan, tx.plan


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    # Each writer: after how many turns it begins, for how many it stays open, whether it commits.
    plan=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), min_size=2, max_size=6),
    limit=st.integers(1, 3),
)
@example(plan=[(0, 3, True), (1, 0, True)], limit=1)
async def test_each_committed_fact_is_read_exactly_once_whoever_commits_when(
    database: Database, plan: Plan, limit: int
) -> None:
    reader = f"reader {next(_readers)}"
    await _drain(database, reader, 1_000)
    seen = await _write_and_read(database, plan, reader, limit)
    expected = [
        f"{writer}.{part}" for writer, (_, _, commits) in enumerate(plan) if commits for part in (0, 1)
    ]
    assert sorted(seen) == sorted(expected)


async def _write_and_read(database: Database, plan: Plan, reader: str, limit: int) -> list[str]:
    seen: list[str] = []
    writers: dict[int, psycopg.AsyncConnection] = {}
    for turn in range(14):
        for writer, (begins, stays, commits) in enumerate(plan):
            if turn == begins:
                writers[writer] = await psycopg.AsyncConnection.connect(database.url)
                facts = [fact(f"{writer}.0"), fact(f"{writer}.1")]
                await journal.append(WriteTx(writers[writer]), facts)
            if turn == begins + stays:
                await (writers[writer].commit() if commits else writers[writer].rollback())
                await writers[writer].close()
        seen += await take(database, reader, limit)
    return seen + await _drain(database, reader, limit)


async def _drain(database: Database, reader: str, limit: int) -> list[str]:
    seen: list[str] = []
    while subjects := await take(database, reader, limit):
        seen += subjects
    return seen


async def test_readers_of_one_name_in_many_processes_share_the_work_without_repeating_it(
    database: Database,
) -> None:
    subjects = [str(number) for number in range(60)]
    async with database.write() as tx:
        await journal.append(tx, [fact(subject) for subject in subjects])

    async def work() -> list[str]:
        return await _drain(database, "shared", 7)

    shares = await asyncio.gather(work(), work(), work())
    assert sorted(itertools.chain(*shares)) == sorted(subjects)


async def test_a_reader_never_goes_back(database: Database) -> None:
    async with database.write() as tx:
        await journal.append(tx, [fact("one"), fact("two")])
    assert await take(database, "ledger") == ["one", "two"]
    async with database.write() as tx:
        await journal.advance(tx, "ledger", Position())
    assert await take(database, "ledger") == []


@pytest.mark.parametrize(
    "change",
    ["UPDATE core.journal SET book = 'x'", "DELETE FROM core.journal", "TRUNCATE core.journal"],
)
async def test_the_journal_refuses_change(database: Database, change: str) -> None:
    async with database.write() as tx:
        await journal.append(tx, [fact("kept")])
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        async with database.write() as tx:
            await tx.connection.execute(change.encode())
    assert await take(database, "ledger") == ["kept"]


async def test_a_partition_refuses_what_the_journal_refuses(database: Database) -> None:
    async with database.read() as tx:
        partitions = [
            row["name"]
            for row in await tx.dicts(
                "SELECT inhrelid::regclass::text AS name FROM pg_inherits"
                " WHERE inhparent = 'core.journal'::regclass"
            )
        ]
    assert len(partitions) > 12
    for partition in partitions:
        with pytest.raises(psycopg.errors.RestrictViolation):
            async with database.write() as tx:
                await tx.connection.execute(f"TRUNCATE {partition}".encode())


async def test_after_a_restore_into_a_younger_cluster_old_facts_come_first_and_new_ones_are_not_missed(
    database: Database,
) -> None:
    async with database.write() as tx:  # as pg_restore leaves it: transaction numbers this cluster never gave
        await tx.execute(
            "INSERT INTO core.journal (book, kind, subject, transaction_id)"
            " VALUES ('payments', 'payment.settled', 'restored', '900000000000')"
        )
    async with database.write() as tx:
        assert await journal.check_epoch(tx) == 2
    async with database.write() as tx:
        assert await journal.check_epoch(tx) == 2
        await journal.append(tx, [fact("new")])
    assert await take(database, "ledger", 1) == ["restored"]
    assert await take(database, "ledger", 1) == ["new"]


@pytest.mark.parametrize("missing", ["FUNCTION core.check_journal_epoch", "SCHEMA core CASCADE"])
async def test_a_database_without_the_books_is_said_to_be_one(database: Database, missing: str) -> None:
    async with database.write() as tx:
        await tx.connection.execute(f"DROP {missing}".encode())
    with pytest.raises(journal.NotMigrated):
        async with database.write() as tx:
            await journal.check_epoch(tx)


async def test_in_its_own_cluster_the_epoch_stays(database: Database) -> None:
    async with database.write() as open_one:
        await journal.append(open_one, [fact("open")])
        async with database.write() as tx:
            await journal.append(tx, [fact("done")])
        async with database.write() as tx:
            assert await journal.check_epoch(tx) == 1


async def test_partitions_are_made_ahead_once_and_dropped_when_wholly_old(database: Database) -> None:
    count = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'core.journal'::regclass"
    async with database.write() as tx:
        before = await tx.value(count)
        assert await tx.value("SELECT core.ensure_partitions('core.journal', '7 days', 12)") == 0
        assert await tx.value("SELECT core.ensure_partitions('core.journal', '7 days', 15)") == 3
        assert await tx.value("SELECT core.drop_partitions('core.journal', '0 days')") == 0
        assert await tx.value("SELECT core.drop_partitions('core.journal', '-7 days')") == 1
        assert await tx.value(count) == before + 2
