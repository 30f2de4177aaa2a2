"""What makes two requests to settle the same settlement: the purpose its transaction has in the lanes.

Whatever is signed has a nonce that can be spent once: that, and not the bytes of the request, is a payment's
identity. What a seller asks for himself (claims, refunds, sweeps of a channel's money) is known by its terms.
"""

import json
from typing import Any

from eth_hash.auto import keccak
from x402.mechanisms.evm.batch_settlement.encoding import build_erc3009_deposit_nonce
from x402.mechanisms.evm.batch_settlement.types import is_deposit_payload
from x402.mechanisms.evm.types import is_permit2_payload
from x402.schemas import PaymentPayload, PaymentRequirements

from tollbook.books.payments.facilitator.faults import SCHEME_BATCH

ATTEMPTS_MAX = 3  # of one settlement: each before the last was mined and moved nothing


def identify(payload: PaymentPayload, requirements: PaymentRequirements, state: str = "") -> str:
    """Return the purpose of a settlement without fault, the same in every process and at every time.

    `state` tells apart requests that rightly come again in the same words: sweeps of a channel's money.
    """
    network, body = requirements.network, payload.payload
    if requirements.scheme == SCHEME_BATCH:
        known = name_deposit(body) if is_deposit_payload(body) else _digest(body)
        return f"channel:{network}:{body['type']}:{known}{state}"
    if is_permit2_payload(body):
        permit = body["permit2Authorization"]
        return f"settle:{network}:permit2:{permit['from'].lower()}:{int(permit['nonce'])}"
    signed = body["authorization"]
    return f"settle:{network}:{requirements.asset.lower()}:{signed['from'].lower()}:{signed['nonce'].lower()}"


def name_deposit(body: dict[str, Any]) -> str:
    """Return the identity of a deposit without fault: its channel, and the nonce that it spends."""
    channel_id, signed = body["voucher"]["channelId"].lower(), body["deposit"]["authorization"]
    permit = signed.get("permit2Authorization")
    if permit:
        return f"{channel_id}:permit2:{int(permit['nonce'])}"
    salt = signed["erc3009Authorization"]["salt"]
    return f"{channel_id}:{build_erc3009_deposit_nonce(channel_id, salt)}"


def number(purpose: str, attempt: int) -> str:
    """Return the purpose of a settlement's nth attempt, from 1.

    An attempt is made only when the one before was mined and reverted. All processes number alike, so each
    attempt is one transaction; and whatever a reorganisation brings back, the payment's nonce pays once.
    """
    return purpose if attempt == 1 else f"{purpose}#{attempt}"


def _digest(signed: Any) -> str:
    return keccak(json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()).hex()
