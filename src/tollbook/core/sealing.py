"""Sealing: AES-256-GCM with a key derived (HKDF-SHA256) from a secret that only its holder has."""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
NONCE_BYTES = 12


class SealBroken(ValueError):
    """What was sealed does not open: another secret, another purpose, or changed bytes."""


def seal(plain: bytes, *, secret: bytes, purpose: str, salt: bytes = b"", bound_to: bytes = b"") -> bytes:
    """The sealed bytes: a fresh 12-byte nonce and the ciphertext with its tag.

    `secret` must have enough entropy not to be guessed: it is not stretched. `bound_to` is not in the
    result but must be the same on opening.
    """
    nonce = os.urandom(NONCE_BYTES)
    return nonce + _cipher(secret, purpose, salt).encrypt(nonce, plain, bound_to)


def open_sealed(
    sealed: bytes, *, secret: bytes, purpose: str, salt: bytes = b"", bound_to: bytes = b""
) -> bytes:
    """What was sealed with the same secret, purpose, salt and binding. Raises SealBroken."""
    try:
        return _cipher(secret, purpose, salt).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound_to)
    except InvalidTag:
        raise SealBroken("it was sealed with something else, or was changed") from None


def _cipher(secret: bytes, purpose: str, salt: bytes) -> AESGCM:
    derived = HKDF(SHA256(), length=KEY_BYTES, salt=salt, info=purpose.encode())
    return AESGCM(derived.derive(secret))
