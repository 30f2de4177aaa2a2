"""Payment identifiers: done once, answered the same again, and never with another request's answer."""

import asyncio
import subprocess
from collections.abc import Callable
from datetime import timedelta

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.stores import age, end, read_line
from tollbook.core.stores import Connections, PostgresPaymentIdentifiers
from tollbook.core.stores.payment_identifiers import (
    Answer,
    AnswerNotKept,
    Begun,
    IdentifierConflict,
    IdentifierMalformed,
    InProgress,
    take_fingerprint,
)

IDENTIFIER = "pay_7d5d747be160e280504c099d984bcfe0"
ONE, TWO = bytes(32), bytes([1]) * 32
ANSWER = Answer(
    200, (("content-type", "text/plain"), ("set-cookie", "a"), ("set-cookie", "b")), b"\x00\n\xffdry"
)


@pytest.fixture
def identifiers(connections: Connections) -> PostgresPaymentIdentifiers:
    return PostgresPaymentIdentifiers(connections)


async def test_the_first_begins_others_wait_and_then_get_his_answer(
    identifiers: PostgresPaymentIdentifiers,
) -> None:
    begun = await identifiers.begin(IDENTIFIER, ONE)
    assert isinstance(begun, Begun)
    waiting = await identifiers.begin(IDENTIFIER, ONE)
    assert isinstance(waiting, InProgress)
    assert 0 < waiting.seconds <= 60
    assert await identifiers.finish(begun, ANSWER)
    assert [await identifiers.begin(IDENTIFIER, ONE) for _ in range(2)] == [ANSWER, ANSWER]


@pytest.mark.parametrize("finished", [False, True])
async def test_another_request_with_the_same_identifier_is_refused(
    finished: bool, identifiers: PostgresPaymentIdentifiers
) -> None:
    begun = await identifiers.begin(IDENTIFIER, ONE)
    assert isinstance(begun, Begun)
    if finished:
        await identifiers.finish(begun, ANSWER)
    with pytest.raises(IdentifierConflict):
        await identifiers.begin(IDENTIFIER, TWO)


async def test_of_thirty_at_once_one_begins(identifiers: PostgresPaymentIdentifiers) -> None:
    found = await asyncio.gather(*(identifiers.begin(IDENTIFIER, ONE) for _ in range(30)))
    assert sum(isinstance(one, Begun) for one in found) == 1


async def test_what_was_released_may_be_sent_again(identifiers: PostgresPaymentIdentifiers) -> None:
    begun = await identifiers.begin(IDENTIFIER, ONE)
    assert isinstance(begun, Begun)
    await identifiers.release(begun)
    assert isinstance(await identifiers.begin(IDENTIFIER, TWO), Begun)


async def test_an_answer_cannot_be_released(identifiers: PostgresPaymentIdentifiers) -> None:
    begun = await identifiers.begin(IDENTIFIER, ONE)
    assert isinstance(begun, Begun)
    await identifiers.finish(begun, ANSWER)
    await identifiers.release(begun)
    assert await identifiers.begin(IDENTIFIER, ONE) == ANSWER


async def test_after_the_lease_another_begins_and_the_late_answer_does_not_count(
    identifiers: PostgresPaymentIdentifiers, database_url: str
) -> None:
    late = await identifiers.begin(IDENTIFIER, ONE)
    assert isinstance(late, Begun)
    age(database_url, "UPDATE stores.payment_identifiers SET leased_until = now() - interval '1 second'")
    with pytest.raises(IdentifierConflict):
        await identifiers.begin(IDENTIFIER, TWO)
    second = await identifiers.begin(IDENTIFIER, ONE)
    assert isinstance(second, Begun)
    assert not await identifiers.finish(late, Answer(500, (), b"late"))
    await identifiers.release(late)
    assert await identifiers.finish(second, ANSWER)
    assert await identifiers.begin(IDENTIFIER, ONE) == ANSWER


async def test_a_killed_process_holds_the_identifier_for_its_lease_and_no_longer(
    connections: Connections, database_url: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start(database_url, "begin_and_die", IDENTIFIER)
    assert read_line(process) == "Begun"
    process.kill()
    process.wait()
    identifiers = PostgresPaymentIdentifiers(connections, lease=timedelta(seconds=60))
    assert isinstance(await identifiers.begin(IDENTIFIER, ONE), InProgress)
    age(database_url, "UPDATE stores.payment_identifiers SET leased_until = now() - interval '1 second'")
    assert isinstance(await identifiers.begin(IDENTIFIER, ONE), Begun)


def test_an_answer_outlives_its_process(
    database_url: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    assert end(start(database_url, "answer", IDENTIFIER)) == "Begun"
    assert end(start(database_url, "answer", IDENTIFIER)) == "Answer"


async def test_an_answer_is_kept_for_its_day(
    identifiers: PostgresPaymentIdentifiers, database_url: str
) -> None:
    begun = await identifiers.begin(IDENTIFIER, ONE)
    assert isinstance(begun, Begun)
    await identifiers.finish(begun, ANSWER)
    assert await identifiers.purge() == 0
    age(database_url, "UPDATE stores.payment_identifiers SET expires_at = now() - interval '1 second'")
    again = await identifiers.begin(IDENTIFIER, TWO)
    assert isinstance(again, Begun)
    age(database_url, "UPDATE stores.payment_identifiers SET expires_at = now() - interval '1 second'")
    assert await identifiers.purge() == 1


async def test_an_answer_too_large_is_not_given_again_and_not_made_again(connections: Connections) -> None:
    identifiers = PostgresPaymentIdentifiers(connections, answer_bytes_max=100)
    begun = await identifiers.begin(IDENTIFIER, ONE)
    assert isinstance(begun, Begun)
    assert await identifiers.finish(begun, Answer(200, (), bytes(101)))
    with pytest.raises(AnswerNotKept):
        await identifiers.begin(IDENTIFIER, ONE)


async def test_neither_identifier_nor_answer_is_in_the_database(
    identifiers: PostgresPaymentIdentifiers, database_url: str
) -> None:
    begun = await identifiers.begin(IDENTIFIER, ONE)
    assert isinstance(begun, Begun)
    await identifiers.finish(begun, Answer(200, (("x-secret", "0ddba11"),), b"0ddba11"))
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT p::text FROM stores.payment_identifiers p").fetchone()
    assert row is not None
    for secret in (IDENTIFIER, "0ddba11"):
        assert secret not in row[0]
        assert secret.encode().hex() not in row[0]


@pytest.mark.parametrize("identifier", ["", "short", "a" * 129, "sixteen-letters!", "pay_7d5d747be160e280\n"])
async def test_what_is_no_identifier_is_refused(
    identifier: str, identifiers: PostgresPaymentIdentifiers
) -> None:
    with pytest.raises(IdentifierMalformed):
        await identifiers.begin(identifier, ONE)


REQUESTS = st.tuples(st.text(), st.text(), st.binary(), st.text(), st.text())


@given(one=REQUESTS, other=REQUESTS)
def test_two_requests_have_two_fingerprints(
    one: tuple[str, str, bytes, str, str], other: tuple[str, str, bytes, str, str]
) -> None:
    def fingerprint(method: str, target: str, body: bytes, payer: str, price: str) -> bytes:
        return take_fingerprint(method, target, body, payer=payer, price=price)

    def spell(method: str, target: str, body: bytes, payer: str, price: str) -> tuple[object, ...]:
        return method.upper(), target, body, payer.lower(), price

    assert (fingerprint(*one) == fingerprint(*other)) == (spell(*one) == spell(*other))


def test_each_part_of_a_request_counts() -> None:
    parts = {"method": "GET", "target": "/a?b", "body": b"", "payer": "0x1", "price": "100 0x2"}
    changes = {"method": "POST", "target": "/a?c", "body": b"x", "payer": "0x3", "price": "99 0x2"}
    found = {take_fingerprint(**parts)} | {take_fingerprint(**parts | {k: v}) for k, v in changes.items()}
    assert len(found) == 6
