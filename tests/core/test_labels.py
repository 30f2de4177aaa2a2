"""Labels: one number each, however many ask."""

import asyncio

from tollbook.core import labels
from tollbook.core.database import Database


async def test_many_who_ask_at_once_get_one_number_for_each_label(database: Database) -> None:
    asked = [f"GET /{number % 5}" for number in range(40)]
    given = await asyncio.gather(*(labels.intern(database, "endpoint", label) for label in asked))
    assert sorted(set(zip(asked, given, strict=True))) == [(f"GET /{n}", given[n]) for n in range(5)]
    assert sorted(set(given)) == [1, 2, 3, 4, 5]


async def test_kinds_count_apart(database: Database) -> None:
    assert await labels.intern(database, "endpoint", "same") == 1
    assert await labels.intern(database, "payer", "same") == 1


async def test_a_full_kind_gives_other_and_still_knows_what_it_has(database: Database) -> None:
    async with database.write() as tx:
        await tx.execute(
            "INSERT INTO core.labels (kind, label_id, label)"
            " VALUES ('full', 0, '(other)'), ('full', 32767, 'last')"
        )
    assert await labels.intern(database, "full", "one too many") == 0
    assert await labels.intern(database, "full", "last") == 32767
