"""Answers: which request a payment came with, who is answering it, and what was answered.

What may follow what:

    (new)          -> running   with the payment's own row: this request, and no other, is what it buys
    running        -> kept      answered; the answer is given again to who asks with the same payment
    running        -> gone      answered, but too long to be kept: the receipt alone is given again
    running        -> open      not answered (or the money's fate is unknown): ask again
    running        -> open      counted and broken off: ask again, BROKEN_MAX times
    open           -> running   asked again
    running        -> running   asked again, after nobody was heard of for HOLD

What is kept is sealed with the PAYMENT-SIGNATURE header it answers, of which only the hash is kept. After a
settlement the authorization and its signature are on the chain for all to read; so an answer is given again
only where the header holds a secret besides: the challenge of our 402, which clients send back, or a
payment-identifier.
"""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, cast

from x402.schemas import PaymentPayload

from tollbook.core import clock
from tollbook.core.database import Database, WriteTx
from tollbook.core.sealing import open_sealed, seal

Status = Literal["running", "open", "kept", "gone"]
Headers = list[tuple[bytes, bytes]]

HOLD = timedelta(seconds=20)  # a process that ended keeps its payers waiting for so long
RENEW_SECONDS = 5.0  # while an app takes its time
BODY_BYTES_MAX = 256 * 1024
SECRET_CHARS_MIN = 16
EXTENSION = "tollbook"
IDENTIFIER_EXTENSION = "payment-identifier"
SEAL = "tollbook paid answer"
FORGET_MAX = 10_000
BROKEN_MAX = 3  # answers that broke off and are made again: else who hangs up would be served for ever


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and the payment it came with. `header` is PAYMENT-SIGNATURE, whole."""

    header: bytes = field(repr=False)
    request_hash: bytes
    has_secret: bool

    @property
    def proof_hash(self) -> bytes:
        """What the database knows of the header."""
        return hashlib.sha256(self.header).digest()


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered. `whole` is False where the body was too long to be kept.

    `first` says that nobody was given it before.
    """

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    whole: bool = True
    first: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A payment's request as the book has it. `broken` is how often its answer, counted, broke off."""

    payment_id: int
    status: Status
    holder: int
    held_until: datetime
    broken: int
    proof_hash: bytes
    request_hash: bytes
    sealed_answer: bytes | None


def hash_request(method: str, target: bytes, body: bytes) -> bytes:
    """What makes it this request: its method, its path with query, its body (up to a bound)."""
    start = f"{method} {len(target)} ".encode() + target + b"\n"
    return hashlib.sha256(start + body).digest()


def has_secret(payment: PaymentPayload) -> bool:
    """Whether its header holds something that cannot be read off the chain."""
    extensions = payment.extensions or {}
    challenge = _read_info(extensions.get(EXTENSION)).get("challenge")
    identifier = _read_info(extensions.get(IDENTIFIER_EXTENSION)).get("id")
    return any(isinstance(text, str) and len(text) >= SECRET_CHARS_MIN for text in (challenge, identifier))


def read_route(payment: PaymentPayload) -> str | None:
    """The route whose 402 was paid, as its client sends it back; None where it sends nothing back."""
    route = _read_info((payment.extensions or {}).get(EXTENSION)).get("route")
    return route if isinstance(route, str) else None


def _read_info(extension: object) -> dict[str, Any]:
    if not isinstance(extension, dict):
        return {}
    info = cast(dict[str, Any], extension).get("info")
    return cast(dict[str, Any], info) if isinstance(info, dict) else {}


async def begin(
    tx: WriteTx, payment_id: int, asked: Asked, holder: int, *, lifetime: timedelta, now: datetime
) -> None:
    """Bind a new payment to its request, and hold it. `lifetime` is how long it may be asked for again."""
    await tx.execute(
        """
        INSERT INTO payments.x402_answers (
            payment_id, holder, held_until, expires_at, status, proof_hash, request_hash)
        VALUES (
            %(payment_id)s, %(holder)s, %(held_until)s, %(expires_at)s, 'running', %(proof_hash)s,
            %(request_hash)s)
        """,
        {
            "payment_id": payment_id,
            "holder": holder,
            "held_until": now + HOLD,
            "expires_at": now + lifetime,
            "proof_hash": asked.proof_hash,
            "request_hash": asked.request_hash,
        },
    )


async def get(tx: WriteTx, payment_id: int) -> Record | None:
    """The request that a payment came with, held until this transaction ends; None where it is forgotten."""
    return await tx.maybe(
        """
        SELECT payment_id, status, holder, held_until, broken, proof_hash, request_hash, sealed_answer
        FROM payments.x402_answers WHERE payment_id = %(payment_id)s FOR NO KEY UPDATE
        """,
        {"payment_id": payment_id},
        into=Record,
    )


async def take(tx: WriteTx, payment_id: int, holder: int, *, now: datetime) -> bool:
    """Take over the answering where nobody is at it; whether it was taken."""
    taken = await tx.execute(
        """
        UPDATE payments.x402_answers
        SET status = 'running', holder = %(holder)s, held_until = %(held_until)s
        WHERE payment_id = %(payment_id)s
          AND (status = 'open' OR (status = 'running' AND held_until <= %(now)s))
        """,
        {"payment_id": payment_id, "holder": holder, "held_until": now + HOLD, "now": now},
    )
    return taken == 1


async def find_holder(tx: WriteTx, payment_id: int) -> int | None:
    """Who answers it, and will until this transaction ends; None where it is forgotten."""
    return await tx.value(
        "SELECT holder FROM payments.x402_answers WHERE payment_id = %(payment_id)s FOR NO KEY UPDATE",
        {"payment_id": payment_id},
    )


async def renew(tx: WriteTx, payment_id: int, holder: int, *, now: datetime) -> None:
    """Go on holding it."""
    await tx.execute(
        """
        UPDATE payments.x402_answers SET held_until = %(held_until)s
        WHERE payment_id = %(payment_id)s AND holder = %(holder)s AND status = 'running'
        """,
        {"payment_id": payment_id, "holder": holder, "held_until": now + HOLD},
    )


async def let_go(tx: WriteTx, payment_id: int, holder: int, *, is_counted: bool) -> None:
    """It was not answered, or not to the end: whoever asks next goes on."""
    await tx.execute(
        """
        UPDATE payments.x402_answers SET status = 'open', broken = broken + %(is_counted)s::integer
        WHERE payment_id = %(payment_id)s AND holder = %(holder)s AND status = 'running'
        """,
        {"payment_id": payment_id, "holder": holder, "is_counted": is_counted},
    )


async def keep(
    tx: WriteTx, payment_id: int, holder: int, asked: Asked, answer: Answer, *, until: datetime
) -> None:
    """It was answered: keep the answer, sealed, for who asks again."""
    await tx.execute(
        """
        UPDATE payments.x402_answers
        SET status = %(status)s, sealed_answer = %(sealed)s, expires_at = %(until)s
        WHERE payment_id = %(payment_id)s AND holder = %(holder)s AND status = 'running'
        """,
        {
            "payment_id": payment_id,
            "holder": holder,
            "status": "kept" if answer.whole else "gone",
            "sealed": _seal(asked, answer),
            "until": until,
        },
    )


def read_answer(record: Record, asked: Asked) -> Answer:
    """The answer that was kept. Call where the record's proof is the asker's."""
    assert record.sealed_answer is not None
    plain = open_sealed(record.sealed_answer, secret=asked.header, purpose=SEAL, bound_to=record.request_hash)
    head, _, body = plain.partition(b"\n")
    status, headers = json.loads(head)
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return Answer(status, pairs, body, whole=record.status == "kept")


async def forget(database: Database) -> int:
    """Delete the answers whose window is over; how many."""
    async with database.write() as tx:
        return await tx.execute(
            """
            DELETE FROM payments.x402_answers WHERE payment_id IN (
                SELECT payment_id FROM payments.x402_answers WHERE expires_at < %(now)s
                ORDER BY expires_at LIMIT %(limit)s)
            """,
            {"now": clock.now(), "limit": FORGET_MAX},
        )


def _seal(asked: Asked, answer: Answer) -> bytes:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers]
    plain = json.dumps([answer.status, headers]).encode() + b"\n" + answer.body
    return seal(plain, secret=asked.header, purpose=SEAL, bound_to=asked.request_hash)
