"""API keys: shown once, kept as a hash, refused when revoked, expired, or short of a scope."""

from datetime import timedelta

import pytest

from tollbook.core import clock, keys
from tollbook.core.database import Database
from tollbook.core.keys import KeyGrant


async def make(database: Database, *scopes: str, **options: object) -> KeyGrant:
    async with database.write() as tx:
        return await keys.create(tx, name="test", scopes=scopes or ["*"], now=clock.now(), **options)


async def test_a_key_lets_in_who_holds_its_secret(database: Database) -> None:
    grant = await make(database, "payments:read")
    key = await keys.authenticate(database, grant.secret, now=clock.now())
    assert key.key_id == grant.key.key_id
    assert key.allows("payments:read")
    assert not key.allows("payments:write")


async def test_the_secret_is_nowhere_in_the_database(database: Database) -> None:
    grant = await make(database)
    async with database.read() as tx:
        row = await tx.value("SELECT k::text FROM core.api_keys k")
    assert grant.secret not in row
    assert grant.secret.encode().hex() not in row


async def test_a_revoked_key_is_refused_at_once_by_every_process(
    database: Database, database_url: str
) -> None:
    grant = await make(database)
    async with Database(database_url) as other_process:
        assert await keys.authenticate(other_process, grant.secret, now=clock.now())
        async with database.write() as tx:
            await keys.revoke(tx, grant.key.key_id, now=clock.now())
        with pytest.raises(keys.KeyRevoked):
            await keys.authenticate(other_process, grant.secret, now=clock.now())


async def test_a_key_is_revoked_once(database: Database) -> None:
    grant = await make(database)
    async with database.write() as tx:
        await keys.revoke(tx, grant.key.key_id, now=clock.now())
    with pytest.raises(keys.KeyAlreadyRevoked):
        async with database.write() as tx:
            await keys.revoke(tx, grant.key.key_id, now=clock.now())
    with pytest.raises(keys.KeyNotFound):
        async with database.write() as tx:
            await keys.revoke(tx, 5, now=clock.now())


async def test_an_expired_key_is_refused(database: Database) -> None:
    now = clock.now()
    grant = await make(database, expires_at=now + timedelta(hours=1))
    assert await keys.authenticate(database, grant.secret, now=now + timedelta(minutes=59))
    with pytest.raises(keys.KeyExpired):
        await keys.authenticate(database, grant.secret, now=now + timedelta(hours=1))


@pytest.mark.parametrize("secret", ["", "tbk_" + "a" * 43, "tbkey_unknown", "tbkey_ü\x00"])
async def test_what_is_no_key_is_refused(database: Database, secret: str) -> None:
    with pytest.raises(keys.KeyUnknown):
        await keys.authenticate(database, secret, now=clock.now())


async def test_the_last_use_is_written_once_a_minute(database: Database) -> None:
    grant, now = await make(database), clock.now()

    async def last_used() -> object:
        async with database.read() as tx:
            return (await keys.get(tx, grant.key.key_id)).last_used_at

    await keys.authenticate(database, grant.secret, now=now)
    assert await last_used() == now
    await keys.authenticate(database, grant.secret, now=now + timedelta(seconds=59))
    assert await last_used() == now
    await keys.authenticate(database, grant.secret, now=now + timedelta(seconds=60))
    assert await last_used() == now + timedelta(seconds=60)


@pytest.mark.parametrize(
    ("name", "scopes"),
    [
        ("", ["*"]),
        ("n" * 101, ["*"]),
        ("ok", []),
        ("ok", ["payments"]),
        ("ok", ["payments:all"]),
        ("ok", ["**"]),
    ],
)
async def test_a_key_that_cannot_stand_is_not_made(database: Database, name: str, scopes: list[str]) -> None:
    with pytest.raises(keys.KeyMalformed):
        async with database.write() as tx:
            await keys.create(tx, name=name, scopes=scopes, now=clock.now())
    async with database.read() as tx:
        assert await keys.page(tx) == []


async def test_a_key_hands_on_no_more_than_it_has(database: Database) -> None:
    grant = await make(database, "keys:write", "payments:read")
    keys.check_within(grant.key, ["payments:read"])
    with pytest.raises(keys.ScopeMissing):
        keys.check_within(grant.key, ["payments:read", "payments:write"])
    with pytest.raises(keys.ScopeMissing):
        keys.check_within(grant.key, ["*"])
