"""What a payment's own texts forbid: checked without the chain, so that nothing behind stumbles over them."""

import re
from typing import Any, cast

from x402.mechanisms.evm.batch_settlement import types as batch
from x402.mechanisms.evm.batch_settlement.facilitator.utils import validate_channel_config
from x402.mechanisms.evm.constants import (
    ERR_ASSET_NOT_DEPLOYED_CONTRACT,
    ERR_AUTHORIZATION_VALUE_MISMATCH,
    ERR_FACTORY_NOT_ALLOWED,
    ERR_FAILED_TO_VERIFY_SIGNATURE,
    ERR_INVALID_SIGNATURE,
    ERR_MISSING_EIP712_DOMAIN,
    ERR_NETWORK_MISMATCH,
    ERR_PERMIT2_AMOUNT_MISMATCH,
    ERR_PERMIT2_INVALID_SPENDER,
    ERR_PERMIT2_RECIPIENT_MISMATCH,
    ERR_PERMIT2_TOKEN_MISMATCH,
    ERR_RECIPIENT_MISMATCH,
    ERR_UNDEPLOYED_SMART_WALLET,
    ERR_UNSUPPORTED_SCHEME,
    ERR_UPTO_FACILITATOR_MISMATCH,
    ERR_UPTO_SETTLEMENT_EXCEEDS_AMOUNT,
    SCHEME_EXACT,
    SCHEME_UPTO,
)
from x402.mechanisms.evm.types import is_eip3009_payload, is_permit2_payload, is_upto_permit2_payload
from x402.schemas import PaymentPayload, PaymentRequirements

X402_VERSION = 2
SCHEME_BATCH = "batch-settlement"
SCHEMES = (SCHEME_EXACT, SCHEME_UPTO, SCHEME_BATCH)
CLAIMS_MAX = 1000

# x402 error codes that the SDK has no constant for.
ERR_INVALID_NETWORK = "invalid_network"
ERR_INVALID_PAYLOAD = "invalid_payload"
ERR_INVALID_REQUIREMENTS = "invalid_payment_requirements"
ERR_INVALID_VERSION = "invalid_x402_version"
ERR_RECIPIENT_NOT_SERVED = "recipient_not_served"
ERR_UNEXPECTED_SETTLE = "unexpected_settle_error"

UINT256_MAX = 2**256 - 1
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_WORD = re.compile(r"0x[0-9a-fA-F]{64}")
_SIGNATURE = re.compile(r"0x(?:[0-9a-fA-F]{2}){65,4096}")  # longer than 65 bytes: smart wallets
_DIGITS = re.compile(r"[0-9]{1,78}")  # as the SDK reads a number: 0100 is 100
_UINT = re.compile(r"0|[1-9][0-9]{0,77}")  # one spelling for each number

# Refusals of what a payment says itself: they hold whatever the chain's state, now and ever. Times are none
# of them: by another process's clock the payment may have been good, and be settled.
SURE_REASONS = {
    ERR_ASSET_NOT_DEPLOYED_CONTRACT,
    ERR_AUTHORIZATION_VALUE_MISMATCH,
    ERR_FACTORY_NOT_ALLOWED,
    ERR_FAILED_TO_VERIFY_SIGNATURE,
    ERR_INVALID_SIGNATURE,
    ERR_MISSING_EIP712_DOMAIN,
    ERR_NETWORK_MISMATCH,
    ERR_PERMIT2_AMOUNT_MISMATCH,
    ERR_PERMIT2_INVALID_SPENDER,
    ERR_PERMIT2_RECIPIENT_MISMATCH,
    ERR_PERMIT2_TOKEN_MISMATCH,
    ERR_RECIPIENT_MISMATCH,
    ERR_UNDEPLOYED_SMART_WALLET,
    ERR_UNSUPPORTED_SCHEME,
    ERR_UPTO_FACILITATOR_MISMATCH,
    ERR_UPTO_SETTLEMENT_EXCEEDS_AMOUNT,
    ERR_INVALID_NETWORK,
    ERR_INVALID_PAYLOAD,
    ERR_INVALID_REQUIREMENTS,
    ERR_INVALID_VERSION,
    ERR_RECIPIENT_NOT_SERVED,
}

Fault = tuple[str, str]  # the x402 reason, and a sentence


def find_fault(payload: PaymentPayload, requirements: PaymentRequirements) -> Fault | None:
    """Return why a payment cannot be for these requirements: x402 reason and sentence; None where it can.

    Looks at the texts alone. What it lets pass is well-formed, and is for this recipient and amount (an upto
    payment: for at most what its payer permits).
    """
    if payload.x402_version != X402_VERSION:
        return ERR_INVALID_VERSION, f"Only x402 version {X402_VERSION} is served."
    if payload.accepted.scheme != requirements.scheme or requirements.scheme not in SCHEMES:
        return ERR_UNSUPPORTED_SCHEME, f"The schemes {', '.join(SCHEMES)} are served, as agreed upon."
    if payload.accepted.network != requirements.network:
        return ERR_NETWORK_MISMATCH, "The payment is for another network."
    if not (
        _fits(_ADDRESS, requirements.asset)
        and _fits(_ADDRESS, requirements.pay_to)
        and _is_uint(requirements.amount)
    ):
        return ERR_INVALID_REQUIREMENTS, (
            "asset and payTo are 0x addresses, and amount is minor units in decimal digits."
        )
    if requirements.scheme == SCHEME_BATCH:
        return _find_batch_fault(payload.payload, requirements)
    if is_permit2_payload(payload.payload):
        if is_eip3009_payload(payload.payload):  # else one would pay, and the other be looked for
            return ERR_INVALID_PAYLOAD, "Pay by EIP-3009 or by Permit2, not by both."
        return _find_permit2_fault(payload.payload, requirements)
    if requirements.scheme == SCHEME_UPTO:
        return ERR_INVALID_PAYLOAD, "The scheme upto is paid by a Permit2 authorization."
    return _find_eip3009_fault(payload.payload, requirements)


def find_receivers(payload: PaymentPayload, requirements: PaymentRequirements) -> set[str]:
    """Return whom a payment without fault would pay, in lower case, wherever its payload names them."""
    body = payload.payload
    places = [body, _as_dict(body.get("channelConfig"))]
    claims = batch.is_claim_payload(body) or batch.is_enriched_refund_payload(body)
    if requirements.scheme == SCHEME_BATCH and claims:
        places += [claim["voucher"]["channel"] for claim in body["claims"]]
    named = [place.get("receiver") for place in places]
    return {name.lower() for name in (requirements.pay_to, *named) if isinstance(name, str)}


def _find_eip3009_fault(payload: dict[str, Any], requirements: PaymentRequirements) -> Fault | None:
    if not all(isinstance(requirements.extra.get(field), str) for field in ("name", "version")):
        return ERR_INVALID_REQUIREMENTS, "extra has the name and version of the token's EIP-712 domain."
    authorization = payload.get("authorization")
    if not isinstance(authorization, dict):
        return ERR_INVALID_PAYLOAD, "Sign an EIP-3009 authorization, or a Permit2 one."
    fields = cast(dict[str, Any], authorization)
    if not (
        _fits(_ADDRESS, fields.get("from"))
        and _fits(_ADDRESS, fields.get("to"))
        and all(_is_uint(fields.get(field)) for field in ("value", "validAfter", "validBefore"))
        and _fits(_WORD, fields.get("nonce"))
        and _fits(_SIGNATURE, payload.get("signature"))
    ):
        return ERR_INVALID_PAYLOAD, "The authorization or its signature is malformed."
    if fields["to"].lower() != requirements.pay_to.lower():
        return ERR_RECIPIENT_MISMATCH, "The payment is for another recipient."
    if int(fields["value"]) != int(requirements.amount):
        return ERR_AUTHORIZATION_VALUE_MISMATCH, "The payment is of another amount."
    return None


def _find_permit2_fault(payload: dict[str, Any], requirements: PaymentRequirements) -> Fault | None:
    fields, permitted, witness = _read_permit2(payload)
    if not (
        all(_fits(_ADDRESS, fields.get(field)) for field in ("from", "spender"))
        and all(_is_uint(fields.get(field)) for field in ("nonce", "deadline"))
        and _fits(_ADDRESS, permitted.get("token"))
        and _is_uint(permitted.get("amount"))
        and _fits(_ADDRESS, witness.get("to"))
        and _is_uint(witness.get("validAfter"))
        and _fits(_SIGNATURE, payload.get("signature"))
    ):
        return ERR_INVALID_PAYLOAD, "The Permit2 authorization or its signature is malformed."
    if witness["to"].lower() != requirements.pay_to.lower():
        return ERR_PERMIT2_RECIPIENT_MISMATCH, "The payment is for another recipient."
    if permitted["token"].lower() != requirements.asset.lower():
        return ERR_PERMIT2_TOKEN_MISMATCH, "The payment is in another token."
    if requirements.scheme == SCHEME_UPTO:
        if not (is_upto_permit2_payload(payload) and _fits(_ADDRESS, witness["facilitator"])):
            return ERR_INVALID_PAYLOAD, "The witness of an upto payment names its facilitator."
        if int(requirements.amount) > int(permitted["amount"]):
            return ERR_UPTO_SETTLEMENT_EXCEEDS_AMOUNT, "That is more than the payer permits."
    elif int(permitted["amount"]) != int(requirements.amount):
        return ERR_PERMIT2_AMOUNT_MISMATCH, "The payment is of another amount."
    return None


def _read_permit2(payload: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the authorization, what it permits and its witness; empty where they are none."""
    fields = _as_dict(payload["permit2Authorization"])
    return fields, _as_dict(fields.get("permitted")), _as_dict(fields.get("witness"))


def _find_batch_fault(payload: dict[str, Any], requirements: PaymentRequirements) -> Fault | None:
    """The SDK reads these itself; what it cannot read, it must not be given.

    Of a deposit that was sent before it looks no more at whose channel it is for, so that is done here.
    """
    try:
        if batch.is_deposit_payload(payload):
            config = batch.ChannelConfig.from_dict(payload["channelConfig"])
            read_deposit(payload)
            mismatch = validate_channel_config(config, payload["voucher"]["channelId"], requirements)
            if mismatch is not None:
                return mismatch, "The deposit is for another channel than is asked for."
        elif batch.is_enriched_refund_payload(payload):
            batch.EnrichedRefundPayload.from_dict(payload)
        elif batch.is_voucher_payload(payload) or batch.is_refund_payload(payload):
            batch.ChannelConfig.from_dict(payload["channelConfig"])
        elif batch.is_claim_payload(payload):
            batch.ClaimPayload.from_dict(payload)
            if len(payload["claims"]) > CLAIMS_MAX:
                return ERR_INVALID_PAYLOAD, f"Claim at most {CLAIMS_MAX} vouchers at once."
        elif batch.is_settle_payload(payload):
            if not (_fits(_ADDRESS, payload["receiver"]) and _fits(_ADDRESS, payload["token"])):
                return ERR_INVALID_PAYLOAD, "receiver and token are 0x addresses."
        else:
            return ERR_INVALID_PAYLOAD, "Send a deposit, voucher, refund, claim or settle payload."
    except Exception:  # the SDK's readers raise whatever a missing field comes to
        return ERR_INVALID_PAYLOAD, "The channel payload is malformed."
    return None


def read_deposit(payload: dict[str, Any]) -> batch.DepositPayload:
    """Return a deposit. Raises what the SDK raises, and ValueError for no authorization or two.

    Of two, one would pay, and the other be looked for.
    """
    deposit = batch.DepositPayload.from_dict(payload)
    signed = deposit.deposit and deposit.deposit.authorization
    if not signed or (signed.erc3009_authorization is None) == (signed.permit2_authorization is None):
        raise ValueError("pay by EIP-3009 or by Permit2")
    authorization = _as_dict(payload["deposit"]["authorization"])
    permit = _as_dict(authorization.get("permit2Authorization"))
    allowed = _as_dict(authorization.get("erc3009Authorization"))
    numbers = [payload["deposit"]["amount"]]
    numbers += [permit[name] for name in ("nonce", "deadline") if permit]
    numbers += [allowed[name] for name in ("validAfter", "validBefore") if allowed]
    if not all(_fits(_DIGITS, number) for number in numbers):
        raise ValueError("a number is a text of decimal digits")
    return deposit


def _as_dict(value: object) -> dict[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _fits(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_uint(value: object) -> bool:
    return _fits(_UINT, value) and int(cast(str, value)) <= UINT256_MAX
