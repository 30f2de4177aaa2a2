"""Mending: a sweep over what is not final. Every step is guarded by the row it changes: many may sweep."""

import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, cast

from tollbook.core import clock
from tollbook.core.lanes import nonces, transactions
from tollbook.core.lanes.fees import FeesAboveCap
from tollbook.core.lanes.network import NetworkLanes
from tollbook.core.lanes.node import Ask
from tollbook.core.lanes.outcomes import Outcome, find_call, find_holder, find_known, find_mined
from tollbook.core.lanes.transactions import GAS_MIN, Call, Transaction, Unfinished

SWEEP_MAX = 500  # transactions looked after in one sweep; the rest in the next ones
FILL_MAX = 100  # gaps closed in one sweep
FILLER = "lanes: close a gap "

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Mended:
    """How many of each a sweep found or did.

    `abandoned`: reserved by a process that ended, nonces freed. `mined`: found in blocks. `resent`: handed to
    the node again. `bumped`: with higher fees. `above_cap`: stuck, and the fee cap forbids more, or ten times
    of what is asked is offered. `reissued`: displaced by a stranger's transaction, sent under a new nonce.
    `dropped`: displaced, and not sent again. `filled`: gaps closed. `confirmed`: deep enough. `orphaned`:
    their block disappeared. `unclear`: the node cannot tell what became of them. `no_gas_money`: refused
    since the account is empty.
    """

    abandoned: int = 0
    mined: int = 0
    resent: int = 0
    bumped: int = 0
    above_cap: int = 0
    reissued: int = 0
    dropped: int = 0
    filled: int = 0
    confirmed: int = 0
    orphaned: int = 0
    unclear: int = 0
    no_gas_money: int = 0

    def add(self, other: "Mended") -> None:
        """Count another network's sweep in."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


async def mend_network(lanes: NetworkLanes, lost_seconds: float, stuck_seconds: float) -> Mended:
    """One sweep over one network. Raises ChainUnreachable, DatabaseUnreachable."""
    sweep = _Sweep(lanes, timedelta(seconds=lost_seconds), timedelta(seconds=stuck_seconds))
    await sweep.run()
    return sweep.mended


class _Sweep:
    def __init__(self, lanes: NetworkLanes, lost: timedelta, stuck: timedelta) -> None:
        self._lanes = lanes
        self._node = lanes.node
        self._lost, self._stuck = lost, stuck
        self._now: datetime = clock.now()
        self._used: dict[str, int] = {}
        self._head = 0
        self.mended = Mended()

    async def run(self) -> None:
        self._lanes.fees.forget()
        self.mended.abandoned = await self._lanes.free_abandoned()
        self._used = dict(await self._lanes.look())
        self._head = await self._node.ask_int("eth_blockNumber")
        await self._mend_open(await self._find(mined=False))
        await self._mend_mined(await self._find(mined=True))
        for sender, used in self._used.items():
            await self._fill(sender, used)

    async def _find(self, *, mined: bool) -> list[Unfinished]:
        async with self._lanes.database.read() as tx:
            return await transactions.find_unfinished(
                tx, self._node.network, mined=mined, sent_before=self._now - self._lost, limit=SWEEP_MAX
            )

    # What is signed or sent --------------------------------------------------------------------------------

    async def _mend_open(self, rows: Sequence[Unfinished]) -> None:
        found = await self._record_mined(rows)
        left = [row for row in rows if row.transaction_id not in found]
        known = await find_known(self._node, [row.hash for row in left if row.status == "sent"])
        base_fee = await self._lanes.fees.find_base_fee() if left else 0
        for row in left:
            if row.sender not in self._used:
                self.mended.unclear += 1  # its key is not here
            elif row.nonce < self._used[row.sender]:
                await self._mend_displaced(row)
            elif row.hash not in known and row.fee_max >= base_fee:
                await self._resend(row)
            elif row.hash not in known or self._now - row.sent_at >= self._stuck:
                await self._bump(row, base_fee)

    async def _record_mined(self, rows: Sequence[Unfinished]) -> set[int]:
        mined = await find_mined(self._node, [(row.transaction_id, row.hashes) for row in rows])
        if mined:
            final = self._lanes.confirmations <= 1
            await transactions.record_mined(self._lanes.database, list(mined.values()), final=final)
        self.mended.mined += len(mined)
        return set(mined)

    async def _resend(self, row: Unfinished) -> None:
        outcome = await self._lanes.resend(row, row.fees)
        self.mended.resent += outcome is Outcome.TAKEN
        self._note_refusal(row, outcome)

    async def _bump(self, row: Unfinished, base_fee: int) -> None:
        """Offer more for the next one in its lane, and for all that the base fee has left behind."""
        try:
            fees = self._lanes.fees.bump(row.fees, await self._lanes.fees.choose())
        except FeesAboveCap:
            fees = None
        if fees is None:
            self.mended.above_cap += 1
        elif row.nonce == self._used[row.sender] or row.fee_max < base_fee:
            outcome = await self._lanes.resend(row, fees)
            self.mended.bumped += outcome is Outcome.TAKEN
            self._note_refusal(row, outcome)

    def _note_refusal(self, row: Unfinished, outcome: Outcome) -> None:
        if outcome is Outcome.NO_GAS_MONEY:
            self.mended.no_gas_money += 1
            logger.warning("%s", self._lanes.name_empty(row.sender).sentence)

    async def _mend_displaced(self, row: Unfinished) -> None:
        """Its nonce is used, and not by it. Only a stranger's transaction that is final proves that."""
        holder = await find_holder(self._node, row.sender, row.nonce)
        if holder is None or holder[0] in row.hashes:
            self.mended.unclear += 1
            return
        if not self._is_deep(holder[1]):
            return
        call = self._lanes.read_call(row)
        is_ours = await find_call(self._node, holder[0]) == (call.to, call.value, call.data)
        async with self._lanes.database.write() as tx:
            if is_ours:  # bumped by one whose books were lost since: the next sweep finds it by this hash
                await transactions.record_resend(tx, row, holder[0], row.fees)
                return
            if not await transactions.drop(tx, row.transaction_id, row.hash, row.sends):
                return
        logger.warning("nonce %s of %s was used elsewhere, by %s", row.nonce, row.sender, holder[0])
        if row.purpose.startswith(FILLER):
            self.mended.dropped += 1
            return
        sent = _count_sent((await self._lanes.issue([call], self._lost.total_seconds())).values())
        self.mended.reissued += sent
        self.mended.dropped += 1 - sent

    # What is mined -----------------------------------------------------------------------------------------

    async def _mend_mined(self, rows: Sequence[Unfinished]) -> None:
        now_there = await self._read_block_hashes({cast(int, row.block_number) for row in rows})
        final: list[Unfinished] = []
        moved: list[Unfinished] = []
        for row in rows:
            number = cast(int, row.block_number)
            block_hash = now_there[number]
            if block_hash == row.block_hash:
                final += [row] if self._is_deep(number) else []
            elif block_hash is None and number <= self._head:
                self.mended.unclear += 1  # the node has forgotten the block
            else:
                moved.append(row)
        if final:
            async with self._lanes.database.write() as tx:
                ids = [row.transaction_id for row in final]
                hashes = [cast(str, row.block_hash) for row in final]
                self.mended.confirmed += await transactions.record_confirmed(tx, ids, hashes)
        await self._mend_moved(moved)

    async def _mend_moved(self, rows: Sequence[Unfinished]) -> None:
        """Their block is gone: they are in another one, or on their way again."""
        found = await self._record_mined(rows)
        for row in rows:
            if row.transaction_id in found:
                continue
            async with self._lanes.database.write() as tx:
                orphaned = await transactions.record_orphaned(tx, row)
            self.mended.orphaned += orphaned
            if orphaned:
                await self._resend(row)

    async def _read_block_hashes(self, numbers: set[int]) -> dict[int, str | None]:
        ordered = sorted(numbers)
        said = await self._node.ask_all(
            [Ask("eth_getBlockByNumber", (hex(number), False)) for number in ordered]
        )
        if any(answer.error for answer in said):
            raise self._node.complain("it does not tell its blocks")
        hashes = [answer.result and cast(dict[str, Any], answer.result)["hash"].lower() for answer in said]
        return dict(zip(ordered, hashes, strict=True))

    def _is_deep(self, block_number: int) -> bool:
        return self._head - block_number + 1 >= self._lanes.confirmations

    # What is missing ---------------------------------------------------------------------------------------

    async def _fill(self, sender: str, used: int) -> None:
        """Nonces that nobody has hold up all later ones: give them to transactions that do nothing."""
        async with self._lanes.database.write() as tx:
            gaps = await nonces.find_gaps(tx, self._node.network, sender, used, FILL_MAX)
        if gaps == 0:
            return
        fillers = [
            Call(self._node.network, FILLER + secrets.token_hex(16), sender, b"", GAS_MIN, sender=sender)
            for _ in range(min(gaps, FILL_MAX))
        ]
        issued = await self._lanes.issue(fillers, self._lost.total_seconds(), only_gaps=True)
        self.mended.filled += _count_sent(issued.values())


def _count_sent(answers: Iterable[Transaction | Exception]) -> int:
    return sum(isinstance(answer, Transaction) and answer.status != "dropped" for answer in answers)
