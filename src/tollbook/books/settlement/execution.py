"""Execution: commands become transactions, transactions become settled commands.

On each network, side by side: what is validated is begun and handed to core/lanes (`send`); what was begun
and has no transaction, because somebody died or a node refused it, is looked for on the chain and handed over
again (`resume`); what the lanes call final is judged by its receipt (`judge`); what the chain took back is
opened again (`reopen`); and the lanes are mended (`mend`). Every step may be killed, repeated, and done by
many: a command's purpose is one transaction, its status moves by statements that name where it starts from.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tollbook.books.settlement import commands, due, endings
from tollbook.books.settlement.due import Confirmed, Due
from tollbook.books.settlement.looks import CLOCKS_APART_MAX, Lookout, Sight, StrangerWaits, read_receipts
from tollbook.books.settlement.purse import Choice, Purse, PurseEmpty, TransferReverts
from tollbook.core import clock
from tollbook.core.chains import Chain, Receipt, find_network
from tollbook.core.database import Database, WriteTx
from tollbook.core.errors import DatabaseUnreachable, Refusal
from tollbook.core.lanes import (
    FeesAboveCap,
    Lanes,
    NoGasMoney,
    NonceAwaited,
    PurposeReused,
    SubmissionOpen,
    Transaction,
    nonces,
)
from tollbook.core.lanes import endings as lane_endings
from tollbook.core.lanes.node import Node
from tollbook.core.services import repeat

SENT_AT_ONCE_MAX = 100
RESUMED_AT_ONCE_MAX = 100
JUDGED_AT_ONCE_MAX = 200
REOPENED_AT_ONCE_MAX = 500
OPEN_MAX = 200  # transactions of an account that wait for blocks: nodes keep few more of one
HELD = timedelta(seconds=60)  # longer than the lanes take to submit: so long it is in one worker's hands
SUBMIT_SECONDS_MAX = 10.0  # who took longer to get there leaves it to whoever holds it next
WATCHED = timedelta(seconds=15)  # then one that waits for its block is looked at again
DEEPENING = timedelta(minutes=5)  # or one that has its block: `judge` finds it when that is deep enough
WAIT_SECONDS_MAX = 30.0
WATCHES_MAX = 2_000
ATTEMPTS_MAX = 30  # of what is surely not sent, with pauses up to the longest: half an hour
PAUSES_MAX = 6  # each twice the one before
REVERTS_MAX = 6
PAUSE_MIN, PAUSE_MAX = timedelta(seconds=1), timedelta(seconds=60)
REHEARSED = timedelta(minutes=5)  # in a dry run, until it is rehearsed again
IDLE_SECONDS = 0.5
MEND_SECONDS = 2.0
CALM_SECONDS = 60.0  # between sweeps while nothing is under way: nodes are paid by the request
LOST_SECONDS, STUCK_SECONDS = 5.0, 30.0  # as lanes has them
UNSENT = ("reserved", "dropped")
# No fault of the command: it waits as long as it may.
WAITS = (NoGasMoney, PurseEmpty, FeesAboveCap, NonceAwaited, StrangerWaits)
# It may be sent, or be about to: whoever holds the command next finds out.
OPEN = (SubmissionOpen, DatabaseUnreachable, PurposeReused)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long is waited for what: shorter in tests."""

    idle_seconds: float = IDLE_SECONDS
    mend_seconds: float = MEND_SECONDS
    calm_seconds: float = CALM_SECONDS
    lost_seconds: float = LOST_SECONDS
    stuck_seconds: float = STUCK_SECONDS
    pause_min: timedelta = PAUSE_MIN
    held: timedelta = HELD


@dataclass(slots=True)
class Desk:
    """One network's desk. Close nothing of it: see `open_desk`."""

    database: Database
    network: str
    lanes: Lanes
    node: Node
    purse: Purse
    lookout: Lookout
    pace: Pace
    dry_run: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)
    _watches: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    _mended_at: float = -math.inf
    _told: set[tuple[str, str | None]] = field(default_factory=set[tuple[str, str | None]])

    # Sending -----------------------------------------------------------------------------------------------

    async def send(self) -> int:
        """Begin what is validated and can be paid now, and hand it to the lanes; how many were looked at.

        Raises ChainUnreachable, DatabaseUnreachable: what was begun by then is for `resume`.
        """
        now = clock.now()
        async with self.database.read() as tx:
            open_count = await due.count_open(tx, self.network, self.lanes.addresses)
            room = min(SENT_AT_ONCE_MAX, OPEN_MAX * len(self.lanes.addresses) - open_count)
            dues = await due.find(tx, "validated", self.network, now, room) if room > 0 else []
            dues = [one for one in dues if not one.is_over(now)]
            former = await due.find_transactions(tx, [one for one in dues if one.round])
        if not dues:
            return 0
        sights: Mapping[str, Sight] = {}
        try:
            sights = await self.lookout.look(dues, former)
            choices = await self._choose([one for one in dues if one.command_id not in sights])
        except StrangerWaits as refusal:
            choices = [Choice(one.transfer, refusal=refusal) for one in dues]
        chosen = {one.transfer.command_id: one for one in choices}
        now, began_at = clock.now(), time.monotonic()  # the node may have taken long
        async with self.database.write() as tx:
            still = await due.lock(tx, dues)
            begun = [one for one in still if await self._begin(tx, one, chosen.get(one.command_id), now)]
        await self._submit([chosen[one.command_id] for one in begun], began_at)
        return len(dues)

    async def _choose(self, dues: Sequence[Due], own: Mapping[str, str] | None = None) -> list[Choice]:
        """From which account each would go; what they want themselves does not count as on its way."""
        besides = [one.command_id for one in dues]
        async with self.database.read() as tx:
            bound = await due.find_bound(tx, self.network, self.lanes.addresses, besides)
        return await self.purse.choose([one.transfer for one in dues], bound, own)

    async def _begin(self, tx: WriteTx, one: Due, choice: Choice | None, now: datetime) -> bool:
        """Whether it is to be handed to the lanes: from the commit on, they may have it.

        Without a choice it was paid before, and these books had forgotten it: `resume` goes on with it.
        """
        refusal = choice.refusal if choice else None
        if self.dry_run:
            says = _say_dry(choice)
            await commands.postpone(tx, one.command_id, says, next_attempt_at=now + REHEARSED, now=now)
        elif isinstance(refusal, TransferReverts) and one.reverts >= REVERTS_MAX:
            await commands.refuse(tx, one.command_id, refusal.sentence, now=now)
        elif refusal is not None:
            await self._postpone(tx, one, refusal, now)
        else:
            until = now + self.pace.held if choice else now
            return await commands.begin(tx, one.command_id, next_attempt_at=until, now=now) and bool(choice)
        return False

    async def _submit(self, choices: Sequence[Choice], began_at: float) -> None:
        """Hand them to the lanes, all at once, and write down what became of each."""
        if not choices or time.monotonic() - began_at > SUBMIT_SECONDS_MAX:
            return  # this process stood still: they may be in other hands by now
        answers = await asyncio.gather(
            *(self.lanes.submit(one.transfer.make_call(one.sender)) for one in choices),
            return_exceptions=True,
        )
        now = clock.now()
        async with self.database.write() as tx:
            for choice, answer in sorted(
                zip(choices, answers, strict=True), key=lambda pair: pair[0].transfer.command_id
            ):
                await self._note(tx, choice, answer, now)
        for answer in answers:
            if isinstance(answer, Transaction):
                self._watch(answer.transaction_id)
        broken = [one for one in answers if isinstance(one, BaseException) and not isinstance(one, Refusal)]
        if broken:  # they are held for a while, and then looked at
            logger.error("%s calls on %s broke off", len(broken), self.network, exc_info=broken[0])

    async def _note(
        self, tx: WriteTx, choice: Choice, answer: Transaction | BaseException, now: datetime
    ) -> None:
        one = await due.get(tx, choice.transfer.command_id)
        if (one.status, one.round) != ("executed", choice.transfer.round):
            return
        if isinstance(answer, Transaction):
            await self._note_sent(tx, one, answer, now)
        elif isinstance(answer, Refusal) and not isinstance(answer, OPEN):
            await self._postpone(tx, one, answer, now)

    async def _note_sent(self, tx: WriteTx, one: Due, sent: Transaction, now: datetime) -> None:
        self._told = {each for each in self._told if each[1] != one.asset}
        await commands.note_sent(
            tx,
            one.command_id,
            tx_hash=sent.hash,
            transaction_id=sent.transaction_id,
            next_attempt_at=now + (DEEPENING if sent.status == "mined" else WATCHED),
            now=now,
        )

    async def _postpone(self, tx: WriteTx, one: Due, refusal: Refusal, now: datetime) -> None:
        waits = isinstance(refusal, WAITS)
        if waits and (refusal.reason, one.asset) not in self._told:
            self._told.add((refusal.reason, one.asset))
            logger.warning("%s: %s", one.command_id, refusal.sentence)
        await commands.postpone(
            tx,
            one.command_id,
            refusal.sentence,
            next_attempt_at=now + self._pause(one),
            counted=not waits or one.attempts < PAUSES_MAX,
            reverted=isinstance(refusal, TransferReverts),
            now=now,
        )

    def _pause(self, one: Due) -> timedelta:
        return min(self.pace.pause_min * 2 ** min(one.attempts, PAUSES_MAX), PAUSE_MAX)

    def _watch(self, transaction_id: int) -> None:
        """Have the lanes ask for its block, and be told; many are asked for together. Bounded: see `mend`."""
        if len(self._watches) < WATCHES_MAX:
            task = asyncio.create_task(self._wait(transaction_id))
            self._watches.add(task)
            task.add_done_callback(self._watches.discard)

    async def _wait(self, transaction_id: int) -> None:
        try:
            mined = await self.lanes.wait(transaction_id, seconds_max=WAIT_SECONDS_MAX)
        except Refusal:
            return  # the sweeps find it
        if mined.confirmed_at is not None:
            self.news.set()

    # Going on with what was begun --------------------------------------------------------------------------

    async def resume(self) -> int:
        """Go on with what was begun and left alone for a while; how many there were.

        Raises ChainUnreachable, DatabaseUnreachable.
        """
        now = clock.now()
        async with self.database.read() as tx:
            dues = await due.find(tx, "executed", self.network, now, RESUMED_AT_ONCE_MAX)
        if not dues:
            return 0
        began_at = time.monotonic()
        async with self.database.write() as tx:
            dues = await due.claim(tx, dues, until=now + self.pace.held, now=now)
        async with self.database.read() as tx:
            known = await due.find_transactions(tx, dues)
        unsent: list[Due] = []
        for one in dues:
            by_purpose = {each.purpose: each for each in known.get(one.command_id, ())}
            current = by_purpose.get(one.transfer.purpose)
            if current is None or current.status in UNSENT:
                unsent.append(one)
            else:
                await self._adopt(one, current, now)
        await self._send_again(unsent, known, began_at, now)
        return len(dues)

    async def _adopt(self, one: Due, transaction: Transaction, now: datetime) -> None:
        """It has a transaction: by the hash that it has now, which a higher fee may have changed."""
        async with self.database.write() as tx:
            if await due.lock(tx, [one]):
                await self._note_sent(tx, one, transaction, now)
                if transaction.status != "mined" and transaction.sender not in self.lanes.addresses:
                    await endings.say_keyless(tx, one, transaction, until=now + WATCHED, now=now)
        if transaction.status in ("signed", "sent"):
            self._watch(transaction.transaction_id)
        if transaction.status == "lost":
            await self._displace(transaction)
        self.news.set()

    async def _displace(self, hidden: Transaction) -> None:
        """Give the nonce of one that was taken back, or refused, to a transaction that does nothing.

        Whoever saw it may send it again: only when its nonce is another's for good may it be paid anew.
        """
        try:
            await self.lanes.displace(hidden)
        except Refusal as refusal:
            logger.warning("nonce %s of %s: %s", hidden.nonce, hidden.sender, refusal.sentence)

    async def _send_again(
        self, dues: Sequence[Due], known: Mapping[str, Sequence[Transaction]], began_at: float, now: datetime
    ) -> None:
        """They have none that lives. Nothing is sent anew before the chain was looked at."""
        if not dues:
            return
        try:
            sights = await self.lookout.look(dues, known)
        except StrangerWaits as refusal:
            await self._note_refused([Choice(one.transfer, refusal=refusal) for one in dues], now)
            return
        left: list[Due] = []
        for one in dues:
            of_all_rounds = {each.purpose: each for each in known.get(one.command_id, ())}
            if await self._may_be_sent(
                one, sights.get(one.command_id), of_all_rounds.get(one.transfer.purpose), now
            ):
                left.append(one)
        async with self.database.read() as tx:
            own = await nonces.find_accounts(tx, [one.transfer.purpose for one in left])
        choices = await self._choose(left, own)
        await self._note_refused(choices, now)
        await self._submit([one for one in choices if one.refusal is None], began_at)

    async def _may_be_sent(
        self, one: Due, sight: Sight | None, own: Transaction | None, now: datetime
    ) -> bool:
        """Whether it may be handed to the lanes now; else it is ended, or what it waits for written down.

        `own` is this round's transaction: dropped, or reserved by who died, or is about to sign it, which
        the lanes know.
        """
        is_given_up = (
            one.cancelling is not None or one.attempts >= ATTEMPTS_MAX or one.is_over(now - CLOCKS_APART_MAX)
        )
        if sight is not None and sight.hash is not None:
            await self._note_paid(one, sight, own, now)
        elif sight is not None and (own is None or sight.hidden is not own):
            await self._await_hidden(one, sight.hidden, now)
        elif own is not None and own.status == "reserved":
            return True
        elif (
            sight is not None and own is not None and (is_given_up or own.sender not in self.lanes.addresses)
        ):
            await self._await_hidden(one, own, now)
        elif is_given_up:
            await self._give_up(one, own)
        else:
            if sight is None and own is not None and own.nonce is not None:
                async with self.database.write() as tx:
                    await lane_endings.release(tx, own)
            return not one.is_over(now)  # else whoever began it in time may be about to send it
        return False

    async def _note_refused(self, choices: Sequence[Choice], now: datetime) -> None:
        async with self.database.write() as tx:
            for choice in choices:
                if choice.refusal is not None:
                    await self._note(tx, choice, choice.refusal, now)

    async def _note_paid(self, one: Due, sight: Sight, own: Transaction | None, now: datetime) -> None:
        """A transaction pays it that the lanes do not know: these books were restored, or a node lied."""
        logger.warning("%s is paid by %s, which was not sent for sure", one.command_id, sight.hash)
        if sight.is_final and sight.hash is not None:
            async with self.database.write() as tx:
                if await endings.bar(tx, one, own):
                    await commands.settle(tx, one.command_id, tx_hash=sight.hash, now=now)

    async def _await_hidden(self, one: Due, hidden: Transaction | None, now: datetime) -> None:
        """It may come yet, until its nonce is another's; one that is shown has its block some day."""
        if hidden is None:
            return
        if hidden.sender in self.lanes.addresses:
            await self._displace(hidden)
        says, later = endings.describe(one, hidden, self.lanes.addresses), now + self._pause(one)
        async with self.database.write() as tx:
            if await due.lock(tx, [one]):
                await endings.wait(tx, one, says, until=later, now=now)

    async def _give_up(self, one: Due, own: Transaction | None) -> None:
        why = "its time was over" if one.attempts < ATTEMPTS_MAX else f"it was tried {one.attempts} times"
        async with self.database.write() as tx:
            if await endings.bar(tx, one, own):
                await endings.give_up(tx, one, why, now=clock.now())

    # Judging -----------------------------------------------------------------------------------------------

    async def judge(self) -> int:
        """Settle what the chain shows, fail what it shows to have failed; how many of either.

        Raises ChainUnreachable, DatabaseUnreachable.
        """
        async with self.database.read() as tx:
            confirmed = await due.find_confirmed(tx, self.network, JUDGED_AT_ONCE_MAX)
        if not confirmed:
            return 0
        newest = await self.node.ask_int("eth_blockNumber")
        receipts = await read_receipts(self.node, [one.hash for one in confirmed])
        count = 0
        for one, receipt in zip(confirmed, receipts, strict=True):
            # Whatever block was the final one: the chain may have moved it. A node that lags is asked again.
            if receipt is not None and newest - receipt.block_number + 1 >= self.lookout.depth:
                count += await self._judge(one, receipt)
        return count

    async def _judge(self, one: Confirmed, receipt: Receipt) -> bool:
        shown = one.due.transfer.is_shown(receipt, one.sender)
        now, command_id = clock.now(), one.due.command_id
        async with self.database.write() as tx:
            if not await due.lock(tx, [one.due]) or not await due.is_final(tx, one):
                return False
            if shown:
                return await commands.settle(
                    tx, command_id, tx_hash=one.hash, transaction_id=one.due.transaction_id, now=now
                )
            why = (
                f"{one.hash} succeeded, and shows no transfer of {one.due.amount_minor} minor units to "
                f"{one.due.payee}. See what it moved before it is tried again."
                if receipt.succeeded
                else f"{one.hash} was reverted: nothing was paid. See why, and try again."
            )
            return await commands.fail(tx, command_id, why, now=now)

    async def reopen(self) -> int:
        """Open what was settled and was taken back by the chain; how many there were.

        The lanes know whether it may come back: until then it is not sent anew.
        """
        now = clock.now()
        async with self.database.read() as tx:
            lost = await due.find_taken_back(tx, self.network, REOPENED_AT_ONCE_MAX)
        for one in lost:
            await endings.reopen(self.database, one, now)
        return len(lost)

    async def mend(self) -> int:
        """Have the lanes look after what is not final; 0, so that there is a pause. Raises as they do."""
        async with self.database.read() as tx:
            is_calm = not await due.has_unfinished(tx, self.network)
        if is_calm and time.monotonic() - self._mended_at < self.pace.calm_seconds:
            return 0
        self._mended_at = time.monotonic()
        mended = await self.lanes.mend()
        if mended.confirmed or mended.mined:
            self.news.set()
        return 0

    # All of it ---------------------------------------------------------------------------------------------

    async def work(self, stop: asyncio.Event) -> None:
        """Do all of it until `stop` is set. What fails is logged, and tried again after a pause."""
        pace = self.pace
        turns: list[tuple[Callable[[], Awaitable[int]], float]] = [
            (self.send, pace.idle_seconds),
            (self.judge, pace.idle_seconds),
            (self.resume, pace.idle_seconds),
            (self.mend, pace.mend_seconds),
            (self.reopen, pace.mend_seconds),
        ]
        if self.dry_run:
            del turns[2:]
        try:
            async with asyncio.TaskGroup() as group:
                for turn, idle_seconds in turns:
                    wake = self.news if turn == self.judge else None
                    group.create_task(repeat(turn, stop, idle_seconds, self.network, wake=wake))
        finally:
            for task in self._watches:
                task.cancel()
            await asyncio.gather(*self._watches, return_exceptions=True)


def _say_dry(choice: Choice | None) -> str:
    if choice is None:
        return "Dry run: it was paid before, and these books had forgotten it."
    if choice.refusal is not None:
        return f"Dry run: {choice.refusal.sentence}"
    return f"Dry run: it would be sent from {choice.sender}."


@asynccontextmanager
async def open_desk(
    database: Database,
    network: str,
    url: str,
    private_keys: Sequence[str],
    *,
    pace: Pace | None = None,
    confirmations: int | None = None,
    dry_run: bool = False,
) -> AsyncGenerator[Desk]:
    """Yield a network's desk: its CAIP-2 id, its node, and the operator's keys.

    Raises SigningKeyUnusable, UnknownNetwork.
    """
    pace = pace or Pace()
    depth = confirmations or find_network(network).confirmations
    node = Node(network, url)
    lanes = Lanes(
        database,
        {network: url},
        private_keys,
        confirmations={network: depth},
        lost_seconds=pace.lost_seconds,
        stuck_seconds=pace.stuck_seconds,
    )
    try:
        async with lanes, Chain(network, url) as chain:
            lookout = Lookout(database, chain, node, lanes, depth)
            purse = Purse(node, lanes.addresses)
            yield Desk(database, network, lanes, node, purse, lookout, pace, dry_run)
    finally:
        await node.aclose()
