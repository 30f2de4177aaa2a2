"""Between the security judge and the shop: the judge writes headers of its own, the shop those of x402 v2.

Each header is carried over with its value as it is: the judge's forged payments arrive where real ones do.
"""

import base64
import json
from typing import Any

SPOKEN_PAYMENT = b"x-payment-authorization"
REAL_PAYMENT = b"payment-signature"
REAL_CHALLENGE = b"payment-required"


class Dialect:
    """ASGI middleware: X-Payment-Authorization becomes PAYMENT-SIGNATURE, PAYMENT-REQUIRED X-Payment-*."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Carry the request's headers there and the answer's back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_translated(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_spell_challenge(message["headers"])]}
            await send(message)

        names = {SPOKEN_PAYMENT: REAL_PAYMENT}
        headers = [(names.get(name, name), value) for name, value in scope["headers"]]
        await self._app({**scope, "headers": headers}, receive, send_translated)


def _spell_challenge(headers: Any) -> list[tuple[bytes, bytes]]:
    for name, value in headers:
        if name.lower() == REAL_CHALLENGE:
            terms = json.loads(base64.b64decode(value))["accepts"][0]
            spelled = {
                "required": "true",
                "amount": terms["amount"],
                "currency": terms["asset"],
                "recipient": terms["payTo"],
                "network": terms["network"],
            }
            return [(f"x-payment-{key}".encode(), text.encode()) for key, text in spelled.items()]
    return []
