"""How PostgreSQL looks for what is due: by its place or by its key, however much waits beside it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import LiteralString, cast

from fixtures.webhooks import Tollkeeper, fact
from tollbook.core.database import Database, Params, Row, WriteTx
from tollbook.core.webhooks import deliveries
from tollbook.core.webhooks.deliveries import Attempt, Result, Return


class Explained(WriteTx):
    """Tells how statements would be carried out, and does nothing."""

    plans = ""

    async def all(self, sql: LiteralString, params: Params | None = None, *, into: type[Row]) -> list[Row]:
        assert into
        await self.execute(sql, params)
        return []

    async def execute(self, sql: LiteralString, params: Params | None = None) -> int:
        rows = await self.dicts("EXPLAIN (COSTS OFF) " + sql, params)
        self.plans += "\n".join(row["QUERY PLAN"] for row in rows)
        return 0


async def test_a_claim_and_its_results_read_no_table_and_no_queue_from_end_to_end(keeper: Tollkeeper) -> None:
    name = (await keeper.subscribe("payments.*")).subscription.subscription_id
    await keeper.happen(*(fact(str(n)) for n in range(200)))
    await keeper.dispatch()
    made = Attempt(1, keeper.now, 200, 1, None, None)
    results = [Result(name, 1, made, "delivered", 0, None, None)]
    async with keeper.database.statement() as tx:
        explained = Explained(tx.connection)

        class Explaining:
            @asynccontextmanager
            async def statement(self) -> AsyncGenerator[WriteTx]:
                yield explained

        await deliveries.claim(cast(Database, Explaining()), 1, {name: 4}, room=4, now=keeper.now)
        claiming, explained.plans = explained.plans, ""
        await deliveries.give_back(explained, [Return(1, name, "1", keeper.now, results)])
    assert "Tid Scan on webhook_queues" in claiming, claiming
    assert "Seq Scan on webhook_queues q" not in claiming
    writing = explained.plans.partition("Update on webhook_deliveries")[2].partition("Update on")[0]
    assert "Index Scan" in writing
    assert "webhook_deliveries_pending" not in writing, writing
