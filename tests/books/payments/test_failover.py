"""A primary that becomes a standby: who writes is told to come again, and comes to the new primary."""

from contextlib import suppress

import psycopg
import pytest

from fixtures.failover import Pair
from fixtures.payments import ENDPOINT, buy, pay
from tollbook.books.payments.errors import NotRecorded
from tollbook.books.payments.tokens import hash_secret
from tollbook.books.payments.usage import Meter
from tollbook.core.database import Database
from tollbook.core.errors import DatabaseUnreachable, Refusal
from tollbook.core.stores.connections import Connections

MAKE = "CREATE TABLE noted (what text)"
NOTE = "INSERT INTO noted VALUES ('here')"
TRIES_MAX = 10


async def test_books_go_on_at_the_new_primary(pair: Pair) -> None:
    async with Database(pair.url) as database:
        await pay(database)
        pair.fail_over()
        with pytest.raises(DatabaseUnreachable) as unreachable:
            await pay(database)
        assert unreachable.value.status == 503
        assert unreachable.value.details == {"retry_after_seconds": 2}
        await pay(database)
    with psycopg.connect(pair.second.url()) as second:
        assert second.execute("SELECT count(*) FROM payments.x402_payments").fetchone() == (1,)


async def test_the_meter_goes_on_at_the_new_primary(pair: Pair) -> None:
    async with Database(pair.url) as database, Meter(pair.url) as meter:
        lost = await buy(database)
        assert (await meter.admit(hash_secret(lost.secret), ENDPOINT)).requests_remaining == 9
        pair.fail_over()
        async with Database(pair.second.url()) as second:
            grant = await buy(second)
        for _ in range(TRIES_MAX):
            with suppress(DatabaseUnreachable, NotRecorded):
                admission = await meter.admit(hash_secret(grant.secret), ENDPOINT)
                await meter.record(admission, endpoint=ENDPOINT, status_code=200, response_time_ms=1)
                return
        pytest.fail("the meter stays at the standby")


async def test_what_was_taken_before_is_not_recorded_after(pair: Pair) -> None:
    async with Database(pair.url) as database, Meter(pair.url) as meter:
        grant = await buy(database)
        admission = await meter.admit(hash_secret(grant.secret), ENDPOINT)
        pair.fail_over()
        with pytest.raises(Refusal):
            await meter.record(admission, endpoint=ENDPOINT, status_code=200, response_time_ms=1)


def test_stores_go_on_at_the_new_primary(pair: Pair) -> None:
    connections = Connections(pair.url)
    for server in (pair.first, pair.second):
        with psycopg.connect(server.url()) as connection:
            connection.execute(MAKE)
    connections.execute(NOTE, {})
    pair.fail_over()
    with pytest.raises(DatabaseUnreachable):
        connections.execute(NOTE, {})
    connections.execute(NOTE, {})
    connections.close()
    with psycopg.connect(pair.second.url()) as second:
        assert second.execute("SELECT count(*) FROM noted").fetchone() == (1,)
