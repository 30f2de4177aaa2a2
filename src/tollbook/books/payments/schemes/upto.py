"""Charging by usage: what a handler says it used, for the schemes whose price is the most that is charged.

The handler says it as the SDK's own middlewares have it, by `x402.http.middleware.fastapi
.set_settlement_overrides(response, {"amount": ...})`: minor units, "50%" of the price, or "$0.002".
"""

import json
from collections.abc import Iterable
from typing import Any, ClassVar, cast

from x402.http.constants import SETTLEMENT_OVERRIDES_HEADER
from x402.http.x402_http_server_base import x402HTTPServerBase
from x402.schemas import PaymentRequirements

from tollbook.core.errors import Refusal

USAGE_HEADER = SETTLEMENT_OVERRIDES_HEADER.lower().encode()
USAGE_BYTES_MAX = 1024


class UsageUnreadable(Refusal):
    """The app said what was used in a way that cannot be charged. Nothing is: the fault is the app's."""

    reason: ClassVar[str] = "usage-unreadable"
    status: ClassVar[int] = 500

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The request failed and costs nothing: what it used cannot be charged, because {why}."
        )


def take_usage(
    headers: Iterable[tuple[bytes, bytes]],
) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
    """Return an answer's headers without the one that says what was used, and its value; None without it."""
    kept: list[tuple[bytes, bytes]] = []
    usage: bytes | None = None
    for name, value in headers:
        if name.lower() == USAGE_HEADER:
            usage = value
        else:
            kept.append((name, value))
    return kept, usage


def read_usage(usage: bytes, requirements: PaymentRequirements, decimals: int) -> int:
    """Return what is charged, in minor units: from nothing up to the requirements' amount.

    Raises UsageUnreadable where it is no amount, less than nothing or more than the price.
    """
    said = _read_amount(usage)
    if said is None:
        return int(requirements.amount)
    try:
        charged = int(x402HTTPServerBase.resolve_settlement_override_amount(said, requirements, decimals))
    except ValueError:
        raise UsageUnreadable(f"{said[:40]!r} is no amount") from None
    if not 0 <= charged <= int(requirements.amount):
        raise UsageUnreadable(f"{charged} is not from 0 to the price of {requirements.amount} minor units")
    return charged


def _read_amount(usage: bytes) -> str | None:
    try:
        said: Any = json.loads(usage[:USAGE_BYTES_MAX])
    except ValueError:
        raise UsageUnreadable(f"the header {SETTLEMENT_OVERRIDES_HEADER} is not JSON") from None
    if not isinstance(said, dict):
        raise UsageUnreadable(f"the header {SETTLEMENT_OVERRIDES_HEADER} is not a JSON object")
    amount = cast(dict[str, Any], said).get("amount")
    return None if amount is None else str(amount)
