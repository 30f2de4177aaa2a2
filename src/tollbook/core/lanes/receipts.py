"""Waiting for blocks: one poller a network asks for the receipts of all that is waited for, in batches."""

import asyncio
import logging
import time
from dataclasses import dataclass, replace

from tollbook.core.chains import ChainUnreachable
from tollbook.core.errors import DatabaseUnreachable
from tollbook.core.lanes import transactions
from tollbook.core.lanes.network import NetworkLanes
from tollbook.core.lanes.outcomes import find_mined
from tollbook.core.lanes.transactions import Transaction

POLL_SECONDS_MIN = 0.01
POLL_SECONDS_MAX = 0.5
POLL_GROWTH = 1.5
TOGETHER_SECONDS = 0.005  # what is due within this is asked for in the same request
RELOAD_SECONDS = 1.0  # another process may have replaced it under a new hash
ASKED_MAX = 500

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Watch:
    transaction_id: int
    hashes: list[str]
    mined: asyncio.Future[Transaction]
    due: float
    reload_at: float
    pause: float = POLL_SECONDS_MIN
    waiters: int = 0


class Receipts:
    """The transactions of one network that are waited for, whoever waits."""

    def __init__(self, lanes: NetworkLanes) -> None:
        self._lanes = lanes
        self._watches: dict[int, _Watch] = {}
        self._news = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None

    async def wait(self, transaction_id: int, hashes: list[str]) -> Transaction:
        """The transaction once it is mined and written down, with its receipt; or dropped. Waits for ever."""
        watch = self._watches.get(transaction_id)
        if watch is None:
            now, future = time.monotonic(), asyncio.get_running_loop().create_future()
            watch = _Watch(transaction_id, hashes, future, now + POLL_SECONDS_MIN, now + RELOAD_SECONDS)
            self._watches[transaction_id] = watch
            self._news.set()
            if self._poller is None or self._poller.done():
                self._poller = asyncio.create_task(self._poll())
        watch.waiters += 1
        try:
            return await asyncio.shield(watch.mined)
        finally:
            watch.waiters -= 1
            if watch.waiters == 0 and self._watches.get(transaction_id) is watch:  # not a later waiter's
                del self._watches[transaction_id]

    async def aclose(self) -> None:
        """Stop asking."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)

    async def _poll(self) -> None:
        while self._watches:
            await self._sleep()
            now = time.monotonic()
            due = [watch for watch in self._watches.values() if watch.due <= now + TOGETHER_SECONDS]
            longest_due = sorted(due, key=lambda watch: watch.due)[:ASKED_MAX]
            try:
                await self._ask(longest_due)
            except (ChainUnreachable, DatabaseUnreachable) as failure:
                logger.info("%s while waiting for blocks of %s", failure.reason, self._lanes.node.network)
            except Exception:  # who waits must not wait for nothing
                logger.exception("waiting for blocks of %s broke off once", self._lanes.node.network)

    async def _sleep(self) -> None:
        """Until somebody's next turn, or a newcomer's."""
        self._news.clear()
        seconds = min(watch.due for watch in self._watches.values()) - time.monotonic()
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _ask(self, due: list[_Watch]) -> None:
        now = time.monotonic()
        for watch in due:
            watch.pause = min(watch.pause * POLL_GROWTH, POLL_SECONDS_MAX)
            watch.due = now + watch.pause
        await self._reload([watch for watch in due if watch.reload_at <= now])
        lanes = self._lanes
        mined = await find_mined(lanes.node, [(watch.transaction_id, watch.hashes) for watch in due])
        if not mined:
            return
        await transactions.record_mined(lanes.database, list(mined.values()), final=lanes.confirmations <= 1)
        async with lanes.database.statement() as tx:
            rows = await transactions.find(tx, ids=list(mined))
        for row in rows:
            self._resolve(replace(row, receipt=mined[row.transaction_id].receipt))

    async def _reload(self, watches: list[_Watch]) -> None:
        if not watches:
            return
        async with self._lanes.database.statement() as tx:
            rows = await transactions.find(tx, ids=[watch.transaction_id for watch in watches])
        for watch in watches:
            watch.reload_at = time.monotonic() + RELOAD_SECONDS
        for row in rows:
            if row.status == "dropped":
                self._resolve(row)
            elif row.transaction_id in self._watches:
                self._watches[row.transaction_id].hashes = row.hashes

    def _resolve(self, row: Transaction) -> None:
        watch = self._watches.pop(row.transaction_id, None)
        if watch is not None:
            watch.mined.set_result(row)
