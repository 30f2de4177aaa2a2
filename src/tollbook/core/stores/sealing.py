"""What the stores encrypt: AES-256-GCM, each text bound to the place it is kept at."""

import base64
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tollbook.core.errors import Refusal

KEY_BYTES = 32
NONCE_BYTES = 12
MARK = "sealed:"  # no signature begins so: they are hexadecimal


class SealKeyUnusable(Refusal):
    """The key is none, or not the one that this was sealed with."""

    reason = "seal-key-unusable"
    status = 500


class Seal:
    """Seals texts under a key of 32 bytes. Without a key they are kept as they are."""

    def __init__(self, key: bytes | None) -> None:
        if key is not None and len(key) != KEY_BYTES:
            raise SealKeyUnusable(f"A key has {KEY_BYTES} bytes. Make one: openssl rand -hex {KEY_BYTES}")
        self._key = key

    def close(self, text: str, place: str) -> str:
        """What to keep at `place`."""
        if self._key is None:
            return text
        return MARK + base64.b64encode(encrypt(self._key, text.encode(), place.encode())).decode()

    def open(self, kept: str, place: str) -> str:
        """The text kept at `place`, also one from before there was a key. Raises SealKeyUnusable."""
        if not kept.startswith(MARK):
            return kept
        if self._key is None:
            raise SealKeyUnusable("Signatures here are sealed. Give the store the key they were sealed with.")
        sealed = base64.b64decode(kept.removeprefix(MARK))
        return decrypt(self._key, sealed, place.encode()).decode()


def encrypt(key: bytes, plain: bytes, place: bytes) -> bytes:
    """A nonce, then the ciphertext, which opens with this key at this place only."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, place)


def decrypt(key: bytes, sealed: bytes, place: bytes) -> bytes:
    """What was encrypted. Raises SealKeyUnusable."""
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place)
    except InvalidTag:
        raise SealKeyUnusable(
            "This was sealed with another key, or moved. Give the store the key it had then."
        ) from None
