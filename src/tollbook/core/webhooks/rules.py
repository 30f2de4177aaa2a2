"""The rules of webhooks, without I/O and clock: event types, URLs, bodies, and when to try again."""

import hashlib
import json
import re
from base64 import b32encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import SplitResult, urlsplit

from tollbook.core import ids
from tollbook.core.journal import Entry
from tollbook.core.webhooks.errors import EventTypeMalformed, SubscriptionMalformed, UrlRefused

URL_LENGTH_MAX = 512
DESCRIPTION_LENGTH_MAX = 512
EVENT_TYPES_MAX = 50
EVENT_TYPE_LENGTH_MAX = 128
SUBJECT_LENGTH_MAX = 200
ALL = "*"
MESSAGE_LETTERS = 26  # of base 32: 130 bits
NO_PREFIXES: Mapping[str, str] = {}

# How long after each failure: then the last one, again and again, until RETRY_MAX is over.
RETRY_SECONDS = (5, 30, 2 * 60, 10 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600)
JITTER = 0.2  # so much longer at most, so that not all come back at once
RETRY_MAX = timedelta(days=3)
RETRY_AFTER_SECONDS_MAX = 3600  # more than this an endpoint's Retry-After does not hold us off

_EVENT_TYPE = re.compile(r"\*|[a-z0-9_-]+(\.[a-z0-9_-]+)*(\.\*)?")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+", re.IGNORECASE)
_VISIBLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a URL leads: a host, a name or a bare address, and a port."""

    host: str
    port: int


def check_event_types(event_types: Sequence[str]) -> list[str]:
    """The types a subscription wants, each once: exact names, or beginnings as payments.*, or *.

    Raises EventTypeMalformed.
    """
    if not 0 < len(event_types) <= EVENT_TYPES_MAX:
        raise EventTypeMalformed(
            f"A webhook names 1 to {EVENT_TYPES_MAX} event types: payments.payment.settled, payments.*, or *."
        )
    for one in event_types:
        if len(one) > EVENT_TYPE_LENGTH_MAX or not _EVENT_TYPE.fullmatch(one):
            raise EventTypeMalformed(
                f"Not an event type: {one[:60]!r}. Give a name as payments.payment.settled, its beginning as "
                "payments.*, or * for every event."
            )
    return list(dict.fromkeys(event_types))


def matches(event_types: Sequence[str], event_type: str) -> bool:
    """Whether a subscription to `event_types` is told of this type."""
    return any(
        event_type.startswith(one[:-1]) if one.endswith("*") else event_type == one for one in event_types
    )


def check_description(description: str | None) -> str | None:
    """The description, trimmed. Raises SubscriptionMalformed."""
    if description is not None and len(description) > DESCRIPTION_LENGTH_MAX:
        raise SubscriptionMalformed(f"A description has {DESCRIPTION_LENGTH_MAX} letters at most.")
    return (description or "").strip() or None


def check_url(url: str, *, allow_http: bool) -> Endpoint:
    """Where an endpoint's URL leads; its address is another matter (addresses.py). Raises UrlRefused."""
    if len(url) > URL_LENGTH_MAX or not _VISIBLE.fullmatch(url) or "\\" in url:
        raise UrlRefused(
            f"A webhook's URL has {URL_LENGTH_MAX} visible ASCII letters at most: write others in %-escapes, "
            "and a host's name in its xn-- form."
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UrlRefused("The webhook's URL cannot be read. It is like https://example.com/hooks.") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_http):
        raise UrlRefused(
            "A webhook's URL begins with https://. For an endpoint in your own network the operator allows "
            "http:// by TOLLBOOK_WEBHOOKS_ALLOW_HTTP=1."
        )
    if not host or not _HOST.fullmatch(host) or port == 0:
        raise UrlRefused("The webhook's URL names no host. It is like https://example.com/hooks.")
    _refuse_extras(parts, url)
    return Endpoint(host, port or {"https": 443, "http": 80}[parts.scheme])


def _refuse_extras(parts: SplitResult, url: str) -> None:
    if "@" in parts.netloc:
        raise UrlRefused(
            "A webhook's URL holds no user and no password: they would be shown where it is shown. "
            "The signature is what tells your endpoint who calls."
        )
    if "#" in url:
        raise UrlRefused("A webhook's URL has no #fragment: it would never reach your endpoint.")


def show_type(book: str, kind: str) -> str:
    """The event type of a journal's fact."""
    return f"{book}.{kind}"


def name_queue(subject: str) -> str:
    """The subject as the queue's name: one that is too long for an index goes by its hash."""
    return subject if len(subject) <= SUBJECT_LENGTH_MAX else hashlib.sha256(subject.encode()).hexdigest()


def make_message_id(entry: Entry) -> str:
    """webhook-id: the same for an entry of the journal for ever, at every endpoint, in retries and replays.

    The time is in it because a database that was taken back to a point in time counts its entries again.
    """
    place, at = entry.position, show_time(entry.recorded_at)
    text = f"{place.epoch}.{place.transaction_id}.{place.entry_id}.{at}"
    return "msg_" + b32encode(hashlib.sha256(text.encode()).digest()).decode()[:MESSAGE_LETTERS].lower()


def write_body(event_type: str, at: datetime, data: dict[str, object]) -> str:
    """The body of a webhook as Standard Webhooks has it: type, timestamp, data."""
    body = {"type": event_type, "timestamp": show_time(at), "data": data}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def describe(entry: Entry, id_prefixes: Mapping[str, str] = NO_PREFIXES) -> dict[str, object]:
    """The data of an event: the fact, with its amount as a text, for JSON's numbers end before money does.

    `id_prefixes` say of which types, by their beginnings, the subject is a number that is shown as an id; so
    is, in the details, a payment_id where they name "payments.payment.".
    """
    fact = entry.fact
    details = {
        name: _show_subject(f"{fact.book}.{name.removesuffix('_id')}.", value, id_prefixes)
        if isinstance(value, str) and name.endswith("_id")
        else value
        for name, value in fact.details.items()
    }
    return {
        "id": _show_subject(show_type(fact.book, fact.kind), fact.subject, id_prefixes),
        "subject": fact.subject,
        "network": fact.network,
        "asset": fact.asset,
        "amount": None if fact.amount is None else str(fact.amount),
        "from": fact.from_party,
        "to": fact.to_party,
        "details": details,
    }


def _show_subject(event_type: str, subject: str, id_prefixes: Mapping[str, str]) -> str:
    prefix = next((found for begin, found in id_prefixes.items() if event_type.startswith(begin)), None)
    return ids.show(prefix, int(subject)) if prefix and subject.isdecimal() else subject


def show_time(at: datetime) -> str:
    """An instant in ISO 8601, UTC, with microseconds."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def find_next_try(tries: int, since: datetime, *, now: datetime, jitter: float) -> datetime | None:
    """When to try again after `tries` failures, of which the first was at `since`; None when it is over.

    `jitter` is between 0 and 1. The last try is when RETRY_MAX is over, not before.
    """
    end = since + RETRY_MAX
    if now >= end:
        return None
    seconds = RETRY_SECONDS[min(tries, len(RETRY_SECONDS)) - 1] * (1 + JITTER * jitter)
    return min(now + timedelta(seconds=seconds), end)
