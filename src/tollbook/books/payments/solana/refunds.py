"""Refunds on Solana: a token transfer with a memo, signed once and on disk before it is sent.

What may follow what, of one signed transaction (payments.x402_solana_refunds):

    (new)  -> signed   on disk, and from then on perhaps on the chain
    signed -> landed   the cluster agrees that the payer has the tokens
    signed -> failed   it landed with an error, and no fork can change that
    signed -> expired  it is in no block and never will be: only then another one is signed

A payer's token account that was closed is not opened again: the rent that this costs would be his, and so
more would go back than came.
"""

import asyncio
import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal

from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from x402.mechanisms.svm.constants import (
    MEMO_PROGRAM_ADDRESS,
    TOKEN_2022_PROGRAM_ADDRESS,
    TOKEN_PROGRAM_ADDRESS,
)
from x402.mechanisms.svm.utils import derive_ata

from tollbook.books.payments.facilitator.errors import OperatorOutOfGas
from tollbook.books.payments.refund_marks import MARK_BYTES, PREFIX, MarkedTransfer
from tollbook.books.payments.refund_purse import Ending, RefundPurseEmpty, RefundUnpayable
from tollbook.books.payments.refunds import Refund
from tollbook.books.payments.solana.node import NONSENSE, SolanaNode
from tollbook.books.payments.solana.truth import find_accounts
from tollbook.core import clock
from tollbook.core.chains import ChainRefused, ChainUnreachable
from tollbook.core.database import Database, ReadTx, WriteTx

SLOTS_AT_ONCE = 2**62  # an account's history is read from its newest end: all at once is the least
PAGES_MAX = 1_000  # of one account's history in one look
POLL_SECONDS = 0.4  # a slot
QUIET = timedelta(seconds=2)  # then it is sent again: leaders drop what they have no room for
TRANSFER_CHECKED = 12
TRANSFER_BYTES = 10
MINT_DECIMALS_AT = 44
_NO_GAS = ("AccountNotFound", "InsufficientFundsForFee", "InvalidAccountForFee")


class RefundAccountClosed(RefundUnpayable):
    """The payer closed the token account that he paid from. Nothing was sent, and the sum is free again."""

    reason: ClassVar[str] = "refund-account-closed"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A signed transaction that pays a refund. `signature` is its id."""

    refund_id: int
    signature: str
    sender: str
    signed_slot: int
    last_valid_height: int
    transaction: bytes


@dataclass(frozen=True, slots=True)
class _Draft:
    message: MessageV0
    slot: int
    last_valid_height: int


@dataclass(frozen=True, slots=True)
class SolanaReader:
    """See forgotten_refunds.Reader. Positions are slots."""

    node: SolanaNode

    @property
    def network(self) -> str:
        """See Reader."""
        return self.node.network

    @property
    def span(self) -> int:
        """See Reader."""
        return SLOTS_AT_ONCE

    async def find_ends(self) -> tuple[int, int]:
        """See Reader."""
        await self.node.check_network()
        final = await self.node.get_final()
        return final.slot, max((await self.node.get_head()).slot, final.slot)

    async def find_marked(self, asset: str, sender: str, first: int, last: int) -> list[MarkedTransfer]:
        """See Reader."""
        found: list[MarkedTransfer] = []
        for account in find_accounts(sender, asset):
            for signature in await self._find_memos(account, first, last):
                moved = await self.read_marked(asset, signature)
                found += [moved] if moved is not None and moved.from_address == sender else []
        return found

    async def read_marked(self, asset: str, tx_hash: str) -> MarkedTransfer | None:
        """See Reader."""
        landing = await self.node.find_landing(tx_hash, "confirmed")
        if landing is None or landing.error is not None:
            return None
        options = {"encoding": "base64", "commitment": "confirmed", "maxSupportedTransactionVersion": 0}
        answer: Any = await self.node.ask("getTransaction", tx_hash, options)
        try:
            told = VersionedTransaction.from_bytes(base64.b64decode(answer["transaction"][0]))
        except NONSENSE as error:
            self.node.complain("getTransaction", error)
        carried = _read_marked(told)
        if carried is None:
            return None
        mark, sender, mint, account, amount = carried
        if mint != asset:
            return None
        receiver = landing.owners[account]
        return MarkedTransfer(self.network, asset, sender, receiver, amount, tx_hash, landing.slot, mark)

    async def _find_memos(self, account: str, first: int, last: int) -> list[str]:
        """The account's transactions from slot `first` to `last` that succeeded and have our memo."""
        found: list[str] = []
        before: dict[str, str] = {}
        for _ in range(PAGES_MAX):
            options = {"commitment": "confirmed"} | before
            answer: Any = await self.node.ask("getSignaturesForAddress", account, options)
            try:
                found += [
                    str(each["signature"])
                    for each in answer
                    if each["err"] is None
                    and first <= each["slot"] <= last
                    and PREFIX in (each["memo"] or "")
                ]
                if not answer or answer[-1]["slot"] < first:
                    return found
                before = {"before": answer[-1]["signature"]}
            except NONSENSE as error:
                self.node.complain("getSignaturesForAddress", error)
        return self.node.complain("getSignaturesForAddress", ValueError("more history than can be read"))


@dataclass(frozen=True, slots=True)
class SolanaPurse:
    """See refund_purse.Purse: the account of one key. `nodes` by CAIP-2 network."""

    database: Database
    nodes: Mapping[str, SolanaNode]
    key: Keypair
    wait_seconds_max: float

    def __repr__(self) -> str:
        return f"SolanaPurse({self.senders})"

    @property
    def senders(self) -> Sequence[str]:
        """See Purse."""
        return [str(self.key.pubkey())]

    def open_reader(self, network: str) -> SolanaReader:
        """See Purse."""
        return SolanaReader(self.nodes[network])

    async def has_begun(self, refund: Refund) -> bool:
        """See Purse."""
        async with self.database.read() as tx:
            return await _find_attempt(tx, refund.refund_id) is not None

    async def bar(self, tx: WriteTx, refund: Refund) -> bool:
        """See Purse: one is written down only while its refund is `sent`."""
        return await _find_attempt(tx, refund.refund_id) is None

    async def check_pending(self, network: str) -> None:
        """See Purse: nodes there do not tell what waits."""

    async def find_sender(self, refund: Refund, mark: bytes) -> str:
        """See Purse. Raises RefundAccountClosed, RefundPurseEmpty, OperatorOutOfGas."""
        node, sender = self.nodes[refund.network], self.senders[0]
        draft = await self._draft(node, refund, mark)  # what is signed could land
        unsigned = VersionedTransaction.populate(draft.message, [Signature.default()])
        error = await node.simulate(base64.b64encode(bytes(unsigned)).decode())
        if error in _NO_GAS:
            raise OperatorOutOfGas(
                f"The operator's account {sender} cannot pay the fee. Send it SOL; the refund then goes on."
            )
        if error is not None:
            raise RefundPurseEmpty(
                f"{sender} cannot send {refund.amount} minor units of {refund.asset}: {error}. Nothing was "
                "sent: fill it and ask again."
            )
        return sender

    async def send(self, refund: Refund, mark: bytes, *, anew: bool) -> Ending | None:
        """See Purse."""
        node = self.nodes[refund.network]
        deadline = time.monotonic() + self.wait_seconds_max
        attempt = await self._begin(node, refund, mark, anew=anew)
        while attempt is not None:
            ending = await self._look(node, refund, attempt)
            if ending is not None or time.monotonic() >= deadline:
                return ending
            if await self._claim_send(attempt):
                await _send(node, attempt)
            await asyncio.sleep(POLL_SECONDS)
            async with self.database.read() as tx:
                attempt = await _find_attempt(tx, refund.refund_id)
        return None

    async def mend(self) -> None:
        """See Purse: what was lost on its way is sent again by whoever carries its refund out."""

    async def _begin(self, node: SolanaNode, refund: Refund, mark: bytes, *, anew: bool) -> Attempt | None:
        """The transaction that is on its way; one that is new is on disk, and sent, by the time of return."""
        async with self.database.read() as tx:
            known = await _find_attempt(tx, refund.refund_id)
        if known is not None or not anew:
            return known
        attempt = await self._sign(node, refund, mark)
        async with self.database.write() as tx:
            is_ours = await _write_down(tx, attempt, clock.now())
        if is_ours:
            await _send(node, attempt)
            return attempt
        async with self.database.read() as tx:
            return await _find_attempt(tx, refund.refund_id)

    async def _sign(self, node: SolanaNode, refund: Refund, mark: bytes) -> Attempt:
        """Raises RefundAccountClosed."""
        draft = await self._draft(node, refund, mark)
        signed = VersionedTransaction(draft.message, [self.key])
        return Attempt(
            refund.refund_id,
            str(signed.signatures[0]),
            self.senders[0],
            draft.slot,
            draft.last_valid_height,
            bytes(signed),
        )

    async def _draft(self, node: SolanaNode, refund: Refund, mark: bytes) -> _Draft:
        """Raises RefundAccountClosed."""
        await node.check_network()
        program, decimals = await _read_mint(node, refund.asset)
        source = derive_ata(self.senders[0], refund.asset, program)
        target = derive_ata(refund.to_address, refund.asset, program)
        if await _read_account(node, target) is None:
            raise RefundAccountClosed(
                f"{refund.to_address} closed the token account {target} that he paid from. Nothing was "
                "sent: ask again when he has opened it."
            )
        transfer = Instruction(
            Pubkey.from_string(program),
            bytes([TRANSFER_CHECKED]) + refund.amount.to_bytes(8, "little") + bytes([decimals]),
            [
                AccountMeta(Pubkey.from_string(source), is_signer=False, is_writable=True),
                AccountMeta(Pubkey.from_string(refund.asset), is_signer=False, is_writable=False),
                AccountMeta(Pubkey.from_string(target), is_signer=False, is_writable=True),
                AccountMeta(self.key.pubkey(), is_signer=True, is_writable=False),
            ],
        )
        memo = Instruction(Pubkey.from_string(MEMO_PROGRAM_ADDRESS), f"{PREFIX} {mark.hex()}".encode(), [])
        answer: Any = await node.ask("getLatestBlockhash", {"commitment": "confirmed"})
        try:
            slot, newest = int(answer["context"]["slot"]), answer["value"]
            blockhash, last = Hash.from_string(newest["blockhash"]), int(newest["lastValidBlockHeight"])
        except NONSENSE as error:
            node.complain("getLatestBlockhash", error)
        message = MessageV0.try_compile(self.key.pubkey(), [transfer, memo], [], blockhash)
        return _Draft(message, slot, last)

    async def _look(self, node: SolanaNode, refund: Refund, attempt: Attempt) -> Ending | None:
        """Ask the chain for its end, and write that down.

        None also where it landed and moved another sum: the reconciler keeps naming it, a person decides.
        """
        landing = await node.find_landing(attempt.signature, "confirmed")
        if landing is None:
            if await node.is_over(attempt.signature, attempt.last_valid_height, attempt.signed_slot):
                await self._conclude(attempt, "expired")
            return None
        if landing.error is not None:
            if (await node.get_final()).slot < landing.slot:  # on another fork it may yet succeed
                return None
            await self._conclude(attempt, "failed")
            return Ending(
                arrived=False, tx_hash=attempt.signature, from_address=attempt.sender, position=landing.slot
            )
        targets = find_accounts(refund.to_address, refund.asset)
        if sum(landing.moved.get((target, refund.asset), 0) for target in targets) != refund.amount:
            return None
        await self._conclude(attempt, "landed")
        return Ending(
            arrived=True, tx_hash=attempt.signature, from_address=attempt.sender, position=landing.slot
        )

    async def _conclude(self, attempt: Attempt, status: Literal["landed", "failed", "expired"]) -> None:
        async with self.database.write() as tx:
            await tx.execute(
                """
                UPDATE payments.x402_solana_refunds SET status = %(status)s, ended_at = %(now)s
                WHERE signature = %(signature)s AND status = 'signed'
                """,
                {"status": status, "now": clock.now(), "signature": attempt.signature},
            )

    async def _claim_send(self, attempt: Attempt) -> bool:
        """Whether it is our turn to send it again: nobody has for a while."""
        now = clock.now()
        async with self.database.write() as tx:
            claimed = await tx.execute(
                """
                UPDATE payments.x402_solana_refunds SET sent_at = %(now)s
                WHERE signature = %(signature)s AND status = 'signed' AND sent_at <= %(before)s
                """,
                {"now": now, "signature": attempt.signature, "before": now - QUIET},
            )
        return claimed == 1


async def _find_attempt(tx: ReadTx, refund_id: int) -> Attempt | None:
    """The transaction of a refund that is on its way, or has landed."""
    return await tx.maybe(
        """
        SELECT refund_id, signature, sender, signed_slot, last_valid_height, transaction
        FROM payments.x402_solana_refunds
        WHERE refund_id = %(refund_id)s AND status IN ('signed', 'landed')
        """,
        {"refund_id": refund_id},
        into=Attempt,
    )


async def _write_down(tx: WriteTx, attempt: Attempt, now: datetime) -> bool:
    """Whether it is the one transaction of its refund, which nobody has ended meanwhile."""
    inserted = await tx.execute(
        """
        INSERT INTO payments.x402_solana_refunds (
            refund_id, signed_at, sent_at, signed_slot, last_valid_height, status, signature, sender,
            transaction)
        SELECT refund_id, %(now)s, %(now)s, %(signed_slot)s, %(last_valid_height)s, 'signed',
               %(signature)s, %(sender)s, %(transaction)s
        FROM payments.x402_refunds WHERE refund_id = %(refund_id)s AND status = 'sent' FOR UPDATE
        ON CONFLICT DO NOTHING
        """,
        {
            "refund_id": attempt.refund_id,
            "now": now,
            "signed_slot": attempt.signed_slot,
            "last_valid_height": attempt.last_valid_height,
            "signature": attempt.signature,
            "sender": attempt.sender,
            "transaction": attempt.transaction,
        },
    )
    return inserted == 1


async def _send(node: SolanaNode, attempt: Attempt) -> None:
    """Whatever the node answers, or does not, says nothing of what the cluster will do."""
    try:
        await node.send(base64.b64encode(attempt.transaction).decode())
    except (ChainUnreachable, ChainRefused):
        return


async def _read_mint(node: SolanaNode, mint: str) -> tuple[str, int]:
    """The token program that made a mint, and its decimals."""
    account = await _read_account(node, mint)
    try:
        program, data = account["owner"], base64.b64decode(account["data"][0])
        if program not in (TOKEN_PROGRAM_ADDRESS, TOKEN_2022_PROGRAM_ADDRESS):
            raise ValueError(f"{mint} is no token")
        return program, data[MINT_DECIMALS_AT]
    except NONSENSE as error:
        node.complain("getAccountInfo", error)


async def _read_account(node: SolanaNode, address: str) -> Any:
    answer: Any = await node.ask("getAccountInfo", address, {"encoding": "base64", "commitment": "confirmed"})
    try:
        return answer["value"]
    except NONSENSE as error:
        node.complain("getAccountInfo", error)


def _read_marked(told: VersionedTransaction) -> tuple[bytes, str, str, str, int] | None:
    """The mark, the sender, the mint, the receiving account and the amount; None where it is no refund."""
    keys = [str(key) for key in told.message.account_keys]
    marks: list[bytes] = []
    transfers: list[tuple[str, str, str, int]] = []
    for call in told.message.instructions:
        program, data = keys[call.program_id_index], bytes(call.data)
        if program == MEMO_PROGRAM_ADDRESS and data.startswith(PREFIX.encode()):
            marks.append(_read_memo(data))
        elif program in (TOKEN_PROGRAM_ADDRESS, TOKEN_2022_PROGRAM_ADDRESS):
            if len(data) != TRANSFER_BYTES or data[0] != TRANSFER_CHECKED:
                return None
            _, mint, target, owner = (keys[index] for index in list(call.accounts)[:4])
            transfers.append((owner, mint, target, int.from_bytes(data[1:9], "little")))
    if len(marks) != 1 or len(transfers) != 1 or len(marks[0]) != MARK_BYTES:
        return None
    return marks[0], *transfers[0]


def _read_memo(data: bytes) -> bytes:
    try:
        return bytes.fromhex(data[len(PREFIX) :].decode())
    except ValueError:
        return b""
