"""Facilitators: money moves once, refusals name their reason, and what is not known is not called failed."""

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from hypothesis import given, settings
from hypothesis import strategies as st
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.schemas import PaymentPayload, PaymentRequirements, SettleResponse

from clients.pay import require, sign
from fixtures.rpc_proxy import play_proxy
from fixtures.serve import serve
from tollbook.books.payments import facilitator as facilitator_module
from tollbook.books.payments import facilitator_remote, facilitator_server
from tollbook.books.payments.facilitator import (
    SETTLE_THREADS_MAX,
    Facilitator,
    FacilitatorUnreachable,
    InProcessFacilitator,
    OperatorOutOfGas,
    SettlementUnknown,
)
from tollbook.books.payments.facilitator_remote import RemoteFacilitator
from tollbook.books.payments.facilitator_server import facilitator_app
from tollbook.books.payments.facilitator_signer import (
    KEY_VARIABLE,
    SEND_ATTEMPTS_MAX,
    OperatorKeyUnusable,
    read_operator_key,
)
from tollbook.core.local_chain import NETWORK, LocalChain

DEAD = "http://127.0.0.1:9"  # the discard port: nothing listens
KEY = "0x" + "5ec2e7" * 10 + "beef"


def key_of(account: LocalAccount) -> str:
    return "0x" + account.key.hex()


@pytest.fixture
async def in_process(chain: LocalChain, operator: LocalAccount) -> AsyncIterator[InProcessFacilitator]:
    facilitator = InProcessFacilitator({NETWORK: chain.url}, key_of(operator), receipt_seconds_max=2)
    yield facilitator
    await facilitator.aclose()


@pytest.fixture
async def url(in_process: InProcessFacilitator) -> AsyncIterator[str]:
    async with serve(facilitator_app(in_process)) as url:
        yield url


@pytest.fixture(params=["in process", "by URL"])
async def facilitator(
    request: pytest.FixtureRequest, in_process: InProcessFacilitator, url: str
) -> AsyncIterator[Facilitator]:
    if request.param == "in process":
        yield in_process
        return
    remote = RemoteFacilitator(url)
    yield remote
    await remote.aclose()


@pytest.fixture
def requirements(token: str, seller: LocalAccount) -> PaymentRequirements:
    return require(token, seller.address)


def change(payload: PaymentPayload, **fields: Any) -> PaymentPayload:
    """The payment with fields of its authorization, or its signature, replaced after signing."""
    changed = payload.model_copy(deep=True)
    for name, value in fields.items():
        place = changed.payload if name == "signature" else changed.payload["authorization"]
        place[name] = value
    return changed


# What works


async def test_a_payment_is_verified_and_settled(
    facilitator: Facilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    verified = await facilitator.verify(payload, requirements)
    assert verified.is_valid
    assert verified.payer == payer.address
    settled = await facilitator.settle(payload, requirements)
    assert settled.success
    assert settled.network == NETWORK
    assert chain.call("eth_getTransactionReceipt", settled.transaction)["status"] == "0x1"
    assert chain.read_balance(seller.address) == 10_000


async def test_the_sdks_own_client_uses_our_server(
    url: str, chain: LocalChain, payer: LocalAccount, seller: LocalAccount, requirements: PaymentRequirements
) -> None:
    async with HTTPFacilitatorClient(FacilitatorConfig(url=url)) as sdk:
        supported = await asyncio.to_thread(sdk.get_supported)
        assert [(kind.x402_version, kind.scheme, kind.network) for kind in supported.kinds] == [
            (2, "exact", NETWORK)
        ]
        payload = await sign(payer, requirements)
        assert (await sdk.verify(payload, requirements)).is_valid
        assert (await sdk.settle(payload, requirements)).success
        assert chain.read_balance(seller.address) == 10_000
        refused = await sdk.verify(payload, requirements)
        assert refused.invalid_reason == "invalid_exact_evm_nonce_already_used"


async def test_what_is_supported_is_what_is_configured(
    facilitator: Facilitator, operator: LocalAccount
) -> None:
    supported = await facilitator.supported()
    assert [kind.network for kind in supported.kinds] == [NETWORK]
    assert supported.signers == {"eip155:*": [operator.address]}


async def test_many_payments_at_once_share_no_nonce(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    payloads = [await sign(payer, requirements) for _ in range(12)]
    results = await asyncio.gather(*(in_process.settle(payload, requirements) for payload in payloads))
    assert all(result.success for result in results)
    assert len({result.transaction for result in results}) == 12
    assert chain.read_balance(seller.address) == 12 * 10_000


async def test_two_processes_with_one_key_settle_each_payment_once(
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    both = [InProcessFacilitator({NETWORK: chain.url}, key_of(operator)) for _ in range(2)]
    payloads = [await sign(payer, requirements) for _ in range(8)]
    answers = await asyncio.gather(
        *(both[n % 2].settle(payload, requirements) for n, payload in enumerate(payloads)),
        return_exceptions=True,
    )
    for facilitator in both:
        await facilitator.aclose()
    settled = [answer for answer in answers if isinstance(answer, SettleResponse)]
    assert all(answer.success for answer in settled)
    assert chain.read_balance(seller.address) == 10_000 * len(settled)
    assert all(isinstance(answer, (SettleResponse, FacilitatorUnreachable)) for answer in answers)


# What is refused


async def refuse(
    facilitator: Facilitator, payload: PaymentPayload, requirements: PaymentRequirements
) -> str | None:
    """The reason for which both verify and settle refuse."""
    verified = await facilitator.verify(payload, requirements)
    assert not verified.is_valid
    settled = await facilitator.settle(payload, requirements)
    assert not settled.success
    assert settled.transaction == ""
    assert settled.error_reason == verified.invalid_reason
    return verified.invalid_reason


async def test_a_payment_for_another_network_is_refused(
    facilitator: Facilitator, payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    payload = await sign(payer, requirements)
    elsewhere = payload.accepted.model_copy(update={"network": "eip155:8453"})
    moved = payload.model_copy(update={"accepted": elsewhere})
    assert await refuse(facilitator, moved, requirements) == "network_mismatch"
    assert await refuse(facilitator, moved, elsewhere) == "invalid_network"


async def test_a_payment_in_another_asset_is_refused(
    facilitator: Facilitator, payer: LocalAccount, seller: LocalAccount, requirements: PaymentRequirements
) -> None:
    other = require("0x" + "42" * 20, seller.address)
    payload = await sign(payer, other)
    assert await refuse(facilitator, payload, requirements) == "invalid_exact_evm_payload_signature"
    assert await refuse(facilitator, payload, other) == "asset_not_deployed_contract"


async def test_a_payment_of_another_amount_is_refused(
    facilitator: Facilitator, payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    payload = await sign(payer, requirements)
    dearer = requirements.model_copy(update={"amount": "10001"})
    reason = "invalid_exact_evm_payload_authorization_value_mismatch"
    assert await refuse(facilitator, payload, dearer) == reason
    raised = change(payload, value="10001")
    assert await refuse(facilitator, raised, dearer) == "invalid_exact_evm_payload_signature"


async def test_a_payment_to_another_recipient_is_refused(
    facilitator: Facilitator, payer: LocalAccount, operator: LocalAccount, requirements: PaymentRequirements
) -> None:
    payload = await sign(payer, requirements)
    thief = requirements.model_copy(update={"pay_to": operator.address})
    assert await refuse(facilitator, payload, thief) == "invalid_exact_evm_payload_recipient_mismatch"
    stolen = change(payload, to=operator.address)
    assert await refuse(facilitator, stolen, thief) == "invalid_exact_evm_payload_signature"


async def test_an_expired_payment_is_refused(
    facilitator: Facilitator, payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    payload = await sign(payer, requirements)
    expired = change(payload, validBefore=str(int(time.time()) - 1))
    reason = "invalid_exact_evm_payload_authorization_valid_before"
    assert await refuse(facilitator, expired, requirements) == reason


async def test_a_payment_that_is_not_yet_valid_is_refused(
    facilitator: Facilitator, payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    payload = await sign(payer, requirements)
    early = change(payload, validAfter=str(int(time.time()) + 600))
    reason = "invalid_exact_evm_payload_authorization_valid_after"
    assert await refuse(facilitator, early, requirements) == reason


async def test_a_payment_beyond_the_balance_is_refused(
    facilitator: Facilitator, chain: LocalChain, requirements: PaymentRequirements
) -> None:
    payload = await sign(chain.make_account(amount=9_999), requirements)
    assert await refuse(facilitator, payload, requirements) == "invalid_exact_evm_insufficient_balance"


async def test_a_forged_signature_is_refused(
    facilitator: Facilitator, payer: LocalAccount, seller: LocalAccount, requirements: PaymentRequirements
) -> None:
    forged = change(await sign(seller, requirements), **{"from": payer.address})
    assert await refuse(facilitator, forged, requirements) == "invalid_exact_evm_payload_signature"


@pytest.mark.parametrize(
    "fields",
    [
        {"value": "1e4"},
        {"value": "1_0000"},
        {"value": 10_000},
        {"value": str(2**256)},
        {"nonce": "0x12"},
        {"nonce": None},
        {"to": "nobody"},
        {"from": "0x" + "zz" * 20},
        {"validBefore": "-1"},
        {"signature": "0x"},
        {"signature": None},
        {"signature": "0x" + "00" * 9000},
    ],
)
async def test_a_malformed_payment_is_refused(
    in_process: InProcessFacilitator,
    payer: LocalAccount,
    requirements: PaymentRequirements,
    fields: dict[str, Any],
) -> None:
    payload = change(await sign(payer, requirements), **fields)
    assert await refuse(in_process, payload, requirements) == "invalid_payload"


async def test_malformed_requirements_are_refused(
    in_process: InProcessFacilitator, payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    payload = await sign(payer, requirements)
    for changes in ({"asset": "USDC"}, {"amount": "1.5"}, {"pay_to": ""}, {"extra": {"name": "USD Coin"}}):
        asked = requirements.model_copy(update=changes)
        assert await refuse(in_process, payload, asked) == "invalid_payment_requirements"


async def test_other_schemes_and_kinds_are_refused(
    in_process: InProcessFacilitator, payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    payload = await sign(payer, requirements)
    upto = requirements.model_copy(update={"scheme": "upto"})
    assert await refuse(in_process, payload, upto) == "unsupported_scheme"
    permit2 = payload.model_copy(update={"payload": {"permit2Authorization": {}, "signature": "0x"}})
    assert await refuse(in_process, permit2, requirements) == "invalid_payload"
    old = payload.model_copy(update={"x402_version": 1})
    assert await refuse(in_process, old, requirements) == "invalid_x402_version"


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
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator({NETWORK: proxy.url}, key_of(operator), receipt_seconds_max=2)
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
    chain: LocalChain, operator: LocalAccount, payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator({NETWORK: proxy.url}, key_of(operator), receipt_seconds_max=0.2)
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
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
    answer: str,
) -> None:
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator({NETWORK: proxy.url}, key_of(operator))
        proxy.refusals["eth_sendRawTransaction"] = [answer] * SEND_ATTEMPTS_MAX
        payload = await sign(payer, requirements)
        with pytest.raises(FacilitatorUnreachable):
            await facilitator.settle(payload, requirements)
        proxy.refusals.clear()
        assert (await facilitator.settle(payload, requirements)).success
        assert chain.read_balance(seller.address) == 10_000
        await facilitator.aclose()


async def test_a_nonce_that_another_process_took_is_replaced(
    chain: LocalChain, operator: LocalAccount, payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator({NETWORK: proxy.url}, key_of(operator))
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


async def see_pending(chain: LocalChain, count: int = 1) -> None:
    """Return once so many transactions wait to be mined."""
    while int(chain.call("txpool_status")["pending"], 16) < count:  # noqa: ASYNC110 - only asking shows it
        await asyncio.sleep(0.02)


async def settle_behind(chain: LocalChain, settling: Any, first: dict[str, str]) -> Any:
    """The outcome of a settlement before whose transaction, in the same block, another one is mined."""
    chain.call("evm_setAutomine", False)
    try:
        running = asyncio.create_task(settling)
        await see_pending(chain)
        chain.call("anvil_setBalance", first["from"], hex(10**19))
        chain.call("anvil_impersonateAccount", first["from"])
        chain.call("eth_sendTransaction", first | {"gasPrice": hex(10**11), "gas": hex(300_000)})
        chain.call("evm_mine")
        return (await asyncio.gather(running, return_exceptions=True))[0]
    finally:
        chain.call("evm_setAutomine", True)


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
    chain: LocalChain, payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    poor = chain.make_account()
    facilitator = InProcessFacilitator({NETWORK: chain.url}, key_of(poor))
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
    payer: LocalAccount, requirements: PaymentRequirements, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    facilitator = InProcessFacilitator({NETWORK: DEAD + "/v2/s3cret"}, KEY)
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
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    token: str,
    method: str,
) -> None:
    requirements = require(token, seller.address)
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator({NETWORK: proxy.url}, key_of(operator))
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
    chain: LocalChain, operator: LocalAccount, payer: LocalAccount, seller: LocalAccount, token: str
) -> None:
    facilitator = InProcessFacilitator({"eip155:1": chain.url}, key_of(operator))
    local = require(token, seller.address)
    payload = await sign(payer, local)
    mainnet = local.model_copy(update={"network": "eip155:1"})
    payload = payload.model_copy(update={"accepted": mainnet})
    with pytest.raises(FacilitatorUnreachable, match=r"eip155:31337"):
        await facilitator.settle(payload, mainnet)
    await facilitator.aclose()


async def test_two_networks_keep_to_their_own_nodes(
    chain: LocalChain, operator: LocalAccount, payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    facilitator = InProcessFacilitator({"eip155:1": DEAD, NETWORK: chain.url}, key_of(operator))
    assert (await facilitator.settle(await sign(payer, requirements), requirements)).success
    await facilitator.aclose()


async def test_closing_waits_for_no_block_and_says_what_had_begun(
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    facilitator = InProcessFacilitator({NETWORK: chain.url}, key_of(operator), receipt_seconds_max=3600)
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


# Elsewhere


async def answer_settle(status: int, body: object) -> Any:
    """What RemoteFacilitator.settle makes of a facilitator's answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        asked.append(scope["path"])
        headers = [(b"location", b"/elsewhere"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async with serve(app) as url:
        remote = RemoteFacilitator(url, headers={"Authorization": "Bearer s3cret"})
        payload = await sign(Account.create(), require("0x" + "42" * 20, "0x" + "43" * 20))
        try:
            return await remote.settle(payload, payload.accepted)
        except (SettlementUnknown, FacilitatorUnreachable) as error:
            return error
        finally:
            assert asked == ["/settle"]
            await remote.aclose()


def failed(reason: str | None, transaction: str = "") -> dict[str, Any]:
    return {"success": False, "errorReason": reason, "transaction": transaction, "network": NETWORK}


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, {"success": True, "transaction": "0x1", "network": NETWORK}, SettleResponse),
        (200, {"success": True, "transaction": "", "network": NETWORK}, SettlementUnknown),
        (200, {"success": True, "transaction": "0x1", "network": "eip155:1"}, SettlementUnknown),
        (200, {"success": "yes", "transaction": "0x1", "network": NETWORK}, SettlementUnknown),
        (200, failed("insufficient_funds"), SettleResponse),
        (400, failed("invalid_exact_evm_payload_signature"), SettleResponse),
        (200, failed("transaction_failed"), SettlementUnknown),
        (200, failed("transaction_failed", "0x1"), SettlementUnknown),
        (200, failed("invalid_exact_evm_insufficient_balance", "0x1"), SettlementUnknown),
        (200, failed("settlement_pending", "0x1"), SettlementUnknown),
        (200, failed("invalid_exact_evm_nonce_already_used"), SettlementUnknown),
        (200, failed(None), SettlementUnknown),
        (200, b"<html>", SettlementUnknown),
        (200, b"x" * (facilitator_remote.ANSWER_BYTES_MAX + 1), SettlementUnknown),
        (307, b"", SettlementUnknown),
        (500, {"error": "boom"}, SettlementUnknown),
        (503, {"error": "boom"}, SettlementUnknown),
        (503, {"reason": "facilitator-unreachable"}, FacilitatorUnreachable),
        (401, {"error": "who are you"}, FacilitatorUnreachable),
        (429, b"slow down", FacilitatorUnreachable),
        (413, b"", FacilitatorUnreachable),
    ],
)
async def test_an_answer_from_elsewhere_is_believed_only_where_it_is_sure(
    status: int, body: object, outcome: type[object]
) -> None:
    told = await answer_settle(status, body)
    assert isinstance(told, outcome)
    assert "s3cret" not in str(told)


async def test_a_facilitator_that_never_answers_leaves_the_payment_unknown(
    payer: LocalAccount, requirements: PaymentRequirements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facilitator_remote, "SETTLE_SECONDS_MAX", 0.1)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serve(app) as url:
        remote = RemoteFacilitator(url)
        with pytest.raises(SettlementUnknown, match="ReadTimeout"):
            await remote.settle(await sign(payer, requirements), requirements)
        await remote.aclose()


@pytest.mark.parametrize("url", [DEAD, "", "ftp://127.0.0.1", "http://["])
async def test_an_unreachable_facilitator_is_no_verdict_on_the_payment(
    payer: LocalAccount, requirements: PaymentRequirements, url: str
) -> None:
    remote = RemoteFacilitator(url)
    payload = await sign(payer, requirements)
    with pytest.raises(FacilitatorUnreachable):
        await remote.settle(payload, requirements)
    with pytest.raises(FacilitatorUnreachable):
        await remote.verify(payload, requirements)
    with pytest.raises(FacilitatorUnreachable):
        await remote.supported()
    await remote.aclose()


async def test_what_a_facilitator_supports_is_remembered_when_it_goes_away(
    in_process: InProcessFacilitator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(facilitator_app(in_process)) as url:
        remote = RemoteFacilitator(url)
        first = await remote.supported()
    monkeypatch.setattr(facilitator_remote, "SUPPORTED_SECONDS_MAX", 0.0)
    remote._supported_until = 0.0
    assert await remote.supported() == first
    await remote.aclose()


# The server


@pytest.mark.parametrize("path", ["/verify", "/settle"])
@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", 400, "malformed-body"),
        (b"[]", 400, "malformed-body"),
        (b"{", 400, "malformed-body"),
        (b"\xff", 400, "malformed-body"),
        (b"[" * 60_000, 400, "malformed-body"),
        (b"{}", 400, "invalid_x402_version"),
        (b'{"x402Version": 3}', 400, "invalid_x402_version"),
        (b'{"x402Version": 2}', 400, "malformed-body"),
        (b'{"x402Version": 2, "paymentPayload": {}, "paymentRequirements": {}}', 400, "malformed-body"),
        (b" " * (facilitator_server.BODY_BYTES_MAX + 1), 413, "body_too_large"),
    ],
)
async def test_a_malformed_body_is_a_problem(
    in_process: InProcessFacilitator, path: str, content: bytes, status: int, reason: str
) -> None:
    transport = httpx.ASGITransport(facilitator_app(in_process))
    async with httpx.AsyncClient(transport=transport, base_url="http://facilitator") as client:
        answer = await client.post(path, content=content)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["reason"] == reason


async def test_a_version_1_request_is_refused_in_its_own_terms(in_process: InProcessFacilitator) -> None:
    transport = httpx.ASGITransport(facilitator_app(in_process))
    async with httpx.AsyncClient(transport=transport, base_url="http://facilitator") as client:
        body = {"x402Version": 1, "paymentPayload": {}, "paymentRequirements": {}}
        verified = await client.post("/verify", json=body)
        settled = await client.post("/settle", json=body)
    assert verified.json() == {"isValid": False, "invalidReason": "invalid_x402_version"}
    assert settled.json()["success"] is False
    assert settled.json()["errorReason"] == "invalid_x402_version"


async def test_other_paths_and_methods_are_problems(in_process: InProcessFacilitator) -> None:
    transport = httpx.ASGITransport(facilitator_app(in_process))
    async with httpx.AsyncClient(transport=transport, base_url="http://facilitator") as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        missing, wrong = await client.get("/nothing"), await client.get("/verify")
    assert (missing.status_code, missing.json()["reason"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["reason"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


scalars = (
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from([NETWORK, "exact", "0x", "10"])
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)
REQUIREMENT_FIELDS = ("scheme", "network", "asset", "amount", "payTo", "maxTimeoutSeconds", "extra")


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "x402Version": st.just(2),
            "paymentPayload": st.fixed_dictionaries(
                {
                    "x402Version": st.just(2) | scalars,
                    "payload": st.dictionaries(
                        st.sampled_from(["authorization", "signature", "permit2Authorization"]), documents
                    ),
                    "accepted": st.dictionaries(st.sampled_from(REQUIREMENT_FIELDS), documents),
                }
            ),
            "paymentRequirements": st.fixed_dictionaries(
                {
                    "scheme": st.just("exact") | st.text(),
                    "network": st.just(NETWORK) | st.text(),
                    "asset": st.text(),
                    "amount": st.just("1") | st.text(),
                    "payTo": st.text(),
                    "maxTimeoutSeconds": st.integers(),
                    "extra": st.dictionaries(st.text(), documents),
                }
            ),
        }
    )
)
def test_no_body_makes_the_server_stumble(body: dict[str, Any]) -> None:
    async def post() -> list[int]:
        facilitator = InProcessFacilitator({NETWORK: DEAD}, KEY)
        transport = httpx.ASGITransport(facilitator_app(facilitator))
        async with httpx.AsyncClient(transport=transport, base_url="http://facilitator") as client:
            return [(await client.post(path, json=body)).status_code for path in ("/verify", "/settle")]

    assert set(asyncio.run(post())) <= {200, 400}


# The operator's key


def test_a_key_comes_from_its_file_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.touch(0o600)
    file.write_text(KEY[2:].upper() + "\n")
    assert read_operator_key(file, {KEY_VARIABLE: "nonsense"}) == KEY
    assert read_operator_key(None, {KEY_VARIABLE: KEY}) == KEY


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(mode)
    with pytest.raises(OperatorKeyUnusable, match="chmod 600") as refusal:
        read_operator_key(file, {})
    assert KEY[2:] not in str(refusal.value)


@pytest.mark.parametrize(
    "key", ["", "0x", KEY[:-1], KEY + "0", "0x" + "0" * 64, "0x" + "f" * 64, "s3cret" * 3]
)
def test_a_text_that_is_no_key_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(OperatorKeyUnusable) as refusal:
        read_operator_key(None, {KEY_VARIABLE: key})
    assert len(key) < 4 or key[2:] not in f"{refusal.value} {refusal.value.__cause__}"
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


def test_an_absent_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorKeyUnusable, match="No such file"):
        read_operator_key(tmp_path / "none", dict(os.environ))


async def test_the_key_shows_nowhere(
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    requirements: PaymentRequirements,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    facilitator = InProcessFacilitator({NETWORK: chain.url}, key_of(operator))
    await facilitator.settle(await sign(payer, requirements), requirements)
    shown = f"{facilitator!r} {vars(facilitator)!r} {[vars(n) for n in facilitator._nodes.values()]!r}"
    await facilitator.aclose()
    for text in (shown, caplog.text):
        assert operator.key.hex() not in text
        assert repr(bytes(operator.key)) not in text


async def test_a_seller_may_write_addresses_in_lower_case(
    chain: LocalChain, token: str, payer: LocalAccount, operator: LocalAccount, seller: LocalAccount
) -> None:
    facilitator = InProcessFacilitator({NETWORK: chain.url}, "0x" + operator.key.hex())
    requirements = require(token.lower(), seller.address.lower(), 10_000)
    payment = await sign(payer, requirements)
    assert (await facilitator.verify(payment, requirements)).is_valid
    assert (await facilitator.settle(payment, requirements)).success
    await facilitator.aclose()
    assert chain.read_balance(seller.address) == 10_000
