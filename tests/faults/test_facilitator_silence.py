"""A facilitator whose node keeps silent: what cannot be known is said so in time, and holds up nobody."""

import asyncio

import pytest
from eth_account.signers.local import LocalAccount
from x402.schemas import PaymentRequirements

from clients.pay import sign
from fixtures.facilitator import key_of
from fixtures.rpc_proxy import play_proxy
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator, SettlementUnknown
from tollbook.core import lanes as lanes_room
from tollbook.core.local_chain import NETWORK, LocalChain

PAYMENTS = 4


async def test_settlements_end_as_unknown_in_time_and_are_found_when_the_node_answers(
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
    requirements: PaymentRequirements,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes_room, "SUBMIT_SECONDS_MAX", 0.5)
    payloads = [await sign(payer, requirements) for _ in range(PAYMENTS)]
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator({NETWORK: proxy.url}, key_of(operator), database_url)
        settle = [facilitator.settle(payload, requirements) for payload in payloads]
        proxy.silent = {"eth_sendRawTransaction"}
        answers = await asyncio.gather(*settle, return_exceptions=True)
        assert {type(answer) for answer in answers} == {SettlementUnknown}
        proxy.silent = set()
        settled = [await facilitator.settle(payload, requirements) for payload in payloads]
        await facilitator.aclose()
    assert len({answer.transaction for answer in settled if answer.success}) == PAYMENTS
    assert chain.read_balance(seller.address) == PAYMENTS * 10_000
