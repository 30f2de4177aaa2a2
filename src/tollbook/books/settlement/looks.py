"""Looking first: what a chain shows that the operator's accounts have paid, before anything is paid anew.

Books that were restored have forgotten what they paid last, and a node may have taken what it said it
refused. Every token transfer carries its command's mark, so that it is known again. Read once, and then only
what is new. The network's own coin carries no mark: of that, only the lanes know.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, cast

from tollbook.books.settlement import due as books
from tollbook.books.settlement.due import Due
from tollbook.books.settlement.transfers import MARK_BYTES
from tollbook.core import clock
from tollbook.core.chain_logs import Event, find_block_before, find_events, pad
from tollbook.core.chains import TRANSFER_TOPIC, Chain, Receipt, read_receipt
from tollbook.core.database import Database
from tollbook.core.errors import Refusal
from tollbook.core.lanes import Lanes, Transaction
from tollbook.core.lanes.counts import count
from tollbook.core.lanes.node import Ask, Node

CLOCKS_APART_MAX = timedelta(minutes=15)  # between ours and the chain's
FOUND_MAX = 100_000
BLOCKS_KEPT = 2_000  # after so many, what was read is kept, though the node give up on the rest
LOOK_BACK_MAX = timedelta(days=7)  # for transactions that these books do not know
STATES_KEPT = 100  # blocks: most nodes know the counts of the newest 128
LIVE = ("reserved", "signed", "sent", "lost")  # the lanes' own may have a block yet

logger = logging.getLogger(__name__)


class StrangerWaits(Refusal):
    """A transaction that these books do not know waits for its block: it may pay what is to be paid."""

    reason: ClassVar[str] = "stranger-waits"
    status: ClassVar[int] = 503


@dataclass(frozen=True, slots=True)
class Trace:
    """A transaction that may have paid a command, and who sent it."""

    hash: str
    sender: str


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look showed of a command: the transaction that paid it, and whether no block may change that.

    `hash` is None where one waits that may yet pay it; `hidden` is one that may, and that nobody shows.
    """

    hash: str | None
    is_final: bool
    hidden: Transaction | None = None


async def read_receipts(node: Node, hashes: Sequence[str]) -> list[Receipt | None]:
    """The receipts; None where the node has none, or talks nonsense of one. Raises ChainUnreachable."""
    said = await node.ask_all([Ask("eth_getTransactionReceipt", (one,)) for one in hashes])
    return [_read_receipt(node, one, answer.result) for one, answer in zip(hashes, said, strict=True)]


def _read_receipt(node: Node, wanted: str, answer: Any) -> Receipt | None:
    if answer is None:
        return None
    try:
        receipt = read_receipt(answer)
    except (KeyError, TypeError, ValueError, AttributeError, Refusal):
        receipt = None
    if receipt is None or receipt.transaction_hash != wanted:
        logger.warning("the node of %s has a nonsensical receipt of %s", node.network, wanted)
        return None
    return receipt


def _may_come(due: Due, own: Transaction) -> bool:
    """Not what was reserved for this round by who died, or is about to sign it: the lanes know which."""
    return own.status in LIVE and (own.status, own.purpose) != ("reserved", due.transfer.purpose)


def _list_hashes(transaction: Transaction | None) -> list[str]:
    return [] if transaction is None else [*transaction.hashes, *transaction.former_hashes]


@dataclass(slots=True)
class _Reading:
    """What was read of one token: every block from `first`, which was there at `since`, to `position`."""

    since: datetime
    first: int
    position: int


@dataclass(slots=True)
class Lookout:
    """Reads what the lanes' accounts moved on one network, `depth` blocks of which may still change."""

    database: Database
    chain: Chain
    node: Node
    lanes: Lanes
    depth: int
    newest: int = 0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _forgotten_since: datetime | None = None
    _room: int = FOUND_MAX
    _readings: dict[str, _Reading] = field(default_factory=dict[str, _Reading])
    _read: dict[str, int] = field(default_factory=dict[str, int])  # hashes in blocks that may still change
    _found: dict[bytes, Trace] = field(default_factory=dict[bytes, Trace])

    @property
    def senders(self) -> Sequence[str]:
        """The accounts' addresses, in lower case."""
        return self.lanes.addresses

    async def look(self, dues: Sequence[Due], own: Mapping[str, Sequence[Transaction]]) -> dict[str, Sight]:
        """By command, what paid it or may yet: nothing of those that are not in the answer is under way.

        `own` are the lanes' transactions of former rounds, and this round's where it was dropped, or reserved
        since: a node may have taken what it said it refused, which is `hidden` until its nonce is used, and
        may be sent again under that. Raises ChainUnreachable, ChainRefused, StrangerWaits,
        DatabaseUnreachable.
        """
        async with self._lock:  # who reads everything anew takes nothing away from another one's look
            return await self._look(dues, own)

    async def _look(self, dues: Sequence[Due], own: Mapping[str, Sequence[Transaction]]) -> dict[str, Sight]:
        await self._check_pending()  # what waits now could have its block after the blocks were read
        await self._read_news(dues)
        hidden = await self._find_hidden(own)
        traces = {due.command_id: self._trace(due, own.get(due.command_id, ())) for due in dues}
        hashes = list({trace.hash for one in traces.values() for trace in one})
        receipts = dict(zip(hashes, await read_receipts(self.node, hashes), strict=True))
        waiting = await self._find_waiting([one for one, receipt in receipts.items() if receipt is None])
        sights: dict[str, Sight] = {}
        waits = Sight(None, is_final=False)
        for due in dues:
            # Of this round last: it may be sent again, where none of another may come.
            for one in sorted(
                own.get(due.command_id, ()), key=lambda one: one.purpose == due.transfer.purpose
            ):
                if _may_come(due, one) or one.transaction_id in hidden:
                    may_be_displaced = one.status in ("dropped", "lost")
                    sights.setdefault(
                        due.command_id, replace(waits, hidden=one) if may_be_displaced else waits
                    )
            for trace in traces[due.command_id]:
                receipt, sight = receipts[trace.hash], sights.get(due.command_id, waits)
                if receipt is not None and due.transfer.is_shown(receipt, trace.sender):
                    is_final = self.newest - receipt.block_number + 1 >= self.depth
                    sights[due.command_id] = Sight(trace.hash, is_final)
                elif (
                    trace.hash in waiting and not sight.hash and trace.hash not in _list_hashes(sight.hidden)
                ):
                    sights[due.command_id] = waits
        return sights

    async def _find_hidden(self, own: Mapping[str, Sequence[Transaction]]) -> set[int]:
        """Those that a node said it refused, and may have taken: their nonces are not used for good."""
        refused = [
            one
            for of_command in own.values()
            for one in of_command
            if one.status == "dropped" and one.nonce is not None and _list_hashes(one)
        ]
        # What used a nonce by then has its receipt, whenever that is asked for.
        final = max(self.newest - min(self.depth, STATES_KEPT) + 1, 0)
        used = await count(self.node, list({one.sender for one in refused}), final)
        return {one.transaction_id for one in refused if cast(int, one.nonce) >= (used[one.sender] or 0)}

    def _trace(self, due: Due, own: Sequence[Transaction]) -> list[Trace]:
        traces = [Trace(one, transaction.sender) for transaction in own for one in _list_hashes(transaction)]
        marked = self._found.get(due.transfer.mark) if due.asset is not None else None
        return traces if marked is None else [*traces, marked]

    async def _find_waiting(self, hashes: Sequence[str]) -> set[str]:
        """Those without receipts that the node has all the same."""
        said = await self.node.ask_all([Ask("eth_getTransactionByHash", (one,)) for one in hashes])
        if any(answer.error for answer in said):
            raise self.node.complain("it does not say which transactions it has")
        known = {one for one, answer in zip(hashes, said, strict=True) if answer.result is not None}
        if known.issuperset(hashes):
            return known
        marked = {trace.hash for trace in self._found.values()}
        if not marked.isdisjoint(set(hashes) - known):  # their blocks are no more: read all of it again
            self._forget()
            raise self.node.complain("a transfer that it showed is gone")
        return known

    async def _read_news(self, dues: Sequence[Due]) -> None:
        if is_full := len(self._found) > self._room:
            self._forget()  # and read again what still matters
        self.newest = await self.chain.get_block_number()
        oldest: dict[str, datetime] = {}
        for due in dues:
            if due.asset is not None:
                oldest[due.asset] = min(oldest.get(due.asset, due.received_at), due.received_at)
        if oldest and self._forgotten_since is None:
            self._forgotten_since = await self._find_forgotten()
        for asset, since in oldest.items():
            await self._catch_up(asset, min(since, self._forgotten_since or since))
        if is_full:  # where all of it matters, it is not read again and again
            self._room = max(FOUND_MAX, 2 * len(self._found))

    async def _check_pending(self) -> None:
        """Restored books do not know what was sent last, and its mark can be read only in a block."""
        # What was dropped and taken all the same is known by its hash, and looked for by that.
        strangers = await self.lanes.find_strangers(self.node.network)
        if unknown := [one.sender for one in strangers if one.unknown]:
            raise StrangerWaits(
                f"A transaction of {', '.join(unknown)} that these books do not know waits for its block "
                f"on {self.node.network} and may pay this. It goes on by itself when that one has its block. "
                "Give Tollbook a key of its own; what is stuck may be replaced under its nonce."
            )

    def _forget(self) -> None:
        self._readings, self._read, self._found, self._forgotten_since = {}, {}, {}, None

    async def _find_forgotten(self) -> datetime:
        """Since when the chain may have transactions of ours that these books do not know; else, now.

        Restored books have forgotten commands too: one that is sent again was received, by them, just now.
        """
        told = await count(self.node, self.senders)
        used = {sender: number for sender, number in told.items() if number is not None}
        async with self.database.read() as tx:
            since = await books.find_forgotten(tx, self.node.network, used)
        now = clock.now()
        return max(since or now, now - LOOK_BACK_MAX)

    async def _catch_up(self, asset: str, since: datetime) -> None:
        reading = self._readings.get(asset)
        if reading is None or since < reading.since:
            start = await find_block_before(self.chain, since - CLOCKS_APART_MAX, self.newest)
            if reading is None:
                reading = self._readings[asset] = _Reading(since, start, start - 1)
            while reading.first > start:  # backwards, so that nothing between is left out
                first = max(start, reading.first - BLOCKS_KEPT)
                await self._read_blocks(asset, first, reading.first - 1)
                reading.first = first
            reading.since = since
        read = reading.position
        while read < self.newest:
            last = min(read + BLOCKS_KEPT, self.newest)
            await self._read_blocks(asset, read + 1, last)
            read = last
            reading.position = max(reading.position, min(read, self.newest - self.depth))
        self._read = {one: block for one, block in self._read.items() if block > self.newest - self.depth}

    async def _read_blocks(self, asset: str, first: int, last: int) -> None:
        topics = [TRANSFER_TOPIC, [pad(sender) for sender in self.senders]]
        events = await find_events(self.chain, [asset], topics, first, last)
        news = {event.transaction_hash: event for event in events if event.transaction_hash not in self._read}
        said = await self.node.ask_all([Ask("eth_getTransactionByHash", (one,)) for one in news])
        for event, answer in zip(news.values(), said, strict=True):
            self._note(event, answer.result)

    def _note(self, event: Event, answer: Any) -> None:
        try:
            data = bytes.fromhex(cast(str, answer["input"]).removeprefix("0x"))
            sender = str(answer["from"]).lower()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.chain.complain("eth_getTransactionByHash", error)
        self._read[event.transaction_hash] = event.block_number
        if sender in self.senders:  # a stranger may move nothing of ours, with a mark that he copied
            self._found[data[-MARK_BYTES:]] = Trace(event.transaction_hash, sender)
