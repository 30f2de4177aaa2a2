"""A facilitator at a URL: Tollbook's own elsewhere, or anybody's."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from x402.mechanisms.evm.constants import (
    ERR_EIP3009_NOT_SUPPORTED,
    ERR_INSUFFICIENT_BALANCE,
    ERR_SETTLEMENT_PENDING,
    ERR_TOKEN_NAME_MISMATCH,
    ERR_TOKEN_VERSION_MISMATCH,
    ERR_TRANSACTION_SIMULATION_FAILED,
    ERR_VALID_AFTER_FUTURE,
    ERR_VALID_BEFORE_EXPIRED,
    SCHEME_UPTO,
)
from x402.schemas import (
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedResponse,
    VerifyResponse,
)

from tollbook.books.payments.facilitator.in_process import (
    ERR_UNEXPECTED_SETTLE,
    SURE_REASONS,
    FacilitatorUnreachable,
    OperatorOutOfGas,
    SettlementUnknown,
)
from tollbook.core.chains import hide_credentials, hush_url_loggers

ATTEMPTS_MAX = 3
WAIT_SECONDS_MAX = 1.0
CONNECT_SECONDS_MAX = 5.0
VERIFY_SECONDS_MAX = 15.0
SETTLE_SECONDS_MAX = 90.0
ANSWER_BYTES_MAX = 1024 * 1024
MESSAGE_LETTERS_MAX = 300
TEXT_LETTERS_MAX = 500  # of a reason, a transaction, an address
EXTRAS_BYTES_MAX = 4096  # they go on in headers, of which clients read little more

# A facilitator elsewhere that sent nothing and gives one of these has failed too: it looked at the chain.
_SURE_REASONS_HERE = SURE_REASONS | {
    ERR_EIP3009_NOT_SUPPORTED,
    ERR_INSUFFICIENT_BALANCE,
    ERR_TOKEN_NAME_MISMATCH,
    ERR_TOKEN_VERSION_MISMATCH,
    ERR_TRANSACTION_SIMULATION_FAILED,
    ERR_VALID_AFTER_FUTURE,
    ERR_VALID_BEFORE_EXPIRED,
    "insufficient_funds",
    "invalid_scheme",
}
# Answers to a request that was refused before it was looked at.
_SURE_STATUSES = {400, 401, 403, 404, 405, 413, 415, 422, 429}

_MESSAGES = ("invalid_message", "error_message")
_TEXTS = ("invalid_reason", "error_reason", "transaction", "payer", "amount")
_EXTRAS = ("extra", "extensions")
_MARKS_OF_URLS = "/@?"

_Answer = TypeVar("_Answer", VerifyResponse, SettleResponse, SupportedResponse)


class RemoteFacilitator:
    """A facilitator at a URL. `headers` go with every request, for facilitators that want a key.

    `settle_seconds_max` is how long a settlement is waited for: longer than a facilitator waits for a block,
    or else what it settles late is first reported as unknown.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        settle_seconds_max: float = SETTLE_SECONDS_MAX,
    ) -> None:
        hush_url_loggers()
        self._url = url.rstrip("/")
        self.name = hide_credentials(url)
        timeout = httpx.Timeout(VERIFY_SECONDS_MAX, connect=CONNECT_SECONDS_MAX)
        # Redirects are not followed: a payment is for the facilitator that was chosen.
        self._client = httpx.AsyncClient(headers=dict(headers or {}), timeout=timeout)
        self._settle_timeout = httpx.Timeout(settle_seconds_max, connect=CONNECT_SECONDS_MAX)

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        """See Facilitator. Asked again where no answer came: verifying changes nothing."""
        body = _make_body(payload, requirements)
        return await self._ask_patiently(VerifyResponse, "POST", "/verify", body)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        """See Facilitator. Asked once: a second request could settle a second time."""
        network = requirements.network
        try:
            response = await self._send("POST", "/settle", _make_body(payload, requirements))
        except (
            httpx.ConnectError,
            httpx.ConnectTimeout,
            httpx.PoolTimeout,
            httpx.UnsupportedProtocol,
            httpx.InvalidURL,
        ) as error:
            raise self._unreachable(error) from None
        except httpx.HTTPError as error:
            why = f"the facilitator at {self.name} gave no answer ({type(error).__name__})"
            raise SettlementUnknown(network, "", ERR_SETTLEMENT_PENDING, why) from None
        result = _read(SettleResponse, response)
        if result is not None and (response.is_success or not result.success):
            return self._judge(result, requirements)  # a proxy's 503 may carry somebody's stale success
        if response.status_code in _SURE_STATUSES or _says_unreachable(response):
            raise self._unreachable(f"HTTP {response.status_code}")
        why = f"the facilitator at {self.name} answered HTTP {response.status_code} without a result"
        raise SettlementUnknown(network, "", ERR_SETTLEMENT_PENDING, why)

    async def supported(self) -> SupportedResponse:
        """See Facilitator."""
        return await self._ask_patiently(SupportedResponse, "GET", "/supported", None)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _judge(self, result: SettleResponse, requirements: PaymentRequirements) -> SettleResponse:
        """Return a result that is sure. A failure that names a transaction may be one that succeeded."""
        network, reason = requirements.network, result.error_reason or ERR_UNEXPECTED_SETTLE
        if result.success:
            used = (requirements.scheme, requirements.amount, result.amount)
            nothing_used = used == (SCHEME_UPTO, "0", "0")
            sure = (bool(result.transaction) or nothing_used) and result.network == network
            why = "it was called settled, but without a transaction on this network"
        else:
            sure = not result.transaction and reason in _SURE_REASONS_HERE
            why = f"the facilitator at {self.name} answered {reason!r}, which leaves it open"
        if not sure:
            raise SettlementUnknown(network, result.transaction, reason, why)
        return result

    async def _ask_patiently(
        self, model: type[_Answer], method: str, path: str, body: dict[str, Any] | None
    ) -> _Answer:
        retrying = AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS_MAX),
            wait=wait_random_exponential(multiplier=0.1, max=WAIT_SECONDS_MAX),
            retry=retry_if_exception_type((httpx.HTTPError, _NoAnswer)),
            reraise=True,
        )

        async def ask() -> _Answer:
            response = await self._send(method, path, body)
            answer = _read(model, response)
            if answer is None:
                raise _NoAnswer(f"HTTP {response.status_code} without a result on {path}")
            return answer

        try:
            return await retrying(ask)
        except (httpx.HTTPError, httpx.InvalidURL, _NoAnswer) as error:
            raise self._unreachable(error) from None

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """Return the answer with its body, refusing to read an endless one."""
        timeout = self._settle_timeout if path == "/settle" else httpx.USE_CLIENT_DEFAULT
        async with self._client.stream(method, self._url + path, json=body, timeout=timeout) as response:
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > ANSWER_BYTES_MAX:
                    raise httpx.DecodingError(f"more than {ANSWER_BYTES_MAX} bytes")
            return httpx.Response(response.status_code, content=bytes(content))

    def _unreachable(self, why: Exception | str) -> FacilitatorUnreachable:
        told = why if isinstance(why, (str, _NoAnswer)) else type(why).__name__
        return FacilitatorUnreachable(
            f"The facilitator at {self.name} gave no usable answer: {told}. "
            "No money moved; present the same payment again later."
        )


class _NoAnswer(Exception):
    """The facilitator spoke, but not x402."""


def _make_body(payload: PaymentPayload, requirements: PaymentRequirements) -> dict[str, Any]:
    return {
        "x402Version": payload.x402_version,
        "paymentPayload": payload.model_dump(by_alias=True, exclude_none=True),
        "paymentRequirements": requirements.model_dump(by_alias=True, exclude_none=True),
    }


def _read(model: type[_Answer], response: httpx.Response) -> _Answer | None:
    """Return the x402 answer in a response, whatever its status: some answer a refusal with 400."""
    try:
        answer = model.model_validate_json(response.content, strict=True)
    except ValidationError:
        return None
    if isinstance(answer, SupportedResponse):
        return answer
    if any(len(getattr(answer, name, None) or "") > TEXT_LETTERS_MAX for name in _TEXTS):
        return None
    hushed = {name: _hush(text) for name in _MESSAGES if (text := getattr(answer, name, None)) is not None}
    too_long = {name: None for name in _EXTRAS if _measure(getattr(answer, name, None)) > EXTRAS_BYTES_MAX}
    return answer.model_copy(update=hushed | too_long)


def _measure(extra: object) -> int:
    return len(json.dumps(extra))


def _hush(text: str) -> str:
    """A facilitator's sentence for buyers. Many put their node's whole error in it, whose URL holds a key."""
    words = ("…" if any(mark in word for mark in _MARKS_OF_URLS) else word for word in text.split())
    return " ".join(words)[:MESSAGE_LETTERS_MAX]


def _says_unreachable(response: httpx.Response) -> bool:
    """Whether a Tollbook facilitator says that it sent nothing."""
    try:
        reason = response.json().get("reason")
    except (ValueError, AttributeError):
        return False
    return reason in (FacilitatorUnreachable.reason, OperatorOutOfGas.reason)
