"""A random walk through all that can happen to a webhook: it is told what it asked for, in order."""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.webhooks import Tollkeeper, answer, fact, make_name
from tollbook.core import clock, ids
from tollbook.core.webhooks import deliveries, replays, subscriptions

HOUR = 3600.0
ROUNDS_MAX = 60
SUBJECTS = ("a", "b", "c")
STEPS = st.one_of(
    st.tuples(st.just("happen"), st.sampled_from(SUBJECTS)),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 6.0, 70.0, HOUR])),
    st.tuples(st.just("answer"), st.sampled_from([200, 204, 400, 429, 500, 503])),
    st.tuples(
        st.sampled_from(["send", "dispatch", "die", "disable", "enable", "replay", "rotate"]), st.none()
    ),
)


@dataclass
class Walk:
    """One subscription, and what it must be told."""

    keeper: Tollkeeper
    path: str = field(default_factory=lambda: f"/{make_name()}")
    enabled: bool = True
    numbers: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    missed: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    brought: set[int] = field(default_factory=set[int])  # by a replay
    count: int = 0

    async def begin(self) -> None:
        self.began = clock.now()
        self.name = (await self.keeper.subscribe("payments.*", path=self.path)).subscription.subscription_id

    async def step(self, what: str, detail: object) -> None:
        """One thing that happens."""
        keeper = self.keeper
        match what, detail:
            case "happen", str(subject):
                self.count += 1
                await keeper.happen(fact(f"{subject}{self.path}", self.count))
                (self.numbers if self.enabled else self.missed)[f"{subject}{self.path}"].append(self.count)
            case "wait", float(seconds):
                keeper.wait(seconds)
            case "answer", int(status):
                keeper.endpoint.answers[self.path] = answer(status)
            case "send", _:
                await keeper.sender.send_due()
            case "dispatch", _:
                await keeper.dispatch()
            case "die", _:  # with what it had claimed
                await deliveries.claim(keeper.database, ids.make(), {}, room=5, now=keeper.now)
            case _:
                await self.administer(what)

    async def administer(self, what: str) -> None:
        """One thing that somebody wants."""
        while await self.keeper.dispatch():  # who disables it loses what was not in its queues yet
            pass
        async with self.keeper.database.write() as tx:
            if what == "disable":
                await subscriptions.disable(tx, self.name, reason="test", now=self.keeper.now)
                self.enabled = False
            elif what == "enable":
                await subscriptions.enable(tx, self.name, now=self.keeper.now)
                self.enabled = True
            elif what == "rotate":
                await subscriptions.rotate(tx, self.name, key=bytes(range(32)), now=self.keeper.now)
            elif what == "replay" and self.enabled:
                until = self.keeper.now + timedelta(minutes=1)
                await replays.replay_range(tx, self.name, since=self.began, until=until, now=self.keeper.now)
                for subject, numbers in self.missed.items():
                    self.numbers[subject] += numbers
                    self.brought.update(numbers)
                self.missed.clear()

    async def end(self) -> None:
        """All is well again: everything arrives."""
        self.keeper.endpoint.answers[self.path] = answer(200)
        await self.administer("enable")
        for _ in range(ROUNDS_MAX):
            await self.keeper.tell()
            self.keeper.wait(HOUR)
            if "pending" not in await self.keeper.statuses():
                break
        told = self.keeper.endpoint.by_subject(self.path)
        assert {name: sorted(one) for name, one in told.items()} == {
            name: sorted(one) for name, one in self.numbers.items()
        }
        for numbers in told.values():
            in_time = [number for number in numbers if number not in self.brought]
            assert in_time == sorted(in_time)
        assert set(await self.keeper.statuses()) <= {"delivered"}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=5, max_size=40))
async def test_whatever_happens_to_a_webhook_it_is_told_what_it_asked_for_in_order(
    keeper: Tollkeeper, steps: list[tuple[str, object]]
) -> None:
    walk = Walk(keeper)
    await walk.begin()
    for what, detail in steps:
        await walk.step(what, detail)
    await walk.end()
    async with keeper.database.write() as tx:
        await subscriptions.remove(tx, walk.name)
