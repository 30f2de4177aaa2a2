"""Sending: one POST to one endpoint, within bounds of time, of bytes, and of where it may lead."""

import asyncio
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import version
from typing import Any, Self

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader

from tollbook.core.webhooks import addresses, rules
from tollbook.core.webhooks.addresses import AddressRefused, Lookup, Names
from tollbook.core.webhooks.errors import UrlRefused
from tollbook.core.webhooks.settings import WebhookSettings

SECONDS_MAX = 15.0  # for all of it: name, connection, TLS, request, the head of the answer
REST_SECONDS_MAX = 2.0  # then, for the body of the answer, which changes nothing
ANSWER_BYTES_MAX = 64 * 1024  # more is cut off, with its connection
ANSWER_BYTES_KEPT = 1024
IDLE_SECONDS_MAX = 4.0  # many servers hang up after 5: whoever posts at that moment loses an attempt
USER_AGENT = f"Tollbook-Webhooks/{version('tollbook')}"

GONE = 410

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one POST. `error` says why it failed; None where the endpoint took it."""

    latency_ms: int
    status_code: int | None = None
    error: str | None = None
    answer: str | None = None
    retry_after: str | None = None

    @property
    def taken(self) -> bool:
        """Whether the endpoint has it."""
        return self.error is None


class _Connection(ResponseHandler):
    """aiohttp's, which ends where more is answered than was asked.

    Else that would be taken for the answer to the next event, or be heaped up while the connection is idle.
    """

    _answered = False

    def set_response_params(self, **params: Any) -> None:
        """A request begins."""
        self._answered = False
        super().set_response_params(**params)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """An answer came, or a word ahead of it (1xx)."""
        if self._answered:
            self.abort()
            return
        self._answered = data[0].code >= 200
        super().feed_data(data, size)


class Post:
    """Posts webhooks; keeps connections, no cookies, heeds no proxy: `async with Post(settings) as post`."""

    def __init__(
        self, settings: WebhookSettings, *, lookup: Lookup | None = None, seconds_max: float = SECONDS_MAX
    ) -> None:
        self.settings = settings
        self.names = Names(lookup)
        self._seconds_max = seconds_max

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=0,  # each endpoint has a bound of its own (sender.py)
            resolver=self.names,
            keepalive_timeout=IDLE_SECONDS_MAX,
            socket_factory=addresses.make_socket_factory(self.settings.allow_networks),
        )
        made = partial(_Connection, loop=asyncio.get_running_loop())
        connector._factory = made  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._seconds_max),
            headers={"user-agent": USER_AGENT, "content-type": "application/json"},
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self.names.close()  # aiohttp leaves to us what we handed it

    async def check(self, url: str) -> None:
        """Look at the URL of a new subscription: its form, and where it leads now. Raises UrlRefused."""
        endpoint = rules.check_url(url, allow_http=self.settings.allow_http)
        await addresses.check(endpoint, self.settings.allow_networks, self.names.look_up)

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> Outcome:
        """Post it once. Whatever happens is an Outcome; only being cancelled is not."""
        began = time.perf_counter()
        try:
            rules.check_url(
                url, allow_http=self.settings.allow_http
            )  # the operator may have changed his mind
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                latency = _since(began)
                first = await _read_first(answer)
        except Exception as error:  # of the library, of TLS, of the network: each is a failed attempt
            return Outcome(_since(began), error=_name(error))
        taken = 200 <= answer.status < 300
        return Outcome(
            latency,
            answer.status,
            None if taken else _name_status(answer.status),
            first,
            None if taken else answer.headers.get("retry-after"),
        )


def read_retry_after(text: str | None, *, now: datetime) -> float | None:
    """The seconds that an endpoint asks us to wait, within bounds; None where it asks nothing sensible."""
    if text is None:
        return None
    if text.strip().isdecimal() and text.isascii():
        seconds = int(text.strip()[:10])
    else:
        try:
            at = parsedate_to_datetime(text)
        except (ValueError, OverflowError):  # the latter of a year with eleven digits
            return None
        seconds = (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()
    return min(max(seconds, 0), rules.RETRY_AFTER_SECONDS_MAX)


async def _read_first(answer: aiohttp.ClientResponse) -> str:
    """The first bytes of the answer's body. What is too long or too slow is cut off: its status is known."""
    kept, read = bytearray(), 0
    try:
        async with asyncio.timeout(REST_SECONDS_MAX):
            while chunk := await answer.content.readany():
                kept += chunk[: ANSWER_BYTES_KEPT - len(kept)]
                read += len(chunk)
                if read > ANSWER_BYTES_MAX:
                    answer.close()
                    break
    except (TimeoutError, aiohttp.ClientError):
        answer.close()
    return kept.decode(errors="replace").replace("\0", "�")


def _since(began: float) -> int:
    return round((time.perf_counter() - began) * 1000)


def _name_status(status: int) -> str:
    if 300 <= status < 400:
        return f"status {status}: redirects are not followed"
    return f"status {status}"


def _name(error: Exception) -> str:
    """Why it failed, in words of ours: what a library says may quote the URL, and the URL may be a secret."""
    if isinstance(error, UrlRefused):
        return str(error)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"certificate refused: {_explain(error.certificate_error)}"
    if isinstance(error, aiohttp.InvalidURL):
        return "the URL cannot be read"
    if isinstance(error, aiohttp.ClientSSLError):
        return "TLS failed"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the name leads nowhere"
    if isinstance(error, aiohttp.ClientConnectorError):
        return _name_os_error(error.os_error)
    if isinstance(error, TimeoutError):
        return f"no answer within {SECONDS_MAX:.0f} s"
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionError):
        return "the connection broke off"
    if isinstance(error, aiohttp.ClientError):
        return "the answer is not HTTP"
    logger.warning("a webhook's POST broke off with %s", type(error).__name__)
    return "sending failed"


def _explain(error: Exception) -> str:
    return error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else "wrong certificate"


def _name_os_error(error: OSError) -> str:
    if isinstance(error, AddressRefused) or error.errno == AddressRefused().errno:
        return "the address is not public"
    return "connection failed"
