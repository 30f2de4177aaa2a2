"""Webhooks over HTTP: /v1/webhooks, and the same under the reference's /webhooks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from tollbook.core import clock
from tollbook.core.http import PROBLEMS, Base, IdempotentRoute, NewId, read_id, require
from tollbook.core.paging import LIMIT_DEFAULT, Cursor, Limit, Page, cut, read_cursor
from tollbook.core.secret_key import find_secret_key
from tollbook.core.settings import Settings
from tollbook.core.webhooks import desk, subscriptions
from tollbook.core.webhooks.deliveries import Attempt, Delivery, Status
from tollbook.core.webhooks.pings import Ping
from tollbook.core.webhooks.replays import Replay
from tollbook.core.webhooks.rules import DESCRIPTION_LENGTH_MAX, EVENT_TYPES_MAX, URL_LENGTH_MAX
from tollbook.core.webhooks.subscriptions import Grant, Subscription

READ = "webhooks:read"
WRITE = "webhooks:write"
REFERENCE = "/webhooks"  # where the reference has its routes

EventTypes = Annotated[
    list[str],
    Field(min_length=1, max_length=EVENT_TYPES_MAX, examples=[["payments.*", "settlement.confirmed"]]),
]
Url = Annotated[str, Field(max_length=URL_LENGTH_MAX, examples=["https://example.com/hooks"])]
Description = Annotated[str | None, Field(max_length=DESCRIPTION_LENGTH_MAX)]


class NewSubscription(BaseModel):
    """Who shall be told of what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Url
    event_types: EventTypes
    description: Description = None


class Change(BaseModel):
    """What shall be different; what is left out stays. An empty description takes it away.

    With `replay_missed` what happened while it was disabled is told as well, now that it is enabled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Url | None = None
    event_types: EventTypes | None = None
    description: Description = None
    enabled: bool | None = None
    replay_missed: bool = False


class Range(BaseModel):
    """What was recorded from `since` until before `until`; without it until now."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: AwareDatetime
    until: AwareDatetime | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A subscription with its secret, which is in this answer and nowhere else."""

    secret: str
    subscription_id: str
    url: str
    event_types: list[str]
    enabled: bool
    description: str | None
    created_at: datetime
    previous_secret_expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class DeliveryDetails:
    """A delivery with every attempt."""

    delivery: Delivery
    attempts: Sequence[Attempt]


def _read_delivery_id(delivery_id: str) -> int:
    return read_id("dlv", delivery_id)


WebhookPath = Annotated[str, Path(max_length=128, description="wh_…")]
DeliveryPath = Annotated[int, Depends(_read_delivery_id)]


def _show(grant: Grant) -> Made:
    row: dict[str, Any] = asdict(grant.subscription)
    return Made(secret=grant.secret, **{name: row[name] for name in Made.__slots__ if name in row})


def make_router(settings: Settings, prefix: str = "/v1/webhooks") -> APIRouter:
    """The routes; `settings` lead to the secret key, which is looked for when it is needed."""
    router = APIRouter(prefix=prefix, tags=["webhooks"], route_class=IdempotentRoute, responses=PROBLEMS)
    _add_subscriptions(router, settings)
    _add_deliveries(router)
    return router


def _add_subscriptions(router: APIRouter, settings: Settings) -> None:
    @router.post("", status_code=201, dependencies=[require(WRITE)])
    async def create_webhook(database: Base, wanted: NewSubscription, number: NewId) -> Made:
        """Be told of what happens from now on. The secret is in this answer and nowhere else."""
        key = find_secret_key(settings)
        return _show(
            await desk.subscribe(
                database,
                url=wanted.url,
                event_types=wanted.event_types,
                description=wanted.description,
                key=key,
                number=number,
            )
        )

    @router.get("", dependencies=[require(READ)])
    async def list_webhooks(database: Base) -> list[Subscription]:
        """All subscriptions, the newest first, without their secrets."""
        async with database.read() as tx:
            return await subscriptions.find_all(tx)

    @router.get("/{subscription_id}", dependencies=[require(READ)])
    async def get_webhook(database: Base, subscription_id: WebhookPath) -> Subscription:
        """One subscription, without its secret."""
        async with database.read() as tx:
            return await subscriptions.get(tx, subscription_id)

    @router.patch("/{subscription_id}", dependencies=[require(WRITE)])
    async def change_webhook(database: Base, subscription_id: WebhookPath, wanted: Change) -> Subscription:
        """Change it; disable it, and enable it again: then what waits goes on."""
        return await desk.change(database, subscription_id, **wanted.model_dump())

    @router.delete("/{subscription_id}", status_code=204, dependencies=[require(WRITE)])
    async def remove_webhook(database: Base, subscription_id: WebhookPath) -> Response:
        """Away with it: it is told nothing more, also not what waits."""
        async with database.write() as tx:
            await subscriptions.remove(tx, subscription_id)
        return Response(status_code=204)

    @router.post("/{subscription_id}/rotate", dependencies=[require(WRITE)])
    async def rotate_secret(database: Base, subscription_id: WebhookPath) -> Made:
        """A new secret, in this answer alone. Each one before signs beside it for 24 hours."""
        key = find_secret_key(settings)
        async with database.write() as tx:
            return _show(await subscriptions.rotate(tx, subscription_id, key=key, now=clock.now()))

    @router.post("/{subscription_id}/test", dependencies=[require(WRITE)])
    async def send_test(database: Base, subscription_id: WebhookPath, number: NewId) -> Ping:
        """Send one test now; what the endpoint answered."""
        return await desk.send_test(database, subscription_id, key=find_secret_key(settings), number=number)


def _add_deliveries(router: APIRouter) -> None:
    @router.get("/{subscription_id}/deliveries", dependencies=[require(READ)])
    async def list_deliveries(
        database: Base,
        subscription_id: WebhookPath,
        status: Status | None = None,
        cursor: Cursor = None,
        limit: Limit = LIMIT_DEFAULT,
    ) -> Page[Delivery]:
        """What it was told and is to be told, the newest first."""
        rows = await desk.list_deliveries(
            database, subscription_id, after=read_cursor(cursor), limit=limit + 1, status=status
        )
        return cut(rows, limit, lambda delivery: delivery.delivery_id)

    @router.get("/{subscription_id}/deliveries/{delivery_id}", dependencies=[require(READ)])
    async def get_delivery(
        database: Base, subscription_id: WebhookPath, number: DeliveryPath
    ) -> DeliveryDetails:
        """One delivery and every attempt: status, latency, the first bytes of the answer."""
        return DeliveryDetails(*await desk.look_at(database, subscription_id, number))

    @router.post(
        "/{subscription_id}/deliveries/{delivery_id}/replay", status_code=202, dependencies=[require(WRITE)]
    )
    async def replay_delivery(
        database: Base, subscription_id: WebhookPath, number: DeliveryPath, replay_id: NewId
    ) -> Delivery:
        """Tell it once more, by the same webhook-id."""
        return await desk.replay_one(database, subscription_id, number, replay_id=replay_id)

    @router.post("/{subscription_id}/replay", status_code=202, dependencies=[require(WRITE)])
    async def replay_range(
        database: Base, subscription_id: WebhookPath, wanted: Range, replay_id: NewId
    ) -> Replay:
        """Tell it all of a time that it wants, also what it was never told."""
        return await desk.replay_range(
            database, subscription_id, since=wanted.since, until=wanted.until, replay_id=replay_id
        )
