"""Facilitators: money moves once, and refusals name their reason."""

import asyncio
import logging
import time
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.schemas import PaymentPayload, PaymentRequirements

from clients.pay import require, sign
from fixtures.facilitator import change, key_of
from tollbook.books.payments.facilitator.faults import find_receivers
from tollbook.books.payments.facilitator.in_process import Facilitator, InProcessFacilitator
from tollbook.core.local_chain import NETWORK, LocalChain

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
    facilitator_url: str,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    async with HTTPFacilitatorClient(FacilitatorConfig(url=facilitator_url)) as sdk:
        supported = await asyncio.to_thread(sdk.get_supported)
        kinds = [(kind.x402_version, kind.scheme, kind.network) for kind in supported.kinds]
        assert (2, "exact", NETWORK) in kinds
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
    assert {kind.network for kind in supported.kinds} == {NETWORK}
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
        {"value": "010000"},
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


async def test_with_recipients_named_nobody_else_is_paid(
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
    requirements: PaymentRequirements,
) -> None:
    facilitator = InProcessFacilitator(
        {NETWORK: chain.url}, key_of(operator), database_url, recipients=[seller.address.lower()]
    )
    assert (await facilitator.settle(await sign(payer, requirements), requirements)).success
    stranger = requirements.model_copy(update={"pay_to": operator.address})
    assert await refuse(facilitator, await sign(payer, stranger), stranger) == "recipient_not_served"
    assert chain.call("eth_getTransactionCount", operator.address, "latest") == "0x1"
    await facilitator.aclose()


@pytest.mark.parametrize(
    "payload",
    [
        {"type": "settle", "receiver": "0x" + "AA" * 20, "token": "0x" + "42" * 20},
        {"type": "voucher", "channelConfig": {"receiver": "0x" + "aa" * 20}},
        {"type": "claim", "claims": [{"voucher": {"channel": {"receiver": "0x" + "aA" * 20}}}]},
    ],
)
async def test_who_is_paid_is_found_wherever_a_channel_names_him(
    payload: dict[str, Any], requirements: PaymentRequirements
) -> None:
    wanted = requirements.model_copy(update={"scheme": "batch-settlement"})
    channel = PaymentPayload(x402_version=2, payload=payload, accepted=wanted)
    assert find_receivers(channel, wanted) == {wanted.pay_to.lower(), "0x" + "aa" * 20}


async def test_the_key_shows_nowhere(
    database_url: str,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    requirements: PaymentRequirements,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    facilitator = InProcessFacilitator({NETWORK: chain.url}, key_of(operator), database_url)
    await facilitator.settle(await sign(payer, requirements), requirements)
    shown = f"{facilitator!r} {vars(facilitator)!r} {facilitator._roads!r}"
    await facilitator.aclose()
    for text in (shown, caplog.text):
        assert operator.key.hex() not in text
        assert repr(bytes(operator.key)) not in text


async def test_a_seller_may_write_addresses_in_lower_case(
    database_url: str,
    chain: LocalChain,
    token: str,
    payer: LocalAccount,
    operator: LocalAccount,
    seller: LocalAccount,
) -> None:
    facilitator = InProcessFacilitator({NETWORK: chain.url}, key_of(operator), database_url)
    requirements = require(token.lower(), seller.address.lower(), 10_000)
    payment = await sign(payer, requirements)
    assert (await facilitator.verify(payment, requirements)).is_valid
    assert (await facilitator.settle(payment, requirements)).success
    await facilitator.aclose()
    assert chain.read_balance(seller.address) == 10_000
