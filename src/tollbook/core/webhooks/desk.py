"""The desk: what people ask of webhooks, by HTTP or by the command line, each in its transaction."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tollbook.core import clock, ids
from tollbook.core.database import Database
from tollbook.core.webhooks import deliveries, dispatch, pings, replays, rules, subscriptions
from tollbook.core.webhooks.deliveries import Attempt, Delivery, Status
from tollbook.core.webhooks.pings import Ping
from tollbook.core.webhooks.replays import Replay
from tollbook.core.webhooks.settings import read_settings
from tollbook.core.webhooks.subscriptions import Grant, Subscription

# Its HTTP client is slow to import, and most commands send nothing.
if TYPE_CHECKING:
    from tollbook.core.webhooks.sending import Post

# What was recorded just before it was disabled may not have been in its queues yet; twice does no harm.
BEFORE_DISABLED = timedelta(minutes=1)
BY_HAND = "disabled by hand"
TURNS_BEFORE_DISABLED = 50


def _open_post() -> "Post":
    from tollbook.core.webhooks.sending import Post

    return Post(read_settings())


async def subscribe(
    database: Database,
    *,
    url: str,
    event_types: Sequence[str],
    description: str | None,
    key: bytes,
    number: int | None = None,
) -> Grant:
    """Make a subscription. Raises UrlRefused and what subscriptions.create raises."""
    rules.check_event_types(event_types)  # before names are looked up
    async with _open_post() as post:
        await post.check(url)
    async with database.write() as tx:
        return await subscriptions.create(
            tx,
            url=url,
            event_types=event_types,
            description=description,
            key=key,
            number=number,
            now=clock.now(),
        )


async def change(
    database: Database,
    subscription_id: str,
    *,
    url: str | None = None,
    event_types: Sequence[str] | None = None,
    description: str | None = None,
    enabled: bool | None = None,
    replay_missed: bool = False,
) -> Subscription:
    """Change what is given, and then enable or disable it. Raises what those raise."""
    if url is not None:
        async with _open_post() as post:
            await post.check(url)
    now = clock.now()
    if enabled is False:
        await _catch_up(database, now)
    async with database.write() as tx:
        before = found = await subscriptions.get(tx, subscription_id)
        if url is not None or event_types is not None or description is not None:
            found = await subscriptions.change(
                tx, subscription_id, url=url, event_types=event_types, description=description
            )
        if enabled is True:
            found = await subscriptions.enable(tx, subscription_id, now=now)
            if replay_missed and before.disabled_at is not None:
                since = before.disabled_at - BEFORE_DISABLED
                await replays.replay_range(tx, subscription_id, since=since, until=now, now=now)
        elif enabled is False:
            found = await subscriptions.disable(tx, subscription_id, reason=BY_HAND, now=now)
    return found


async def _catch_up(database: Database, now: datetime) -> None:
    """Put in the queues what has happened by now, also where no worker has run: it waits there."""
    for _ in range(TURNS_BEFORE_DISABLED):
        if not await dispatch.dispatch(database, now=now):
            return


async def send_test(
    database: Database, subscription_id: str, *, key: bytes, number: int | None = None
) -> Ping:
    """Send a test now. Raises what pings.ping raises."""
    async with _open_post() as post:
        return await pings.ping(database, post, subscription_id, key=key, number=number, now=clock.now())


async def list_deliveries(
    database: Database,
    subscription_id: str,
    *,
    after: int | None = None,
    limit: int,
    status: Status | None = None,
) -> list[Delivery]:
    """Deliveries, the newest first. Raises SubscriptionNotFound."""
    async with database.read() as tx:
        await subscriptions.get(tx, subscription_id)
        return await deliveries.page(tx, subscription_id, after=after, limit=limit, status=status)


async def look_at(
    database: Database, subscription_id: str, delivery_id: int
) -> tuple[Delivery, list[Attempt]]:
    """A delivery and its attempts. Raises DeliveryNotFound."""
    async with database.read() as tx:
        found = await deliveries.get(tx, subscription_id, delivery_id)
        return found, await deliveries.attempts(tx, subscription_id, delivery_id)


async def replay_one(
    database: Database, subscription_id: str, delivery_id: int, *, replay_id: int | None = None
) -> Delivery:
    """Tell one again. Raises what replays.replay_one raises."""
    async with database.write() as tx:
        return await replays.replay_one(
            tx, subscription_id, delivery_id, replay_id=replay_id or ids.make(), now=clock.now()
        )


async def replay_range(
    database: Database,
    subscription_id: str,
    *,
    since: datetime,
    until: datetime | None = None,
    replay_id: int | None = None,
) -> Replay:
    """Tell all of a time again. Raises what replays.replay_range raises."""
    now = clock.now()
    async with database.write() as tx:
        return await replays.replay_range(
            tx, subscription_id, since=since, until=until or now, replay_id=replay_id or ids.make(), now=now
        )
