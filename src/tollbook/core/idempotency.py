"""Idempotency-Key: a POST that is sent again is answered again, and done once.

An answer may hold a secret that is shown once. So it is sealed with a key derived from the Idempotency-Key,
of which only the SHA-256 is kept: what lies in the database opens only for who sends the key again.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import cast

from tollbook.core import clock, ids
from tollbook.core.database import Database, WriteTx
from tollbook.core.errors import Refusal
from tollbook.core.sealing import open_sealed, seal

HEADER = "idempotency-key"
REPLAYED_HEADER = "Idempotency-Replayed"
KEY_LENGTH_MIN = 16  # what seals an answer must not be guessed; a UUID has 36
KEY_LENGTH_MAX = 255
KEEP = timedelta(hours=24)
RUNNING_MAX = timedelta(seconds=60)  # then its process is taken for dead and the request may be tried again
SEAL = "tollbook idempotent answer"
ANONYMOUS = 0


class IdempotencyKeyMalformed(Refusal):
    """The header is not a usable key."""

    reason = "idempotency-key-malformed"
    status = 400


class IdempotencyKeyReused(Refusal):
    """The key was sent before, with another request."""

    reason = "idempotency-key-reused"
    status = 422


class IdempotencyKeyBusy(Refusal):
    """The first request with this key is not answered yet."""

    reason = "idempotency-key-busy"
    status = 409


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered: the status, the headers that belong to the body, the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """Whose request, by what key, what it asks for."""

    caller: int
    key: str
    request_hash: bytes
    attempt_id: int
    started_at: datetime

    @property
    def key_hash(self) -> bytes:
        """What the database knows of the key."""
        return hashlib.sha256(self.key.encode()).digest()


@dataclass(frozen=True, slots=True)
class _Kept:
    request_hash: bytes
    status: str
    response_status: int | None
    sealed_response: bytes | None


def hash_request(method: str, target: str, body: bytes) -> bytes:
    """What tells two requests apart: method, path with query, and every byte of the body."""
    return hashlib.sha256(json.dumps([method, target]).encode() + b"\n" + body).digest()


async def run(
    database: Database,
    *,
    caller: int,
    key: str,
    request_hash: bytes,
    handle: Callable[[int], Awaitable[Answer]],
    now: datetime,
) -> Answer:
    """Answer as before where this was answered before; else handle it and keep the answer if it is a 2xx.

    A request that was refused or failed may be sent again. `handle` is given the id of what it makes: one
    that died or broke may have made it, and then the next one finds it by that.
    Raises IdempotencyKeyMalformed, IdempotencyKeyReused, IdempotencyKeyBusy, and what `handle` raises.
    """
    if not KEY_LENGTH_MIN <= len(key) <= KEY_LENGTH_MAX or not key.isascii() or not key.isprintable():
        raise IdempotencyKeyMalformed(
            f"An Idempotency-Key has {KEY_LENGTH_MIN} to {KEY_LENGTH_MAX} ASCII characters; send a new UUID."
        )
    attempt = Attempt(caller, key, request_hash, ids.make(), now)
    begun = await _begin(database, attempt)
    if isinstance(begun, _Kept):
        return _replay(attempt, begun)
    attempt = replace(attempt, attempt_id=begun)
    try:
        answer = await handle(attempt.attempt_id)
    except Exception:  # not where it is cancelled: then it may be done already
        await _release(database, attempt)
        raise
    if 200 <= answer.status < 300:
        await _finish(database, attempt, answer)
    else:
        await _release(database, attempt)
    return answer


async def forget(database: Database) -> int:
    """Delete the answers whose day is over; how many."""
    async with database.write() as tx:
        return await tx.execute(
            "DELETE FROM core.idempotency_keys WHERE expires_at < %(now)s", {"now": clock.now()}
        )


async def _begin(database: Database, attempt: Attempt) -> _Kept | int:
    """The attempt's id where it is the one to handle the request; else what stands in its way."""
    async with database.write() as tx:
        taken = await _take(tx, attempt)
        if taken is not None:
            return taken
        kept = await tx.maybe(
            """
            SELECT request_hash, status, response_status, sealed_response
            FROM core.idempotency_keys WHERE caller = %(caller)s AND key_hash = %(key_hash)s
            """,
            {"caller": attempt.caller, "key_hash": attempt.key_hash},
            into=_Kept,
        )
    if kept is None:  # forgotten between the two statements
        raise _busy()
    return kept


async def _take(tx: WriteTx, attempt: Attempt) -> int | None:
    """Who takes over from one that died or broke keeps its id: what that one made is not made again."""
    return await tx.value(
        """
        INSERT INTO core.idempotency_keys AS k (
            caller, key_hash, request_hash, status, attempt_id, started_at, expires_at
        ) VALUES (
            %(caller)s, %(key_hash)s, %(request_hash)s, 'running', %(attempt_id)s, %(now)s, %(expires_at)s
        )
        ON CONFLICT (caller, key_hash) DO UPDATE
        SET request_hash = excluded.request_hash, status = 'running',
            attempt_id = CASE WHEN k.expires_at < %(now)s OR k.request_hash <> excluded.request_hash
                              THEN excluded.attempt_id ELSE k.attempt_id END,
            started_at = excluded.started_at, expires_at = excluded.expires_at,
            response_status = NULL, sealed_response = NULL
        WHERE k.expires_at < %(now)s
           OR (k.status = 'running' AND (k.started_at = '-infinity' OR (
               k.started_at < %(dead_before)s AND k.request_hash = excluded.request_hash)))
        RETURNING attempt_id
        """,
        {
            "caller": attempt.caller,
            "key_hash": attempt.key_hash,
            "request_hash": attempt.request_hash,
            "attempt_id": attempt.attempt_id,
            "now": attempt.started_at,
            "expires_at": attempt.started_at + KEEP,
            "dead_before": attempt.started_at - RUNNING_MAX,
        },
    )


async def _finish(database: Database, attempt: Attempt, answer: Answer) -> None:
    async with database.write() as tx:
        await tx.execute(
            """
            UPDATE core.idempotency_keys
            SET status = 'done', response_status = %(response_status)s, sealed_response = %(sealed)s
            WHERE caller = %(caller)s AND key_hash = %(key_hash)s
              AND attempt_id = %(attempt_id)s AND status = 'running'
            """,
            {
                "caller": attempt.caller,
                "key_hash": attempt.key_hash,
                "attempt_id": attempt.attempt_id,
                "response_status": answer.status,
                "sealed": _seal(attempt, answer),
            },
        )


async def _release(database: Database, attempt: Attempt) -> None:
    """Let the next one have it, at once. With the same id: whether this one made something is not sure."""
    async with database.write() as tx:
        await tx.execute(
            """
            UPDATE core.idempotency_keys SET started_at = '-infinity'
            WHERE caller = %(caller)s AND key_hash = %(key_hash)s
              AND started_at = %(started_at)s AND status = 'running'
            """,
            {"caller": attempt.caller, "key_hash": attempt.key_hash, "started_at": attempt.started_at},
        )


def _replay(attempt: Attempt, kept: _Kept) -> Answer:
    if kept.request_hash != attempt.request_hash:
        raise IdempotencyKeyReused(
            "This Idempotency-Key came with another request before. Send each new request with a new key."
        )
    if kept.response_status is None or kept.sealed_response is None:
        raise _busy()
    return _open(attempt, kept.response_status, kept.sealed_response)


def _busy() -> IdempotencyKeyBusy:
    return IdempotencyKeyBusy(
        "The first request with this Idempotency-Key is still running. Send it again in a second."
    )


def _seal(attempt: Attempt, answer: Answer) -> bytes:
    plain = json.dumps(dict(answer.headers)).encode() + b"\n" + answer.body
    return seal(
        plain, secret=attempt.key.encode(), purpose=SEAL, salt=_salt(attempt), bound_to=attempt.request_hash
    )


def _open(attempt: Attempt, status: int, sealed: bytes) -> Answer:
    plain = open_sealed(
        sealed, secret=attempt.key.encode(), purpose=SEAL, salt=_salt(attempt), bound_to=attempt.request_hash
    )
    headers, _, body = plain.partition(b"\n")
    return Answer(status, cast("dict[str, str]", json.loads(headers)), body, replayed=True)


def _salt(attempt: Attempt) -> bytes:
    return attempt.caller.to_bytes(8, "big")
