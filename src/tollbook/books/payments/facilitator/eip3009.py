"""EIP-3009 as bytes: what a payer signed, who signed it, the call that settles it, the log it leaves.

Done by hand, not by web3: hashing and recovering are all that a payment's signature costs here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from coincurve import PublicKey
from eth_abi.abi import encode
from eth_hash.auto import keccak

from tollbook.core.chains import Log, Transfer, decode_authorization_used, decode_transfer

DOMAINS_MAX = 4096  # remembered
SIGNATURE_BYTES = 65
_DOMAIN_TYPE = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_TRANSFER_TYPE = keccak(
    b"TransferWithAuthorization(address from,address to,uint256 value,"
    b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
_TRANSFER_VRS = keccak(
    b"transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)"
)[:4]
_AUTHORIZATION_STATE = keccak(b"authorizationState(address,bytes32)")[:4]
AUTHORIZATION_CANCELED_TOPIC = "0x" + keccak(b"AuthorizationCanceled(address,bytes32)").hex()
_ADDRESS_PADDING = bytes(12)


class WrongSignature(Exception):
    """A signature that is of no form, so that not even a wrong signer can be told."""


@dataclass(frozen=True, slots=True)
class Authorization:
    """An EIP-3009 authorization: addresses in lower case, `value` in minor units, times in Unix seconds.

    `words` are its six fields as the ABI and EIP-712 both write them.
    """

    payer: str
    receiver: str
    value: int
    valid_after: int
    valid_before: int
    nonce: str
    words: bytes
    signature: bytes

    @property
    def giving(self) -> tuple[str, int]:
        """Who gives how much."""
        return self.payer, self.value


def read(payload: dict[str, Any]) -> Authorization:
    """Return the authorization of a payload in which find_fault found none."""
    fields: dict[str, str] = payload["authorization"]
    payer, receiver, nonce = fields["from"], fields["to"], fields["nonce"]
    value, after, before = int(fields["value"]), int(fields["validAfter"]), int(fields["validBefore"])
    words = b"".join(
        (
            _ADDRESS_PADDING, bytes.fromhex(payer[2:]), _ADDRESS_PADDING, bytes.fromhex(receiver[2:]),
            value.to_bytes(32, "big"), after.to_bytes(32, "big"), before.to_bytes(32, "big"),
            bytes.fromhex(nonce[2:]),
        )
    )  # fmt: skip
    signature = bytes.fromhex(payload["signature"][2:])
    return Authorization(
        payer.lower(), receiver.lower(), value, after, before, nonce.lower(), words, signature
    )


@lru_cache(DOMAINS_MAX)
def hash_domain(network: str, asset: str, name: str, version: str) -> bytes:
    """Return a token's EIP-712 domain separator, as a payment's requirements describe it."""
    types = ["bytes32", "bytes32", "bytes32", "uint256", "address"]
    chain_id = int(network.partition(":")[2])
    return keccak(
        encode(
            types, [_DOMAIN_TYPE, keccak(name.encode()), keccak(version.encode()), chain_id, asset.lower()]
        )
    )


def hash_authorization(authorization: Authorization, domain: bytes) -> bytes:
    """Return the digest that the payer signed."""
    return keccak(b"\x19\x01" + domain + keccak(_TRANSFER_TYPE + authorization.words))


def recover_signer(digest: bytes, signature: bytes) -> str | None:
    """Return who signed, in lower case; None where the signature is nobody's.

    Raises WrongSignature where its last byte is no recovery id.
    """
    v = signature[64] - 27 if signature[64] >= 27 else signature[64]
    if v not in (0, 1):
        raise WrongSignature(f"Invalid v value: {v}")
    try:
        key = PublicKey.from_signature_and_message(signature[:64] + bytes([v]), digest, hasher=None)
    except Exception:  # coincurve raises plain Exceptions
        return None
    return "0x" + keccak(key.format(compressed=False)[1:])[-20:].hex()


def encode_transfer(authorization: Authorization) -> bytes:
    """Return the call of transferWithAuthorization(…, v, r, s) for a signature of 65 bytes."""
    r, s, v = authorization.signature[:32], authorization.signature[32:64], authorization.signature[64]
    v_word = (v + 27 if v in (0, 1) else v).to_bytes(32, "big")
    return b"".join((_TRANSFER_VRS, authorization.words, v_word, r, s))


def encode_state_question(authorization: Authorization) -> bytes:
    """Return the call of authorizationState(payer, nonce)."""
    return _AUTHORIZATION_STATE + authorization.words[:32] + authorization.words[-32:]


def find_transfer(logs: Sequence[Log], asset: str, authorization: Authorization) -> Transfer | None:
    """Return the Transfer that an authorization's nonce was spent on; None where the logs show none.

    A token spends an authorization and then moves its money: the first Transfer after AuthorizationUsed is
    that authorization's. Another payment of the same amount in the same transaction is not taken for it.
    """
    used = next((log.index for log in logs if _is_use(log, asset, authorization)), None)
    if used is None:
        return None
    later = [log for log in logs if log.index > used and log.address == asset]
    return next((transfer for log in later if (transfer := decode_transfer(log)) is not None), None)


def _is_use(log: Log, asset: str, authorization: Authorization) -> bool:
    used = decode_authorization_used(log) if log.address == asset else None
    return used is not None and (used.authorizer, used.nonce) == (authorization.payer, authorization.nonce)
