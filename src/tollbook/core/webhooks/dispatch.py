"""Dispatch: what the journal tells becomes deliveries, in the transaction that moves its reader on.

So a kill anywhere neither loses an event nor makes it twice: either both are there, or neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import cast

from tollbook.core import ids, journal
from tollbook.core.database import Database, ReadTx, WriteTx
from tollbook.core.journal import Entry
from tollbook.core.webhooks import rules
from tollbook.core.webhooks.subscriptions import BOOK, READER, read_event_types

ENTRIES_A_TURN = 500
DELIVERIES_A_TURN = 10_000  # where many listen, a turn has fewer entries


@dataclass(frozen=True, slots=True)
class _Listener:
    subscription_id: str
    event_types: str


@dataclass(frozen=True, slots=True)
class News:
    """Whether anybody listens, and whether there is anything to tell."""

    anyone: bool
    anything: bool


async def look(database: Database) -> News:
    """Ask, without writing anything."""
    async with database.statement() as tx:
        anyone = await tx.value("SELECT EXISTS (SELECT FROM settlement.webhook_subscriptions WHERE enabled)")
        return News(anyone, anyone and await journal.has_news(tx, READER))


async def dispatch(database: Database, *, now: datetime) -> int:
    """Make the deliveries of the next entries, ENTRIES_A_TURN at most; how many entries there were."""
    async with database.write() as tx:
        # What a crash of PostgreSQL takes of this it takes whole: deliveries and the reader's step. And a
        # process that froze in here must not hold the reader for ever.
        await tx.execute("SET LOCAL synchronous_commit = off")
        await tx.execute("SET LOCAL idle_in_transaction_session_timeout = '30s'")
        await journal.hold(tx, READER)  # whoever begins to listen waits, or is seen below
        listeners = await _find_listeners(tx)
        limit = max(1, min(ENTRIES_A_TURN, DELIVERIES_A_TURN // max(1, len(listeners))))
        entries = await journal.read(tx, READER, limit)
        if entries:
            # Told with these, or else after one that was written later. The reader, when it comes to it,
            # finds it told.
            overtaken = await journal.find_overtaken(tx, entries)
            await make_deliveries(tx, _pair([*entries, *overtaken], listeners), now=now)
            await journal.advance(tx, READER, entries[-1].position)
    return len(entries)


async def _find_listeners(tx: ReadTx) -> list[_Listener]:
    return await tx.all(
        "SELECT subscription_id, event_types FROM settlement.webhook_subscriptions WHERE enabled",
        into=_Listener,
    )


@lru_cache(maxsize=10_000)
def _wants(event_types: str, event_type: str) -> bool:
    return rules.matches(cast(list[str], read_event_types(event_types)), event_type)


def _pair(entries: Sequence[Entry], listeners: Sequence[_Listener]) -> list[tuple[Entry, str]]:
    """Who is told of what."""
    return [
        (entry, listener.subscription_id)
        for entry in entries
        for listener in listeners
        if _wants(listener.event_types, rules.show_type(entry.fact.book, entry.fact.kind))
    ]


async def make_deliveries(
    tx: WriteTx, pairs: Sequence[tuple[Entry, str]], *, replay_id: int = 0, now: datetime
) -> int:
    """Put each entry in its subscription's queues, once for each `replay_id`; how many were put there.

    Of a replay those are left out that wait already. Of itself (disabled, rotated …) a subscription is not
    told.
    """
    pairs = [(entry, name) for entry, name in pairs if (entry.fact.book, entry.fact.subject) != (BOOK, name)]
    if not pairs:
        return 0
    made = await tx.all(
        """
        INSERT INTO settlement.webhook_deliveries (
            delivery_id, created_at, recorded_at, next_attempt_at, transaction_id, entry_id, epoch,
            replay_id, subscription_id, subject, message_id, event_type
        )
        SELECT e.delivery_id, %(now)s, e.recorded_at, %(now)s, e.transaction_id::xid8, e.entry_id, e.epoch,
               %(replay_id)s, s.subscription_id, e.subject, e.message_id, e.event_type
        FROM unnest(
            %(delivery_ids)s::bigint[], %(recorded)s::timestamptz[], %(transactions)s::text[],
            %(entry_ids)s::bigint[], %(epochs)s::integer[], %(subscriptions)s::text[], %(subjects)s::text[],
            %(messages)s::text[], %(types)s::text[]
        ) AS e (
            delivery_id, recorded_at, transaction_id, entry_id, epoch, subscription_id, subject, message_id,
            event_type
        )
        JOIN settlement.webhook_subscriptions s USING (subscription_id)
        -- Nothing of what had happened when it began, and everything since.
        WHERE CASE WHEN %(replay_id)s::bigint = 0 THEN
                  e.epoch > s.began_epoch
                  OR (e.epoch = s.began_epoch
                      AND NOT pg_visible_in_snapshot(e.transaction_id::xid8, s.began_in))
              ELSE
                  NOT EXISTS (SELECT FROM settlement.webhook_deliveries w
                              WHERE w.subscription_id = s.subscription_id AND w.epoch = e.epoch
                                AND w.entry_id = e.entry_id AND w.status = 'pending')
              END
        ON CONFLICT (subscription_id, epoch, entry_id, replay_id) DO NOTHING
        RETURNING subscription_id, subject
        """,
        {**_columns(pairs), "replay_id": replay_id, "now": now},
        into=QueueName,
    )
    await open_queues(tx, made, now=now)
    return len(made)


@dataclass(frozen=True, slots=True)
class QueueName:
    """A subscription's deliveries about one subject."""

    subscription_id: str
    subject: str


async def open_queues(tx: WriteTx, names: Sequence[QueueName], *, now: datetime) -> None:
    """Have these queues looked at. One that is there already is only locked, until this transaction ends:

    whoever would take it away, as its last delivery is done, then waits and sees ours.
    """
    unique = list(dict.fromkeys(names))
    await tx.execute(
        """
        INSERT INTO settlement.webhook_queues AS q (subscription_id, subject, next_attempt_at)
        SELECT n.subscription_id, n.subject, %(now)s
        FROM unnest(%(subscriptions)s::text[], %(subjects)s::text[]) AS n (subscription_id, subject)
        ORDER BY n.subscription_id, n.subject  -- the order in which everybody locks them
        ON CONFLICT (subscription_id, subject) DO UPDATE SET claim_id = q.claim_id WHERE false
        """,
        {
            "now": now,
            "subscriptions": [name.subscription_id for name in unique],
            "subjects": [name.subject for name in unique],
        },
    )


def _columns(pairs: Sequence[tuple[Entry, str]]) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = {
        "delivery_ids": [ids.make() for _ in pairs],
        "recorded": [entry.recorded_at for entry, _ in pairs],
        "transactions": [str(entry.position.transaction_id) for entry, _ in pairs],
        "entry_ids": [entry.position.entry_id for entry, _ in pairs],
        "epochs": [entry.position.epoch for entry, _ in pairs],
        "subscriptions": [subscription_id for _, subscription_id in pairs],
        "subjects": [rules.name_queue(entry.fact.subject) for entry, _ in pairs],
        "messages": [rules.make_message_id(entry) for entry, _ in pairs],
        "types": [rules.show_type(entry.fact.book, entry.fact.kind) for entry, _ in pairs],
    }
    return columns
