"""What the stores seal: each text bound to the place it is kept at."""

import base64

from tollbook.core.errors import Refusal
from tollbook.core.sealing import KEY_BYTES, SealBroken, open_sealed, seal

PURPOSE = "tollbook x402 store"
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
        sealed = seal(text.encode(), secret=self._key, purpose=PURPOSE, bound_to=place.encode())
        return MARK + base64.b64encode(sealed).decode()

    def open(self, kept: str, place: str) -> str:
        """The text kept at `place`, also one from before there was a key. Raises SealKeyUnusable."""
        if not kept.startswith(MARK):
            return kept
        if self._key is None:
            raise SealKeyUnusable("Signatures here are sealed. Give the store the key they were sealed with.")
        sealed = base64.b64decode(kept.removeprefix(MARK))
        try:
            return open_sealed(sealed, secret=self._key, purpose=PURPOSE, bound_to=place.encode()).decode()
        except SealBroken:
            raise SealKeyUnusable(
                "This was sealed with another key, or moved. Give the store the key it had then."
            ) from None
