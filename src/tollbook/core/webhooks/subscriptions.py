"""Subscriptions: who is told of which events, where, and signed with what. Their secrets are sealed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, cast

from pydantic import BeforeValidator

from tollbook.core import ids, journal
from tollbook.core.database import ReadTx, WriteTx
from tollbook.core.journal import Fact
from tollbook.core.webhooks import rules
from tollbook.core.webhooks.errors import (
    EventTypeMalformed,
    RotatedTooOften,
    SubscriptionNotFound,
    SubscriptionsFull,
)
from tollbook.core.webhooks.signing import make_secret, seal_secret

BOOK = "webhooks"
READER = "webhooks"  # of the journal
SUBSCRIPTIONS_MAX = 1_000
SECRETS_VALID = timedelta(hours=24)  # beside a newer one
SECRETS_MAX = 5  # at once: as many signatures are in a header
REASON_LETTERS_MAX = 200
NO_BOOKS = ["core", "information_schema", "jobs", "public", "stores", "tollbook_migrate"]  # schemas


def read_event_types(text: object) -> object:
    """The list that the column holds as JSON; one that is broken is empty, and told of nothing."""
    if not isinstance(text, str):
        return text
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [str(one) for one in cast(list[object], found)] if isinstance(found, list) else []


@dataclass(frozen=True, slots=True)
class Subscription:
    """A row of settlement.webhook_subscriptions, without its secrets."""

    subscription_id: str
    url: str
    event_types: Annotated[list[str], BeforeValidator(read_event_types)]
    enabled: bool
    description: str | None
    created_at: datetime
    failing_since: datetime | None
    paused_until: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None
    previous_secret_expires_at: datetime | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_types", read_event_types(self.event_types))


@dataclass(frozen=True, slots=True)
class Grant:
    """A subscription and its secret, which is told this once."""

    secret: str = field(repr=False)
    subscription: Subscription


def make_id(number: int) -> str:
    """A subscription's id: wh_…"""
    return ids.show("wh", number)


async def create(
    tx: WriteTx,
    *,
    url: str,
    event_types: Sequence[str],
    description: str | None = None,
    key: bytes,
    number: int | None = None,
    now: datetime,
) -> Grant:
    """Make a subscription to what happens from now on; the URL was checked (Post.check).

    Of a `number` that was made already, nobody was told the secret, and it gets another.
    Raises EventTypeMalformed, SubscriptionMalformed, SubscriptionsFull.
    """
    wanted = rules.check_event_types(event_types)
    await _check_books(tx, wanted)
    subscription_id, secret = make_id(number or ids.make()), make_secret()
    await _stop_reader(tx)
    count = cast(int, await tx.value("SELECT count(*) FROM settlement.webhook_subscriptions"))
    if count >= SUBSCRIPTIONS_MAX:
        raise SubscriptionsFull(f"There are {count} webhooks already, and no more fit. Remove one.")
    made = await tx.one(
        """
        INSERT INTO settlement.webhook_subscriptions (
            subscription_id, url, secret, event_types, description, created_at, began_epoch
        )
        VALUES (
            %(subscription_id)s, %(url)s, %(secret)s, %(event_types)s, %(description)s, %(now)s,
            (SELECT max(epoch) FROM core.journal_epochs)
        )
        ON CONFLICT (subscription_id) DO UPDATE SET secret = excluded.secret
        RETURNING subscription_id, url, event_types, enabled, description, created_at, failing_since,
                  paused_until, disabled_at, disabled_reason, previous_secret_expires_at
        """,
        {
            "subscription_id": subscription_id,
            "url": url,
            "secret": seal_secret(secret, subscription_id, key),
            "event_types": json.dumps(wanted),
            "description": rules.check_description(description),
            "now": now,
        },
        into=Subscription,
    )
    await _tell(tx, "created", subscription_id)
    return Grant(secret, made)


async def get(tx: ReadTx, subscription_id: str) -> Subscription:
    """One subscription. Raises SubscriptionNotFound."""
    found = await tx.maybe(
        """
        SELECT subscription_id, url, event_types, enabled, description, created_at, failing_since,
               paused_until, disabled_at, disabled_reason, previous_secret_expires_at
        FROM settlement.webhook_subscriptions WHERE subscription_id = %(subscription_id)s
        """,
        {"subscription_id": subscription_id},
        into=Subscription,
    )
    if found is None:
        raise SubscriptionNotFound(subscription_id)
    return found


async def find_all(tx: ReadTx) -> list[Subscription]:
    """All subscriptions, the newest first; there are never more than SUBSCRIPTIONS_MAX."""
    return await tx.all(
        """
        SELECT subscription_id, url, event_types, enabled, description, created_at, failing_since,
               paused_until, disabled_at, disabled_reason, previous_secret_expires_at
        FROM settlement.webhook_subscriptions ORDER BY created_at DESC, subscription_id DESC
        """,
        into=Subscription,
    )


async def change(
    tx: WriteTx,
    subscription_id: str,
    *,
    url: str | None = None,
    event_types: Sequence[str] | None = None,
    description: str | None = None,
) -> Subscription:
    """Change what is given, from now on; what waits for it goes to the new URL.

    Raises SubscriptionNotFound, EventTypeMalformed, SubscriptionMalformed.
    """
    wanted = None if event_types is None else rules.check_event_types(event_types)
    if wanted is not None:
        await _check_books(tx, wanted)
    changed = await tx.execute(
        """
        UPDATE settlement.webhook_subscriptions
        SET url = coalesce(%(url)s, url), event_types = coalesce(%(event_types)s, event_types),
            description = CASE WHEN %(described)s THEN %(description)s ELSE description END,
            failing_since = CASE WHEN %(url)s IS NULL THEN failing_since END,
            paused_until = CASE WHEN %(url)s IS NULL THEN paused_until END
        WHERE subscription_id = %(subscription_id)s
        """,
        {
            "subscription_id": subscription_id,
            "url": url,
            "event_types": None if wanted is None else json.dumps(wanted),
            "described": description is not None,
            "description": rules.check_description(description),
        },
    )
    if changed == 0:
        raise SubscriptionNotFound(subscription_id)
    await _tell(tx, "changed", subscription_id)
    return await get(tx, subscription_id)


async def rotate(tx: WriteTx, subscription_id: str, *, key: bytes, now: datetime) -> Grant:
    """Give it a new secret. Each one before signs beside it for a day.

    Raises SubscriptionNotFound; RotatedTooOften where SECRETS_MAX are valid already.
    """
    secret = make_secret()
    changed = await tx.execute(
        """
        UPDATE settlement.webhook_subscriptions AS s
        SET secret = %(secret)s, previous_secret = s.secret, previous_secret_expires_at = %(until)s,
            (older_secrets, older_secrets_expire_at) = (
                SELECT coalesce(array_agg(f.secret ORDER BY f.until), '{}'),
                       coalesce(array_agg(f.until ORDER BY f.until), '{}')
                FROM unnest(
                    array_append(s.older_secrets, s.previous_secret::text),
                    array_append(s.older_secrets_expire_at, s.previous_secret_expires_at)
                ) AS f (secret, until)
                WHERE f.until > %(now)s)
        WHERE s.subscription_id = %(subscription_id)s AND %(secrets_max)s - 1 > (
            SELECT count(*) FROM unnest(s.older_secrets_expire_at || s.previous_secret_expires_at) AS until
            WHERE until > %(now)s)
        """,
        {
            "subscription_id": subscription_id,
            "secret": seal_secret(secret, subscription_id, key),
            "until": now + SECRETS_VALID,
            "now": now,
            "secrets_max": SECRETS_MAX,
        },
    )
    subscription = await get(tx, subscription_id)
    if changed == 0:
        raise RotatedTooOften(
            f"{subscription_id} has {SECRETS_MAX} secrets that are valid. Wait until the oldest has expired, "
            "a day after its rotation, or remove the webhook and add it again. Nothing was changed."
        )
    await _tell(tx, "rotated", subscription_id)
    return Grant(secret, subscription)


async def enable(tx: WriteTx, subscription_id: str, *, now: datetime) -> Subscription:
    """Go on with what waits, at once and with a fresh schedule, and tell it of what happens from now on.

    What happened while it was disabled is a replay's affair. Raises SubscriptionNotFound.
    """
    await _stop_reader(tx)
    changed = await tx.execute(
        """
        UPDATE settlement.webhook_subscriptions
        SET enabled = true, disabled_at = NULL, disabled_reason = NULL, failing_since = NULL,
            paused_until = NULL, began_in = pg_current_snapshot(),
            began_epoch = (SELECT max(epoch) FROM core.journal_epochs)
        WHERE subscription_id = %(subscription_id)s AND NOT enabled
        """,
        {"subscription_id": subscription_id},
    )
    if changed == 1:
        await _start_over(tx, subscription_id, now)
        await _tell(tx, "enabled", subscription_id)
    return await get(tx, subscription_id)


async def disable(tx: WriteTx, subscription_id: str, *, reason: str, now: datetime) -> Subscription:
    """Send it nothing more and put nothing more in its queues; what is in them waits.

    Raises SubscriptionNotFound.
    """
    changed = await tx.execute(
        """
        UPDATE settlement.webhook_subscriptions
        SET enabled = false, disabled_at = %(now)s, disabled_reason = %(reason)s
        WHERE subscription_id = %(subscription_id)s AND enabled
        """,
        {"subscription_id": subscription_id, "now": now, "reason": reason[:REASON_LETTERS_MAX]},
    )
    if changed == 1:
        await _tell(tx, "disabled", subscription_id, reason=reason[:REASON_LETTERS_MAX])
    return await get(tx, subscription_id)


async def remove(tx: WriteTx, subscription_id: str) -> None:
    """Away with it and its queues; the record of its deliveries goes later (jobs.forget).

    Raises SubscriptionNotFound.
    """
    await journal.hold(tx, READER)  # nothing is being put in its queues, which nobody would look at again
    await tx.execute(
        "DELETE FROM settlement.webhook_queues WHERE subscription_id = %(subscription_id)s",
        {"subscription_id": subscription_id},
    )
    removed = await tx.execute(
        "DELETE FROM settlement.webhook_subscriptions WHERE subscription_id = %(subscription_id)s",
        {"subscription_id": subscription_id},
    )
    if removed == 0:
        raise SubscriptionNotFound(subscription_id)
    await _tell(tx, "deleted", subscription_id)


async def _check_books(tx: ReadTx, event_types: Sequence[str]) -> None:
    """An event of a book that is not here never comes: refuse it. A book is a schema of its name."""
    words = {one.partition(".")[0] for one in event_types} - {rules.ALL, BOOK}
    unknown = await tx.value(
        """
        SELECT string_agg(word, ', ' ORDER BY word) FROM unnest(%(words)s::text[]) AS word
        WHERE to_regnamespace(quote_ident(word)) IS NULL OR word = ANY(%(no_books)s)
        """,
        {"words": list(words), "no_books": NO_BOOKS},
    )
    if unknown is None:
        return
    books = await tx.value(
        """
        SELECT string_agg(nspname::text, ', ' ORDER BY nspname) FROM pg_namespace
        WHERE nspname !~ '^pg_' AND nspname <> ALL(%(no_books)s)
        """,
        {"no_books": NO_BOOKS},
    )
    raise EventTypeMalformed(
        f"No events begin with {unknown}: an event type begins with its book. Here are {books}, {BOOK}."
    )


async def _stop_reader(tx: WriteTx) -> None:
    """Before a subscription begins: no event is being handed out while its beginning is set.

    Where nobody listens, nobody reads the journal either: what is in it is skipped.
    """
    await journal.hold(tx, READER)
    anyone = await tx.value("SELECT EXISTS (SELECT FROM settlement.webhook_subscriptions WHERE enabled)")
    if not anyone:
        await journal.skip(tx, READER)


async def _start_over(tx: WriteTx, subscription_id: str, now: datetime) -> None:
    await tx.execute(
        """
        WITH held AS (
            SELECT subject FROM settlement.webhook_queues
            WHERE subscription_id = %(subscription_id)s AND claim_id IS NULL
              AND next_attempt_at > %(now)s  -- the others are due: there may be a million
            ORDER BY subject FOR UPDATE
        )
        UPDATE settlement.webhook_queues AS q SET next_attempt_at = %(now)s
        FROM held WHERE q.subscription_id = %(subscription_id)s AND q.subject = held.subject
        """,
        {"subscription_id": subscription_id, "now": now},
    )
    await tx.execute(
        """
        UPDATE settlement.webhook_deliveries SET tries = 0, retrying_since = NULL, next_attempt_at = %(now)s
        WHERE subscription_id = %(subscription_id)s AND status = 'pending' AND tries > 0
        """,
        {"subscription_id": subscription_id, "now": now},
    )


async def _tell(tx: WriteTx, kind: str, subscription_id: str, **details: object) -> None:
    await journal.append(tx, [Fact(BOOK, kind, subscription_id, details=details)])
