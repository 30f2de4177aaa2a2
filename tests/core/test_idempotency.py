"""Idempotency: the same request is done once and answered alike; what is kept of the answer is sealed."""

import asyncio
import uuid
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tollbook.core import clock, idempotency
from tollbook.core.database import Database
from tollbook.core.errors import DatabaseUnreachable
from tollbook.core.idempotency import Answer

SECRET = b'{"secret": "tbkey_shown-once"}'


class Handler:
    """Something that may be done once; it counts how often it was."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.done = 0
        self.new_ids: list[int] = []
        self.answer = answer or Answer(201, {"content-type": "application/json"}, SECRET)

    async def __call__(self, new_id: int) -> Answer:
        self.done += 1
        self.new_ids.append(new_id)
        return self.answer


async def send(
    database: Database, handle: Handler, key: str, body: bytes = b"{}", *, caller: int = 1, late: int = 0
) -> Answer:
    return await idempotency.run(
        database,
        caller=caller,
        key=key,
        request_hash=idempotency.hash_request("POST", "/v1/things?", body),
        handle=handle,
        now=clock.now() + timedelta(seconds=late),
    )


def new_key() -> str:
    return str(uuid.uuid4())


async def test_the_same_request_is_done_once_and_answered_alike(database: Database) -> None:
    handle, key = Handler(), new_key()
    first = await send(database, handle, key)
    again = await send(database, handle, key)
    assert handle.done == 1
    assert (again.status, dict(again.headers), again.body) == (201, dict(first.headers), SECRET)
    assert (first.replayed, again.replayed) == (False, True)


async def test_another_body_with_the_same_key_is_refused(database: Database) -> None:
    handle, key = Handler(), new_key()
    await send(database, handle, key)
    with pytest.raises(idempotency.IdempotencyKeyReused):
        await send(database, handle, key, b'{"other": 1}')
    assert handle.done == 1


async def test_another_callers_key_is_another_key(database: Database) -> None:
    handle, key = Handler(), new_key()
    await send(database, handle, key, caller=1)
    assert not (await send(database, handle, key, caller=2)).replayed
    assert handle.done == 2


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(st.sampled_from([b"one", b"two", b"three"]), min_size=2, max_size=8))
async def test_however_many_ask_at_once_each_key_is_done_once(database: Database, asked: list[bytes]) -> None:
    handlers = {body: Handler() for body in set(asked)}
    names = {body: new_key() for body in handlers}
    answers = await asyncio.gather(
        *(send(database, handlers[body], names[body], body) for body in asked), return_exceptions=True
    )
    for body, handle in handlers.items():
        assert handle.done == 1
        assert (await send(database, handle, names[body], body)).replayed
    wrong = [a for a in answers if not isinstance(a, Answer | idempotency.IdempotencyKeyBusy)]
    assert wrong == []


async def test_while_the_first_runs_the_second_is_told_to_wait(database: Database) -> None:
    key, second = new_key(), Handler()

    class Outer(Handler):
        async def __call__(self, new_id: int) -> Answer:
            with pytest.raises(idempotency.IdempotencyKeyBusy):
                await send(database, second, key)
            return await super().__call__(new_id)

    await send(database, Outer(), key)
    assert second.done == 0


async def test_a_request_that_was_refused_or_broke_may_be_sent_again(database: Database) -> None:
    key = new_key()

    class Broken(Handler):
        async def __call__(self, new_id: int) -> Answer:
            raise LookupError("broke")

    with pytest.raises(LookupError):
        await send(database, Broken(), key)
    await send(database, Handler(Answer(409, {}, b"refused")), key)
    assert not (await send(database, Handler(), key)).replayed


async def test_what_may_have_been_made_before_it_broke_is_known_by_its_id(database: Database) -> None:
    """The database's last word can be lost: then nobody knows whether it was made."""
    key = new_key()

    class Broken(Handler):
        async def __call__(self, new_id: int) -> Answer:
            await super().__call__(new_id)
            raise DatabaseUnreachable("it went away while it committed")

    broken, unsure, handle, other = Broken(), Handler(Answer(503, {}, b"")), Handler(), Handler()
    with pytest.raises(DatabaseUnreachable):
        await send(database, broken, key)
    await send(database, unsure, key)
    await send(database, handle, key)
    assert broken.new_ids == unsure.new_ids == handle.new_ids
    key = new_key()
    await send(database, unsure, key)
    await send(database, other, key, b"mended")
    assert other.new_ids[0] not in unsure.new_ids


async def test_a_process_that_died_half_way_does_not_hold_its_key_for_ever(database: Database) -> None:
    key, handle = new_key(), Handler()
    async with database.write() as tx:
        await tx.execute(
            """
            INSERT INTO core.idempotency_keys
                (caller, key_hash, request_hash, status, attempt_id, started_at, expires_at)
            VALUES (1, sha256(%(key)s::text::bytea), %(hash)s, 'running', 7, now(), now() + interval '1 day')
            """,
            {"key": key, "hash": idempotency.hash_request("POST", "/v1/things?", b"{}")},
        )
    with pytest.raises(idempotency.IdempotencyKeyBusy):
        await send(database, handle, key)
    assert (await send(database, handle, key, late=61)).status == 201
    assert handle.done == 1
    assert handle.new_ids == [7]  # what the one that died may have made is known by its id


async def test_a_secret_in_an_answer_cannot_be_read_at_rest(database: Database) -> None:
    key = new_key()
    await send(database, Handler(), key)
    async with database.read() as tx:
        row = await tx.value("SELECT k::text FROM core.idempotency_keys k")
        sealed = bytes(await tx.value("SELECT sealed_response FROM core.idempotency_keys"))
    assert key not in row
    assert SECRET.hex() not in row
    assert b"shown-once" not in sealed
    assert len(sealed) > len(SECRET)


async def test_after_a_day_the_answer_is_forgotten(database: Database) -> None:
    handle, key = Handler(), new_key()
    await send(database, handle, key, late=-86_500)
    assert await idempotency.forget(database) == 1
    assert not (await send(database, handle, key)).replayed
    assert await idempotency.forget(database) == 0


@pytest.mark.parametrize("key", ["short", "k" * 256, "umlaut-ü-umlaut-ü", "line\nbreak-line-break"])
async def test_a_key_that_cannot_seal_is_refused(database: Database, key: str) -> None:
    with pytest.raises(idempotency.IdempotencyKeyMalformed):
        await send(database, Handler(), key)
