"""One run of the reconciler: what it looks with, what it has found so far, and what it could not ask."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from tollbook.books.payments.errors import AlreadyCounted, PaymentNotInState
from tollbook.books.payments.ledger import Settlement, Truth, Verdict
from tollbook.books.payments.reconciler import differences
from tollbook.books.payments.reconciler.differences import Difference, Finding
from tollbook.books.payments.reconciler.movements import Watcher
from tollbook.core.chains import ChainRefused, ChainUnreachable
from tollbook.core.database import Database, WriteTx

AT_ONCE_MAX = 8
PAGES_MAX = 1_000

_Row = TypeVar("_Row")


@dataclass(slots=True)
class Run:
    """What the passes of one run share. `watchers` by CAIP-2 network; `since` where all is to be looked at.

    Nothing younger than `grace` is looked at: it may be on its way through a process that lives.
    """

    database: Database
    truth: Truth
    watchers: Mapping[str, Watcher]
    now: datetime
    grace: timedelta
    since: datetime | None
    seen: dict[int, Difference] = field(default_factory=dict[int, Difference])
    unreachable: dict[str, str] = field(default_factory=dict[str, str])
    looked_at: int = 0
    finals: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def settled_before(self) -> datetime:
        """What came to its end after this is too young."""
        return self.now - self.grace

    async def judge(self, row: Settlement) -> Verdict | None:
        """The chain's verdict, None where it has none. Raises ChainUnreachable."""
        if row.network in self.unreachable:
            raise ChainUnreachable(row.network, "", "it did not answer before")
        return await self.truth.find(row)

    async def find_final(self, network: str) -> int:
        """The last position of a network that no reorganisation reaches; -1 where nobody watches it."""
        if network not in self.finals:
            watcher = self.watchers.get(network)
            self.finals[network] = -1 if watcher is None else await watcher.find_final(network)
        return self.finals[network]

    async def note(self, tx: WriteTx, finding: Finding) -> None:
        """Write a difference down."""
        seen = await differences.note(tx, finding, now=self.now)
        self.seen[seen.difference_id] = seen

    async def each(
        self, rows: Sequence[_Row], network: Callable[[_Row], str], look: Callable[[_Row], Awaitable[None]]
    ) -> None:
        """Look at every row, a few at once. A node that does not answer stops the look at its network."""
        gate = asyncio.Semaphore(AT_ONCE_MAX)

        async def guarded(row: _Row) -> None:
            async with gate:
                if network(row) in self.unreachable:
                    return
                try:
                    with suppress(AlreadyCounted, PaymentNotInState):  # somebody else was faster
                        await look(row)
                except (ChainUnreachable, ChainRefused) as error:
                    self.unreachable.setdefault(network(row), error.sentence)

        self.looked_at += len(rows)
        await asyncio.gather(*(guarded(row) for row in rows))
