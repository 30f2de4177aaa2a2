"""`tollbook webhooks`: who is told of what, and what became of it, from the command line."""

from datetime import UTC, datetime
from typing import get_args

import click

from tollbook.core import clock
from tollbook.core.commands import (
    Id,
    answer,
    answer_page,
    ask,
    json_option,
    limit_option,
    storage_options,
    to_plain,
)
from tollbook.core.database import Database
from tollbook.core.secret_key import find_secret_key
from tollbook.core.settings import Settings
from tollbook.core.webhooks import desk, subscriptions
from tollbook.core.webhooks.deliveries import Attempt, Delivery, Status, show_id
from tollbook.core.webhooks.pings import Ping
from tollbook.core.webhooks.replays import Replay
from tollbook.core.webhooks.subscriptions import Grant, Subscription

TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d %H:%M:%S"]
KEEP_IT = "Keep the secret: it is shown this once."


@click.group("webhooks")
def group() -> None:
    """Who is told of what happens, and what became of it."""


_webhook = click.argument("subscription_id", metavar="WH_ID")


@group.command("add")
@click.argument("url")
@click.option(
    "--event",
    "event_types",
    multiple=True,
    required=True,
    help="As payments.payment.settled, payments.*, or '*'; repeatable.",
)
@click.option("--description", metavar="TEXT")
@storage_options
@json_option
def add(
    url: str, *, settings: Settings, event_types: tuple[str, ...], description: str | None, as_json: bool
) -> None:
    """Tell this URL of what happens from now on. Its secret is shown now and never again."""

    async def make(database: Database) -> Grant:
        key = find_secret_key(settings)
        return await desk.subscribe(
            database, url=url, event_types=event_types, description=description, key=key
        )

    _show_grant(ask(settings, make), as_json=as_json)


@group.command("list")
@storage_options
@json_option
def list_webhooks(*, settings: Settings, as_json: bool) -> None:
    """List the webhooks, the newest first, without their secrets."""

    async def read(database: Database) -> list[Subscription]:
        async with database.read() as tx:
            return await subscriptions.find_all(tx)

    found = ask(settings, read)
    rows = found if as_json else [_shorten(one) for one in found]
    answer(rows, as_json=as_json, title="Webhooks, newest first", empty="No webhooks yet.")


@group.command("show")
@_webhook
@storage_options
@json_option
def show(subscription_id: str, *, settings: Settings, as_json: bool) -> None:
    """Show one webhook: whether it is enabled, and since when it fails."""

    async def read(database: Database) -> Subscription:
        async with database.read() as tx:
            return await subscriptions.get(tx, subscription_id)

    answer(ask(settings, read), as_json=as_json)


@group.command("enable")
@_webhook
@click.option("--replay-missed", is_flag=True, help="Tell it also what happened while it was disabled.")
@storage_options
@json_option
def enable(subscription_id: str, *, settings: Settings, replay_missed: bool, as_json: bool) -> None:
    """Go on with what waits for it, and with what happens from now on."""

    async def change(database: Database) -> Subscription:
        return await desk.change(database, subscription_id, enabled=True, replay_missed=replay_missed)

    answer(ask(settings, change), as_json=as_json)


@group.command("disable")
@_webhook
@storage_options
@json_option
def disable(subscription_id: str, *, settings: Settings, as_json: bool) -> None:
    """Tell it nothing more; what waits for it stays."""

    async def change(database: Database) -> Subscription:
        return await desk.change(database, subscription_id, enabled=False)

    answer(ask(settings, change), as_json=as_json)


@group.command("remove")
@_webhook
@storage_options
@json_option
def remove(subscription_id: str, *, settings: Settings, as_json: bool) -> None:
    """Away with it, and with what waits for it."""

    async def end(database: Database) -> None:
        async with database.write() as tx:
            await subscriptions.remove(tx, subscription_id)

    ask(settings, end)
    answer({"removed": subscription_id}, as_json=as_json)


@group.command("rotate")
@_webhook
@storage_options
@json_option
def rotate(subscription_id: str, *, settings: Settings, as_json: bool) -> None:
    """Give it a new secret, shown now and never again; each one before signs beside it for 24 hours."""

    async def change(database: Database) -> Grant:
        key = find_secret_key(settings)
        async with database.write() as tx:
            return await subscriptions.rotate(tx, subscription_id, key=key, now=clock.now())

    _show_grant(ask(settings, change), as_json=as_json)


@group.command("test")
@_webhook
@storage_options
@json_option
def test(subscription_id: str, *, settings: Settings, as_json: bool) -> None:
    """Send it a test now, and show what it answered. Exit code 1 where it did not take it."""

    async def send(database: Database) -> Ping:
        return await desk.send_test(database, subscription_id, key=find_secret_key(settings))

    made = ask(settings, send)
    answer(made if as_json else made.attempt, as_json=as_json, title="A test")
    if made.attempt.error is not None:
        raise SystemExit(1)


@group.command("deliveries")
@_webhook
@click.argument("delivery_id", type=Id("dlv"), required=False, metavar="[DLV_ID]")
@click.option("--status", type=click.Choice(get_args(Status)))
@click.option("--after", type=Id("dlv"), metavar="DLV_ID", help="Those older than this one.")
@limit_option
@storage_options
@json_option
def list_deliveries(
    subscription_id: str,
    delivery_id: int | None,
    *,
    settings: Settings,
    status: Status | None,
    after: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """List what it was told and is to be told, the newest first; or every attempt of one delivery."""

    async def read(database: Database) -> list[Delivery]:
        return await desk.list_deliveries(
            database, subscription_id, after=after, limit=limit + 1, status=status
        )

    async def look(database: Database) -> list[Attempt]:
        return (await desk.look_at(database, subscription_id, delivery_id or 0))[1]

    if delivery_id is not None:
        answer(ask(settings, look), as_json=as_json, title="Attempts", empty="Not tried yet.")
        return
    answer_page(
        ask(settings, read),
        limit,
        last=lambda one: show_id(one.delivery_id),
        shorten=_shorten_delivery,
        as_json=as_json,
        title="Deliveries, newest first",
        empty="Nothing was to be told yet.",
    )


@group.command("replay")
@_webhook
@click.argument("delivery_id", type=Id("dlv"), required=False, metavar="[DLV_ID]")
@click.option("--since", type=click.DateTime(TIMES), help="All from then on (UTC), instead of one.")
@click.option("--until", type=click.DateTime(TIMES), help="And before then; without it until now.")
@storage_options
@json_option
def replay(
    subscription_id: str,
    delivery_id: int | None,
    *,
    settings: Settings,
    since: datetime | None,
    until: datetime | None,
    as_json: bool,
) -> None:
    """Tell one delivery again, or everything of a time that it wants, by the webhook-ids of before."""
    if (delivery_id is None) == (since is None):
        raise click.UsageError("Name one delivery, or a time with --since.")

    async def again(database: Database) -> Delivery | Replay:
        if delivery_id is not None:
            return await desk.replay_one(database, subscription_id, delivery_id)
        return await desk.replay_range(
            database, subscription_id, since=_read_time(since), until=_read_time(until) if until else None
        )

    answer(ask(settings, again), as_json=as_json)


def _read_time(time: datetime | None) -> datetime:
    found = time or clock.now()
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _show_grant(grant: Grant, *, as_json: bool) -> None:
    answer({"secret": grant.secret, **to_plain(grant.subscription)}, as_json=as_json, title=KEEP_IT)


def _shorten(one: Subscription) -> dict[str, object]:
    """What fits a terminal's width of a webhook."""
    state = "enabled" if one.enabled else f"disabled: {one.disabled_reason}"
    if one.enabled and one.failing_since is not None:
        state = f"failing since {one.failing_since:%Y-%m-%d %H:%M}"
    return {
        "webhook": one.subscription_id,
        "url": one.url,
        "events": " ".join(one.event_types),
        "state": state,
        "description": one.description,
    }


def _shorten_delivery(one: Delivery) -> dict[str, object]:
    """What fits a terminal's width of a delivery."""
    return {
        "delivery": show_id(one.delivery_id),
        "made": f"{one.created_at:%Y-%m-%d %H:%M:%S}",
        "event": one.event_type,
        "subject": one.subject,
        "status": one.status,
        "attempts": one.attempts,
        "next": f"{one.next_attempt_at:%m-%d %H:%M:%S}" if one.next_attempt_at else None,
    }
