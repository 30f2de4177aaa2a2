"""What several tests of the settlement book start from."""

from collections.abc import AsyncIterator

import pytest

from fixtures.rpc_proxy import Proxy, play_proxy
from fixtures.settling import Payroll, make_payroll
from tollbook.core.database import Database
from tollbook.core.local_chain import LocalChain


@pytest.fixture
async def proxied(database: Database, own_chain: LocalChain) -> AsyncIterator[tuple[Payroll, Proxy]]:
    """A payroll on a chain of its own, behind a node that misbehaves."""
    own_chain.ensure_token()
    async with play_proxy(own_chain.url) as proxy:
        yield make_payroll(database, own_chain, url=proxy.url), proxy
