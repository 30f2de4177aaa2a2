"""The shops whose books and chains the reconciler's tests make disagree."""

from collections.abc import AsyncIterator, Iterator

import pytest
from eth_account.signers.local import LocalAccount

from fixtures.reconciling import PURSE, Shop
from tollbook.core.chains import Chain
from tollbook.core.database import Database
from tollbook.core.local_chain import NETWORK, LocalChain


@pytest.fixture
async def shop(database: Database, chain: LocalChain, token: str, payer: LocalAccount) -> AsyncIterator[Shop]:
    assert token
    async with Chain(NETWORK, chain.url) as node:
        yield Shop(database, chain, node, payer, chain.make_account(), chain.make_account(amount=PURSE))


@pytest.fixture
def own_chain() -> Iterator[LocalChain]:
    """A chain whose past may be changed."""
    with LocalChain.start() as running:
        running.ensure_token()
        yield running


@pytest.fixture
async def own_shop(database: Database, own_chain: LocalChain) -> AsyncIterator[Shop]:
    async with Chain(NETWORK, own_chain.url) as node:
        payer, bank = own_chain.make_account(amount=PURSE), own_chain.make_account(amount=PURSE)
        yield Shop(database, own_chain, node, payer, own_chain.make_account(), bank)
