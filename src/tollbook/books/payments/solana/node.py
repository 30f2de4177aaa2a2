"""A Solana node as a facilitator asks it: would this land, send it, what became of it, is its time over."""

import base64
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

from solders.transaction import VersionedTransaction

from tollbook.books.payments.solana.payment import hash_message, normalize_signature
from tollbook.core.chains import JsonRpc, MalformedHash

Commitment = Literal["processed", "confirmed", "finalized"]
LEVELS: tuple[Commitment, ...] = ("processed", "confirmed", "finalized")
ERR_EXPIRED = "transaction_expired"  # why one that never landed is a failure
CAIP_REFERENCE_CHARS = 32  # of the genesis hash, in Solana's CAIP-2 ids
NODE_LAG_BLOCKS = 150  # a healthy node may be that far behind another, which knew the payer's block hash
BLOCKHASH_BLOCKS = 150  # how long a block hash may be used
SIGNATURES_MAX = 1000  # that a node gives at once
PAGES_MAX = 1_000  # of one account's history in one look
SLOT_SECONDS_MIN = 0.3  # 0.4 by design; where the cluster stood still there are fewer in the same time
SLOT_SECONDS_MAX = 2.0  # of all but long outages, in the mean
NONSENSE = (KeyError, TypeError, ValueError, IndexError, AttributeError)


@dataclass(frozen=True, slots=True)
class Head:
    """The newest block: its slot, and the last height at which a block hash known by now is valid."""

    slot: int
    last_valid_height: int


@dataclass(frozen=True, slots=True)
class Final:
    """The newest block that no fork can take back."""

    slot: int
    height: int


@dataclass(frozen=True, slots=True)
class Status:
    """A transaction in a block: `error` is the chain's own, None where it succeeded."""

    slot: int
    commitment: Commitment
    error: object

    def reaches(self, wanted: Commitment) -> bool:
        """Whether the cluster agrees on it as much as is wanted."""
        return LEVELS.index(self.commitment) >= LEVELS.index(wanted)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A transaction in an account's history; `time` in Unix seconds, None where the node does not know."""

    signature: str
    slot: int
    succeeded: bool
    time: int | None


@dataclass(frozen=True, slots=True)
class Landing:
    """What a transaction did: its fee in lamports, and by how much each token account changed.

    `moved` maps (token account, mint) to minor units, less than nothing for the one that paid; `owners` says
    whose the token accounts were before it, or are since. `signers`: the one who paid the fee is the first.
    """

    message_hash: str
    signers: tuple[str, ...]
    slot: int
    error: object
    fee_lamports: int
    moved: Mapping[tuple[str, str], int]
    owners: Mapping[str, str]

    @property
    def has_failed(self) -> bool:
        """Whether it landed with an error: then nothing moved but the fee."""
        return self.error is not None

    def find_losers(self, mint: str) -> list[str]:
        """Return the owners who have less of a token than before; who lost most is the first."""
        changes: Counter[str] = Counter()
        for (account, of), moved in self.moved.items():
            if of == mint:
                changes[self.owners[account]] += moved
        return sorted((each for each, change in changes.items() if change < 0), key=changes.__getitem__)

    def name_payer(self, loser: str) -> str:
        """Return who paid with an owner's tokens: he, or else who signed for him, as x402 counts it."""
        return loser if loser in self.signers else self.signers[-1]


class SolanaNode(JsonRpc):
    """A Solana network's node. Its answers raise ChainUnreachable or ChainRefused as JsonRpc.ask does."""

    _checked = False

    async def check_network(self) -> None:
        """Refuse a node of another network, once it answers. Raises ChainUnreachable."""
        if not self._checked:
            told = str(await self.ask("getGenesisHash"))[:CAIP_REFERENCE_CHARS]
            if f"solana:{told}" != self.network:
                self.complain("getGenesisHash", ValueError(f"it is a node of solana:{told}"))
            self._checked = True

    async def simulate(self, transaction: str) -> object:
        """Return the error with which a transaction (base64) would land now, or None.

        Its signatures are not looked at, so that it can be sent here before the fee payer has signed.
        """
        options = {"encoding": "base64", "sigVerify": False, "commitment": "confirmed"}
        answer = await self.ask("simulateTransaction", transaction, options)
        try:
            return answer["value"]["err"]
        except NONSENSE as error:
            self.complain("simulateTransaction", error)

    async def get_head(self) -> Head:
        """Return the newest block, whether or not the cluster agrees on it yet."""
        answer = await self.ask("getLatestBlockhash", {"commitment": "processed"})
        try:
            return Head(int(answer["context"]["slot"]), int(answer["value"]["lastValidBlockHeight"]))
        except NONSENSE as error:
            self.complain("getLatestBlockhash", error)

    async def get_final(self) -> Final:
        """Return the newest final block of this very network."""
        await self.check_network()
        answer = await self.ask("getEpochInfo", {"commitment": "finalized"})
        try:
            return Final(int(answer["absoluteSlot"]), int(answer["blockHeight"]))
        except NONSENSE as error:
            self.complain("getEpochInfo", error)

    async def get_balance(self, address: str) -> int:
        """Return what an account has for fees, in lamports."""
        answer = await self.ask("getBalance", address, {"commitment": "confirmed"})
        try:
            return int(answer["value"])
        except NONSENSE as error:
            self.complain("getBalance", error)

    async def get_first_slot(self) -> int:
        """Return the first slot that the node still remembers."""
        answer = await self.ask("getFirstAvailableBlock")
        try:
            return int(answer)
        except NONSENSE as error:
            self.complain("getFirstAvailableBlock", error)

    async def send(self, transaction: str) -> None:
        """Broadcast a signed transaction (base64), once. Whatever it raises, the transaction may land."""
        options = {"encoding": "base64", "skipPreflight": True}
        await self.ask("sendTransaction", transaction, options, attempts_max=1)

    async def find_status(self, signature: str, *, history: bool = False) -> tuple[Status | None, int]:
        """Return a transaction's status, None where it is in no block, and the slot as of which this holds.

        Without `history` the node looks at its last blocks only.
        """
        options = {"searchTransactionHistory": history}
        answer = await self.ask("getSignatureStatuses", [signature], options)
        try:
            told, slot = answer["value"][0], int(answer["context"]["slot"])
            if told is None:
                return None, slot
            commitment = cast(Commitment, told["confirmationStatus"] or "processed")
            LEVELS.index(commitment)
            return Status(int(told["slot"]), commitment, told["err"]), slot
        except NONSENSE as error:
            self.complain("getSignatureStatuses", error)

    async def find_landing(self, signature: str, commitment: Commitment) -> Landing | None:
        """Return what a transaction did; None where the node does not have it at that commitment.

        None as well for what facilitators take for a signature and is none: nodes refuse to answer.
        """
        try:
            signature = normalize_signature(signature)
        except MalformedHash:
            return None
        options = {"encoding": "base64", "commitment": commitment, "maxSupportedTransactionVersion": 0}
        answer = await self.ask("getTransaction", signature, options)
        if answer is None:
            return None
        try:
            return _read_landing(answer)
        except NONSENSE as error:
            self.complain("getTransaction", error)

    async def get_time(self, slot: int) -> datetime:
        """Return when the cluster says that a block was made."""
        answer = await self.ask("getBlockTime", slot)
        try:
            return datetime.fromtimestamp(answer, UTC)
        except NONSENSE as error:
            self.complain("getBlockTime", error)

    async def find_slot_before(self, moment: datetime) -> int:
        """Return a slot that is surely not after the moment, if not the last of them, and is final."""
        final = await self.get_final()
        seconds = (await self.get_time(final.slot) - moment).total_seconds()
        return max(final.slot - max(math.ceil(seconds / SLOT_SECONDS_MIN), 0), 0)

    async def read_history(
        self, account: str, first: int, *, as_of: int, pages_max: int = PAGES_MAX
    ) -> list[Sighting]:
        """Return the transactions that name an account, newest first, from slot `first` on.

        A node that has not seen the slot `as_of` yet raises ChainRefused; so much that `pages_max` pages do
        not reach back to `first`, ChainUnreachable.
        """
        found: list[Sighting] = []
        for _ in range(pages_max):
            page = await self._page_history(account, found[-1].signature if found else None, as_of)
            found += page
            if not page or page[-1].slot < first:
                return [each for each in found if each.slot >= first]
        return self.complain("getSignaturesForAddress", ValueError("more history than is read at once"))

    async def _page_history(self, account: str, before: str | None, as_of: int) -> list[Sighting]:
        options: dict[str, object] = {
            "limit": SIGNATURES_MAX, "commitment": "confirmed", "minContextSlot": as_of,
        }  # fmt: skip
        if before is not None:
            options["before"] = before
        answer = await self.ask("getSignaturesForAddress", account, options)
        try:
            return [
                Sighting(str(each["signature"]), int(each["slot"]), each["err"] is None, each["blockTime"])
                for each in answer
            ]
        except NONSENSE as error:
            self.complain("getSignaturesForAddress", error)

    async def has_outlived(self, moment: datetime) -> bool:
        """Whether it is sure that no message signed by the moment can land any more.

        Sure is it when so many blocks are final that were made since as a block hash lives, and as nodes may
        be apart. It is seen late: a slot that is surely after the moment is guessed, and then looked at.
        """
        final = await self.get_final()
        seconds = (await self.get_time(final.slot) - moment).total_seconds()
        if seconds <= 0:
            return False
        since = max(final.slot - int(seconds / SLOT_SECONDS_MAX), 0)
        wanted = BLOCKHASH_BLOCKS + NODE_LAG_BLOCKS
        answer = await self.ask("getBlocksWithLimit", since, wanted, {"commitment": "finalized"})
        try:
            slots = [int(slot) for slot in answer]
        except NONSENSE as error:
            self.complain("getBlocksWithLimit", error)
        if len(slots) < wanted or not since <= slots[0] <= slots[-1] <= final.slot:
            return False
        return await self.get_time(slots[0]) > moment

    async def is_over(self, signature: str, last_valid_height: int, signed_slot: int) -> bool:
        """Whether it is sure that a transaction is in no block and never will be.

        Sure is it when a final block is past the last height that could hold it, when the node, asked as of
        that block or later, finds it nowhere, and when its memory reaches back to when it was signed.
        """
        final = await self.get_final()
        if final.height <= last_valid_height + NODE_LAG_BLOCKS:
            return False
        status, as_of_slot = await self.find_status(signature, history=True)
        if status is not None or as_of_slot < final.slot:
            return False
        return await self.get_first_slot() <= signed_slot


def _read_landing(answer: dict[str, Any]) -> Landing:
    meta = answer["meta"]
    message = VersionedTransaction.from_bytes(base64.b64decode(answer["transaction"][0])).message
    loaded: dict[str, list[str]] = meta.get("loadedAddresses") or {"writable": [], "readonly": []}
    keys: list[str] = [
        *(str(key) for key in message.account_keys),
        *loaded["writable"],
        *loaded["readonly"],
    ]
    moved: Counter[tuple[str, str]] = Counter()
    owners: dict[str, str] = {}
    for sign, balances in ((-1, meta["preTokenBalances"]), (1, meta["postTokenBalances"])):
        for balance in cast(list[dict[str, Any]], balances):
            account = keys[int(balance["accountIndex"])], str(balance["mint"])
            moved[account] += sign * int(balance["uiTokenAmount"]["amount"])
            owners.setdefault(account[0], str(balance["owner"]))
    signers = tuple(keys[: message.header.num_required_signatures])
    return Landing(
        hash_message(message), signers, int(answer["slot"]), meta["err"], int(meta["fee"]), moved, owners
    )
