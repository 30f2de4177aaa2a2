"""Channels from the command line and by the clock: listed, claimed, paid out."""

import asyncio
import json

import pytest
from click.testing import CliRunner
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI

from clients.bare_sdk import PRICE, make_buyer, shop_at
from fixtures.facilitator import key_of
from fixtures.schemes import query, selling
from tollbook.books.payments.cli import payments_group
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.books.payments.schemes import channels
from tollbook.books.payments.schemes.batch import find_storage
from tollbook.core.database import Database
from tollbook.core.local_chain import NETWORK, LocalChain
from tollbook.core.operator_keys import KEY_VARIABLE
from tollbook.core.stores.sealing import SealKeyUnusable

REQUESTS = 3
SEAL = "5ea1" * 16


@pytest.fixture
def owed(
    schemes_chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    """What one channel owes the seller; the operator's key and node are in the environment."""
    app = FastAPI()

    @app.get("/ticks")
    async def ticks() -> str:
        return "tick"

    async def buy() -> None:
        facilitator = InProcessFacilitator({NETWORK: schemes_chain.url}, key_of(operator), database_url)
        async with (
            selling(app, seller, facilitator, database_url, scheme="batch-settlement") as paywall,
            shop_at(paywall, make_buyer(payer)) as client,
        ):
            for _ in range(REQUESTS):
                assert (await client.get("/ticks")).status_code == 200
        await facilitator.aclose()

    monkeypatch.setenv("TOLLBOOK_CHANNEL_KEY", SEAL)
    asyncio.run(buy())
    monkeypatch.setenv(KEY_VARIABLE, key_of(operator))
    monkeypatch.setenv("TOLLBOOK_RPC_URLS", json.dumps({NETWORK: schemes_chain.url}))
    return REQUESTS * PRICE


def run(database_url: str, *arguments: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(
        payments_group, ["channels", *arguments, "--database-url", database_url, "--json"]
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_channels_are_listed_and_claimed_from_the_command_line(
    owed: int, schemes_chain: LocalChain, payer: LocalAccount, seller: LocalAccount, database_url: str
) -> None:
    assert query(database_url, "SELECT signature LIKE 'sealed:%' FROM stores.channels") == [(True,)]
    [channel] = run(database_url, "list")
    assert (channel["payer"], channel["unclaimed"]) == (payer.address.lower(), owed)
    [done] = run(database_url, "claim", "--network", NETWORK)
    assert (done["receiver"], done["amount"]) == (seller.address.lower(), owed)
    assert schemes_chain.read_balance(seller.address) == owed
    [claimed] = run(database_url, "list")
    assert (claimed["claimed"], claimed["unclaimed"]) == (owed, 0)


def test_the_hourly_job_claims_where_there_is_a_key_and_leaves_it_where_there_is_none(
    owed: int,
    schemes_chain: LocalChain,
    seller: LocalAccount,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work() -> int:
        async with Database(database_url) as database:
            return await channels.claim_all(database)

    with monkeypatch.context() as keyless:
        keyless.delenv(KEY_VARIABLE)
        assert asyncio.run(work()) == 0
    assert schemes_chain.read_balance(seller.address) == 0
    assert asyncio.run(work()) == 1
    assert schemes_chain.read_balance(seller.address) == owed
    assert asyncio.run(work()) == 0


def test_a_claim_that_was_not_possible_says_why_and_ends_with_1(
    owed: int,
    operator: LocalAccount,
    schemes_chain: LocalChain,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stranger = schemes_chain.make_account(wei=10**18)
    monkeypatch.setenv(KEY_VARIABLE, key_of(stranger))
    arguments = ["channels", "claim", "--network", NETWORK, "--database-url", database_url, "--json"]
    result = CliRunner().invoke(payments_group, arguments)
    assert result.exit_code == 1, result.output
    [left] = json.loads(result.stdout)
    assert "authorizer" in left["problem"]
    assert left["amount"] == 0


@pytest.mark.parametrize("key", ["no key at all", "5ea1"])
def test_a_channel_key_that_is_none_is_refused_without_being_shown(
    key: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLBOOK_CHANNEL_KEY", key)
    with pytest.raises(SealKeyUnusable) as refused:
        find_storage(database_url)
    assert key not in str(refused.value)
