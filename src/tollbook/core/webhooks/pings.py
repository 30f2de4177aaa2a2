"""A test: one POST to a subscription's endpoint, at once, whose outcome is the answer. It is tried once."""

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from tollbook.core import ids
from tollbook.core.database import Database, ReadTx, WriteTx
from tollbook.core.webhooks import deliveries, rules, subscriptions
from tollbook.core.webhooks.deliveries import Attempt, Delivery
from tollbook.core.webhooks.signing import list_signers, open_secret, sign

if TYPE_CHECKING:
    from tollbook.core.webhooks.sending import Post

EVENT_TYPE = "webhooks.test"


@dataclass(frozen=True, slots=True)
class _Target:
    url: str
    secret: str = field(repr=False)
    former_secrets: list[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ping:
    """A test and what came of it."""

    delivery: Delivery
    attempt: Attempt


async def ping(
    database: Database,
    post: "Post",
    subscription_id: str,
    *,
    key: bytes,
    number: int | None = None,
    now: datetime,
) -> Ping:
    """Send a test, also to one that is disabled. Raises SubscriptionNotFound, SecretUnreadable."""
    async with database.read() as tx:
        target = await _find(tx, subscription_id, now)
    signers = list_signers(
        target.secret, target.former_secrets, lambda sealed: open_secret(sealed, subscription_id, key)
    )
    message_id = f"msg_{secrets.token_hex(13)}"
    body = rules.write_body(EVENT_TYPE, now, {"id": subscription_id, "subject": subscription_id})
    outcome = await post.send(target.url, body.encode(), sign(signers, message_id, body, now=now))
    attempt = Attempt(1, now, outcome.status_code, outcome.latency_ms, outcome.error, outcome.answer)
    delivery_id = number or ids.make()
    async with database.write() as tx:
        await _write(tx, subscription_id, delivery_id, message_id, attempt)
        return Ping(await deliveries.get(tx, subscription_id, delivery_id), attempt)


async def _find(tx: ReadTx, subscription_id: str, now: datetime) -> _Target:
    await subscriptions.get(tx, subscription_id)
    return await tx.one(
        """
        SELECT url, secret,
               ARRAY(
                   SELECT f.secret
                   FROM unnest(
                       array_append(older_secrets, previous_secret::text),
                       array_append(older_secrets_expire_at, previous_secret_expires_at)
                   ) AS f (secret, until)
                   WHERE f.until > %(now)s
               ) AS former_secrets
        FROM settlement.webhook_subscriptions WHERE subscription_id = %(subscription_id)s
        """,
        {"subscription_id": subscription_id, "now": now},
        into=_Target,
    )


async def _write(
    tx: WriteTx, subscription_id: str, delivery_id: int, message_id: str, attempt: Attempt
) -> None:
    await tx.execute(
        """
        WITH made AS (
            INSERT INTO settlement.webhook_deliveries (
                delivery_id, created_at, ended_at, attempts, subscription_id, subject, message_id, event_type,
                status
            )
            VALUES (
                %(delivery_id)s, %(at)s, %(at)s, 1, %(subscription_id)s::varchar,
                %(subscription_id)s::varchar, %(message_id)s, %(event_type)s, %(status)s
            )
            ON CONFLICT DO NOTHING
        )
        INSERT INTO settlement.webhook_attempts (
            subscription_id, delivery_id, attempt, at, latency_ms, status_code, error, answer
        )
        VALUES (
            %(subscription_id)s::varchar, %(delivery_id)s, 1, %(at)s, %(latency_ms)s, %(status_code)s,
            %(error)s, %(answer)s
        )
        ON CONFLICT DO NOTHING
        """,
        {
            "delivery_id": delivery_id,
            "at": attempt.at,
            "subscription_id": subscription_id,
            "message_id": message_id,
            "event_type": EVENT_TYPE,
            "status": "failed" if attempt.error else "delivered",
            "latency_ms": attempt.latency_ms,
            "status_code": attempt.status_code,
            "error": attempt.error,
            "answer": attempt.answer,
        },
    )
