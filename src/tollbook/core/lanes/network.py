"""The lanes of one network: calls are given nonces, signed, written down, and handed to the node."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, cast

from tollbook.core import clock
from tollbook.core.chains import ChainUnreachable
from tollbook.core.database import Database
from tollbook.core.errors import Refusal
from tollbook.core.lanes import counts, endings, losses, nonces, transactions
from tollbook.core.lanes.fees import FeePolicy, FeesAboveCap
from tollbook.core.lanes.keys import Draft, Fees, Key
from tollbook.core.lanes.node import AnswerLost, Ask, Node, NodeUnreachable, Said
from tollbook.core.lanes.nonces import Taken
from tollbook.core.lanes.outcomes import (
    NodeRefusedTransaction,
    NoGasMoney,
    NonceAwaited,
    NonceContested,
    Outcome,
    find_holder,
    find_known,
    find_mined,
    read_outcome,
)
from tollbook.core.lanes.strangers import Strangers, find_waiting
from tollbook.core.lanes.transactions import (
    GAS_MIN,
    LOOK_FIRST,
    Call,
    PurposeBarred,
    PurposeReused,
    Signed,
    Transaction,
    Unfinished,
)

ISSUE_ATTEMPTS_MAX = 8  # each under new nonces, where others took the last ones or an account was empty
EMPTY_SECONDS = 5.0  # an account without gas money is passed over for so long, where there are others
RESERVED_SECONDS_MAX = 10.0  # then who reserved a nonce and did not sign is taken for dead
LOOKS_MAX = 8  # transactions of a batch that are looked into at once
LEAP_MAX = 10_000  # a count that is so far above ours is believed when it is told again
LEAP_SECONDS = 5.0  # after so long
FILLER = "lanes: close a gap "
KEPT = {Outcome.TAKEN: "sent", Outcome.UNCLEAR: "signed"}  # the status of what is left as it is

logger = logging.getLogger(__name__)

Issued = dict[str, Transaction | Exception]


class SubmissionOpen(Refusal):
    """Whether it was sent, or is about to be, is not known yet. Ask again for the same purpose."""

    reason: ClassVar[str] = "submission-open"
    status: ClassVar[int] = 503


class StillReserved(SubmissionOpen):
    """Another process has reserved a nonce for it, and has not signed it yet."""

    reason: ClassVar[str] = "still-reserved"


@dataclass(frozen=True, slots=True)
class _Again:
    """It was not sent and needs another nonce; `refusal` is what to say where there is none to be had."""

    refusal: Refusal


_Answers = dict[str, Transaction | Exception | _Again]


class NetworkLanes:
    """One network's lanes: a node, the keys, and the nonces in the database."""

    def __init__(
        self, database: Database, node: Node, keys: Mapping[str, Key], fees: FeePolicy, confirmations: int
    ) -> None:
        self.database = database
        self.node = node
        self.keys = keys
        self.fees = fees
        self.confirmations = confirmations
        self.chain_id = int(node.network.partition(":")[2])
        self._opening = asyncio.Lock()
        self._open = False
        self._genesis = ""
        self.behind_since: dict[str, float] = {}  # by key, since when the chain knows less than is final here
        self.keyless_told: set[str] = set()  # whose removed keys the operator has been told of
        self.strangers_since: dict[tuple[str, int], float] = {}  # by key and nonce; infinite once it was told
        self._empty_until: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def issue(self, calls: Sequence[Call]) -> Issued:
        """Send each call once; by purpose, its transaction or why there is none.

        Calls that pin a sender all pin the same one.
        """
        issued: Issued = {}
        waiting = list(calls)
        for _ in range(ISSUE_ATTEMPTS_MAX):
            answers = await self._issue_or_name(waiting)
            issued |= {key: one.refusal if isinstance(one, _Again) else one for key, one in answers.items()}
            waiting = [call for call in waiting if isinstance(answers[call.purpose], _Again)]
            if not waiting:
                break
        return issued

    async def _issue_or_name(self, calls: Sequence[Call]) -> _Answers:
        try:
            try:
                return await self._issue_once(calls)
            except (ChainUnreachable, FeesAboveCap) as refusal:
                # Nothing new was sent. But a purpose that was sent before must not look as if it never was.
                refused: _Answers = {call.purpose: refusal for call in calls}
                adopted = (await self._adopt(calls)).items()
                return refused | {key: one for key, one in adopted if not isinstance(one, _Again)}
        except Exception as error:  # what came of an earlier attempt must not be lost with this one
            return dict.fromkeys((call.purpose for call in calls), error)

    async def look(self) -> dict[str, tuple[int, int]]:
        """How many transactions of each key are in blocks, and with those that wait: no lane is behind that.

        Raises ChainUnreachable; also where the node is of another chain, or counts at random.
        """
        told = await self._count()
        if await self._find_leaps(told):
            await asyncio.sleep(LEAP_SECONDS)
            before, told = told, await self._count()
            for sender in await self._find_leaps(told):
                if abs(max(told[sender]) - max(before[sender])) > LEAP_MAX:
                    raise self.node.complain(f"it counts {before[sender]}, then {told[sender]} of {sender}")
        async with self.database.write() as tx:
            for sender, (used, pending) in sorted(told.items()):  # others may have them in another order
                await nonces.jump(tx, self.node.network, sender, used, pending)
            await nonces.close_held(tx, self.node.network)
        return told

    async def find_strangers(self) -> list[Strangers]:
        """Of which keys transactions wait that these books do not know. Raises ChainUnreachable."""
        return await find_waiting(self.database, self.node, await self._count())

    async def _count(self) -> dict[str, tuple[int, int]]:
        asks = counts.ask(list(self.keys), counts.LATEST, counts.PENDING)
        genesis = Ask("eth_getBlockByNumber", ("0x0", False))
        chain, first, *said = await self.node.ask_all([Ask("eth_chainId"), genesis, *asks])
        if self.node.read_int("eth_chainId", chain.result) != self.chain_id:
            raise self.node.complain("it is the node of another chain")
        await self._note_chain(first.result)
        numbers = [self.node.read_int(counts.METHOD, one.result) for one in said]
        return dict(zip(self.keys, zip(numbers[::2], numbers[1::2], strict=True), strict=True))

    async def _find_leaps(self, told: Mapping[str, tuple[int, int]]) -> list[str]:
        async with self.database.read() as tx:
            highest = {sender: max(both) for sender, both in told.items()}
            return await nonces.find_leaps(tx, self.node.network, highest, LEAP_MAX)

    async def _note_chain(self, genesis: object) -> None:
        """Whether it is the chain that it was: one of the same number may have been begun anew."""
        hash_ = cast(dict[str, object], genesis).get("hash") if isinstance(genesis, dict) else None
        if not isinstance(hash_, str) or hash_ == self._genesis:
            return  # some nodes have forgotten their first block
        async with self.database.write() as tx:
            former = await losses.record_chain(tx, self.node.network, hash_.lower())
        self._genesis = hash_
        if former is not None:
            logger.error(
                "%s is another chain than the books know: its first block is %s, and was %s. What the "
                "former one had of our transactions is gone with it, and the lanes go on without. If nobody "
                "has begun it anew, check the RPC URL; if somebody has, begin with an empty database too.",
                self.node.network,
                hash_,
                former,
            )

    async def _issue_once(self, calls: Sequence[Call]) -> _Answers:
        fees = await self.fees.choose()
        async with self._opening:
            if not self._open:
                await self.look()
                self._open = True
        senders = [calls[0].sender] if calls[0].sender else self._list_solvent()
        rows = await nonces.take_nonces(self.database, self.node.network, senders, calls)
        by_purpose = {call.purpose: call for call in calls}
        answers: _Answers = {}
        if new := [self._sign(by_purpose[row.purpose], row, fees) for row in rows if row.taken]:
            answers |= await self._send_new(by_purpose, sorted(new, key=lambda one: one.nonce))
        return answers | await self._adopt([by_purpose[row.purpose] for row in rows if not row.taken])

    async def fill(self, sender: str, gaps: Sequence[int]) -> list[Transaction | Exception]:
        """Use free nonces up by transactions that do nothing; each, or why a node did not take it.

        Each has one row however often it is tried. Raises ChainUnreachable, FeesAboveCap.
        """
        fees, network = await self.fees.choose(), self.node.network
        fillers = {
            nonce: Call(network, f"{FILLER}{network} {sender} {nonce}", sender, b"", GAS_MIN, sender=sender)
            for nonce in gaps
        }
        taken = await nonces.take_gaps(self.database, network, sender, fillers)
        by_purpose = {call.purpose: call for call in fillers.values()}
        new = [self._sign(by_purpose[row.purpose], row, fees) for row in taken]
        answers = await self._send_new(by_purpose, sorted(new, key=lambda one: one.nonce)) if new else {}
        return [one.refusal if isinstance(one, _Again) else one for one in answers.values()]

    async def release(self, refused: Transaction) -> bool:
        """Whether the nonce that it was refused under is another's for good: any account may send it then.

        Raises ChainUnreachable.
        """
        final = max(await self.node.ask_int("eth_blockNumber") - self.confirmations + 1, 0)
        used = (await counts.count(self.node, [refused.sender], final))[refused.sender]
        hashes = [*refused.hashes, *refused.former_hashes]
        if refused.nonce is None or used is None or refused.nonce >= used:
            return False
        # If it was mined itself, it has to be by now.
        if await find_mined(self.node, [(refused.transaction_id, hashes)]):
            return False
        async with self.database.write() as tx:
            await endings.release(tx, refused)
        return True

    def _sign(self, call: Call, row: Taken, fees: Fees) -> Signed:
        assert row.sender is not None
        assert row.nonce is not None
        key = self.keys[row.sender]
        raw, hash_ = key.sign(Draft(self.chain_id, row.nonce, call.gas, fees, call.to, call.value, call.data))
        sealed = key.seal_call(row.transaction_id, call.to, call.value, call.data)
        return Signed(
            row.transaction_id, call.purpose, row.sender, row.nonce, hash_, raw, sealed, call.gas, fees
        )

    async def _send_new(self, by_purpose: Mapping[str, Call], new: Sequence[Signed]) -> _Answers:
        """Write the signatures down, then hand them to the node: never the other way round."""
        ours = await transactions.record_signed(self.database, new)
        sending = [one for one in new if one.transaction_id in ours]
        said = await self.broadcast(sending)
        outcomes = [read_outcome(answer) for answer in said]
        taken = [one for one, outcome in zip(sending, outcomes, strict=True) if outcome is Outcome.TAKEN]
        if sent := {one.transaction_id: one.hash for one in taken}:
            self._spawn(transactions.record_sent(self.database, sent))
        # What is not ours was reserved for so long that it was taken for abandoned.
        answers: _Answers = {one.purpose: self._contest() for one in new}
        looks = asyncio.Semaphore(LOOKS_MAX)

        async def conclude(one: Signed, outcome: Outcome, answer: Said) -> None:
            async with looks:
                try:
                    answers[one.purpose] = await self._conclude(by_purpose[one.purpose], one, outcome, answer)
                except Exception as error:  # the others' answers are not lost with this one's
                    answers[one.purpose] = error

        doubtful: list[Coroutine[None, None, None]] = []
        for one, outcome, answer in zip(sending, outcomes, said, strict=True):
            if (status := KEPT.get(outcome)) is not None:
                answers[one.purpose] = self._describe(one, status)
            else:
                doubtful.append(conclude(one, outcome, answer))
        await asyncio.gather(*doubtful)
        return answers

    async def broadcast(self, sending: Sequence[Signed]) -> list[Said]:
        """What the node says to each; UNCLEAR ones where its answer was lost.

        Raises NodeUnreachable after freeing them all: nothing was sent.
        """
        try:
            return await self.node.ask_all(
                [Ask("eth_sendRawTransaction", ("0x" + one.raw.hex(),)) for one in sending]
            )
        except NodeUnreachable:
            await self._free(sending)
            raise
        except AnswerLost:
            return [Said(error="no answer")] * len(sending)

    async def _conclude(
        self, call: Call, one: Signed, outcome: Outcome, said: Said
    ) -> Transaction | Exception | _Again:
        if outcome not in (Outcome.NO_GAS_MONEY, Outcome.NOT_TAKEN):
            return await self._look_into(one, outcome)
        if not await self._free([one]):
            return self._describe(one, "signed")  # another process handed it out meanwhile
        if outcome is Outcome.NO_GAS_MONEY:
            return self._pass_on(call, one.sender)
        self.fees.forget()
        return NodeRefusedTransaction(
            f"The node of {self.node.network} did not take {one.purpose}: {said.error}. "
            "Nothing was sent. Try again later."
        )

    async def _look_into(self, one: Signed, outcome: Outcome) -> Transaction | _Again:
        """Whether its nonce is its own. Only a stranger that is seen under it makes it take another one.

        What could pay twice keeps it all the same: whoever has it may be this very one, or a former one,
        which a node took and does not show. `mend` drops it when the nonce is another's for good.
        """
        try:
            if await find_known(self.node, [one.hash]):
                await transactions.record_sent(self.database, {one.transaction_id: one.hash})
                return self._describe(one, "sent")
            if outcome is Outcome.KNOWN or one.purpose.startswith(LOOK_FIRST):
                return self._describe(one, "signed")
            if outcome is Outcome.NONCE_TOO_LOW:
                holder = await find_holder(self.node, one.sender, one.nonce)
                if holder is None or holder[0] == one.hash:
                    return self._describe(one, "signed")
        except ChainUnreachable:
            return self._describe(one, "signed")
        async with self.database.write() as tx:
            dropped = await transactions.drop(tx, one.transaction_id, one.hash, sends=1)
        self._open = False  # the lane has fallen behind: look at the chain before the next nonce
        return self._contest() if dropped else self._describe(one, "signed")

    def _list_solvent(self) -> list[str]:
        """The accounts that were not found empty just now; all of them where there are none."""
        now = time.monotonic()
        return [one for one in self.keys if self._empty_until.get(one, now) <= now] or list(self.keys)

    def _pass_on(self, call: Call, sender: str) -> NoGasMoney | _Again:
        """This account is empty. Another one may not be."""
        self._empty_until[sender] = time.monotonic() + EMPTY_SECONDS
        refusal = self.name_empty(sender)
        others = call.sender is None and len(self._list_solvent()) < len(self.keys)
        return _Again(refusal) if others else refusal

    def _contest(self) -> _Again:
        return _Again(
            NonceContested(
                f"Transactions from elsewhere keep taking the nonces of the operator's key on "
                f"{self.node.network}. Nothing was sent. Give Tollbook a key of its own, then try again."
            )
        )

    async def _adopt(self, calls: Sequence[Call]) -> _Answers:
        """The transactions that have these purposes already. One that was lost on its way is for `mend`."""
        if not calls:
            return {}
        by_purpose = {call.purpose: call for call in calls}
        async with self.database.read() as tx:
            fingerprints = await transactions.find_fingerprints(tx, list(by_purpose))
            found = await transactions.find(tx, purposes=list(by_purpose))
        if any(one.status == "reserved" for one in found):
            await self.free_abandoned()
        return {
            one.purpose: self._judge(by_purpose[one.purpose], one, fingerprints[one.purpose]) for one in found
        }

    def _judge(self, call: Call, found: Transaction, fingerprint: bytes) -> Transaction | Exception | _Again:
        if found.barred:
            return PurposeBarred(f"{call.purpose} was given up for good. Nothing was sent.")
        is_elsewhere = call.sender not in (None, found.sender) and found.status != "dropped"
        if fingerprint != call.fingerprint or is_elsewhere:
            return PurposeReused(
                f"{call.purpose} is the purpose of another transaction. "
                "Give each call a purpose of its own. Nothing was sent."
            )
        match found.status:
            case "dropped" if call.purpose.startswith(LOOK_FIRST):
                return NonceAwaited(
                    f"{call.purpose} was refused under nonce {found.nonce} of {found.sender}, and may come "
                    "yet. Nothing was sent. It is sent from there, or when another one with it is final."
                )
            case "dropped":
                return self._contest()
            case "reserved":
                return StillReserved(f"Another process is about to send {call.purpose}. Ask for it again.")
            case _:
                return found

    async def resend(self, row: Unfinished, fees: Fees) -> Outcome:
        """Hand a transaction to the node again, with the same fees or higher ones.

        A refusal is told, and changes nothing: what was sent before may have arrived.
        Raises ChainUnreachable.
        """
        if row.sender not in self.keys:
            return Outcome.UNCLEAR
        raw, hash_ = self._sign_again(row, row.nonce, fees)
        async with self.database.write() as tx:
            if not await transactions.record_resend(tx, row, hash_, fees):
                return Outcome.UNCLEAR
        return await self._hand_out(row, raw, hash_)

    async def renumber(self, row: Unfinished) -> Outcome:
        """Send it under a new nonce: its own is another's for good. UNCLEAR where somebody came first.

        One commit takes the old nonce from it and gives it the new one: whoever is killed here loses nothing.
        Raises ChainUnreachable, FeesAboveCap.
        """
        fees = await self.fees.choose()
        async with self.database.write() as tx:
            if not await transactions.hold(tx, row):  # before the lane, as core.take_nonces has it
                return Outcome.UNCLEAR
            nonce = await nonces.take_one(tx, self.node.network, row.sender)
            raw, hash_ = self._sign_again(row, nonce, fees)
            await transactions.renumber(tx, row, nonce, hash_, fees)
        return await self._hand_out(row, raw, hash_)

    def _sign_again(self, row: Unfinished, nonce: int, fees: Fees) -> tuple[bytes, str]:
        to, value, data = self.read_call(row)
        return self.keys[row.sender].sign(Draft(self.chain_id, nonce, row.gas, fees, to, value, data))

    async def _hand_out(self, row: Unfinished, raw: bytes, hash_: str) -> Outcome:
        said = await self.node.ask_all([Ask("eth_sendRawTransaction", ("0x" + raw.hex(),))])
        outcome = read_outcome(said[0])
        if outcome is Outcome.KNOWN and await find_known(self.node, [hash_]):
            outcome = Outcome.TAKEN
        if outcome is Outcome.TAKEN:
            await transactions.record_sent(self.database, {row.transaction_id: hash_})
        return outcome

    def read_call(self, row: Unfinished) -> tuple[str, int, bytes]:
        """The receiver, the value and the call data of one whose key is here, and that is open."""
        assert row.sealed_call is not None
        return self.keys[row.sender].open_call(row.transaction_id, row.sealed_call)

    def name_empty(self, sender: str) -> NoGasMoney:
        """Which account is to be funded."""
        return NoGasMoney(
            f"The operator's account {sender} cannot pay for gas on {self.node.network}. Nothing was sent. "
            "Send it some of the network's coin; it goes on by itself.",
            account=sender,
            network=self.node.network,
        )

    async def free_abandoned(self) -> int:
        """Free what was reserved and never signed; how many there were."""
        async with self.database.write() as tx:
            return await nonces.free_abandoned(tx, self.node.network, timedelta(seconds=RESERVED_SECONDS_MAX))

    async def _free(self, refused: Sequence[Signed]) -> set[int]:
        async with self.database.write() as tx:
            return await nonces.free(tx, {one.transaction_id: one.hash for one in refused})

    def _describe(self, one: Signed, status: str) -> Transaction:
        now = clock.now()
        return Transaction(
            transaction_id=one.transaction_id,
            purpose=one.purpose,
            network=self.node.network,
            sender=one.sender,
            nonce=one.nonce,
            status=status,
            hash=one.hash,
            hashes=[one.hash],
            succeeded=None,
            block_number=None,
            block_hash=None,
            gas_used=None,
            fee_paid=None,
            created_at=now,
            sent_at=now,
            mined_at=None,
            confirmed_at=None,
        )

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        """Do it beside the answer, which need not wait for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("a sent transaction was not marked as such (%s)", type(error).__name__)

    async def aclose(self) -> None:
        """Finish what is being written down, and close the connections to the node."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.node.aclose()
