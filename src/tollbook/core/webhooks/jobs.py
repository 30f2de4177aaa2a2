"""What webhooks do all the time and by the clock: tell, and forget what was told long ago."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import cast

from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.errors import DatabaseUnreachable
from tollbook.core.jobs import Job
from tollbook.core.secret_key import find_secret_key
from tollbook.core.services import Service, rest
from tollbook.core.settings import Settings
from tollbook.core.webhooks import dispatch, rules
from tollbook.core.webhooks.sender import Sender
from tollbook.core.webhooks.sending import Post
from tollbook.core.webhooks.settings import read_settings

POLL_SECONDS = 0.25  # for what other processes put in the queues, and for what is to be tried again
LOOK_SECONDS = 0.02  # for news of the journal: half of it is what a fact waits on average
LOOK_SECONDS_QUIET = 0.1  # after QUIET_LOOKS without any
LOOK_SECONDS_ALONE = 1.0  # while nobody listens
QUIET_LOOKS = 50

KEPT = timedelta(days=30)
WEEKS_AHEAD = 12
FORGOTTEN_A_CALL = 10_000
CALLS_MAX = 1_000


def make_service(settings: Settings, id_prefixes: Mapping[str, str]) -> Service:
    """Webhooks, told by this process, with the secret key that `settings` lead to.

    `id_prefixes`: how the books show the numbers of their subjects, as {"payments.payment.": "pay"}.
    """

    async def run(database: Database, stop: asyncio.Event) -> None:
        await tell(database, settings, stop, id_prefixes)

    return Service("webhooks", run)


async def tell(
    database: Database,
    settings: Settings,
    stop: asyncio.Event,
    id_prefixes: Mapping[str, str] = rules.NO_PREFIXES,
) -> None:
    """Follow the journal and send, until `stop` is set. Raises SecretKeyUnusable once somebody listens."""
    while not stop.is_set() and not (await dispatch.look(database)).anyone:
        await rest(stop, LOOK_SECONDS_ALONE)
    if stop.is_set():
        return
    key = find_secret_key(settings)
    async with Post(read_settings()) as post:
        sender = Sender(database, post, key, id_prefixes=id_prefixes)
        following = asyncio.create_task(_follow(database, sender, stop))
        sending = asyncio.create_task(sender.run(stop, poll_seconds=POLL_SECONDS))
        try:
            await asyncio.wait((following, sending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Where one broke off both end; sending ends what it has begun.
            for task in (following, sending):
                task.cancel() if not stop.is_set() else None
            ended = await asyncio.gather(following, sending, return_exceptions=True)
        for one in ended:
            if isinstance(one, Exception):
                raise one


async def _follow(database: Database, sender: Sender, stop: asyncio.Event) -> None:
    quiet = 0
    while not stop.is_set():
        pause, quiet = LOOK_SECONDS_ALONE, quiet + 1
        with suppress(DatabaseUnreachable):
            news = await dispatch.look(database)
            if news.anything:
                quiet = 0
                await dispatch.dispatch(database, now=clock.now())
                sender.news.set()
            if news.anyone:
                pause = LOOK_SECONDS if quiet < QUIET_LOOKS else LOOK_SECONDS_QUIET
            if news.anything:  # there may be more than a turn takes
                pause = 0.0
        await rest(stop, pause)


async def make_partitions(database: Database) -> int:
    """Make the partitions of the attempts' weeks to come; how many were missing."""
    async with database.write() as tx:
        return cast(
            int,
            await tx.value(
                "SELECT core.ensure_partitions('settlement.webhook_attempts', '7 days', %(weeks)s)",
                {"weeks": WEEKS_AHEAD},
            ),
        )


async def forget(database: Database) -> int:
    """Delete deliveries that were made KEPT ago, whatever became of them; how many.

    So what waits for an endpoint has a bound, too. Attempts go by whole weeks.
    """
    total = 0
    for _ in range(CALLS_MAX):
        async with database.write() as tx:
            gone = await tx.execute(
                """
                DELETE FROM settlement.webhook_deliveries d
                WHERE d.ctid = ANY(ARRAY(
                    SELECT o.ctid FROM settlement.webhook_deliveries o
                    WHERE o.created_at < %(before)s LIMIT %(limit)s))
                """,
                {"before": clock.now() - KEPT, "limit": FORGOTTEN_A_CALL},
            )
        total += gone
        if gone < FORGOTTEN_A_CALL:
            break
    async with database.write() as tx:
        await tx.value(
            "SELECT core.drop_partitions('settlement.webhook_attempts', %(kept)s::interval)", {"kept": KEPT}
        )
    return total


JOBS: list[Job] = [
    Job("webhooks.make_partitions", "28 3 * * *", make_partitions),
    Job("webhooks.forget", "53 * * * *", forget),
]
