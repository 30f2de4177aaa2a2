"""A webhook's secret: made, sealed with the installation's key, and what it signs (Standard Webhooks, v1)."""

import secrets
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime

from standardwebhooks import Webhook

from tollbook.core.sealing import SealBroken, open_sealed, seal
from tollbook.core.webhooks.errors import SecretUnreadable

PREFIX = "whsec_"
SECRET_BYTES = 32
SEAL = "tollbook webhook secret"


def make_secret() -> str:
    """A new secret as receivers get it: whsec_ and 32 random bytes in base64."""
    return PREFIX + b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def seal_secret(secret: str, subscription_id: str, key: bytes) -> str:
    """What the database keeps of it."""
    plain = b64decode(secret.removeprefix(PREFIX))
    return b64encode(seal(plain, secret=key, purpose=SEAL, bound_to=subscription_id.encode())).decode()


def open_secret(sealed: str, subscription_id: str, key: bytes) -> Webhook:
    """The secret, ready to sign. Raises SecretUnreadable."""
    try:
        raw = b64decode(sealed, validate=True)
        return Webhook(open_sealed(raw, secret=key, purpose=SEAL, bound_to=subscription_id.encode()))
    except (SealBroken, NotBase64, ValueError):
        raise SecretUnreadable(
            f"The secret of {subscription_id} was sealed with another key than this installation's. Give "
            "every process the key of before, or make a new secret: tollbook webhooks rotate."
        ) from None


def list_signers(secret: str, former: Sequence[str], open_one: Callable[[str], Webhook]) -> list[Webhook]:
    """Those that sign: the newest secret, and of the ones before all that can be read. They are sealed.

    Raises SecretUnreadable, where the newest one cannot.
    """
    signers = [open_one(secret)]
    for sealed in former:
        with suppress(SecretUnreadable):  # of the key before: that is why it was rotated
            signers.append(open_one(sealed))
    return signers


def sign(signers: list[Webhook], message_id: str, body: str, *, now: datetime) -> dict[str, str]:
    """The headers of one attempt: a signature by each secret that is valid."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signer.sign(message_id, now, body) for signer in signers),
    }
