"""The sender: claims queues that are due, posts what is in them, and writes down what came of it in batches.

Each endpoint has a window of its own, which opens while it answers and closes while it fails. So whoever is
slow or dead holds up nobody else, in this process or another.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tollbook.core import clock, ids, telemetry
from tollbook.core.database import Database
from tollbook.core.errors import DatabaseUnreachable
from tollbook.core.journal import Entry, Fact, Position
from tollbook.core.webhooks import deliveries, endpoints, rules
from tollbook.core.webhooks.deliveries import LEASE, Attempt, Claim, Due, Result, Return
from tollbook.core.webhooks.endpoints import Verdict
from tollbook.core.webhooks.errors import SecretUnreadable
from tollbook.core.webhooks.sending import GONE, SECONDS_MAX, Outcome, Post
from tollbook.core.webhooks.signing import Webhook, list_signers, open_secret, sign

WINDOW_FIRST = 4
WINDOW_MAX = 32  # POSTs to one endpoint at once, from one process
WINDOWS_KEPT_MAX = 2_000
FAILURES_BORNE = 3  # in a row, before it is given a rest: one event that it cannot bear is no reason for it
REST_SECONDS_FIRST = 0.5
REST_SECONDS_MAX = 30.0  # a failing endpoint is asked at least so often, where it has queues that are due
SIGNERS_KEPT_MAX = 4_000
STOP_SECONDS_MAX = 3.0
AGAIN_SECONDS = 0.5  # where the database is away

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Window:
    """What this process knows of an endpoint: how much it takes at once, and whether it rests."""

    size: int = WINDOW_FIRST
    held: int = 0  # claimed queues
    sending: int = 0
    failures: int = 0  # in a row
    rests_until: datetime | None = None
    waiting: deque["Lane"] = field(default_factory=deque["Lane"])

    def room(self, now: datetime) -> int:
        """How many queues more to claim: twice what is sent at once, so that none waits for the database."""
        if self.rests_until is not None and now < self.rests_until:
            return 0
        return max(0, (2 * self.size if self.failures < FAILURES_BORNE else 1) - self.held)

    def took(self) -> None:
        """It answered: twice as many from now on."""
        self.size, self.failures, self.rests_until = min(self.size * 2, WINDOW_MAX), 0, None

    def failed(self, now: datetime) -> None:
        """It did not: half as many, and soon one at a time, after a rest that grows."""
        self.size, self.failures = max(self.size // 2, 1), self.failures + 1
        if self.failures >= FAILURES_BORNE:
            times = min(self.failures - FAILURES_BORNE, 10)
            self.size = 1
            self.rests_until = now + timedelta(seconds=min(REST_SECONDS_FIRST * 2**times, REST_SECONDS_MAX))


@dataclass(slots=True)
class Lane:
    """A claimed queue, being worked on."""

    claim_id: int
    claim: Claim
    due: Sequence[Due]
    leased_until: datetime


class Sender:
    """Sends what is due. `clock` and `dice` are handed in where time and chance are tried."""

    def __init__(
        self,
        database: Database,
        post: Post,
        key: bytes,
        *,
        id_prefixes: Mapping[str, str] = rules.NO_PREFIXES,
        now: Callable[[], datetime] = clock.now,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._database, self._post, self._key = database, post, key
        self._id_prefixes, self._now, self._dice = id_prefixes, now, dice
        self._windows: dict[str, Window] = {}
        self._signers: dict[tuple[str, str], Webhook] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: list[Return] = []
        self._verdicts: dict[str, Verdict] = {}
        self._stopping = False
        self.news = asyncio.Event()  # something may be due, or an endpoint has room again
        self._written = asyncio.Event()

    async def send_due(self) -> int:
        """Claim and send what is due now, once, and write it down; how many queues that were."""
        count = await self.claim()
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        await self.write_down()
        return count

    async def claim(self) -> int:
        """Claim queues that are due and set out; how many."""
        now, claim_id = self._now(), ids.make()
        self._forget_idle()
        rooms = {name: window.room(now) for name, window in self._windows.items()}
        claims = await deliveries.claim(self._database, claim_id, rooms, room=2 * WINDOW_FIRST, now=now)
        if not claims:
            return 0
        due: dict[tuple[str, str], list[Due]] = {}
        for one in await deliveries.load(self._database, claims):
            due.setdefault((one.subscription_id, one.queue), []).append(one)
        for claim in claims:
            lane = Lane(claim_id, claim, due.get((claim.subscription_id, claim.subject), []), now + LEASE)
            self._set_out(lane)
        return len(claims)

    def _forget_idle(self) -> None:
        if len(self._windows) > WINDOWS_KEPT_MAX:
            self._windows = {name: window for name, window in self._windows.items() if window.held}

    def _set_out(self, lane: Lane) -> None:
        window = self._windows.setdefault(lane.claim.subscription_id, Window())
        window.held += 1
        window.waiting.append(lane)
        self._fill(window)

    def _fill(self, window: Window) -> None:
        while window.waiting and window.sending < window.size and not self._stopping:
            window.sending += 1
            task = asyncio.create_task(self._work(window, window.waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, window: Window, lane: Lane) -> None:
        results: list[Result] = []
        try:
            await self._send_lane(window, lane, results)
        finally:
            self._give_back(lane, results)
            window.sending -= 1
            window.held -= 1
            self._fill(window)
            if window.held <= window.size:
                self.news.set()

    async def _send_lane(self, window: Window, lane: Lane, results: list[Result]) -> None:
        """Its deliveries, one after the other; the first that fails ends it."""
        for due in lane.due:
            now = self._now()
            resting = window.rests_until is not None and now < window.rests_until
            if self._stopping or resting or not _has_time(lane, now):
                return
            outcome = await self._attempt(lane.claim, due)
            results.append(self._judge(lane.claim, due, outcome, window, now))
            if not outcome.taken:
                return

    async def _attempt(self, claim: Claim, due: Due) -> Outcome:
        if not due.found:
            return Outcome(0, error="the fact is in the journal no more")
        try:
            body, headers = self._write(claim, due)
        except SecretUnreadable as unreadable:
            return Outcome(0, error=str(unreadable))
        except Exception:  # whatever it is about this one, the others must be told
            logger.exception("delivery %s cannot be written", deliveries.show_id(due.delivery_id))
            return Outcome(0, error="it cannot be written: the worker's log says why")
        return await self._post.send(claim.url, body.encode(), headers)

    def _write(self, claim: Claim, due: Due) -> tuple[str, dict[str, str]]:
        signers = list_signers(
            claim.secret, claim.former_secrets, lambda sealed: self._open(sealed, claim.subscription_id)
        )
        data = rules.describe(_read_entry(due), self._id_prefixes)
        body = rules.write_body(due.event_type, due.recorded_at, data)
        return body, sign(signers, due.message_id, body, now=self._now())

    def _open(self, sealed: str, subscription_id: str) -> Webhook:
        known = self._signers.get((subscription_id, sealed))
        if known is None:
            if len(self._signers) >= SIGNERS_KEPT_MAX:
                self._signers.clear()
            known = open_secret(sealed, subscription_id, self._key)
            self._signers[subscription_id, sealed] = known
        return known

    def _judge(self, claim: Claim, due: Due, outcome: Outcome, window: Window, began: datetime) -> Result:
        """What one attempt means for its delivery, and for its endpoint."""
        made = Attempt(
            due.attempts + 1, began, outcome.status_code, outcome.latency_ms, outcome.error, outcome.answer
        )
        verdict, now = self._verdicts.setdefault(claim.subscription_id, Verdict()), self._now()
        telemetry.WEBHOOKS.labels("delivered" if outcome.taken else "failed").inc()
        telemetry.LATENCY.labels("webhook").observe(outcome.latency_ms / 1000)
        if outcome.taken:
            telemetry.LATENCY.labels("webhook-lag").observe(max((now - due.recorded_at).total_seconds(), 0))
            window.took()
            verdict.took()
            return Result(claim.subscription_id, due.delivery_id, made, "delivered", due.tries, None, None)
        window.failed(now)
        verdict.failed(outcome, began=began, now=now)
        since, tries = due.retrying_since or began, due.tries + 1
        next_try = self._find_next_try(due, outcome, since, now)
        status = "failed" if next_try is None else "pending"
        return Result(claim.subscription_id, due.delivery_id, made, status, tries, since, next_try)

    def _find_next_try(self, due: Due, outcome: Outcome, since: datetime, now: datetime) -> datetime | None:
        """When to try it again, None where it is given up. Who is gone may be enabled again."""
        if not due.found:
            return None
        next_try = rules.find_next_try(due.tries + 1, since, now=now, jitter=self._dice())
        return now if next_try is None and outcome.status_code == GONE else next_try

    def _give_back(self, lane: Lane, results: list[Result]) -> None:
        """Look at it again when its last one is to be tried again, or else at once."""
        last = results[-1].next_attempt_at if results else None
        name, next_look = lane.claim, last or self._now()
        self._done.append(Return(lane.claim_id, name.subscription_id, name.subject, next_look, results))
        self._written.set()

    async def write_down(self) -> None:
        """Write down all that has been done since the last time, in one transaction."""
        done, verdicts = self._done, self._verdicts
        self._done, self._verdicts = [], {}
        if not done:
            return
        try:
            async with self._database.write() as tx:
                # What a crash of PostgreSQL takes of this is told once more.
                await tx.execute("SET LOCAL synchronous_commit = off")
                await deliveries.give_back(tx, done)
                await endpoints.write_verdicts(tx, verdicts, now=self._now())
        except BaseException:
            self._done, self._verdicts = done + self._done, endpoints.join(verdicts, self._verdicts)
            raise

    async def run(self, stop: asyncio.Event, *, poll_seconds: float) -> None:
        """Send until `stop` is set; then end what is under way, within STOP_SECONDS_MAX."""
        writing = asyncio.create_task(self._keep_writing())
        try:
            while not stop.is_set() and not writing.done():
                self.news.clear()
                with suppress(DatabaseUnreachable):
                    await self.claim()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.news.wait(), poll_seconds)
        finally:
            await self._end(writing)
        if writing.done() and not writing.cancelled():
            writing.result()

    async def _keep_writing(self) -> None:
        while True:
            await self._written.wait()
            self._written.clear()
            try:
                await self.write_down()
            except DatabaseUnreachable:
                self._written.set()
                await asyncio.sleep(AGAIN_SECONDS)

    async def _end(self, writing: asyncio.Task[None]) -> None:
        self._stopping = True
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=STOP_SECONDS_MAX)
        for task in set(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for window in self._windows.values():
            for lane in window.waiting:
                self._give_back(lane, [])
        if not writing.done():
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        with suppress(DatabaseUnreachable):
            await self.write_down()


def _has_time(lane: Lane, now: datetime) -> bool:
    """Whether an attempt begun now ends before another process may take the queue."""
    return now + timedelta(seconds=2 * SECONDS_MAX) < lane.leased_until


def _read_entry(due: Due) -> Entry:
    book, _, kind = due.event_type.partition(".")
    fact = Fact(
        book,
        kind,
        due.subject or "",
        due.network,
        due.asset,
        None if due.amount is None else int(due.amount),
        due.from_party,
        due.to_party,
        due.details or {},
    )
    return Entry(Position(), due.recorded_at, fact)
