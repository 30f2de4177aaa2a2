"""Settling while the node, or the facilitator itself, goes away."""

import asyncio
import logging

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from x402.schemas import PaymentRequirements

from clients.pay import require, sign
from fixtures.facilitator import (
    DEAD,
    KEY,
    key_of,
    see_pending,
)
from fixtures.rpc_proxy import play_proxy
from fixtures.serve import serve
from tollbook.books.payments.facilitator import in_process as facilitator_module
from tollbook.books.payments.facilitator import remote as facilitator_remote
from tollbook.books.payments.facilitator.in_process import (
    FacilitatorUnreachable,
    InProcessFacilitator,
    SettlementUnknown,
)
from tollbook.books.payments.facilitator.remote import RemoteFacilitator
from tollbook.books.payments.facilitator.server import facilitator_app
from tollbook.core.local_chain import NETWORK, LocalChain

# What is not known


async def test_an_unreachable_chain_is_no_verdict_on_the_payment(
    database_url: str,
    payer: LocalAccount,
    requirements: PaymentRequirements,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    facilitator = InProcessFacilitator({NETWORK: DEAD + "/v2/s3cret"}, KEY, database_url)
    payload = await sign(payer, requirements)
    async with serve(facilitator_app(facilitator)) as url:
        remote = RemoteFacilitator(url)
        for one in (facilitator, remote):
            with pytest.raises(FacilitatorUnreachable):
                await one.verify(payload, requirements)
            with pytest.raises(FacilitatorUnreachable):
                await one.settle(payload, requirements)
        async with httpx.AsyncClient(timeout=60) as client:
            body = facilitator_remote._make_body(payload, requirements)
            answer = await client.post(url + "/settle", json=body)
        await remote.aclose()
    await facilitator.aclose()
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["reason"] == "facilitator-unreachable"
    for text in (caplog.text, answer.text):
        assert "s3cret" not in text
        assert KEY[2:] not in text


@pytest.mark.parametrize("method", ["eth_getCode", "eth_call", "eth_chainId", "eth_getTransactionCount"])
async def test_a_node_that_fails_halfway_is_no_verdict_on_the_payment(
    database_url: str,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    token: str,
    method: str,
) -> None:
    requirements = require(token, seller.address)
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator({NETWORK: proxy.url}, key_of(operator), database_url)
        proxy.lost_answers.add(method)
        payload = await sign(payer, requirements)
        if method != "eth_getTransactionCount":
            with pytest.raises(FacilitatorUnreachable):
                await facilitator.verify(payload, requirements)
        with pytest.raises(FacilitatorUnreachable):
            await facilitator.settle(payload, requirements)
        proxy.lost_answers.clear()
        assert (await facilitator.settle(payload, requirements)).success
        await facilitator.aclose()


async def test_a_node_of_another_chain_is_refused(
    database_url: str,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    token: str,
) -> None:
    facilitator = InProcessFacilitator({"eip155:1": chain.url}, key_of(operator), database_url)
    local = require(token, seller.address)
    payload = await sign(payer, local)
    mainnet = local.model_copy(update={"network": "eip155:1"})
    payload = payload.model_copy(update={"accepted": mainnet})
    with pytest.raises(FacilitatorUnreachable, match=r"eip155:31337"):
        await facilitator.settle(payload, mainnet)
    await facilitator.aclose()


async def test_two_networks_keep_to_their_own_nodes(
    database_url: str,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    facilitator = InProcessFacilitator({"eip155:1": DEAD, NETWORK: chain.url}, key_of(operator), database_url)
    assert (await facilitator.settle(await sign(payer, requirements), requirements)).success
    await facilitator.aclose()


async def test_closing_waits_for_no_block_and_says_what_had_begun(
    database_url: str,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    facilitator = InProcessFacilitator(
        {NETWORK: chain.url}, key_of(operator), database_url, receipt_seconds_max=3600
    )
    payloads = [await sign(payer, requirements) for _ in range(12)]
    chain.call("evm_setAutomine", False)
    try:
        settling = [asyncio.create_task(facilitator.settle(one, requirements)) for one in payloads]
        await see_pending(chain, len(payloads))
        await facilitator.aclose()
        outcomes = await asyncio.gather(*settling, return_exceptions=True)
    finally:
        chain.call("evm_setAutomine", True)
        chain.call("evm_mine")
    assert all(isinstance(outcome, SettlementUnknown) for outcome in outcomes)
    assert chain.read_balance(seller.address) == len(payloads) * 10_000
    with pytest.raises(FacilitatorUnreachable, match="stopping"):
        await facilitator.verify(payloads[0], requirements)


async def test_a_busy_facilitator_says_so(
    in_process: InProcessFacilitator,
    payer: LocalAccount,
    requirements: PaymentRequirements,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(facilitator_module, "WAITING_MAX", 1)
    payloads = [await sign(payer, requirements) for _ in range(3)]
    answers = await asyncio.gather(
        *(in_process.verify(one, requirements) for one in payloads), return_exceptions=True
    )
    assert [isinstance(answer, FacilitatorUnreachable) for answer in answers] == [False, True, True]
    assert (await in_process.verify(payloads[1], requirements)).is_valid
