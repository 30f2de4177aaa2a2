"""Tokens: shown once, kept as hashes, revocable, and gone with their payment."""

import asyncio
import subprocess
from datetime import timedelta

import pytest

from fixtures.payments import buy, pay
from tollbook.books.payments import payments, tokens
from tollbook.books.payments.errors import PaymentNotInState, TokenAlreadyRevoked, TokenNotFound
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.embedded import binaries


async def test_a_secret_is_nowhere_in_the_database_nor_in_what_is_printed(database: Database) -> None:
    grant = await buy(database)
    assert grant.secret.startswith("tbk_")
    assert len(grant.secret) == 47
    dumped = await asyncio.to_thread(
        subprocess.run, [binaries() / "pg_dump", database.url], capture_output=True, check=True
    )
    secret = grant.secret.encode()
    forms = [secret, secret[4:], secret.hex().encode(), secret[4:].hex().encode()]
    assert not any(form in dumped.stdout for form in forms)
    assert tokens.hash_secret(grant.secret).hex().encode() in dumped.stdout
    assert grant.secret not in repr(grant)


async def test_a_token_expires_with_its_payment(database: Database) -> None:
    grant = await buy(database, lifetime=timedelta(hours=3))
    async with database.read() as tx:
        payment = await payments.get(tx, grant.token.payment_id)
    assert grant.token.expires_at == payment.expires_at


async def test_a_payment_that_buys_nothing_gets_no_token(database: Database) -> None:
    over = await pay(database, lifetime=timedelta(microseconds=1))
    async with database.write() as tx:
        with pytest.raises(PaymentNotInState):
            await tokens.issue(tx, over.payment_id, now=clock.now())


async def test_rotations_at_once_leave_one_live_token(database: Database) -> None:
    payment = await pay(database)

    async def rotate() -> None:
        async with database.write() as tx:
            await tokens.rotate(tx, payment.payment_id, now=clock.now())

    await asyncio.gather(*(rotate() for _ in range(8)))
    async with database.read() as tx:
        found = await tokens.page(tx, payment_id=payment.payment_id)
        kinds = await tx.dicts("SELECT kind FROM core.journal WHERE kind LIKE 'token.%%'", {})
    assert len(found) == 8
    assert sum(token.revoked_at is None for token in found) == 1
    assert sorted(row["kind"] for row in kinds) == ["token.issued"] * 8 + ["token.revoked"] * 7


async def test_a_token_is_revoked_once(database: Database) -> None:
    grant = await buy(database)
    async with database.write() as tx:
        revoked = await tokens.revoke(tx, grant.token.token_id, now=clock.now())
        assert revoked.revoked_at is not None
        with pytest.raises(TokenAlreadyRevoked):
            await tokens.revoke(tx, grant.token.token_id, now=clock.now())
        with pytest.raises(TokenNotFound):
            await tokens.revoke(tx, 5, now=clock.now())
