"""Access tokens: the secrets that let a payer make the requests a payment bought, kept only as hashes.

A token is live until it is revoked or expires; nothing brings it back. It expires with its payment.
"""

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

from pydantic import PlainSerializer

from tollbook.books.payments import payments
from tollbook.books.payments.errors import PaymentNotInState, TokenAlreadyRevoked, TokenNotFound
from tollbook.books.payments.payments import PAGE_MAX, PaymentId
from tollbook.core import ids, journal
from tollbook.core.database import ReadTx, WriteTx
from tollbook.core.journal import Fact

PREFIX = "tbk_"
SECRET_BYTES = 32


def show(token_id: int) -> str:
    """The id as people see it: tok_ and 13 letters. It is no secret and buys nothing."""
    return ids.show("tok", token_id)


TokenId = Annotated[int, PlainSerializer(show, return_type=str)]


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the book knows it: without its secret, and without its hash."""

    token_id: TokenId
    payment_id: PaymentId
    issued_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Grant:
    """A new token with its secret, which is shown this once."""

    secret: str = field(repr=False)
    token: Token


def hash_secret(secret: str) -> bytes:
    """What is kept of a secret: its SHA-256. With 256 random bits it needs no salt and no stretching."""
    return hashlib.sha256(secret.encode()).digest()


async def issue(tx: WriteTx, payment_id: int, *, now: datetime) -> Grant:
    """A new token for a settled payment, good until the payment expires.

    Raises PaymentNotInState when the payment buys nothing, PaymentUnknown.
    """
    payment = await payments.get(tx, payment_id)
    if payment.status not in ("verified", "used") or payment.expires_at is None or payment.expires_at <= now:
        raise PaymentNotInState(payment_id, payment.status, payment.settlement, "given a token")
    token = Token(ids.make(), payment_id, now, payment.expires_at, None)
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    await tx.execute(
        """
        INSERT INTO payments.x402_tokens (token_id, payment_id, issued_at, expires_at, token_hash)
        VALUES (%(token_id)s, %(payment_id)s, %(issued_at)s, %(expires_at)s, %(token_hash)s)
        """,
        {
            "token_id": token.token_id,
            "payment_id": token.payment_id,
            "issued_at": token.issued_at,
            "expires_at": token.expires_at,
            "token_hash": hash_secret(secret),
        },
    )
    await _tell(tx, "token.issued", [token])
    return Grant(secret, token)


async def rotate(tx: WriteTx, payment_id: int, *, now: datetime) -> Grant:
    """Revoke the payment's live tokens and issue one: the payer proved to be himself again.

    Two at once wait for each other, so that one live token remains. Raises as issue() does.
    """
    await tx.execute(
        "SELECT FROM payments.x402_payments WHERE payment_id = %(payment_id)s FOR NO KEY UPDATE",
        {"payment_id": payment_id},
    )
    await revoke_all(tx, payment_id, now=now)
    return await issue(tx, payment_id, now=now)


async def revoke(tx: WriteTx, token_id: int, *, now: datetime) -> Token:
    """Revoke a token: every process refuses it from this commit on.

    Raises TokenAlreadyRevoked, TokenNotFound.
    """
    revoked = await tx.maybe(
        """
        UPDATE payments.x402_tokens SET revoked_at = %(now)s
        WHERE token_id = %(token_id)s AND revoked_at IS NULL
        RETURNING token_id, payment_id, issued_at, expires_at, revoked_at
        """,
        {"token_id": token_id, "now": now},
        into=Token,
    )
    if revoked is None:
        token = await get(tx, token_id)
        raise TokenAlreadyRevoked(token_id, token.revoked_at)
    await _tell(tx, "token.revoked", [revoked])
    return revoked


async def revoke_all(tx: WriteTx, payment_id: int, *, now: datetime) -> list[Token]:
    """Revoke a payment's live tokens, if there are any; those that were revoked."""
    revoked = await tx.all(
        """
        UPDATE payments.x402_tokens SET revoked_at = %(now)s
        WHERE payment_id = %(payment_id)s AND revoked_at IS NULL
        RETURNING token_id, payment_id, issued_at, expires_at, revoked_at
        """,
        {"payment_id": payment_id, "now": now},
        into=Token,
    )
    if revoked:
        await _tell(tx, "token.revoked", revoked)
    return revoked


async def get(tx: ReadTx, token_id: int) -> Token:
    """One token. Raises TokenNotFound."""
    token = await tx.maybe(
        """
        SELECT token_id, payment_id, issued_at, expires_at, revoked_at
        FROM payments.x402_tokens WHERE token_id = %(token_id)s
        """,
        {"token_id": token_id},
        into=Token,
    )
    if token is None:
        raise TokenNotFound(token_id)
    return token


async def page(
    tx: ReadTx, *, after: int | None = None, limit: int = PAGE_MAX, payment_id: int | None = None
) -> list[Token]:
    """Tokens, newest first, that follow the id `after`; at most `limit`, and never more than PAGE_MAX."""
    return await tx.all(
        """
        SELECT token_id, payment_id, issued_at, expires_at, revoked_at
        FROM payments.x402_tokens
        WHERE (%(after)s::bigint IS NULL OR token_id < %(after)s)
          AND (%(payment_id)s::bigint IS NULL OR payment_id = %(payment_id)s)
        ORDER BY token_id DESC LIMIT %(limit)s
        """,
        {"after": after, "payment_id": payment_id, "limit": min(limit, PAGE_MAX)},
        into=Token,
    )


async def _tell(tx: WriteTx, kind: str, changed: list[Token]) -> None:
    facts = [
        Fact(
            book="payments",
            kind=kind,
            subject=str(token.token_id),
            network=None,
            asset=None,
            amount=None,
            from_party=None,
            to_party=None,
            details={"payment_id": str(token.payment_id)},
        )
        for token in changed
    ]
    await journal.append(tx, facts)
