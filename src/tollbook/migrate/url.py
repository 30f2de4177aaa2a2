"""Database addresses: made plain for libpq, and made safe to print."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

from tollbook.migrate.errors import WrongUsage

SECRET_PARAMETERS = frozenset({"password", "sslpassword", "passfile"})


def normalize(url: str) -> str:
    """Return the address as libpq reads it: no driver suffix, `postgresql://`. Raises WrongUsage."""
    text = url.strip()
    match = re.match(r"^(postgres(?:ql)?)(\+\w+)?://", text, re.IGNORECASE)
    if match is None:
        scheme = text.split("://", 1)[0] if "://" in text else "no scheme"
        raise WrongUsage(
            f"The database address must begin with postgresql:// (it has {scheme[:40]!r});"
            " set --database-url or DATABASE_URL to postgresql://user@host:5432/name."
        )
    return "postgresql://" + text[match.end() :]


def is_clear(url: str) -> bool:
    """Whether it is sure which part of an address is its password: what libpq says of others may quote it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme.startswith("postgres") and url.count("@") == parts.netloc.count("@") <= 1


def redact(url: str) -> str:
    """Return the address without any password, for messages and logs."""
    if not is_clear(url):
        return "postgresql://…"
    parts = urlsplit(url)
    location = parts.netloc
    if "@" in location:
        user, _, host = location.rpartition("@")
        location = f"{user.partition(':')[0]}@{host}"
    query = urlencode([(k, v) for k, v in parse_qsl(parts.query) if k not in SECRET_PARAMETERS], safe="/")
    return f"{parts.scheme}://{location}{parts.path}" + (f"?{query}" if query else "")


def database_name(url: str) -> str:
    """Return the name of the database an address points at, as far as the address says."""
    parts = urlsplit(normalize(url))
    named = dict(parse_qsl(parts.query)).get("dbname")
    return parts.path.lstrip("/") or named or "the default database"
