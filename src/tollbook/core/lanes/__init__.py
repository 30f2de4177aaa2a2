"""Lanes: EVM transactions whose nonces the database hands out, for many processes and several keys.

Each (network, key) is a lane. A call's purpose is its idempotency key: the same purpose is the same
transaction, in every process and for ever. A transaction is written down, signed, before a node sees it, so
one that is lost on the way is found and sent again; one that surely was not taken gives its nonce back.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from tollbook.core.chains import UnknownNetwork, find_network, hush_url_loggers
from tollbook.core.database import Database
from tollbook.core.errors import Refusal
from tollbook.core.lanes import nonces, transactions
from tollbook.core.lanes.fees import GWEI, FeePolicy, FeesAboveCap
from tollbook.core.lanes.keys import Key, SigningKeyUnusable
from tollbook.core.lanes.mend import Mended, mend_network
from tollbook.core.lanes.network import NetworkLanes, StillReserved, SubmissionOpen
from tollbook.core.lanes.node import BATCH_MAX, Node
from tollbook.core.lanes.outcomes import NodeRefusedTransaction, NoGasMoney, NonceAwaited, NonceContested
from tollbook.core.lanes.receipts import Receipts
from tollbook.core.lanes.strangers import Strangers
from tollbook.core.lanes.transactions import (
    Call,
    CallMalformed,
    Keyless,
    PurposeBarred,
    PurposeReused,
    Transaction,
    find_keyless,
)

__all__ = [
    "Call",
    "CallMalformed",
    "FeesAboveCap",
    "Keyless",
    "Lanes",
    "Mended",
    "NoGasMoney",
    "NodeRefusedTransaction",
    "NonceAwaited",
    "NonceContested",
    "PurposeBarred",
    "PurposeReused",
    "SigningKeyUnusable",
    "StillReserved",
    "Strangers",
    "SubmissionOpen",
    "Transaction",
    "UnknownTransaction",
    "find_keyless",
]

RECENT_MAX = 1_000
ADOPT_PAUSE_SECONDS = 0.05  # then a purpose that another process is about to sign is looked at again
ADOPT_TRIES_MAX = 300  # longer than it takes until that process is taken for dead
BATCHES_MAX = 2  # of one network at once: while one is on its way, the next one gathers
SUBMIT_SECONDS_MAX = 30.0  # then nobody waits for a node any longer, and no batch holds up the next ones
LOST_SECONDS = 5.0  # a signed transaction that no node is known to have is handed out again after this
STUCK_SECONDS = 30.0  # a sent one that no block takes gets higher fees after this


class UnknownTransaction(Refusal):
    """There is no transaction with this id."""

    reason = "unknown-transaction"
    status = 404


@dataclass(slots=True)
class _Queue:
    """Calls of one network that wait for the next batch."""

    lanes: NetworkLanes
    receipts: Receipts
    waiting: deque[Call] = field(default_factory=deque[Call])
    batches: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])


@dataclass(slots=True)
class _Pending:
    call: Call
    answer: asyncio.Future[Transaction]
    tries: int = 0


class Lanes:
    """Sends transactions with the operators' keys. Close it after use, or use it as `async with`.

    `rpc_urls` by CAIP-2 network; `private_keys` as 0x and 64 hex digits; `fee_per_gas_max` in wei, and
    `confirmations`, where a network's usual cap or depth is not the wanted one. Raises SigningKeyUnusable,
    UnknownNetwork.
    """

    def __init__(
        self,
        database: Database,
        rpc_urls: Mapping[str, str],
        private_keys: Sequence[str],
        *,
        fee_per_gas_max: int | None = None,
        confirmations: Mapping[str, int] | None = None,
        lost_seconds: float = LOST_SECONDS,
        stuck_seconds: float = STUCK_SECONDS,
    ) -> None:
        hush_url_loggers()
        keys = {key.address: key for key in map(Key, private_keys)}
        if not keys:
            raise SigningKeyUnusable("There is no operator's key. Give at least one.")
        self._database = database
        self._lost_seconds, self._stuck_seconds = lost_seconds, stuck_seconds
        self._keys = keys
        self._pending: dict[str, _Pending] = {}
        self._recent: dict[int, Transaction] = {}  # sent here: who waits for them need not load them
        self._queues: dict[str, _Queue] = {}
        for network, url in rpc_urls.items():
            node, traits = Node(network, url), find_network(network)
            depth = (confirmations or {}).get(network, traits.confirmations)
            cap = fee_per_gas_max or traits.gas_gwei_max * GWEI
            fees = FeePolicy(node, cap, traits.tip_gwei_max * GWEI)
            lanes = NetworkLanes(database, node, keys, fees, depth)
            self._queues[network] = _Queue(lanes, Receipts(lanes))

    def __repr__(self) -> str:
        return f"Lanes({list(self._queues)!r}, {list(self._keys)!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Finish the batches that are on their way, stop waiting for blocks, close the connections."""
        for queue in self._queues.values():
            while queue.waiting or queue.batches:
                self._start(queue)
                await asyncio.gather(*queue.batches, return_exceptions=True)
        for pending in list(self._pending.values()):  # they wait for other processes
            self._conclude(pending, self._leave_open(pending.call.purpose))
        for queue in self._queues.values():
            await queue.receipts.aclose()
            await queue.lanes.aclose()

    @property
    def addresses(self) -> list[str]:
        """The operators' addresses, in lower case."""
        return list(self._keys)

    async def submit(self, call: Call) -> Transaction:
        """Send a call's transaction, or return the one that its purpose has already.

        It is committed before any node sees it. Status `sent`: a node has it; `signed`: whether one has it is
        not known, and `mend` sends it again. Raises where it is sure that nothing was sent: NoGasMoney,
        NodeRefusedTransaction, NonceContested, NonceAwaited, FeesAboveCap, PurposeReused, PurposeBarred,
        CallMalformed, UnknownNetwork, ChainUnreachable; the purpose may then be submitted again, unless it is
        barred. DatabaseUnreachable and SubmissionOpen leave it open: the latter within SUBMIT_SECONDS_MAX,
        however long a node keeps silent.
        """
        call = call.check()
        queue = self._get_queue(call.network)
        if call.sender is not None:
            self._check_key(call.sender)
        pending = self._pending.get(call.purpose)
        if pending is None:
            pending = _Pending(call, asyncio.get_running_loop().create_future())
            self._pending[call.purpose] = pending
            self._enqueue(queue, call)
        elif pending.call.fingerprint != call.fingerprint:
            raise PurposeReused(f"{call.purpose} is the purpose of another transaction. Nothing was sent.")
        try:
            async with asyncio.timeout(SUBMIT_SECONDS_MAX):
                return await asyncio.shield(pending.answer)
        except TimeoutError:
            raise self._leave_open(call.purpose) from None

    async def wait(self, transaction_id: int, *, seconds_max: float) -> Transaction:
        """The transaction when it is mined, with its receipt; as it is where that takes too long.

        Raises UnknownTransaction, DatabaseUnreachable.
        """
        sent = self._recent.pop(transaction_id, None) or await self._load(transaction_id)
        if sent.status == "dropped":
            return sent
        try:
            async with asyncio.timeout(seconds_max):
                return await self._get_queue(sent.network).receipts.wait(transaction_id, sent.hashes)
        except TimeoutError:
            return await self._load(transaction_id)

    async def find(self, purpose: str) -> Transaction | None:
        """The transaction of a purpose, or None."""
        async with self._database.statement() as tx:
            rows = await transactions.find(tx, purposes=[purpose])
        return rows[0] if rows else None

    async def find_account(self, purpose: str) -> str | None:
        """The only account that it may be sent from, where it could pay twice and was refused there.

        Raises ChainUnreachable, where its key is not here.
        """
        async with self._database.read() as tx:
            account = (await nonces.find_accounts(tx, [purpose])).get(purpose)
        refused = None if account is None or account in self._keys else await self.find(purpose)
        if refused and await self._get_queue(refused.network).lanes.release(refused):
            return None
        return account

    async def displace(self, refused: Transaction) -> None:
        """Have the nonce of one that is not sent any more used up, so that it cannot come any more either.

        To be asked again until the chain says that it is used. Raises SigningKeyUnusable, NoGasMoney,
        NodeRefusedTransaction, NonceContested, ChainUnreachable, FeesAboveCap, UnknownNetwork,
        DatabaseUnreachable.
        """
        self._check_key(refused.sender)
        if refused.nonce is None:
            return
        for one in await self._get_queue(refused.network).lanes.fill(refused.sender, [refused.nonce]):
            if isinstance(one, Exception):
                raise one

    async def find_strangers(self, network: str) -> list[Strangers]:
        """The accounts of which transactions wait there that these books do not know.

        Raises ChainUnreachable, DatabaseUnreachable, UnknownNetwork.
        """
        return await self._get_queue(network).lanes.find_strangers()

    async def mend(self) -> Mended:
        """Look after all that is not final, once; safe in many processes at a time.

        Raises ChainUnreachable, DatabaseUnreachable; what was mended before stays mended.
        """
        sweeps = [
            mend_network(queue.lanes, self._lost_seconds, self._stuck_seconds)
            for queue in self._queues.values()
        ]
        mended = Mended()
        failures: list[BaseException] = []
        for swept in await asyncio.gather(*sweeps, return_exceptions=True):
            if isinstance(swept, Mended):
                mended.add(swept)
            else:
                failures.append(swept)  # a node that is down keeps nobody from the other networks
        if failures:
            raise failures[0]
        return mended

    async def _load(self, transaction_id: int) -> Transaction:
        async with self._database.statement() as tx:
            rows = await transactions.find(tx, ids=[transaction_id])
        if not rows:
            raise UnknownTransaction(f"There is no transaction {transaction_id}.")
        return rows[0]

    def _check_key(self, sender: str) -> None:
        if sender not in self._keys:
            raise SigningKeyUnusable(f"There is no key of {sender} here. Send with one of {self.addresses}.")

    def _get_queue(self, network: str) -> _Queue:
        queue = self._queues.get(network)
        if queue is None:
            raise UnknownNetwork(f"{network[:90]!r} has no RPC URL here. Configure one.")
        return queue

    def _start(self, queue: _Queue) -> None:
        """Begin batches for what waits. A batch is its own task: no caller that gives up takes it along."""
        while queue.waiting and len(queue.batches) < BATCHES_MAX:
            batch = [queue.waiting.popleft()]
            while queue.waiting and len(batch) < BATCH_MAX and queue.waiting[0].sender == batch[0].sender:
                batch.append(queue.waiting.popleft())
            task = asyncio.create_task(self._send(queue, batch))
            queue.batches.add(task)
            task.add_done_callback(lambda done: self._go_on(queue, done))

    def _go_on(self, queue: _Queue, done: asyncio.Task[None]) -> None:
        queue.batches.discard(done)
        self._start(queue)

    async def _send(self, queue: _Queue, batch: Sequence[Call]) -> None:
        """Cut off after a while, as a kill would: what was written down by then is for `mend`."""
        try:
            async with asyncio.timeout(SUBMIT_SECONDS_MAX):
                answers = await queue.lanes.issue(batch)
        except TimeoutError:
            answers = {call.purpose: self._leave_open(call.purpose) for call in batch}
        self._answer(queue, answers)

    def _leave_open(self, purpose: str) -> SubmissionOpen:
        return SubmissionOpen(f"Whether {purpose} was sent is not known yet. Ask for it again.")

    def _enqueue(self, queue: _Queue, call: Call) -> None:
        if call.purpose not in self._pending:
            return  # closed while it waited for another process
        queue.waiting.append(call)
        asyncio.get_running_loop().call_soon(self._start, queue)  # with all that are submitted now

    def _answer(self, queue: _Queue, answers: Mapping[str, Transaction | Exception]) -> None:
        for purpose, answer in answers.items():
            pending = self._pending[purpose]
            if isinstance(answer, StillReserved) and pending.tries < ADOPT_TRIES_MAX:
                pending.tries += 1
                loop = asyncio.get_running_loop()
                loop.call_later(ADOPT_PAUSE_SECONDS, self._enqueue, queue, pending.call)
            else:
                self._conclude(pending, answer)
        while len(self._recent) > RECENT_MAX:
            del self._recent[next(iter(self._recent))]

    def _conclude(self, pending: _Pending, answer: Transaction | Exception) -> None:
        del self._pending[pending.call.purpose]
        if isinstance(answer, Transaction):
            self._recent[answer.transaction_id] = answer
            pending.answer.set_result(answer)
        else:
            pending.answer.set_exception(answer)
            pending.answer.exception()  # it is no loss where all who waited gave up
