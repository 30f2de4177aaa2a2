"""Deliveries: claimed queue by queue, attempted, written down; and what was, shown."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Literal

from psycopg.types.json import Jsonb
from pydantic import PlainSerializer

from tollbook.core import ids
from tollbook.core.database import Database, ReadTx, WriteTx
from tollbook.core.webhooks.errors import DeliveryNotFound

Status = Literal["pending", "delivered", "failed"]

LEASE = timedelta(seconds=60)
LOADED_MAX = 10_000  # at once; where many queues are claimed, fewer of each
DELIVERIES_A_QUEUE = 16  # under one claim: after a kill, so many are told twice at most
ATTEMPTS_SHOWN_MAX = 200


def show_id(delivery_id: int) -> str:
    """The id as people and programs see it: dlv_…"""
    return ids.show("dlv", delivery_id)


DeliveryId = Annotated[int, PlainSerializer(show_id, return_type=str)]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A row of settlement.webhook_deliveries, as it is shown."""

    delivery_id: DeliveryId
    subscription_id: str
    message_id: str
    event_type: str
    subject: str
    status: Status
    attempts: int
    created_at: datetime
    recorded_at: datetime | None
    next_attempt_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One POST and what came of it."""

    attempt: int
    at: datetime
    status_code: int | None
    latency_ms: int
    error: str | None
    answer: str | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A queue that is ours until its lease ends; the secrets are sealed."""

    subscription_id: str
    subject: str
    url: str
    secret: str = field(repr=False)
    former_secrets: list[str] = field(repr=False)
    failing_since: datetime | None


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery of a claimed queue, with where its fact stands in the journal."""

    subscription_id: str
    queue: str
    delivery_id: int
    attempts: int
    tries: int
    retrying_since: datetime | None
    message_id: str
    event_type: str
    recorded_at: datetime
    found: bool
    subject: str | None
    network: str | None
    asset: str | None
    amount: str | None
    from_party: str | None
    to_party: str | None
    details: dict[str, object] | None


@dataclass(frozen=True, slots=True)
class Result:
    """What is to be written down of one attempt: the row it makes, and the delivery as it is then."""

    subscription_id: str
    delivery_id: int
    made: Attempt
    status: Status
    tries: int
    retrying_since: datetime | None
    next_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class Return:
    """A claimed queue given back, with what was done: looked at again from `next_attempt_at` on."""

    claim_id: int
    subscription_id: str
    subject: str
    next_attempt_at: datetime
    results: Sequence[Result] = ()


async def claim(
    database: Database, claim_id: int, rooms: dict[str, int], *, room: int, now: datetime
) -> list[Claim]:
    """Take queues that are due, of each endpoint as many as it has room for (`room` where it is new)."""
    async with database.statement() as tx:
        return await tx.all(
            """
            UPDATE settlement.webhook_queues AS q
            SET next_attempt_at = %(leased_until)s, claim_id = %(claim_id)s
            FROM settlement.webhook_subscriptions s
            -- By place: the planner cannot know how few there are, and would read the whole table.
            WHERE q.ctid = ANY(ARRAY(
                SELECT d.ctid
                -- A claim that a crash of PostgreSQL takes is no loss: its holder is asked no more for it.
                FROM (SELECT set_config('synchronous_commit', 'off', true)) AS quick
                CROSS JOIN settlement.webhook_subscriptions w
                CROSS JOIN LATERAL (
                    SELECT o.ctid FROM settlement.webhook_queues o
                    WHERE o.subscription_id = w.subscription_id AND o.next_attempt_at <= %(now)s
                    ORDER BY o.next_attempt_at
                    LIMIT coalesce((%(rooms)s::jsonb ->> w.subscription_id)::bigint, %(room)s)
                    FOR UPDATE SKIP LOCKED
                ) AS d
                WHERE w.enabled AND (w.paused_until IS NULL OR w.paused_until <= %(now)s)
            )) AND s.subscription_id = q.subscription_id
            RETURNING q.subscription_id, q.subject, s.url, s.secret, s.failing_since,
                      ARRAY(
                          SELECT f.secret
                          FROM unnest(
                              array_append(s.older_secrets, s.previous_secret::text),
                              array_append(s.older_secrets_expire_at, s.previous_secret_expires_at)
                          ) AS f (secret, until)
                          WHERE f.until > %(now)s
                      ) AS former_secrets
            """,
            {
                "rooms": Jsonb(rooms),
                "room": room,
                "now": now,
                "leased_until": now + LEASE,
                "claim_id": claim_id,
            },
            into=Claim,
        )


async def load(database: Database, claims: Sequence[Claim]) -> list[Due]:
    """The first deliveries of claimed queues, in order: a statement after the claim, which sees what the
    holder before wrote down.

    Their order is that in which facts were written: of one subject, a later one has the higher number.
    """
    async with database.statement() as tx:
        return await tx.all(
            """
            SELECT d.subscription_id, d.subject AS queue, d.delivery_id, d.attempts, d.tries,
                   d.retrying_since, d.message_id, d.event_type, d.recorded_at,
                   j.entry_id IS NOT NULL AS found, j.subject, j.network, j.asset, j.amount::text AS amount,
                   j.from_party, j.to_party, j.details
            FROM unnest(%(ids)s::text[], %(subjects)s::text[]) AS c (subscription_id, subject)
            CROSS JOIN LATERAL (
                SELECT p.* FROM settlement.webhook_deliveries p
                WHERE p.subscription_id = c.subscription_id AND p.subject = c.subject AND p.status = 'pending'
                ORDER BY p.epoch, p.entry_id, p.delivery_id LIMIT %(limit)s
            ) AS d
            LEFT JOIN core.journal j
                ON j.epoch = d.epoch AND j.transaction_id = d.transaction_id AND j.entry_id = d.entry_id
               AND j.recorded_at = d.recorded_at
            ORDER BY d.subscription_id, d.subject, d.epoch, d.entry_id, d.delivery_id
            """,
            {
                "ids": [one.subscription_id for one in claims],
                "subjects": [one.subject for one in claims],
                "limit": max(1, min(DELIVERIES_A_QUEUE, LOADED_MAX // len(claims))),
            },
            into=Due,
        )


async def give_back(tx: WriteTx, returns: Sequence[Return]) -> None:
    """Write down what came of claimed queues, and let them go. One that another took meanwhile stays his."""
    names = {
        "claims": [one.claim_id for one in returns],
        "ids": [one.subscription_id for one in returns],
        "subjects": [one.subject for one in returns],
    }
    # Locked first: what is put in a queue from now on waits for us, what was put in before is seen below.
    await tx.execute(
        """
        SELECT FROM settlement.webhook_queues q
        JOIN unnest(%(claims)s::bigint[], %(ids)s::text[], %(subjects)s::text[])
            AS n (claim_id, subscription_id, subject) USING (claim_id, subscription_id, subject)
        ORDER BY q.subscription_id, q.subject FOR UPDATE OF q
        """,
        names,
    )
    await _write_results(tx, [result for one in returns for result in one.results])
    await tx.execute(
        """
        WITH named AS (
            SELECT n.claim_id, n.subscription_id, n.subject, n.next_attempt_at,
                   EXISTS (SELECT FROM settlement.webhook_deliveries d
                           WHERE d.subscription_id = n.subscription_id AND d.subject = n.subject
                             AND d.status = 'pending') AS goes_on
            FROM unnest(
                %(claims)s::bigint[], %(ids)s::text[], %(subjects)s::text[], %(times)s::timestamptz[]
            ) AS n (claim_id, subscription_id, subject, next_attempt_at)
        ), emptied AS (
            DELETE FROM settlement.webhook_queues q USING named n
            WHERE q.subscription_id = n.subscription_id AND q.subject = n.subject
              AND q.claim_id = n.claim_id AND NOT n.goes_on
        )
        UPDATE settlement.webhook_queues AS q SET next_attempt_at = n.next_attempt_at, claim_id = NULL
        FROM named n
        WHERE q.subscription_id = n.subscription_id AND q.subject = n.subject
          AND q.claim_id = n.claim_id AND n.goes_on
        """,
        {**names, "times": [one.next_attempt_at for one in returns]},
    )


async def _write_results(tx: WriteTx, results: Sequence[Result]) -> None:
    if not results:
        return
    await tx.execute(
        """
        WITH results AS (
            SELECT * FROM unnest(
                %(ids)s::text[], %(delivery_ids)s::bigint[], %(attempts)s::integer[], %(at)s::timestamptz[],
                %(latencies)s::integer[], %(codes)s::smallint[], %(errors)s::text[], %(answers)s::text[],
                %(statuses)s::text[], %(tries)s::integer[], %(since)s::timestamptz[], %(next)s::timestamptz[]
            ) AS r (
                subscription_id, delivery_id, attempt, at, latency_ms, status_code, error, answer, status,
                tries, retrying_since, next_attempt_at
            )
        ), told AS (
            INSERT INTO settlement.webhook_attempts (
                subscription_id, delivery_id, attempt, at, latency_ms, status_code, error, answer
            )
            SELECT subscription_id, delivery_id, attempt, at, latency_ms, status_code, error, answer
            FROM results
            ON CONFLICT DO NOTHING
        )
        UPDATE settlement.webhook_deliveries AS d
        SET status = r.status, attempts = greatest(d.attempts, r.attempt), tries = r.tries,
            retrying_since = r.retrying_since, next_attempt_at = r.next_attempt_at,
            ended_at = CASE WHEN r.status <> 'pending' THEN r.at END
        FROM results r
        WHERE d.subscription_id = r.subscription_id AND d.delivery_id = r.delivery_id
          AND d.ended_at IS NULL  -- it is pending; said so, the planner may take the index of all that are
        """,
        _columns(results),
    )


def _columns(results: Sequence[Result]) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = {
        "ids": [one.subscription_id for one in results],
        "delivery_ids": [one.delivery_id for one in results],
        "attempts": [one.made.attempt for one in results],
        "at": [one.made.at for one in results],
        "latencies": [one.made.latency_ms for one in results],
        "codes": [one.made.status_code for one in results],
        "errors": [one.made.error for one in results],
        "answers": [one.made.answer for one in results],
        "statuses": [one.status for one in results],
        "tries": [one.tries for one in results],
        "since": [one.retrying_since for one in results],
        "next": [one.next_attempt_at for one in results],
    }
    return columns


async def get(tx: ReadTx, subscription_id: str, delivery_id: int) -> Delivery:
    """One delivery of a subscription. Raises DeliveryNotFound."""
    found = await tx.maybe(
        """
        SELECT delivery_id, subscription_id, message_id, event_type, subject, status, attempts, created_at,
               recorded_at, next_attempt_at, ended_at
        FROM settlement.webhook_deliveries
        WHERE subscription_id = %(subscription_id)s AND delivery_id = %(delivery_id)s
        """,
        {"subscription_id": subscription_id, "delivery_id": delivery_id},
        into=Delivery,
    )
    if found is None:
        raise DeliveryNotFound(f"{subscription_id[:40]} has no delivery {show_id(delivery_id)}.")
    return found


async def page(
    tx: ReadTx, subscription_id: str, *, after: int | None = None, limit: int, status: Status | None = None
) -> list[Delivery]:
    """A subscription's deliveries, newest first, that follow the id `after`; at most `limit`."""
    return await tx.all(
        """
        SELECT delivery_id, subscription_id, message_id, event_type, subject, status, attempts, created_at,
               recorded_at, next_attempt_at, ended_at
        FROM settlement.webhook_deliveries
        WHERE subscription_id = %(subscription_id)s
          AND (%(after)s::bigint IS NULL OR delivery_id < %(after)s)
          AND (%(status)s::text IS NULL OR status = %(status)s)
        ORDER BY delivery_id DESC LIMIT %(limit)s
        """,
        {"subscription_id": subscription_id, "after": after, "limit": limit, "status": status},
        into=Delivery,
    )


async def attempts(tx: ReadTx, subscription_id: str, delivery_id: int) -> list[Attempt]:
    """What was tried of a delivery, the oldest first; the last ATTEMPTS_SHOWN_MAX."""
    return await tx.all(
        """
        SELECT attempt, at, status_code, latency_ms, error, answer FROM (
            SELECT attempt, at, status_code, latency_ms, error, answer FROM settlement.webhook_attempts
            WHERE subscription_id = %(subscription_id)s AND delivery_id = %(delivery_id)s
            ORDER BY attempt DESC, at DESC LIMIT %(limit)s) AS last
        ORDER BY attempt, at
        """,
        {"subscription_id": subscription_id, "delivery_id": delivery_id, "limit": ATTEMPTS_SHOWN_MAX},
        into=Attempt,
    )
