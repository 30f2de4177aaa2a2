"""Payments as the judges present them: EIP-3009 authorizations of which every field can be wrong."""

import secrets
import time
from typing import Any

from eth_account.signers.local import LocalAccount

from stage import AMOUNT, Stage
from tollbook.core.local_chain import CHAIN_ID, NETWORK, TOKEN_NAME, TOKEN_VERSION

VALID_SECONDS = 3600
FIELDS = {
    "from": "address",
    "to": "address",
    "value": "uint256",
    "validAfter": "uint256",
    "validBefore": "uint256",
    "nonce": "bytes32",
}


def make_terms(scene: Stage) -> dict[str, Any]:
    """Return the payment requirements of the shop: one cent in test dollars, on the local chain."""
    return {
        "scheme": "exact",
        "network": NETWORK,
        "asset": scene.token,
        "amount": str(AMOUNT),
        "payTo": scene.seller.address,
        "maxTimeoutSeconds": 60,
        "extra": {"name": TOKEN_NAME, "version": TOKEN_VERSION},
    }


def sign(payer: LocalAccount, terms: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a payment payload for these terms.

    `changes` replace what is signed: value (a text, also one that is no canonical number), nonce,
    valid_before (Unix seconds), asset, chain_id.
    """
    fields = {
        "from": payer.address,
        "to": terms["payTo"],
        "value": str(changes.get("value", terms["amount"])),
        "validAfter": "0",
        "validBefore": str(changes.get("valid_before", int(time.time()) + VALID_SECONDS)),
        "nonce": changes.get("nonce", "0x" + secrets.token_hex(32)),
    }
    message = {n: int(fields[n]) if kind == "uint256" else fields[n] for n, kind in FIELDS.items()}
    signed = payer.sign_typed_data(
        domain_data={
            "name": TOKEN_NAME,
            "version": TOKEN_VERSION,
            "chainId": changes.get("chain_id", CHAIN_ID),
            "verifyingContract": changes.get("asset", terms["asset"]),
        },
        message_types={"TransferWithAuthorization": [{"name": n, "type": k} for n, k in FIELDS.items()]},
        message_data=message,
    )
    payload = {"authorization": fields, "signature": "0x" + signed.signature.hex()}
    return {"x402Version": 2, "accepted": terms, "payload": payload}
