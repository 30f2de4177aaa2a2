"""An operator's key: signs transactions, and seals what they say until they are on the chain."""

from dataclasses import dataclass
from typing import cast

import coincurve
from eth_hash.auto import keccak

from tollbook.core.errors import Refusal
from tollbook.core.sealing import open_sealed, seal

SEAL = "tollbook transaction call"
WORD_BYTES = 32
ADDRESS_BYTES = 20
DYNAMIC_FEE_TYPE = b"\x02"  # EIP-1559
LEGACY_V = 35  # EIP-155
EMPTY_LIST = b"\xc0"  # in RLP; here the access list


class SigningKeyUnusable(Refusal):
    """A text is no private key. It is never shown."""

    reason = "signing-key-unusable"
    status = 500


@dataclass(frozen=True, slots=True)
class Fees:
    """What a transaction offers, in wei per gas. `tip_max` is None in a network without EIP-1559."""

    fee_max: int
    tip_max: int | None


@dataclass(frozen=True, slots=True)
class Draft:
    """A transaction before its signature."""

    chain_id: int
    nonce: int
    gas: int
    fees: Fees
    to: str
    value: int
    data: bytes

    def __repr__(self) -> str:
        return f"Draft(nonce={self.nonce}, to={self.to!r})"


class Key:
    """A private key that is never shown."""

    def __init__(self, private_key: str) -> None:
        try:
            self._secret = bytes.fromhex(private_key.removeprefix("0x"))
            if len(self._secret) != WORD_BYTES:
                raise ValueError
            self._key = coincurve.PrivateKey(self._secret)
        except Exception:  # whatever it says may quote the key
            raise SigningKeyUnusable(
                "An operator's key is no private key. Give 0x and 64 hexadecimal digits."
            ) from None
        public = self._key.public_key.format(compressed=False)
        self.address = "0x" + keccak(public[1:])[-ADDRESS_BYTES:].hex()

    def __repr__(self) -> str:
        return f"Key({self.address!r})"

    def sign(self, draft: Draft) -> tuple[bytes, str]:
        """The raw signed transaction and its hash, lower-case hex with 0x."""
        raw = self._sign_legacy(draft) if draft.fees.tip_max is None else self._sign_dynamic(draft)
        return raw, "0x" + keccak(raw).hex()

    def _sign_dynamic(self, draft: Draft) -> bytes:
        fields: list[bytes] = [
            _number(draft.chain_id),
            _number(draft.nonce),
            _number(cast(int, draft.fees.tip_max)),
            _number(draft.fees.fee_max),
            _number(draft.gas),
            bytes.fromhex(draft.to[2:]),
            _number(draft.value),
            draft.data,
        ]
        r, s, parity = self._sign_hash(keccak(DYNAMIC_FEE_TYPE + _encode(fields, EMPTY_LIST)))
        return DYNAMIC_FEE_TYPE + _encode(fields, EMPTY_LIST, _encode_bytes(_number(parity), r, s))

    def _sign_legacy(self, draft: Draft) -> bytes:
        fields = [
            _number(draft.nonce),
            _number(draft.fees.fee_max),
            _number(draft.gas),
            bytes.fromhex(draft.to[2:]),
            _number(draft.value),
            draft.data,
        ]
        r, s, parity = self._sign_hash(keccak(_encode([*fields, _number(draft.chain_id), b"", b""])))
        return _encode([*fields, _number(draft.chain_id * 2 + LEGACY_V + parity), r, s])

    def _sign_hash(self, digest: bytes) -> tuple[bytes, bytes, int]:
        signature = self._key.sign_recoverable(digest, hasher=None)  # pyright: ignore[reportUnknownMemberType]
        r, s = signature[:WORD_BYTES], signature[WORD_BYTES : 2 * WORD_BYTES]
        return r.lstrip(b"\0"), s.lstrip(b"\0"), signature[2 * WORD_BYTES]

    def seal_call(self, transaction_id: int, to: str, value: int, data: bytes) -> bytes:
        """Receiver, value and call data, readable with this key alone."""
        plain = bytes.fromhex(to[2:]) + value.to_bytes(WORD_BYTES) + data
        return seal(plain, secret=self._secret, purpose=SEAL, bound_to=transaction_id.to_bytes(8))

    def open_call(self, transaction_id: int, sealed: bytes) -> tuple[str, int, bytes]:
        """What `seal_call` sealed. Raises SealBroken."""
        plain = open_sealed(sealed, secret=self._secret, purpose=SEAL, bound_to=transaction_id.to_bytes(8))
        value = int.from_bytes(plain[ADDRESS_BYTES : ADDRESS_BYTES + WORD_BYTES])
        return "0x" + plain[:ADDRESS_BYTES].hex(), value, plain[ADDRESS_BYTES + WORD_BYTES :]


def _number(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8)


def _encode(fields: list[bytes], *encoded: bytes) -> bytes:
    """RLP of a list: the fields, and then what is encoded already."""
    payload = _encode_bytes(*fields) + b"".join(encoded)
    return _encode_length(len(payload), 0xC0) + payload


def _encode_bytes(*fields: bytes) -> bytes:
    return b"".join(
        field if len(field) == 1 and field[0] < 0x80 else _encode_length(len(field), 0x80) + field
        for field in fields
    )


def _encode_length(length: int, offset: int) -> bytes:
    if length <= 55:
        return bytes((offset + length,))
    number = _number(length)
    return bytes((offset + 55 + len(number),)) + number
