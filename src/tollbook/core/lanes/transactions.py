"""The transactions of the lanes: what is wanted, what became of it, and the statements that say so.

reserved → signed → sent → mined → confirmed. A reserved or signed one that no node took is dropped and its
nonce goes to the next call; a mined one whose block disappeared is sent again. A confirmed one that the chain
takes back all the same is lost: its nonce goes to another, and when that one is final, it is dropped.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from tollbook.core import clock
from tollbook.core.chains import Receipt, normalize_address
from tollbook.core.database import Database, ReadTx, WriteTx
from tollbook.core.errors import Refusal
from tollbook.core.lanes.keys import Fees

PURPOSE_CHARS_MAX = 200
DATA_BYTES_MAX = 128 * 1024  # what nodes take in a transaction
VALUE_MAX = 2**256 - 1
GAS_MIN = 21_000
# Such calls could pay twice: one that lost its nonce is for its owner to send again. See core.take_nonces.
LOOK_FIRST = ("refund:", "command:")


class CallMalformed(Refusal):
    """A call that no transaction can carry."""

    reason = "call-malformed"


class PurposeReused(Refusal):
    """The purpose was given before, to another call."""

    reason = "purpose-reused"
    status = 422


class PurposeBarred(Refusal):
    """Its owner has said that it will not be sent. Nothing was sent."""

    reason = "purpose-barred"
    status = 409


@dataclass(frozen=True, slots=True)
class Call:
    """What a transaction is to do.

    `purpose` is the idempotency key, unique for ever: the same purpose is the same transaction. `gas` is the
    most units it may use, `value` wei of the network's coin. `sender` pins the operator's account.
    """

    network: str
    purpose: str
    to: str
    data: bytes
    gas: int
    value: int = 0
    sender: str | None = None

    def __repr__(self) -> str:
        return f"Call({self.network!r}, {self.purpose!r})"

    def check(self) -> "Call":
        """The same in lower case. Raises CallMalformed, MalformedAddress."""
        if not 0 < len(self.purpose) <= PURPOSE_CHARS_MAX:
            raise CallMalformed(f"A purpose has 1 to {PURPOSE_CHARS_MAX} characters.")
        if len(self.data) > DATA_BYTES_MAX or not 0 <= self.value <= VALUE_MAX or self.gas < GAS_MIN:
            raise CallMalformed(
                f"{self.purpose} fits no transaction: at most {DATA_BYTES_MAX} bytes, a value of 0 or more, "
                f"{GAS_MIN} gas or more."
            )
        sender = None if self.sender is None else normalize_address(self.sender)
        return replace(self, to=normalize_address(self.to), sender=sender)

    @property
    def fingerprint(self) -> bytes:
        """What must be the same under the same purpose: the network, the receiver, the value, the data."""
        head = f"{self.network} {self.to} {self.value} ".encode()
        return hashlib.sha256(head + self.data).digest()


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction as the books have it. `fee_paid` is in wei, L1 data fee included.

    `hashes` are all that were signed under its nonce, `hash` is the newest, or the one that was mined;
    `former_hashes` those under nonces that it lost. One that is `barred` is never sent again.
    `receipt` is there when it was waited for. It is final when `confirmed_at` is set.
    """

    transaction_id: int
    purpose: str
    network: str
    sender: str
    nonce: int | None
    status: str
    hash: str
    hashes: list[str]
    succeeded: bool | None
    block_number: int | None
    block_hash: str | None
    gas_used: int | None
    fee_paid: int | None
    created_at: datetime
    sent_at: datetime | None
    mined_at: datetime | None
    confirmed_at: datetime | None
    former_hashes: list[str] = field(default_factory=list[str])
    barred: bool = False
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True)
class Signed:
    """A reserved transaction with its signature, before anybody else may see it."""

    transaction_id: int
    purpose: str
    sender: str
    nonce: int
    hash: str
    raw: bytes
    sealed_call: bytes
    gas: int
    fees: Fees

    def __repr__(self) -> str:
        return f"Signed({self.hash!r})"


@dataclass(frozen=True, slots=True)
class Unfinished:
    """All that is needed to go on with a transaction that is not final."""

    transaction_id: int
    purpose: str
    fingerprint: bytes
    network: str
    sender: str
    nonce: int
    status: str
    hash: str
    hashes: list[str]
    sends: int
    gas: int
    fee_max: int
    tip_max: int | None
    sealed_call: bytes | None  # None where it was final once
    block_number: int | None
    block_hash: str | None
    holder_hash: str | None
    sent_at: datetime

    def __repr__(self) -> str:
        return f"Unfinished({self.hash!r})"

    @property
    def fees(self) -> Fees:
        """What it offers for gas."""
        return Fees(self.fee_max, self.tip_max)


@dataclass(frozen=True, slots=True)
class Keyless:
    """Open transactions of an account whose key is not configured: nobody looks after them."""

    network: str
    sender: str
    count: int
    oldest_at: datetime


@dataclass(frozen=True, slots=True)
class Mined:
    """What the chain says of a transaction: its receipt, the gas used, the fee paid (wei)."""

    transaction_id: int
    receipt: Receipt
    gas_used: int
    fee_paid: int | None


async def record_signed(database: Database, signed: Sequence[Signed]) -> set[int]:
    """Write signatures down, durably; the ids of those that were still ours to sign."""
    async with database.statement() as tx:
        rows = await tx.dicts(
            """
            -- In the order of purposes, as core.take_nonces has it: who meets waits, and never both.
            WITH held AS MATERIALIZED (
                SELECT h.transaction_id FROM core.transactions h
                WHERE h.transaction_id = ANY (%(ids)s) ORDER BY h.purpose COLLATE "C" FOR NO KEY UPDATE
            )
            UPDATE core.transactions t
            SET status = 'signed', hash = w.hash, hashes = ARRAY[w.hash], sealed_call = w.sealed_call,
                gas = w.gas, fee_max = w.fee_max, tip_max = w.tip_max, sends = 1, sent_at = %(now)s,
                holder_hash = NULL
            FROM unnest(
                %(ids)s::bigint[], %(senders)s::text[], %(nonces)s::bigint[], %(hashes)s::text[],
                %(sealed_calls)s::bytea[], %(gases)s::bigint[], %(fees_max)s::bigint[], %(tips_max)s::bigint[]
            ) AS w (transaction_id, sender, nonce, hash, sealed_call, gas, fee_max, tip_max)
            WHERE t.transaction_id IN (SELECT held.transaction_id FROM held)
              AND t.transaction_id = w.transaction_id AND t.status = 'reserved'
              AND t.sender = w.sender AND t.nonce = w.nonce
            RETURNING t.transaction_id
            """,
            {
                "now": clock.now(),
                "ids": [one.transaction_id for one in signed],
                "senders": [one.sender for one in signed],
                "nonces": [one.nonce for one in signed],
                "hashes": [one.hash for one in signed],
                "sealed_calls": [one.sealed_call for one in signed],
                "gases": [one.gas for one in signed],
                "fees_max": [one.fees.fee_max for one in signed],
                "tips_max": [one.fees.tip_max for one in signed],
            },
        )
    return {row["transaction_id"] for row in rows}


async def record_sent(database: Database, sent: Mapping[int, str]) -> None:
    """A node has these, by id and hash. Should this be lost, they are merely sent again."""
    async with database.statement() as tx:
        await tx.execute(
            """
            UPDATE core.transactions SET status = 'sent'
            FROM (SELECT set_config('synchronous_commit', 'off', true)) AS quick
            WHERE transaction_id IN (
                -- Who holds one of these knows more of it.
                SELECT t.transaction_id FROM core.transactions t
                WHERE t.transaction_id = ANY (%(ids)s) AND t.hash = ANY (%(hashes)s)
                FOR NO KEY UPDATE SKIP LOCKED
            ) AND status = 'signed'
            """,
            {"ids": list(sent), "hashes": list(sent.values())},
        )


async def record_resend(tx: WriteTx, row: Unfinished, new_hash: str, fees: Fees) -> bool:
    """Announce that it goes to a node once more, perhaps with other fees; False where another came first."""
    return bool(
        await tx.execute(
            """
            UPDATE core.transactions
            SET hash = %(new_hash)s, fee_max = %(fee_max)s, tip_max = %(tip_max)s,
                hashes = CASE WHEN %(new_hash)s = ANY (hashes) THEN hashes ELSE hashes || %(new_hash)s END,
                sends = sends + 1, sent_at = %(now)s
            WHERE transaction_id = %(transaction_id)s AND status IN ('signed', 'sent')
              AND hash = %(hash)s AND sends = %(sends)s
            """,
            {
                "transaction_id": row.transaction_id,
                "hash": row.hash,
                "sends": row.sends,
                "new_hash": new_hash,
                "fee_max": fees.fee_max,
                "tip_max": fees.tip_max,
                "now": clock.now(),
            },
        )
    )


async def drop(tx: WriteTx, transaction_id: int, hash_: str, sends: int) -> bool:
    """Its nonce is another's, so it can never be mined: drop it; False where somebody sent it meanwhile.

    By its hash: one that was dropped and issued anew has the same id and is another transaction.
    """
    return bool(
        await tx.execute(
            """
            UPDATE core.transactions SET status = 'dropped', nonce = NULL, sealed_call = NULL
            WHERE transaction_id = %(transaction_id)s AND hash = %(hash)s
              AND status IN ('signed', 'sent', 'lost') AND sends = %(sends)s
            """,
            {"transaction_id": transaction_id, "hash": hash_, "sends": sends},
        )
    )


async def hold(tx: WriteTx, row: Unfinished) -> bool:
    """Whether it is on its way as it was read; it is nobody else's then until the transaction ends."""
    return bool(
        await tx.value(
            """
            SELECT true FROM core.transactions
            WHERE transaction_id = %(transaction_id)s AND hash = %(hash)s
              AND status IN ('signed', 'sent') AND sends = %(sends)s
            FOR NO KEY UPDATE
            """,
            {"transaction_id": row.transaction_id, "hash": row.hash, "sends": row.sends},
        )
    )


async def renumber(tx: WriteTx, row: Unfinished, nonce: int, new_hash: str, fees: Fees) -> None:
    """The nonce of one that is held is another's for good: go on with a new one."""
    await tx.execute(
        """
        UPDATE core.transactions
        SET status = 'signed', nonce = %(nonce)s, hash = %(new_hash)s, hashes = ARRAY[%(new_hash)s],
            fee_max = %(fee_max)s, tip_max = %(tip_max)s, sends = sends + 1, sent_at = %(now)s,
            holder_hash = NULL
        WHERE transaction_id = %(transaction_id)s AND hash = %(hash)s
          AND status IN ('signed', 'sent') AND sends = %(sends)s
        """,
        {
            "transaction_id": row.transaction_id,
            "hash": row.hash,
            "sends": row.sends,
            "nonce": nonce,
            "new_hash": new_hash,
            "fee_max": fees.fee_max,
            "tip_max": fees.tip_max,
            "now": clock.now(),
        },
    )


async def record_holder(tx: WriteTx, row: Unfinished, holder_hash: str | None) -> None:
    """Write down who was seen under its nonce: the node forgets the states by which he is found."""
    await tx.execute(
        """
        UPDATE core.transactions SET holder_hash = %(holder_hash)s
        WHERE transaction_id = %(transaction_id)s AND hash = %(hash)s AND status IN ('signed', 'sent', 'lost')
        """,
        {"transaction_id": row.transaction_id, "hash": row.hash, "holder_hash": holder_hash},
    )


async def record_mined(database: Database, mined: Sequence[Mined], *, final: bool) -> None:
    """They are in blocks; `final` where the first block is enough for this network.

    Should this be lost, it is found on the chain again.
    """
    async with database.statement() as tx:
        await tx.execute(
            """
            -- Many pollers and sweeps may find the same ones: they take them in one order.
            WITH held AS MATERIALIZED (
                SELECT h.transaction_id FROM core.transactions h
                WHERE h.transaction_id = ANY (%(ids)s) ORDER BY h.purpose COLLATE "C" FOR NO KEY UPDATE
            )
            UPDATE core.transactions t
            SET status = 'mined', hash = w.hash, succeeded = w.succeeded, block_number = w.block_number,
                block_hash = w.block_hash, gas_used = w.gas_used, fee_paid = w.fee_paid, mined_at = %(now)s,
                confirmed_at = CASE WHEN %(final)s THEN %(now)s::timestamptz END,
                sealed_call = CASE WHEN %(final)s THEN NULL ELSE t.sealed_call END
            FROM unnest(
                %(ids)s::bigint[], %(hashes)s::text[], %(succeeded)s::boolean[], %(block_numbers)s::bigint[],
                %(block_hashes)s::text[], %(gas_used)s::bigint[], %(fees_paid)s::numeric[]
            ) AS w (transaction_id, hash, succeeded, block_number, block_hash, gas_used, fee_paid),
                 (SELECT set_config('synchronous_commit', 'off', true)) AS quick
            WHERE t.transaction_id IN (SELECT held.transaction_id FROM held)
              AND t.transaction_id = w.transaction_id AND w.hash = ANY (t.hashes)
              AND (t.status IN ('signed', 'sent')
                   OR (t.status = 'mined' AND t.confirmed_at IS NULL AND t.block_hash <> w.block_hash)
                   -- One that was lost came back. Whoever was given its nonce finds out that it is not his.
                   OR (t.status = 'lost' AND NOT EXISTS (
                       SELECT FROM core.transactions o
                       WHERE o.network = t.network AND o.sender = t.sender AND o.nonce = t.nonce
                         AND o.status NOT IN ('lost', 'dropped'))))
            """,
            {
                "now": clock.now(),
                "final": final,
                "ids": [one.transaction_id for one in mined],
                "hashes": [one.receipt.transaction_hash for one in mined],
                "succeeded": [one.receipt.succeeded for one in mined],
                "block_numbers": [one.receipt.block_number for one in mined],
                "block_hashes": [one.receipt.block_hash for one in mined],
                "gas_used": [one.gas_used for one in mined],
                "fees_paid": [None if one.fee_paid is None else Decimal(one.fee_paid) for one in mined],
            },
        )


async def record_confirmed(tx: WriteTx, transaction_ids: Sequence[int], block_hashes: Sequence[str]) -> int:
    """Their blocks are deep enough; what they said is on the chain for all to read, and no longer here."""
    return await tx.execute(
        """
        WITH held AS MATERIALIZED (
            SELECT h.transaction_id FROM core.transactions h
            WHERE h.transaction_id = ANY (%(ids)s) ORDER BY h.purpose COLLATE "C" FOR NO KEY UPDATE
        )
        UPDATE core.transactions t SET confirmed_at = %(now)s, sealed_call = NULL
        FROM unnest(%(ids)s::bigint[], %(block_hashes)s::text[]) AS w (transaction_id, block_hash)
        WHERE t.transaction_id IN (SELECT held.transaction_id FROM held)
          AND t.transaction_id = w.transaction_id AND t.block_hash = w.block_hash
          AND t.status = 'mined' AND t.confirmed_at IS NULL
        """,
        {"now": clock.now(), "ids": list(transaction_ids), "block_hashes": list(block_hashes)},
    )


async def record_orphaned(tx: WriteTx, row: Unfinished) -> bool:
    """Its block is no longer of the chain: it is on its way again, or lost where its call is not kept."""
    return bool(
        await tx.execute(
            """
            UPDATE core.transactions
            SET status = CASE WHEN sealed_call IS NULL THEN 'lost' ELSE 'sent' END, succeeded = NULL,
                block_number = NULL, block_hash = NULL, gas_used = NULL, fee_paid = NULL, mined_at = NULL
            WHERE transaction_id = %(transaction_id)s AND status = 'mined' AND confirmed_at IS NULL
              AND block_hash = %(block_hash)s
            """,
            {"transaction_id": row.transaction_id, "block_hash": row.block_hash},
        )
    )


async def find_keyless(tx: ReadTx, addresses: Sequence[str]) -> list[Keyless]:
    """What is open and of none of these operators' addresses (lower case), by network and account."""
    return await tx.all(
        """
        SELECT network, sender, count(*) AS count, min(created_at) AS oldest_at
        FROM core.transactions
        WHERE status IN ('reserved', 'signed', 'sent') AND sender <> ALL (%(addresses)s::text[])
        GROUP BY network, sender ORDER BY network, sender
        """,
        {"addresses": list(addresses)},
        into=Keyless,
    )


async def find(tx: ReadTx, *, ids: Sequence[int] = (), purposes: Sequence[str] = ()) -> list[Transaction]:
    """The transactions with these ids, or these purposes."""
    rows = await tx.all(
        """
        SELECT transaction_id, purpose, network, coalesce(sender, '') AS sender, nonce, status,
               coalesce(hash, '') AS hash, hashes, succeeded, block_number, block_hash, gas_used, fee_paid,
               created_at, sent_at, mined_at, confirmed_at, former_hashes, barred
        FROM core.transactions
        WHERE transaction_id = ANY (%(ids)s::bigint[]) OR purpose = ANY (%(purposes)s::text[])
        """,
        {"ids": list(ids), "purposes": list(purposes)},
        into=Transaction,
    )
    return [row if row.fee_paid is None else replace(row, fee_paid=int(row.fee_paid)) for row in rows]


async def find_fingerprints(tx: ReadTx, purposes: Sequence[str]) -> dict[str, bytes]:
    """What the purposes were given to."""
    rows = await tx.dicts(
        "SELECT purpose, fingerprint FROM core.transactions WHERE purpose = ANY (%(purposes)s)",
        {"purposes": list(purposes)},
    )
    return {row["purpose"]: row["fingerprint"] for row in rows}


async def find_unfinished(
    tx: ReadTx, network: str, *, statuses: Sequence[str], sent_before: datetime, limit: int
) -> list[Unfinished]:
    """What is not final and was left alone for a while, in nonce order.

    Every sender's lowest nonces come first: one that is stuck, or whose key is gone, holds up no other.
    """
    return await tx.all(
        """
        SELECT transaction_id, purpose, fingerprint, network, sender, nonce, status, hash, hashes, sends, gas,
               fee_max, tip_max, sealed_call, block_number, block_hash, holder_hash, sent_at
        FROM core.transactions
        WHERE network = %(network)s AND status = ANY (%(statuses)s)
          AND confirmed_at IS NULL AND status <> 'dropped' AND sent_at <= %(sent_before)s
        ORDER BY row_number() OVER (PARTITION BY sender ORDER BY nonce), sender
        LIMIT %(limit)s
        """,
        {"network": network, "statuses": list(statuses), "sent_before": sent_before, "limit": limit},
        into=Unfinished,
    )


def read_mined(transaction_id: int, receipt: Receipt, answer: dict[str, Any]) -> Mined:
    """A node's receipt with what it cost. Raises KeyError, TypeError, ValueError on nonsense."""
    gas_used = int(answer["gasUsed"], 16)
    price, data_fee = answer.get("effectiveGasPrice"), answer.get("l1Fee") or "0x0"
    fee_paid = None if price is None else gas_used * int(price, 16) + int(data_fee, 16)
    return Mined(transaction_id, receipt, gas_used, fee_paid)
