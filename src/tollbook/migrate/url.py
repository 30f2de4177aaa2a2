"""Database addresses: made plain for libpq, and made safe to print."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from psycopg import pq

from tollbook.migrate.errors import WrongUsage

SECRET_PARAMETERS = frozenset({"password", "sslpassword", "passfile"})
# What drivers and pools read in an address and libpq does not know; none of it says where to connect or how
# safely. Those of asyncpg, SQLAlchemy, Prisma, SQLx, pgx, lib/pq, golang-migrate (x-…) and JDBC.
FOREIGN = re.compile(
    "async_fallback|binary_parameters|command_timeout|connection_limit|default_query_exec_mode|pgbouncer"
    "|pool_.*|prepareThreshold|(?:prepared_)?statement[-_]cache[-_].*|prepared_statement_name_func"
    "|description_cache_capacity|reWriteBatchedInserts|socket_?timeout|stringtype|tcpKeepAlive|x-.*",
    re.IGNORECASE,
)
SAME = {
    "ApplicationName": "application_name",
    "connectTimeout": "connect_timeout",
    "currentSchema": "search_path",
    "schema": "search_path",
    "ssl-mode": "sslmode",
    "ssl-root-cert": "sslrootcert",
}
SETTING = re.compile(r"[A-Za-z_][\w.]*")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
TRUE, FALSE = ("true", "1", "on", "yes"), ("false", "0", "off", "no")
ADDRESS = re.compile(r"(?:jdbc:)?postgres(?:ql)?(?:\+\w+)?://|pgx5?://", re.IGNORECASE)
SOCKET = re.compile(r"^(?P<folder>/.*)/\.s\.PGSQL\.(?P<port>\d+)$")


def normalize(url: str) -> str:
    """Return the address as libpq reads it: no driver suffix, libpq's own parameters. Raises WrongUsage.

    Understood besides: asyncpg's `ssl=`, a socket's whole path in `host=` (asyncpg) or `unix_sock=` (pg8000),
    `schema=` of Prisma and `currentSchema=` of JDBC, and settings of the server such as `search_path=`, as
    drivers in Go take all that they do not know.
    """
    text = url.strip()
    match = ADDRESS.match(text)
    if match is None:
        scheme = text.split("://", 1)[0] if "://" in text else "no scheme"
        raise WrongUsage(
            f"The database address must begin with postgresql:// (it has {scheme[:40]!r});"
            " set --database-url or DATABASE_URL to postgresql://user@host:5432/name."
        )
    location, mark, query = text[match.end() :].partition("?")
    return "postgresql://" + location + mark + (_translate(query) if query else "")


def _translate(query: str) -> str:
    """Return the parameters in libpq's words."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    read = {SAME.get(name, name): value for name, value in given.items() if not FOREIGN.fullmatch(name)}
    if socket := read.pop("unix_sock", None):
        read["host"] = socket
    if match := SOCKET.match(read.get("host", "")):
        read |= {"host": match["folder"], "port": match["port"]}
    if (word := read.pop("ssl", None)) is not None:
        read = _read_ssl(word) | read
    known = {one.keyword.decode() for one in pq.Conninfo.get_defaults()}
    settings = {name: read.pop(name) for name in list(read) if name not in known}
    if settings:
        options = (_write_setting(name, value) for name, value in settings.items())
        read["options"] = " ".join([*filter(None, [read.get("options")]), *options])
    return urlencode(read, quote_via=quote)


def _write_setting(name: str, value: str) -> str:
    if not SETTING.fullmatch(name):
        raise WrongUsage(f"{name[:40]} in the database address is nothing that libpq knows. Take it out.")
    return f"-c {name}=" + re.sub(r"([\s\\])", r"\\\1", value)


def _read_ssl(word: str) -> dict[str, str]:
    """Read asyncpg's `ssl`: a mode, or true, which there means a certificate that the system trusts."""
    if word.lower() in TRUE:
        return {"sslmode": "verify-full", "sslrootcert": "system"}
    if word.lower() in FALSE:
        return {"sslmode": "disable"}
    if word in SSL_MODES:
        return {"sslmode": word}
    raise WrongUsage(f"ssl={word[:40]} in the database address: write one of {', '.join(SSL_MODES)}.")


def redact(url: str) -> str:
    """Return the address without any password, for messages and logs."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "postgresql://…"
    if not parts.scheme.startswith("postgres"):  # libpq's key=value text, perhaps
        return "postgresql://…"
    location = parts.netloc
    if "@" in location:
        user, _, host = location.rpartition("@")
        location = f"{user.partition(':')[0]}@{host}"
    query = urlencode([(k, v) for k, v in parse_qsl(parts.query) if k not in SECRET_PARAMETERS], safe="/")
    return f"{parts.scheme}://{location}{parts.path}" + (f"?{query}" if query else "")
