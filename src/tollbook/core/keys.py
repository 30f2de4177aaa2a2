"""API keys: who may call /v1, and for what. A secret is shown once and kept only as its SHA-256."""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import PlainSerializer

from tollbook.core import ids
from tollbook.core.database import Database, ReadTx, WriteTx
from tollbook.core.errors import Refusal

PREFIX = "tbkey_"  # not an access token's, so that neither is taken for the other
SECRET_BYTES = 32
NAME_LENGTH_MAX = 100
SCOPES_MAX = 20
ALL_SCOPES = "*"
SCOPE = re.compile(r"\*|[a-z]{1,30}:(read|write)")
LAST_USED_STEP = timedelta(minutes=1)


def show_id(key_id: int) -> str:
    """The id as people and programs see it: key_…"""
    return ids.show("key", key_id)


KeyId = Annotated[int, PlainSerializer(show_id, return_type=str)]


class KeyUnknown(Refusal):
    """No API key, or not one of ours."""

    reason = "key-unknown"
    status = 401


class KeyRevoked(Refusal):
    """The key was one of ours until it was revoked."""

    reason = "key-revoked"
    status = 401


class KeyExpired(Refusal):
    """The key's time is over."""

    reason = "key-expired"
    status = 401


class ScopeMissing(Refusal):
    """The key is good, but not for this."""

    reason = "scope-missing"
    status = 403


class KeyNotFound(Refusal):
    """No key has this id."""

    reason = "key-not-found"
    status = 404


class KeyAlreadyRevoked(Refusal):
    """Revoked before; nothing changed."""

    reason = "key-already-revoked"
    status = 409


class KeyMalformed(Refusal):
    """The name, the scopes or the expiry of a new key cannot stand."""

    reason = "key-malformed"
    status = 422
    exit_code = 2


@dataclass(frozen=True, slots=True)
class Key:
    """A row of core.api_keys, without what its secret hashes to."""

    key_id: KeyId
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def allows(self, scope: str) -> bool:
        """Whether the key may do what asks for `scope`."""
        return scope in self.scopes or ALL_SCOPES in self.scopes


@dataclass(frozen=True, slots=True)
class KeyGrant:
    """A new key and its secret, which exists nowhere else."""

    secret: str = field(repr=False)
    key: Key


def hash_secret(secret: str) -> bytes:
    """What is stored of a secret. It has 256 random bits, so a fast hash without salt is enough."""
    return hashlib.sha256(secret.encode()).digest()


async def create(
    tx: WriteTx,
    *,
    name: str,
    scopes: Sequence[str],
    expires_at: datetime | None = None,
    key_id: int | None = None,
    now: datetime,
) -> KeyGrant:
    """Make a key; of a key_id that was made already, nobody was told the secret, and it gets another.

    Scopes are "payments:read", "keys:write" … or "*". Raises KeyMalformed."""
    _check(name, scopes, expires_at, now)
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    key = await tx.one(
        """
        INSERT INTO core.api_keys (key_id, name, secret_hash, scopes, created_at, expires_at)
        VALUES (%(key_id)s, %(name)s, %(secret_hash)s, %(scopes)s, %(now)s, %(expires_at)s)
        ON CONFLICT (key_id) DO UPDATE SET secret_hash = excluded.secret_hash
        RETURNING key_id, name, scopes, created_at, expires_at, revoked_at, last_used_at
        """,
        {
            "key_id": key_id or ids.make(),
            "name": name.strip(),
            "secret_hash": hash_secret(secret),
            "scopes": sorted(set(scopes)),
            "now": now,
            "expires_at": expires_at,
        },
        into=Key,
    )
    return KeyGrant(secret, key)


async def authenticate(database: Database, secret: str, *, now: datetime) -> Key:
    """The key behind a secret, asked of the database each time: a revoked key is refused at once everywhere.

    Raises KeyUnknown, KeyRevoked, KeyExpired.
    """
    if not secret.startswith(PREFIX):
        raise KeyUnknown(
            f"Send an API key: Authorization: Bearer {PREFIX}… (tollbook keys create makes one)."
        )
    async with database.statement() as tx:  # two round trips fewer than a transaction, for every request
        key = await tx.maybe(
            """
            SELECT key_id, name, scopes, created_at, expires_at, revoked_at, last_used_at
            FROM core.api_keys WHERE secret_hash = %(secret_hash)s
            """,
            {"secret_hash": hash_secret(secret)},
            into=Key,
        )
        if key is None:
            raise KeyUnknown("This API key is not known here. Check that it was copied whole.")
        if key.revoked_at is not None:
            raise KeyRevoked("This API key was revoked. Ask for a new one.", revoked_at=key.revoked_at)
        if key.expires_at is not None and key.expires_at <= now:
            raise KeyExpired("This API key has expired. Ask for a new one.", expired_at=key.expires_at)
        if key.last_used_at is None or key.last_used_at <= now - LAST_USED_STEP:
            await _touch(tx, key.key_id, now)
    return key


async def revoke(tx: WriteTx, key_id: int, *, now: datetime) -> Key:
    """End a key. Raises KeyNotFound, KeyAlreadyRevoked."""
    revoked = await tx.maybe(
        """
        UPDATE core.api_keys SET revoked_at = %(now)s WHERE key_id = %(key_id)s AND revoked_at IS NULL
        RETURNING key_id, name, scopes, created_at, expires_at, revoked_at, last_used_at
        """,
        {"key_id": key_id, "now": now},
        into=Key,
    )
    if revoked is not None:
        return revoked
    key = await get(tx, key_id)
    raise KeyAlreadyRevoked(f"{show_id(key_id)} is revoked already.", revoked_at=key.revoked_at)


async def get(tx: ReadTx, key_id: int) -> Key:
    """One key. Raises KeyNotFound."""
    key = await tx.maybe(
        """
        SELECT key_id, name, scopes, created_at, expires_at, revoked_at, last_used_at
        FROM core.api_keys WHERE key_id = %(key_id)s
        """,
        {"key_id": key_id},
        into=Key,
    )
    if key is None:
        raise KeyNotFound(f"No API key {show_id(key_id)}. tollbook keys list shows those there are.")
    return key


async def page(tx: ReadTx, *, after: int | None = None, limit: int = 50) -> list[Key]:
    """Keys, newest first: those made before `after`, at most `limit`."""
    return await tx.all(
        """
        SELECT key_id, name, scopes, created_at, expires_at, revoked_at, last_used_at
        FROM core.api_keys
        WHERE %(after)s::bigint IS NULL OR key_id < %(after)s::bigint
        ORDER BY key_id DESC LIMIT %(limit)s
        """,
        {"after": after, "limit": limit},
        into=Key,
    )


def check_within(caller: Key, scopes: Sequence[str]) -> None:
    """A key hands on no more than it may do itself. Raises ScopeMissing."""
    beyond = [scope for scope in scopes if not caller.allows(scope)]
    if beyond:
        raise ScopeMissing(f"A key gives no more than it has; yours lacks: {', '.join(beyond)}.")


async def _touch(tx: WriteTx, key_id: int, now: datetime) -> None:
    await tx.execute(
        """
        UPDATE core.api_keys SET last_used_at = %(now)s
        WHERE key_id = %(key_id)s AND (last_used_at IS NULL OR last_used_at < %(now)s)
        """,
        {"key_id": key_id, "now": now},
    )


def _check(name: str, scopes: Sequence[str], expires_at: datetime | None, now: datetime) -> None:
    if not 0 < len(name.strip()) <= NAME_LENGTH_MAX:
        raise KeyMalformed(f"A key's name has 1 to {NAME_LENGTH_MAX} letters.")
    if not 0 < len(scopes) <= SCOPES_MAX:
        raise KeyMalformed(f"A key has 1 to {SCOPES_MAX} scopes, for example payments:read.")
    wrong = [scope for scope in scopes if not SCOPE.fullmatch(scope)]
    if wrong:
        raise KeyMalformed(
            f"Not a scope: {wrong[0][:60]!r}. A scope is like payments:read, keys:write, or *."
        )
    if expires_at is not None and expires_at <= now:
        raise KeyMalformed("A key's expiry lies in the future.")
