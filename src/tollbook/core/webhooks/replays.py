"""Replays: what was told is told again, one delivery or a range of time, by the webhook-id it always had."""

from dataclasses import dataclass
from datetime import datetime

from tollbook.core import ids, journal
from tollbook.core.database import WriteTx
from tollbook.core.webhooks import deliveries, rules, subscriptions
from tollbook.core.webhooks.deliveries import Delivery
from tollbook.core.webhooks.dispatch import QueueName, make_deliveries, open_queues
from tollbook.core.webhooks.errors import DeliveryNotReplayable, ReplayTooLarge

EVENTS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay put in the queues."""

    subscription_id: str
    since: datetime
    until: datetime
    events: int


async def replay_one(
    tx: WriteTx, subscription_id: str, delivery_id: int, *, replay_id: int | None = None, now: datetime
) -> Delivery:
    """Put a delivery that ended in its queue once more, as a new one; `replay_id` again does nothing more.

    Raises SubscriptionNotFound, DeliveryNotFound, DeliveryNotReplayable.
    """
    await subscriptions.get(tx, subscription_id)
    old = await deliveries.get(tx, subscription_id, delivery_id)
    if old.status == "pending" or old.recorded_at is None:
        raise DeliveryNotReplayable(
            "The delivery is under way still: what waits is sent without a replay."
            if old.status == "pending"
            else "A test is no event of the journal. Send another: tollbook webhooks test."
        )
    new_id = replay_id or ids.make()
    await tx.execute(
        """
        INSERT INTO settlement.webhook_deliveries (
            delivery_id, created_at, recorded_at, next_attempt_at, transaction_id, entry_id, epoch, replay_id,
            subscription_id, subject, message_id, event_type
        )
        SELECT %(new_id)s, %(now)s, d.recorded_at, %(now)s, d.transaction_id, d.entry_id, d.epoch, %(new_id)s,
               d.subscription_id, d.subject, d.message_id, d.event_type
        FROM settlement.webhook_deliveries d
        WHERE d.subscription_id = %(subscription_id)s AND d.delivery_id = %(delivery_id)s
        ON CONFLICT DO NOTHING
        """,
        {"new_id": new_id, "now": now, "subscription_id": subscription_id, "delivery_id": delivery_id},
    )
    await open_queues(tx, [QueueName(subscription_id, old.subject)], now=now)
    return await deliveries.get(tx, subscription_id, new_id)


async def replay_range(
    tx: WriteTx,
    subscription_id: str,
    *,
    since: datetime,
    until: datetime,
    replay_id: int | None = None,
    now: datetime,
) -> Replay:
    """Put every event of [since, until) that the subscription wants in its queues, also what it never got.

    What waits already is left as it is. `replay_id` again does nothing more.
    Raises SubscriptionNotFound, ReplayTooLarge.
    """
    wanted = (await subscriptions.get(tx, subscription_id)).event_types
    types = [
        one
        for one in await journal.find_types(tx, since=since, until=until)
        if rules.matches(wanted, rules.show_type(*one))
    ]
    entries = await journal.find_between(tx, types, since=since, until=until, limit=EVENTS_MAX + 1)
    if len(entries) > EVENTS_MAX:
        raise ReplayTooLarge(
            f"More than {EVENTS_MAX} events are in that time. Replay it in shorter pieces.",
            events_max=EVENTS_MAX,
        )
    pairs = [(entry, subscription_id) for entry in entries]
    count = await make_deliveries(tx, pairs, replay_id=replay_id or ids.make(), now=now)
    return Replay(subscription_id, since, until, count)
