"""Vouchers by hand: whom a channel is between, its id, and who signed, at a hundredth of what EIP-712 costs.

Says the same as the SDK, or nothing: what is unusual (a contract's signature) is left to the SDK's own code.
"""

from functools import lru_cache
from typing import Any

from eth_hash.auto import keccak
from x402.mechanisms.evm.batch_settlement.constants import VOUCHER_TYPES
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig, is_voucher_payload
from x402.mechanisms.evm.batch_settlement.utils import compute_channel_id, get_batch_settlement_eip712_domain
from x402.mechanisms.evm.utils import get_evm_chain_id
from x402.schemas import PaymentPayload, PaymentRequirements

from tollbook.books.payments.facilitator import eip3009

CHANNELS_MAX = 4096  # whose ids are remembered
_FIELDS = ",".join(f"{field['type']} {field['name']}" for field in VOUCHER_TYPES["Voucher"])
_VOUCHER_TYPE = keccak(f"Voucher({_FIELDS})".encode())


def find_channel_id(config: ChannelConfig, network: str) -> str:
    """Return the id of the channel that a config describes, in lower case. Raises what the SDK raises."""
    return _find_channel_id(
        network, config.payer, config.payer_authorizer, config.receiver, config.receiver_authorizer,
        config.token, config.withdraw_delay, config.salt,
    )  # fmt: skip


def is_plain(payment: PaymentPayload, terms: PaymentRequirements) -> bool:
    """Whether a payment without fault is a voucher for a channel of these terms, signed by its account."""
    payload = payment.payload
    if not is_voucher_payload(payload):
        return False
    config, extra = payload["channelConfig"], terms.extra
    meant = (terms.pay_to, terms.asset, str(extra.get("receiverAuthorizer")))
    named = (config["receiver"], config["token"], config["receiverAuthorizer"])
    if [one.lower() for one in meant] != [one.lower() for one in named]:
        return False
    return config["withdrawDelay"] == extra.get("withdrawDelay") and _is_signed(payload, terms.network)


def _is_signed(payload: dict[str, Any], network: str) -> bool:
    voucher, signer = payload["voucher"], payload["channelConfig"]["payerAuthorizer"].lower()
    signature = bytes.fromhex(voucher["signature"][2:])
    if len(signature) != eip3009.SIGNATURE_BYTES:
        return False
    words = bytes.fromhex(voucher["channelId"][2:]) + int(voucher["maxClaimableAmount"]).to_bytes(32, "big")
    digest = keccak(b"\x19\x01" + _find_domain(network) + keccak(_VOUCHER_TYPE + words))
    try:
        return eip3009.recover_signer(digest, signature) == signer
    except eip3009.WrongSignature:
        return False


@lru_cache(CHANNELS_MAX)
def _find_channel_id(network: str, *fields: Any) -> str:
    return compute_channel_id(ChannelConfig(*fields), network).lower()


@lru_cache
def _find_domain(network: str) -> bytes:
    domain = get_batch_settlement_eip712_domain(get_evm_chain_id(network))
    return eip3009.hash_domain(network, domain["verifyingContract"], domain["name"], domain["version"])
