"""Settling: one broadcast whoever asks how often, and what is not known is never called failed."""

import asyncio
import logging
from typing import Any

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from x402.schemas import PaymentPayload, PaymentRequirements, SettleResponse

from clients.pay import require, sign
from fixtures.facilitator import DEAD, KEY, encode_settlement, key_of, see_pending, settle_behind
from fixtures.rpc_proxy import play_proxy
from fixtures.serve import serve
from tollbook.books.payments import facilitator as facilitator_module
from tollbook.books.payments import facilitator_remote
from tollbook.books.payments.facilitator import (
    Facilitator,
    FacilitatorUnreachable,
    InProcessFacilitator,
    OperatorOutOfGas,
    SettlementUnknown,
)
from tollbook.books.payments.facilitator_remote import RemoteFacilitator
from tollbook.books.payments.facilitator_server import facilitator_app
from tollbook.core.local_chain import NETWORK, LocalChain


# What is not known


async def test_a_replayed_payment_is_never_called_failed(
    facilitator: Facilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    assert (await facilitator.settle(payload, requirements)).success
    head = chain.call("eth_blockNumber")
    verified = await facilitator.verify(payload, requirements)
    assert verified.invalid_reason == "invalid_exact_evm_nonce_already_used"
    with pytest.raises(SettlementUnknown, match="nonce") as unknown:
        await facilitator.settle(payload, requirements)
    assert unknown.value.error_reason == "invalid_exact_evm_nonce_already_used"
    assert chain.call("eth_blockNumber") == head  # no gas was spent on it
    assert chain.read_balance(seller.address) == 10_000


async def test_one_payment_presented_ten_times_at_once_moves_money_once(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    answers = await asyncio.gather(
        *(in_process.settle(payload, requirements) for _ in range(10)), return_exceptions=True
    )
    assert chain.read_balance(seller.address) == 10_000
    settled = [answer for answer in answers if isinstance(answer, SettleResponse)]
    assert len({answer.transaction for answer in settled}) == 1
    assert all(answer.success for answer in settled)
    assert all(isinstance(answer, (SettleResponse, SettlementUnknown)) for answer in answers)


async def test_a_lost_answer_to_a_broadcast_does_not_lose_the_payment(
    database_url: str,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator(
            {NETWORK: proxy.url}, key_of(operator), database_url, receipt_seconds_max=2
        )
        proxy.lost_answers.add("eth_sendRawTransaction")
        settled = await facilitator.settle(await sign(payer, requirements), requirements)
        assert settled.success
        assert proxy.asked.count("eth_sendRawTransaction") == 1
        proxy.lost_answers.add("eth_getTransactionReceipt")
        payload = await sign(payer, requirements)
        with pytest.raises(SettlementUnknown) as unknown:
            await facilitator.settle(payload, requirements)
        assert chain.read_balance(seller.address) == 20_000
        assert chain.call("eth_getTransactionReceipt", unknown.value.transaction)["status"] == "0x1"
        proxy.lost_answers.clear()
        again = await facilitator.settle(payload, requirements)
        assert (again.success, again.transaction) == (True, unknown.value.transaction)
        assert chain.read_balance(seller.address) == 20_000
        await facilitator.aclose()


async def test_an_unclear_answer_to_a_broadcast_is_unknown(
    database_url: str,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator(
            {NETWORK: proxy.url}, key_of(operator), database_url, receipt_seconds_max=0.2
        )
        proxy.refusals["eth_sendRawTransaction"] = ["upstream request timeout"]
        with pytest.raises(SettlementUnknown) as unknown:
            await facilitator.settle(await sign(payer, requirements), requirements)
        assert len(unknown.value.transaction) == 66
        # The nonce of what may never arrive must not keep the next one waiting.
        proxy.refusals.clear()
        assert (await facilitator.settle(await sign(payer, requirements), requirements)).success
        await facilitator.aclose()


@pytest.mark.parametrize("answer", ["transaction underpriced", "nonce too low", "intrinsic gas too low"])
async def test_a_broadcast_that_was_surely_refused_can_be_tried_again(
    database_url: str,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
    answer: str,
) -> None:
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator({NETWORK: proxy.url}, key_of(operator), database_url)
        proxy.refusals["eth_sendRawTransaction"] = [answer] * SEND_ATTEMPTS_MAX
        payload = await sign(payer, requirements)
        with pytest.raises(FacilitatorUnreachable):
            await facilitator.settle(payload, requirements)
        proxy.refusals.clear()
        assert (await facilitator.settle(payload, requirements)).success
        assert chain.read_balance(seller.address) == 10_000
        await facilitator.aclose()


async def test_a_nonce_that_another_process_took_is_replaced(
    database_url: str,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator({NETWORK: proxy.url}, key_of(operator), database_url)
        proxy.refusals["eth_sendRawTransaction"] = ["nonce too low", "replacement transaction underpriced"]
        assert (await facilitator.settle(await sign(payer, requirements), requirements)).success
        await facilitator.aclose()


async def test_a_slow_block_leaves_a_payment_unknown_until_it_is_mined(
    facilitator: Facilitator, chain: LocalChain, payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    payload = await sign(payer, requirements)
    chain.call("evm_setAutomine", False)
    try:
        with pytest.raises(SettlementUnknown) as unknown:
            await facilitator.settle(payload, requirements)
        assert unknown.value.error_reason == "settlement_pending"
    finally:
        chain.call("evm_setAutomine", True)
        chain.call("evm_mine")
    settled = await facilitator.settle(payload, requirements)
    assert (settled.success, settled.transaction) == (True, unknown.value.transaction)


async def test_a_pending_settlement_cannot_be_claimed_for_other_requirements(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    operator: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    chain.call("evm_setAutomine", False)
    try:
        with pytest.raises(SettlementUnknown):
            await in_process.settle(payload, requirements)
    finally:
        chain.call("evm_setAutomine", True)
        chain.call("evm_mine")
    dearer = requirements.model_copy(update={"amount": "99000000"})
    refused = await in_process.settle(payload, dearer)
    assert refused.error_reason == "invalid_exact_evm_payload_authorization_value_mismatch"
    thief = requirements.model_copy(update={"pay_to": operator.address})
    refused = await in_process.settle(payload, thief)
    assert refused.error_reason == "invalid_exact_evm_payload_recipient_mismatch"


async def test_a_payer_who_empties_the_purse_first_has_failed_to_pay(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    operator: LocalAccount,
    token: str,
    requirements: PaymentRequirements,
) -> None:
    purse = chain.read_balance(payer.address)
    drain = "0xa9059cbb" + operator.address[2:].rjust(64, "0") + f"{purse:064x}"
    settling = in_process.settle(await sign(payer, requirements), requirements)
    outcome = await settle_behind(chain, settling, {"from": payer.address, "to": token, "data": drain})
    assert isinstance(outcome, SettleResponse)
    assert not outcome.success
    assert chain.call("eth_getTransactionReceipt", outcome.transaction)["status"] == "0x0"
    assert chain.read_balance(seller.address) == 0


async def test_a_payment_that_another_hand_settled_first_is_unknown_not_failed(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    token: str,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    signed, signature = payload.payload["authorization"], payload.payload["signature"][2:]
    words = [signed["from"][2:].rjust(64, "0"), signed["to"][2:].rjust(64, "0")]
    words += [f"{int(signed[name]):064x}" for name in ("value", "validAfter", "validBefore")]
    words += [signed["nonce"][2:], signature[128:].rjust(64, "0"), signature[:64], signature[64:128]]
    other = chain.make_account()
    call = {"from": other.address, "to": token, "data": "0xe3ee160e" + "".join(words)}
    outcome = await settle_behind(chain, in_process.settle(payload, requirements), call)
    assert isinstance(outcome, SettlementUnknown)
    assert outcome.error_reason == "invalid_exact_evm_nonce_already_used"
    assert chain.read_balance(seller.address) == 10_000


# What cannot be reached


async def test_without_gas_money_the_payment_can_be_presented_again(
    database_url: str, chain: LocalChain, payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    poor = chain.make_account()
    facilitator = InProcessFacilitator({NETWORK: chain.url}, key_of(poor), database_url)
    payload = await sign(payer, requirements)
    async with serve(facilitator_app(facilitator)) as url:
        remote = RemoteFacilitator(url)
        with pytest.raises(OperatorOutOfGas, match=poor.address):
            await facilitator.settle(payload, requirements)
        with pytest.raises(FacilitatorUnreachable):
            await remote.settle(payload, requirements)
        chain.set_gas_money(poor.address)
        assert (await remote.settle(payload, requirements)).success
        await remote.aclose()
    await facilitator.aclose()


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
        async with httpx.AsyncClient() as client:
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


@pytest.mark.parametrize("method", ["eth_getCode", "eth_call", "eth_chainId", "eth_gasPrice"])
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
        if method != "eth_gasPrice":
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
    payloads = [await sign(payer, requirements) for _ in range(SETTLE_THREADS_MAX + 2)]
    chain.call("evm_setAutomine", False)
    try:
        settling = [asyncio.create_task(facilitator.settle(one, requirements)) for one in payloads]
        await see_pending(chain, SETTLE_THREADS_MAX)
        await facilitator.aclose()
        outcomes = await asyncio.gather(*settling, return_exceptions=True)
    finally:
        chain.call("evm_setAutomine", True)
        chain.call("evm_mine")
    assert sum(isinstance(outcome, SettlementUnknown) for outcome in outcomes) == SETTLE_THREADS_MAX
    assert sum(isinstance(outcome, FacilitatorUnreachable) for outcome in outcomes) == 2
    assert chain.read_balance(seller.address) == SETTLE_THREADS_MAX * 10_000
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
