"""Killed between any two steps, whoever tells webhooks loses no event and changes no order."""

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fixtures.walks import STEP
from fixtures.webhooks import Tollkeeper, answer, make_facts, make_name

TESTS = Path(__file__).parents[1]
SUBJECTS, TIMES = 3, 2


class Victim:
    """The process that forks the lives."""

    def __init__(self, process: asyncio.subprocess.Process, keeper: Tollkeeper) -> None:
        self._process, self._keeper, self.late = process, keeper, 0

    async def live(self, dies_at: int = 0) -> tuple[bool, int]:
        """One life, ten minutes after the last. Whether it was killed, and how many boundaries it passed."""
        self.late += 1
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        order = {"database_url": self._keeper.database.url, "dies_at": dies_at, "late": self.late}
        stdin.write(json.dumps(order).encode() + b"\n")
        told = json.loads(await asyncio.wait_for(stdout.readline(), 60))
        return told["killed"], told["passed"]


@asynccontextmanager
async def victim_of(keeper: Tollkeeper) -> AsyncIterator[Victim]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "faults.webhook_victim", stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    try:
        yield Victim(process, keeper)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def check(keeper: Tollkeeper, subjects: list[str]) -> None:
    told = keeper.endpoint.by_subject()
    assert {subject: told.get(subject) for subject in subjects} == {
        subject: list(range(TIMES)) for subject in subjects
    }
    assert set(await keeper.statuses()) == {"delivered"}
    assert await keeper.query("SELECT subject FROM settlement.webhook_queues") == []


async def test_a_kill_at_any_boundary_loses_no_event_and_changes_no_order(keeper: Tollkeeper) -> None:
    await keeper.subscribe("payments.*")

    async def happen() -> list[str]:
        subjects = [make_name() for _ in range(SUBJECTS)]
        await keeper.happen(*make_facts(subjects, TIMES))
        return subjects

    async with victim_of(keeper) as victim:
        subjects = await happen()
        killed, boundaries = await victim.live()
        assert not killed
        await check(keeper, subjects)
        assert boundaries > 2 * SUBJECTS * TIMES + 6, "each POST and each of the four steps about it"
        died = 0
        for dies_at in range(random.randint(1, STEP), boundaries + 1, STEP):
            subjects = await happen()
            died += (await victim.live(dies_at))[0]
            await victim.live()
            await check(keeper, subjects)
    assert died >= boundaries // STEP - 2
    assert len(keeper.endpoint.told) > len(await keeper.statuses()), "some had to be told twice"


async def test_a_kill_while_the_endpoint_fails_costs_no_event_and_no_order(keeper: Tollkeeper) -> None:
    await keeper.subscribe("payments.*")
    subjects = [make_name() for _ in range(SUBJECTS)]
    await keeper.happen(*make_facts(subjects, TIMES))
    keeper.endpoint.answers["/hooks"] = answer(500)
    async with victim_of(keeper) as victim:
        for dies_at in (3, 5, 7, 9, 12):
            await victim.live(dies_at)
        keeper.endpoint.answers.clear()
        victim.late += 60
        await victim.live()
        victim.late += 60
        await victim.live()
    await check(keeper, subjects)
