"""Webhooks as the worker runs them: before anybody listens, through a crash of PostgreSQL, and forgotten."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from faults.paid_shop import kill_postgres
from fixtures.database import migrate
from fixtures.webhooks import KEY, LOCAL, Endpoint, Tollkeeper, fact, make_facts
from tollbook import embedded
from tollbook.core import clock, services
from tollbook.core.database import Database
from tollbook.core.secret_key import SecretKeyUnusable
from tollbook.core.settings import Settings
from tollbook.core.webhooks import jobs
from tollbook.core.webhooks.sending import Post

SECONDS_MAX = 60


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoints on this machine, a key, and no waiting for somebody to listen."""
    monkeypatch.setenv("TOLLBOOK_WEBHOOKS_ALLOW_HTTP", "1")
    monkeypatch.setenv("TOLLBOOK_WEBHOOKS_ALLOW_NETWORKS", "127.0.0.0/8")
    monkeypatch.setenv("TOLLBOOK_SECRET_KEY", KEY.hex())
    monkeypatch.setattr(jobs, "LOOK_SECONDS_ALONE", 0.05)
    monkeypatch.setattr(services, "RESTART_SECONDS_MIN", 0.05)


@asynccontextmanager
async def working(database: Database) -> AsyncIterator[None]:
    stop = asyncio.Event()
    running = asyncio.create_task(
        services.run(database, [jobs.make_service(Settings(), {"payments.payment.": "pay"})], stop)
    )
    try:
        yield
    finally:
        stop.set()
        await running


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not true():  # noqa: ASYNC110 - a socket's other end has no event to wait for
            await asyncio.sleep(0.01)


async def test_the_worker_tells_what_happens_also_to_who_comes_after_it_began(keeper: Tollkeeper) -> None:
    async with working(keeper.database), working(keeper.database):
        await keeper.happen(fact("before"))
        await keeper.subscribe("payments.*")
        await keeper.happen(*make_facts(["a", "b"], 5))
        await until(lambda: len(keeper.endpoint.told) >= 10)
        await keeper.subscribe("payments.*", path="/second")
        await keeper.happen(fact("a", 5), fact("5", 0))
        await until(lambda: len(keeper.endpoint.told) >= 14)
    assert keeper.endpoint.by_subject() == {"a": [0, 1, 2, 3, 4, 5], "b": [0, 1, 2, 3, 4], "5": [0]}
    assert keeper.endpoint.by_subject("/second") == {"a": [5], "5": [0]}
    shown = {told.event["data"]["id"] for told in keeper.endpoint.told}
    assert shown == {"a", "b", "pay_0000000000005"}


async def test_without_a_key_the_worker_waits_until_somebody_listens_and_then_says_so(
    keeper: Tollkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOLLBOOK_SECRET_KEY")
    settings = Settings().model_copy(update={"database_url": keeper.database.url})
    running = asyncio.create_task(jobs.tell(keeper.database, settings, asyncio.Event()))
    await asyncio.sleep(0.1)
    assert not running.done()
    await keeper.subscribe("payments.*")
    with pytest.raises(SecretKeyUnusable):
        await running


async def test_a_crash_of_postgresql_loses_no_event_and_changes_no_order(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    server = embedded.start(tmp_path)
    migrate(server.url())
    subjects = ["a", "b", "c"]
    async with Database(server.url()) as database, Post(LOCAL) as post:
        keeper = Tollkeeper(database, endpoint, post, clock.now())
        await keeper.subscribe("payments.*")
        async with working(database):
            for n in range(0, 20, 10):
                await keeper.happen(*(fact(subject, n + k) for k in range(10) for subject in subjects))
                await until(lambda n=n: len(endpoint.told) > 3 * n)
                kill_postgres(tmp_path)
                server = await asyncio.to_thread(embedded.start, tmp_path)
            whole = {subject: list(range(20)) for subject in subjects}
            await until(lambda: endpoint.by_subject() == whole)
    server.stop()


async def test_what_is_older_than_a_month_is_forgotten_also_what_waits(keeper: Tollkeeper) -> None:
    await keeper.subscribe("payments.*")
    await keeper.happen(fact("old"))
    await keeper.tell()
    await keeper.happen(fact("waiting"))
    await keeper.dispatch()
    assert await jobs.forget(keeper.database) == 0
    await keeper.query(
        "UPDATE settlement.webhook_deliveries SET created_at = %(then)s RETURNING 1",
        then=clock.now() - jobs.KEPT - timedelta(minutes=1),
    )
    assert await jobs.forget(keeper.database) == 2
    await keeper.tell()
    assert keeper.endpoint.subjects() == ["old"]
    assert await keeper.query("SELECT * FROM settlement.webhook_queues") == []
    assert await jobs.make_partitions(keeper.database) == 0
