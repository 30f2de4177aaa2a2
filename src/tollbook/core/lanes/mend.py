"""Mending: a sweep over what is not final. Every step is guarded by the row it changes: many may sweep."""

import logging
import math
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, cast

from tollbook.core import clock, local_chain, telemetry
from tollbook.core.chains import ChainUnreachable
from tollbook.core.lanes import losses, nonces, transactions
from tollbook.core.lanes.fees import FeesAboveCap
from tollbook.core.lanes.keys import Fees
from tollbook.core.lanes.network import FILLER, NetworkLanes
from tollbook.core.lanes.node import Ask
from tollbook.core.lanes.outcomes import Outcome, find_block, find_call, find_holder, find_known, find_mined
from tollbook.core.lanes.strangers import Counts, find_waiting
from tollbook.core.lanes.transactions import LOOK_FIRST, Mined, Transaction, Unfinished

SWEEP_MAX = 500  # transactions looked after in one sweep; the rest in the next ones
FILL_MAX = 100  # gaps closed in one sweep
BEHIND_SECONDS = 600.0  # for so long a chain must know less than is final here, before it is believed
SILENCES_MAX = 3  # answers to resending that are lost: then the node is left alone until the next sweep
REHEARSAL = local_chain.NETWORK  # a shorter chain is one that was rolled back here, and not a node that lags

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Mended:
    """How many of each a sweep found or did.

    `abandoned`: reserved by a process that ended, nonces freed. `mined`: found in blocks. `resent`: handed to
    the node again. `bumped`: with higher fees. `above_cap`: stuck, and the fee cap forbids more, or ten times
    of what is asked is offered. `reissued`: displaced by a stranger's transaction, sent under a new nonce.
    `dropped`: displaced, and not sent again. `filled`: gaps closed. `confirmed`: deep enough. `orphaned`:
    their block disappeared. `lost`: it disappeared although it was deep enough. `unclear`: the node cannot
    tell what became of them. `keyless`: open, and their key is not here. `no_gas_money`: refused since the
    account is empty.
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
    lost: int = 0
    unclear: int = 0
    keyless: int = 0
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
        self._silences = 0
        self.mended = Mended()

    async def run(self) -> None:
        self._lanes.fees.forget()
        self.mended.abandoned = await self._lanes.free_abandoned()
        counts = await self._lanes.look()
        self._used = {sender: used for sender, (used, _) in counts.items()}
        self._head = await self._node.ask_int("eth_blockNumber")
        await self._tell_keyless()
        theirs = await self._tell_strangers(counts)
        await self._mend_mined(await self._find("mined"))
        for sender, used in self._used.items():
            await self._find_lost(sender, used)
        await self._mend_lost(await self._find("lost"))
        for sender, (used, pending) in counts.items():
            await self._fill(sender, pending if sender in theirs else used)
        await self._mend_open(
            await self._find("signed", "sent")
        )  # last: one may be more than the node can tell

    async def _find(self, *statuses: str) -> list[Unfinished]:
        async with self._lanes.database.read() as tx:
            return await transactions.find_unfinished(
                tx, self._node.network, statuses=statuses, sent_before=self._now - self._lost, limit=SWEEP_MAX
            )

    async def _tell_keyless(self) -> None:
        """Say once what waits for keys that were removed."""
        network = self._node.network
        async with self._lanes.database.read() as tx:
            waiting = await transactions.find_keyless(tx, list(self._lanes.keys))
        waiting = [one for one in waiting if one.network == network]
        self.mended.keyless = sum(one.count for one in waiting)
        telemetry.KEYLESS.labels(network).set(self.mended.keyless)
        for one in waiting:
            if one.sender not in self._lanes.keyless_told:
                logger.warning(
                    "%s transactions on %s wait for %s, whose key is not here; the oldest since %s. "
                    "Configure the key again until they are done: their payments stay open as long.",
                    one.count,
                    network,
                    one.sender,
                    one.oldest_at,
                )
        self._lanes.keyless_told = {one.sender for one in waiting}

    async def _tell_strangers(self, counts: Counts) -> set[str]:
        """Say once what of an account waits that was not sent from here: its lane waits behind it.

        The accounts: what waits there may be what restored books forgot, and nobody fights for its nonces.
        """
        found = await find_waiting(self._lanes.database, self._node, counts)
        found = [one for one in found if one.unknown]
        telemetry.STRANGERS.labels(self._node.network).set(sum(one.unknown for one in found))
        before, now = self._lanes.strangers_since, time.monotonic()
        since = {(one.sender, one.nonce): before.get((one.sender, one.nonce), now) for one in found}
        self._lanes.strangers_since = since
        for one in found:
            if now - since[one.sender, one.nonce] >= self._stuck.total_seconds():
                since[one.sender, one.nonce] = math.inf
                logger.warning(
                    "%s transactions of %s on %s, from nonce %s on, wait for blocks and are not of these "
                    "books: what is sent from here waits behind them. Whoever sent them can replace the "
                    "one of this nonce with higher fees. Give Tollbook a key of its own.",
                    one.unknown,
                    one.sender,
                    self._node.network,
                    one.nonce,
                )
        return {one.sender for one in found}

    # What is signed or sent --------------------------------------------------------------------------------

    async def _mend_open(self, rows: Sequence[Unfinished]) -> None:
        found = await self._record_mined(rows)
        left = [row for row in rows if row.transaction_id not in found]
        known = await find_known(self._node, [row.hash for row in left if row.status == "sent"])
        base_fee = await self._lanes.fees.find_base_fee() if left else 0
        for row in left:
            if row.sender not in self._used:
                continue  # its key is not here
            if row.nonce < self._used[row.sender]:
                with self._patience():
                    await self._mend_displaced(row)
            elif row.hash not in known and row.fee_max >= base_fee:
                await self._resend(row)
            elif row.hash not in known or self._now - row.sent_at >= self._stuck:
                await self._bump(row, base_fee)

    async def _record_mined(self, rows: Sequence[Unfinished]) -> set[int]:
        mined = await find_mined(self._node, [(row.transaction_id, row.hashes) for row in rows])
        await self._record(mined)
        return set(mined)

    async def _record(self, mined: Mapping[int, Mined]) -> None:
        if mined:
            final = self._lanes.confirmations <= 1
            await transactions.record_mined(self._lanes.database, list(mined.values()), final=final)
        self.mended.mined += len(mined)

    async def _resend(self, row: Unfinished) -> None:
        self.mended.resent += await self._hand_out(row, row.fees) is Outcome.TAKEN

    async def _hand_out(self, row: Unfinished, fees: Fees) -> Outcome:
        outcome = Outcome.UNCLEAR
        with self._patience():
            outcome = await self._lanes.resend(row, fees)
        if outcome is Outcome.NO_GAS_MONEY:
            self.mended.no_gas_money += 1
            logger.warning("%s", self._lanes.name_empty(row.sender).sentence)
        if outcome is Outcome.OCCUPIED:
            logger.warning(
                "nonce %s of %s on %s is another's, which waits for its block: %s waits until that one has "
                "it. Whoever sent it can replace it with higher fees. Give Tollbook a key of its own.",
                row.nonce,
                row.sender,
                self._node.network,
                row.hash,
            )
        return outcome

    @contextmanager
    def _patience(self) -> Generator[None]:
        """One whose answer is lost must not hold up the others; a node that keeps silent is left alone."""
        try:
            yield
        except FeesAboveCap:
            self.mended.above_cap += 1
        except ChainUnreachable:
            self.mended.unclear += 1
            self._silences += 1
            if self._silences >= SILENCES_MAX:
                raise

    async def _bump(self, row: Unfinished, base_fee: int) -> None:
        """Offer more for the next one in its lane, and for all that the base fee has left behind."""
        try:
            fees = self._lanes.fees.bump(row.fees, await self._lanes.fees.choose())
        except FeesAboveCap:
            fees = None
        if fees is None:
            self.mended.above_cap += 1
        elif row.nonce == self._used[row.sender] or row.fee_max < base_fee:
            self.mended.bumped += await self._hand_out(row, fees) is Outcome.TAKEN

    async def _mend_displaced(self, row: Unfinished) -> None:
        """Its nonce is used, and not by it. Only a stranger's transaction that is final proves that."""
        holder = await self._find_deep_holder(row)
        if holder is None:
            return
        is_ours = await find_call(self._node, holder) == self._lanes.read_call(row)
        if is_ours:  # bumped by one whose books were lost since: the next sweep finds it by this hash
            async with self._lanes.database.write() as tx:
                await transactions.record_resend(tx, row, holder, row.fees)
            return
        logger.warning("nonce %s of %s was used elsewhere, by %s", row.nonce, row.sender, holder)
        if row.purpose.startswith((FILLER, *LOOK_FIRST)):  # restored books may have forgotten its new nonce
            self.mended.dropped += await self._drop(row)
        else:
            self.mended.reissued += await self._lanes.renumber(row) is Outcome.TAKEN

    async def _drop(self, row: Unfinished) -> bool:
        async with self._lanes.database.write() as tx:
            return await transactions.drop(tx, row.transaction_id, row.hash, row.sends)

    async def _find_deep_holder(self, row: Unfinished) -> str | None:
        """The stranger's transaction that used its nonce, once it is final; written down when first seen."""
        block = None
        if row.holder_hash is not None:
            block = await find_block(self._node, row.holder_hash)
        holder_hash = row.holder_hash
        if block is None:
            holder = await find_holder(self._node, row.sender, row.nonce)
            if holder is None or holder[0] in row.hashes:
                self.mended.unclear += 1
                return None
            holder_hash, block = holder
            async with self._lanes.database.write() as tx:
                await transactions.record_holder(tx, row, holder_hash)
        return holder_hash if self._is_deep(block) else None

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
            if orphaned and row.sealed_call is not None:
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

    # What was final, and is no more ------------------------------------------------------------------------

    async def _find_lost(self, sender: str, used: int) -> None:
        """Final ones that the chain knows nothing of: the lane would wait for their nonces for ever."""
        async with self._lanes.database.read() as tx:
            rows = await losses.find_final(
                tx, self._node.network, sender, used, before=self._now, limit=SWEEP_MAX
            )
            reset_at = await losses.find_reset(tx, self._node.network)
        since = self._lanes.behind_since
        if not rows:
            since.pop(sender, None)
            return
        is_news = sender not in since
        first_seen = since.setdefault(sender, time.monotonic())
        former = {row.transaction_id for row in rows if reset_at and row.mined_at and row.mined_at < reset_at}
        is_old = time.monotonic() - first_seen >= BEHIND_SECONDS
        missing = [row for row in rows if is_old or row.transaction_id in former]
        lost = await self._leave_out_known(await self._leave_out_standing(missing, former))
        if lost:
            await self._record_lost(sender, lost)
        if len(lost) == len(rows) < SWEEP_MAX:
            del since[sender]
        elif is_news:
            logger.warning(
                "%s has %s transactions of %s, and the books have %s final ones more. Its node lags, or "
                "the chain was rolled back. If that does not change in %.0f seconds, those that the node "
                "does not know are given up, and the lane goes on.",
                self._node.network,
                used,
                sender,
                len(rows),
                BEHIND_SECONDS,
            )

    async def _leave_out_standing(self, rows: Sequence[Transaction], former: set[int]) -> list[Transaction]:
        """Without those whose blocks stand, or of whose blocks nothing is known: the node may lag."""
        there = await self._read_block_hashes({cast(int, row.block_number) for row in rows})
        return [
            row
            for row in rows
            if (now_there := there[cast(int, row.block_number)]) != row.block_hash
            and (now_there is not None or self._node.network == REHEARSAL or row.transaction_id in former)
        ]

    async def _leave_out_known(self, rows: Sequence[Transaction]) -> list[Transaction]:
        mined = await find_mined(self._node, [(row.transaction_id, row.hashes) for row in rows])
        left = [row for row in rows if row.transaction_id not in mined]
        known = await find_known(self._node, [one for row in left for one in row.hashes])
        return [row for row in left if known.isdisjoint(row.hashes)]

    async def _record_lost(self, sender: str, lost: Sequence[Transaction]) -> None:
        async with self._lanes.database.write() as tx:
            count = await losses.record_lost(tx, lost)
        if count == 0:
            return  # another process did it
        self.mended.lost += count
        telemetry.LOST.labels(self._node.network).inc(count)
        logger.error(
            "%s transactions of %s on %s that were final are on the chain no more, nonces %s to %s. What "
            "they paid did not happen: run `tollbook payments reconcile`.",
            count,
            sender,
            self._node.network,
            min(cast(int, row.nonce) for row in lost),
            max(cast(int, row.nonce) for row in lost),
        )

    async def _mend_lost(self, rows: Sequence[Unfinished]) -> None:
        """Once their nonces are used: they came back, or never will."""
        used = [row for row in rows if row.nonce < self._used.get(row.sender, 0)]
        mined = await find_mined(self._node, [(row.transaction_id, row.hashes) for row in used])
        left = [row for row in used if row.transaction_id not in mined]
        async with self._lanes.database.write() as tx:
            instead = await losses.find_final_holders(tx, list(mined))
            self.mended.dropped += await losses.drop_lost(tx, [row.transaction_id for row in left])
            held = await losses.find_held(tx, [row.transaction_id for row in left])
        for holder in instead:  # it cannot be on this chain as well: it was taken back in its turn
            await self._record_lost(holder.sender, [holder])
        await self._record(mined)
        for row in left:
            if row.transaction_id not in held:
                with self._patience():
                    if await self._find_deep_holder(row) is not None:
                        self.mended.dropped += await self._drop(row)

    # What is missing ---------------------------------------------------------------------------------------

    async def _fill(self, sender: str, first: int) -> None:
        """Nonces that nobody has hold up all later ones: give them to transactions that do nothing."""
        async with self._lanes.database.write() as tx:
            gaps = await nonces.find_gaps(tx, self._node.network, sender, first, FILL_MAX)
        if gaps:
            with self._patience():
                filled = await self._lanes.fill(sender, gaps)
                self.mended.filled += sum(isinstance(one, Transaction) for one in filled)
