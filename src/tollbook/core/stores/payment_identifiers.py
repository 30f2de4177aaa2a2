"""The payment-identifier extension, kept: a request that is sent again is answered again, and done once.

The SDK defines the identifier and leaves the rest to the seller. Here an identifier is bound to the request
it came with, and the answer is kept, sealed with a key derived from the identifier, of which only the SHA-256
is stored: what lies in the database opens only for who presents the identifier again.
"""

import asyncio
import hashlib
import json
import re
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from tollbook.core.errors import Refusal
from tollbook.core.sealing import open_sealed, seal
from tollbook.core.stores.connections import Connections, find_connections, hash_key

KEEP = timedelta(hours=24)
LEASE = timedelta(seconds=60)  # then its process is taken for dead and the request may be tried again
ANSWER_BYTES_MAX = 1024 * 1024
SEAL = "tollbook payment identifier"
# As the extension has it. Its own check cannot be imported without the libraries of all other extensions.
IDENTIFIER = re.compile(r"[a-zA-Z0-9_-]{16,128}")


class IdentifierMalformed(Refusal):
    """The identifier is none that the extension allows."""

    reason = "payment-identifier-malformed"
    status = 400


class IdentifierConflict(Refusal):
    """The identifier came before, with another request."""

    reason = "payment-identifier-conflict"
    status = 409


class AnswerNotKept(Refusal):
    """The request was answered, but its answer was too large to be kept."""

    reason = "payment-identifier-answer-not-kept"
    status = 410


@dataclass(frozen=True, slots=True)
class Begun:
    """The request is the caller's to answer: then `finish`, or `release` where nothing was done."""

    identifier: str
    fingerprint: bytes
    attempt_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class InProgress:
    """Another is answering the same request; `seconds` until its process would be taken for dead."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered: status, headers in their order, body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Kept:
    fingerprint: bytes
    status: str
    seconds: float
    sealed_answer: bytes | None


def take_fingerprint(method: str, target: str, body: bytes, *, payer: str, price: str) -> bytes:
    """What tells two requests apart: method, path with query, every byte of the body, who pays, and what.

    `price` is any text that names amount and asset, for example `f"{amount} {asset} {network}"`.
    """
    body_hash = hashlib.sha256(body).hexdigest()
    named = json.dumps([method.upper(), target, body_hash, payer.lower(), price])
    return hashlib.sha256(named.encode()).digest()


class PostgresPaymentIdentifiers:
    """Which payment identifiers were presented, with which request, and what was answered.

    `lease` is how long a request may take before its process is taken for dead, `keep` how long its answer
    is given again. `database` is an address or `Connections`. The methods run in a thread, so they may be
    awaited in any event loop.
    """

    def __init__(
        self,
        database: str | Connections,
        *,
        lease: timedelta = LEASE,
        keep: timedelta = KEEP,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
    ) -> None:
        self._connections = find_connections(database)
        self._lease = lease
        self._keep = keep
        self._answer_bytes_max = answer_bytes_max

    async def begin(self, identifier: str, fingerprint: bytes) -> Begun | InProgress | Answer:
        """Begun for the first who presents the identifier, InProgress while he works, then his Answer.

        Raises IdentifierMalformed, IdentifierConflict, AnswerNotKept, DatabaseUnreachable.
        """
        if not IDENTIFIER.fullmatch(identifier):
            raise IdentifierMalformed(
                "A payment identifier has 16 to 128 letters, digits, hyphens or underscores."
            )
        return await asyncio.to_thread(self._begin, Begun(identifier, fingerprint, uuid.uuid4()))

    async def finish(self, begun: Begun, answer: Answer) -> bool:
        """Keep the answer. False where the lease was over and another has begun: his answer counts."""
        return await asyncio.to_thread(self._finish, begun, answer)

    async def release(self, begun: Begun) -> None:
        """Forget the request, so that it may be sent again: nothing was done and nothing paid."""
        await asyncio.to_thread(
            self._connections.execute,
            """
            DELETE FROM stores.payment_identifiers
            WHERE identifier_hash = %(identifier_hash)s AND attempt_id = %(attempt_id)s AND status = 'running'
            """,
            {"identifier_hash": hash_key(begun.identifier), "attempt_id": begun.attempt_id},
        )

    async def purge(self) -> int:
        """Delete what is kept no longer; how many."""
        return await asyncio.to_thread(
            self._connections.execute, "DELETE FROM stores.payment_identifiers WHERE expires_at < now()", {}
        )

    def _begin(self, begun: Begun) -> Begun | InProgress | Answer:
        if self._take(begun):
            return begun
        row = self._connections.fetch(
            """
            SELECT fingerprint, status, extract(epoch FROM leased_until - now())::float8, sealed_answer
            FROM stores.payment_identifiers WHERE identifier_hash = %(identifier_hash)s
            """,
            {"identifier_hash": hash_key(begun.identifier)},
        )
        if row is None:  # released between the two statements
            return InProgress(0.0)
        return _answer(begun, _Kept(*row))

    def _take(self, begun: Begun) -> bool:
        taken = self._connections.execute(
            """
            INSERT INTO stores.payment_identifiers AS p (
                identifier_hash, fingerprint, status, attempt_id, leased_until, expires_at
            ) VALUES (
                %(identifier_hash)s, %(fingerprint)s, 'running', %(attempt_id)s,
                now() + %(lease)s::interval, now() + %(keep)s::interval
            )
            ON CONFLICT (identifier_hash) DO UPDATE
            SET fingerprint = excluded.fingerprint, status = 'running', attempt_id = excluded.attempt_id,
                leased_until = excluded.leased_until, expires_at = excluded.expires_at, sealed_answer = NULL
            WHERE p.expires_at < now()
               OR (p.status = 'running' AND p.leased_until < now() AND p.fingerprint = excluded.fingerprint)
            """,
            {
                "identifier_hash": hash_key(begun.identifier),
                "fingerprint": begun.fingerprint,
                "attempt_id": begun.attempt_id,
                "lease": self._lease,
                "keep": self._keep,
            },
        )
        return taken == 1

    def _finish(self, begun: Begun, answer: Answer) -> bool:
        plain = json.dumps([answer.status, answer.headers]).encode() + b"\n" + answer.body
        # An answer too large is not kept, but that there was one is: to do it again would charge again.
        fits = len(plain) <= self._answer_bytes_max
        finished = self._connections.execute(
            """
            UPDATE stores.payment_identifiers SET status = %(status)s, sealed_answer = %(sealed)s
            WHERE identifier_hash = %(identifier_hash)s AND attempt_id = %(attempt_id)s AND status = 'running'
            """,
            {
                "identifier_hash": hash_key(begun.identifier),
                "attempt_id": begun.attempt_id,
                "status": "done" if fits else "too_large",
                "sealed": seal(plain, **_how(begun)) if fits else None,
            },
        )
        return finished == 1


def _answer(begun: Begun, kept: _Kept) -> InProgress | Answer:
    if kept.fingerprint != begun.fingerprint:
        raise IdentifierConflict(
            "This payment identifier came with another request before. Send each new request with a new one."
        )
    if kept.status == "too_large":
        raise AnswerNotKept("This request was answered, and its answer is too large to be given again.")
    if kept.sealed_answer is None:
        return InProgress(max(0.0, kept.seconds))
    head, _, body = open_sealed(kept.sealed_answer, **_how(begun)).partition(b"\n")
    status, headers = cast("tuple[int, list[list[str]]]", json.loads(head))
    return Answer(status, tuple((name, value) for name, value in headers), body)


def _how(begun: Begun) -> dict[str, Any]:
    return {"secret": begun.identifier.encode(), "purpose": SEAL, "bound_to": begun.fingerprint}
