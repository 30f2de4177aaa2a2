"""Webhooks from the journal to the endpoint: told once, in order, signed, and to whom it was asked alone."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from fixtures.webhooks import Told, Tollkeeper, answer, fact, make_facts, verify
from tollbook.core import journal
from tollbook.core.webhooks import desk, dispatch, rules, subscriptions


async def test_what_happens_is_told_as_standard_webhooks_have_it(keeper: Tollkeeper) -> None:
    grant = await keeper.subscribe("payments.*")
    await keeper.happen(fact("pay_1", 7))
    await keeper.tell()
    [told] = keeper.endpoint.told
    verify(told, grant.secret)
    assert told.headers["content-type"] == "application/json"
    assert told.event == {
        "type": "payments.payment.settled",
        "timestamp": told.event["timestamp"],
        "data": {
            "id": "pay_1",
            "subject": "pay_1",
            "network": "eip155:8453",
            "asset": "0xa",
            "amount": "100000000000000000007",
            "from": "0xb",
            "to": "0xc",
            "details": {"n": 7},
        },
    }
    assert await keeper.statuses() == ["delivered"]
    assert await keeper.query("SELECT * FROM settlement.webhook_queues") == []


async def test_only_who_asked_for_it_is_told(keeper: Tollkeeper) -> None:
    await keeper.subscribe("payments.payment.settled", path="/exact")
    await keeper.subscribe("settlement.*", "payments.refund.*", path="/wild")
    await keeper.subscribe("*", path="/all")
    await keeper.happen(
        fact("a"),
        fact("b", kind="payment.settled2"),
        fact("c", kind="refund.failed"),
        fact("d", book="settlement"),
    )
    await keeper.tell()
    assert keeper.endpoint.subjects("/exact") == ["a"]
    assert sorted(keeper.endpoint.subjects("/wild")) == ["c", "d"]
    assert {"a", "b", "c", "d"} <= set(keeper.endpoint.subjects("/all"))


async def test_a_subscription_made_between_two_events_is_told_of_the_later_one_alone(
    keeper: Tollkeeper,
) -> None:
    await keeper.subscribe(path="/first")
    await keeper.happen(fact("before"))
    await keeper.subscribe("payments.*", path="/second")
    await keeper.happen(fact("after"))
    await keeper.tell()
    assert keeper.endpoint.subjects("/second") == ["after"]
    assert {"before", "after"} <= set(keeper.endpoint.subjects("/first"))


async def test_what_began_before_a_subscription_and_commits_after_it_is_told(keeper: Tollkeeper) -> None:
    async with keeper.database.write() as slow:
        await journal.append(slow, [fact("slow")])
        await keeper.subscribe("payments.*")
        await keeper.happen(fact("quick"))
        await keeper.tell()
        assert keeper.endpoint.told == []
    await keeper.tell()
    assert sorted(keeper.endpoint.subjects()) == ["quick", "slow"]


async def test_an_event_that_rolls_back_is_told_to_nobody(keeper: Tollkeeper) -> None:
    await keeper.subscribe("payments.*")

    async def change_mind() -> None:
        async with keeper.database.write() as tx:
            await journal.append(tx, [fact("never")])
            raise LookupError

    with pytest.raises(LookupError):
        await change_mind()
    await keeper.happen(fact("yes"))
    await keeper.tell()
    assert keeper.endpoint.subjects() == ["yes"]


async def test_of_each_subject_the_order_is_kept_though_endpoints_fail_and_two_send(
    keeper: Tollkeeper,
) -> None:
    await keeper.subscribe("payments.*")
    counted = 0

    async def moody(_: Told, __: asyncio.StreamWriter) -> bytes:
        nonlocal counted
        counted += 1
        await asyncio.sleep(0.001 * (counted % 3))
        return answer(500 if counted % 4 == 0 else 200)

    keeper.endpoint.answers["/hooks"] = moody
    await keeper.happen(*make_facts(["a", "b", "c", "d", "e"], 12))
    senders = [keeper.make_sender(), keeper.make_sender()]
    while await keeper.dispatch():
        pass
    for _ in range(100):
        await asyncio.gather(*(sender.send_due() for sender in senders))
        keeper.wait(3600)
        if set(await keeper.statuses()) == {"delivered"}:
            break
    assert keeper.endpoint.by_subject() == {name: list(range(12)) for name in "abcde"}
    assert counted > 60


@pytest.mark.parametrize("entries_a_turn", [1, 500])
async def test_what_was_written_first_is_told_first_though_its_transaction_began_last(
    keeper: Tollkeeper, monkeypatch: pytest.MonkeyPatch, entries_a_turn: int
) -> None:
    monkeypatch.setattr(dispatch, "ENTRIES_A_TURN", entries_a_turn)
    await keeper.subscribe("payments.*")
    await keeper.tell()
    async with keeper.database.write() as between:
        async with keeper.database.write() as waits:  # for the other to let the payment's row go
            await waits.execute("SELECT pg_current_xact_id()")
            if entries_a_turn > 1:  # a third one, open still, hides the first alone
                await between.execute("SELECT pg_current_xact_id()")
            await keeper.happen(fact("a", 1), fact("b", 1))
            await journal.append(waits, [fact("a", 2)])
        await keeper.dispatch()
        await keeper.sender.send_due()
    await keeper.tell()
    assert keeper.endpoint.by_subject() == {"a": [1, 2], "b": [1]}
    assert len(keeper.endpoint.told) == 3


def pause(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> tuple[asyncio.Event, asyncio.Event]:
    """Have a function wait before it does its work: one event says that it does, the other lets it go."""
    reached, go, real = asyncio.Event(), asyncio.Event(), getattr(module, name)

    async def wait(*args: Any, **options: Any) -> Any:
        reached.set()
        await go.wait()
        return await real(*args, **options)

    monkeypatch.setattr(module, name, wait)
    return reached, go


async def test_what_is_queued_while_the_one_before_is_written_down_is_not_left_lying(
    keeper: Tollkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, answering = asyncio.Event(), asyncio.Event()

    async def take(_: Told, __: asyncio.StreamWriter) -> bytes:
        arrived.set()
        await answering.wait()
        return answer(200)

    keeper.endpoint.answers["/hooks"] = take
    await keeper.subscribe("payments.*")
    await keeper.happen(fact("a", 1))
    await keeper.dispatch()
    sending = asyncio.create_task(keeper.sender.send_due())
    await arrived.wait()
    await keeper.happen(fact("a", 2))
    reached, go = pause(monkeypatch, dispatch.journal, "advance")
    dispatching = asyncio.create_task(keeper.dispatch())
    await reached.wait()  # the second is in the queue, and nobody else sees it yet
    answering.set()
    await asyncio.sleep(0.2)
    go.set()
    await asyncio.gather(dispatching, sending)
    await keeper.tell()
    assert keeper.endpoint.by_subject() == {"a": [1, 2]}


async def test_a_subscription_that_is_being_made_misses_nothing_of_what_is_dispatched_meanwhile(
    keeper: Tollkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keeper.subscribe("settlement.failed")
    reached, go = pause(monkeypatch, subscriptions, "_tell")
    async with keeper.database.write() as slow:
        await journal.append(slow, [fact("a")])
        making = asyncio.create_task(keeper.subscribe("payments.*"))
        await reached.wait()  # it began when the fact was not committed
    dispatching = asyncio.create_task(keeper.dispatch())
    await asyncio.sleep(0.2)
    go.set()
    await asyncio.gather(making, dispatching)
    await keeper.tell()
    assert keeper.endpoint.subjects() == ["a"]


async def test_two_that_send_at_once_share_the_work_and_send_nothing_twice(keeper: Tollkeeper) -> None:
    await keeper.subscribe("payments.*")
    await keeper.happen(*make_facts([f"s{n}" for n in range(60)], 2))
    senders = [keeper.make_sender(), keeper.make_sender(), keeper.make_sender()]
    dispatched = await asyncio.gather(*(keeper.dispatch() for _ in range(3)))
    assert sum(dispatched) >= 120
    while any(await asyncio.gather(*(sender.send_due() for sender in senders))):
        pass
    assert len(keeper.endpoint.told) == 120
    assert keeper.endpoint.by_subject() == {f"s{n}": [0, 1] for n in range(60)}


async def test_where_many_listen_a_turn_takes_fewer_events(
    keeper: Tollkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "DELIVERIES_A_TURN", 6)
    for nth in range(3):
        await keeper.subscribe("payments.*", path=f"/{nth}")
    await keeper.tell()
    await keeper.happen(*make_facts(["a"], 5))
    assert [await keeper.dispatch() for _ in range(4)] == [2, 2, 1, 0]
    await keeper.tell()
    assert [keeper.endpoint.by_subject(f"/{nth}") for nth in range(3)] == [{"a": [0, 1, 2, 3, 4]}] * 3


async def test_a_subject_too_long_for_an_index_is_told_all_the_same(keeper: Tollkeeper) -> None:
    await keeper.subscribe("payments.*")
    await keeper.happen(fact("x" * 10_000, 1), fact("x" * 10_000, 2))
    await keeper.tell()
    assert keeper.endpoint.by_subject() == {"x" * 10_000: [1, 2]}


async def test_the_webhook_id_is_the_same_at_every_endpoint_and_in_every_retry(keeper: Tollkeeper) -> None:
    await keeper.subscribe("payments.*", path="/one")
    await keeper.subscribe("payments.*", path="/two")
    keeper.endpoint.answers["/two"] = answer(503)
    await keeper.happen(fact("a"), fact("b"))
    await keeper.tell()
    keeper.wait(10)
    keeper.endpoint.answers["/two"] = answer(204)
    await keeper.tell()
    ids = {path: {t.message_id for t in keeper.endpoint.told if t.path == path} for path in ("/one", "/two")}
    assert ids["/one"] == ids["/two"]
    assert len(ids["/one"]) == 2
    assert len([told for told in keeper.endpoint.told if told.path == "/two"]) > 2


async def test_a_replay_tells_a_webhook_nothing_about_itself(keeper: Tollkeeper) -> None:
    grant = await keeper.subscribe("webhooks.*")
    await keeper.subscribe("payments.*", path="/other")
    since = keeper.now - timedelta(minutes=1)
    replay = await desk.replay_range(keeper.database, grant.subscription.subscription_id, since=since)
    assert replay.events == 1


async def test_a_subscription_that_is_removed_is_told_nothing_more(keeper: Tollkeeper) -> None:
    grant = await keeper.subscribe("payments.*")
    await keeper.happen(fact("a"))
    await keeper.dispatch()
    async with keeper.database.write() as tx:
        await subscriptions.remove(tx, grant.subscription.subscription_id)
    await keeper.happen(fact("b"))
    await keeper.tell()
    assert keeper.endpoint.told == []


async def test_a_subscription_removed_while_an_event_is_put_in_its_queues_leaves_none(
    keeper: Tollkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = await keeper.subscribe("payments.*")
    await keeper.happen(fact("a"))
    reached, go = pause(monkeypatch, dispatch.journal, "advance")
    dispatching = asyncio.create_task(keeper.dispatch())
    await reached.wait()

    async def remove() -> None:
        async with keeper.database.write() as tx:
            await subscriptions.remove(tx, grant.subscription.subscription_id)

    removing = asyncio.create_task(remove())
    await asyncio.sleep(0.1)
    go.set()
    await asyncio.gather(dispatching, removing)
    assert await keeper.query("SELECT * FROM settlement.webhook_queues") == []


async def test_a_journal_that_nobody_listened_to_is_not_read_through(keeper: Tollkeeper) -> None:
    await keeper.happen(*(fact(str(n)) for n in range(50)))
    await keeper.subscribe("payments.*")
    await keeper.happen(fact("after"))
    assert await keeper.dispatch() <= 2  # with the one that says that it was made
    await keeper.tell()
    assert keeper.endpoint.subjects() == ["after"]


def test_a_message_id_differs_where_the_entry_was_counted_again_after_a_restore() -> None:
    from datetime import UTC, datetime

    first, second = (
        rules.make_message_id(
            journal.Entry(journal.Position(1, 5, 9), datetime(2026, 1, day, tzinfo=UTC), fact("a"))
        )
        for day in (1, 2)
    )
    assert first != second
    assert first.startswith("msg_")
