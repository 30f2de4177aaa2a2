"""What makes two requests to settle the same settlement: the purpose its transaction has in the lanes.

Whatever is signed has a nonce that can be spent once: that, and not the bytes of the request, is a payment's
identity. What a seller asks for himself (claims, refunds, sweeps of a channel's money) is known by its terms.
"""

import json
from typing import Any

from eth_hash.auto import keccak
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
        # A deposit's authorization is good for one channel, whose id is the hash of all that it is.
        is_deposit = is_deposit_payload(body)
        signed = [body["deposit"], body["voucher"]["channelId"].lower()] if is_deposit else body
        return f"channel:{network}:{body['type']}:{_digest(signed)}{state}"
    if is_permit2_payload(body):
        permit = body["permit2Authorization"]
        return f"settle:{network}:permit2:{permit['from'].lower()}:{int(permit['nonce'])}"
    signed = body["authorization"]
    return f"settle:{network}:{requirements.asset.lower()}:{signed['from'].lower()}:{signed['nonce'].lower()}"


def number(purpose: str, attempt: int) -> str:
    """Return the purpose of a settlement's nth attempt, from 1.

    An attempt is made only when the one before was mined and reverted. All processes number alike, so each
    attempt is one transaction; and whatever a reorganisation brings back, the payment's nonce pays once.
    """
    return purpose if attempt == 1 else f"{purpose}#{attempt}"


def _digest(signed: Any) -> str:
    return keccak(json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()).hex()
