"""Every way to write an address leads psycopg, pg_dump and pg_restore to the same server, also over TLS."""

import asyncio
import datetime
import ipaddress
import ssl
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fixtures.backups import execute, refused
from fixtures.machines import Machine
from tollbook.embedded import binaries
from tollbook.migrate import relay
from tollbook.migrate.backup import backup
from tollbook.migrate.errors import BackupFailed, WrongUsage
from tollbook.migrate.pg_tools import read_target
from tollbook.migrate.restore import restore
from tollbook.migrate.trial import try_out
from tollbook.migrate.url import normalize

PASSWORD = "a b%c"
WRITTEN = "a%20b%25c"


@dataclass(frozen=True)
class Shop:
    """A server that wants a password; `tls_port` leads to it, over TLS alone, on this machine."""

    socket_dir: Path
    tls_port: int
    certificate: Path

    @property
    def url(self) -> str:
        return f"postgresql://me:{WRITTEN}@/shop?host={self.socket_dir}"


@pytest.fixture
def shop(machine: Machine) -> Iterator[Shop]:
    data = machine.root / "data" / "shop"
    (machine.root / "word").write_text(PASSWORD)
    machine.run(
        *(
            binaries() / "initdb",
            "-D",
            data,
            "-U",
            "me",
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        ),
        f"--pwfile={machine.root / 'word'}",
    )
    server = machine.start(data, user="me", password=WRITTEN)
    try:
        front = Front(machine.root)
        there = Shop(machine.root / "s", front.port, front.certificate)
        execute(there.url.replace("/shop", "/postgres"), "CREATE DATABASE shop")
        execute(there.url, "CREATE TABLE sales AS SELECT generate_series(1, 3) AS id")
        yield there
        front.stop()
    finally:
        server.kill()
        server.wait()


class Front:
    """Speaks TLS for the server behind it, as the server does: when a client asks for it, and only then."""

    def __init__(self, root: Path) -> None:
        self.root, self.certificate = root, root / "server.pem"
        write_certificate(self.certificate)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.certificate)
        self.relay = relay.Relay(self.connect, tls=False)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server = self.do(asyncio.start_server(self.serve, "127.0.0.1", 0))
        self.port = self.server.sockets[0].getsockname()[1]

    async def connect(self) -> relay.Streams:
        """The server, offering what it does offer over TLS: to bind the password to it."""
        there, thither = await asyncio.open_unix_connection(self.root / "s" / ".s.PGSQL.5432")
        read = there.read

        async def read_offer(count: int) -> bytes:
            data = await read(count)
            offer = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"
            more = b"R\0\0\0\x2a\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"
            return data.replace(offer, more, 1)

        there.read = read_offer
        return there, thither

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await reader.readexactly(8) == relay.TLS_REQUEST:  # else: it has to be TLS
                writer.write(b"S")
                await writer.start_tls(self.context)
                await self.relay.serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            writer.transport.abort()
        await relay.close(writer)

    def stop(self) -> None:
        self.do(self.relay.close(self.server))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def write_certificate(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shop")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*form) + made.public_bytes(serialization.Encoding.PEM))


def goes_around(url: str, folder: Path) -> None:
    """What is backed up through an address is restored through it."""
    made = backup(url, folder)
    assert made.manifest.contents.tables == {"public.sales": 3}
    assert try_out(url, made.path).rows == 3
    assert restore(url, made.path, into="copy").rows == 3


@pytest.mark.parametrize("driver", ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg2"])
def test_a_socket_as_cloud_sql_has_it(shop: Shop, tmp_path: Path, driver: str) -> None:
    with tempfile.TemporaryDirectory(prefix="sql-") as short:  # a socket's path has 107 bytes at most
        place = Path(short) / "project:region:instance"
        place.symlink_to(shop.socket_dir)
        goes_around(f"{driver}://me:{WRITTEN}@/shop?host={place}", tmp_path)


def test_the_path_of_a_socket(shop: Shop, tmp_path: Path) -> None:
    path = f"{shop.socket_dir}/.s.PGSQL.5432"
    goes_around(
        f"postgresql+asyncpg://me:{WRITTEN}@/shop?host={path}&prepared_statement_cache_size=0", tmp_path
    )
    assert read_target(f"postgresql+pg8000://me@/shop?unix_sock={path}").database == "shop"


def test_a_service_with_its_password(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = f"[mine]\nhost={shop.socket_dir}\ndbname=shop\nuser=me\npassword={PASSWORD}\n"
    (tmp_path / "services").write_text(service)
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    goes_around("postgresql://?service=mine", tmp_path)
    monkeypatch.setenv("PGSERVICE", "mine")
    assert read_target("postgresql://").database == "shop"
    assert PASSWORD not in read_target("postgresql://").clean(f"it was {PASSWORD} or {WRITTEN}")
    with refused(WrongUsage, '"none" not found'):
        read_target("postgresql://?service=none")


def test_a_password_file(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pgpass"
    file.write_text(f"*:*:*:me:{PASSWORD}\n")
    file.chmod(0o600)
    with refused(BackupFailed, "no password supplied"):
        backup(f"postgresql://me@/shop?host={shop.socket_dir}", tmp_path)
    goes_around(f"postgresql://me@/shop?host={shop.socket_dir}&passfile={file}", tmp_path)
    monkeypatch.setenv("PGPASSFILE", str(file))
    goes_around(f"postgresql://me@/shop?host={shop.socket_dir}", tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        "sslmode=require",
        "sslmode=verify-ca&sslrootcert={0}",
        "sslmode=verify-full&sslrootcert={0}",
        "ssl=require",
        "",
    ],
)
def test_tls_as_the_address_asks(shop: Shop, tmp_path: Path, words: str) -> None:
    words = words.format(shop.certificate)
    plain = "channel_binding=disable"  # the server behind has no TLS to bind to
    goes_around(f"postgresql+asyncpg://me:{WRITTEN}@localhost:{shop.tls_port}/shop?{plain}&{words}", tmp_path)


@pytest.mark.parametrize("words", ["sslmode=disable", "ssl=true", "sslmode=verify-full&sslrootcert=system"])
def test_tls_that_is_not_as_the_address_asks_is_refused(shop: Shop, tmp_path: Path, words: str) -> None:
    with refused(BackupFailed):
        backup(f"postgresql://me:{WRITTEN}@localhost:{shop.tls_port}/shop?{words}", tmp_path)


def test_the_relay_checks_what_libpq_checked(shop: Shop, tmp_path: Path) -> None:
    """A server that changes its certificate between the two is not given the password."""
    other = tmp_path / "other.pem"
    write_certificate(other)
    options = {"sslmode": "verify-full", "sslrootcert": str(other)}
    route = relay.Route("127.0.0.1", shop.tls_port, "localhost", relay._make_context(options))
    with pytest.raises(ssl.SSLCertVerificationError):
        asyncio.run(relay._connect(route))
    context = relay._make_context(options | {"sslrootcert": str(shop.certificate)})
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        asyncio.run(relay._connect(relay.Route("127.0.0.1", shop.tls_port, "elsewhere", context)))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("postgresql://h/d?ssl=true", "sslmode=verify-full&sslrootcert=system"),
        ("postgresql://h/d?ssl=true&sslrootcert=/ca", "sslmode=verify-full&sslrootcert=%2Fca"),
        ("postgresql://h/d?ssl=false", "sslmode=disable"),
        ("postgresql://h/d?ssl=verify-ca", "sslmode=verify-ca"),
        ("postgres://h/d?schema=shop&connection_limit=5", "options=-c%20search_path%3Dshop"),
        ("pgx5://h/d?x-migrations-table=m&pool_max_conns=5&sslmode=allow", "sslmode=allow"),
        ("postgres://h/d?search_path=a,%20b", "options=-c%20search_path%3Da%2C%5C%20b"),
        ("jdbc:postgresql://h/d?user=u&currentSchema=a&stringtype=x", "user=u&options=-c%20search_path%3Da"),
        ("postgres://h/d?options=-cx%3D1&TimeZone=UTC", "options=-cx%3D1%20-c%20TimeZone%3DUTC"),
    ],
)
def test_others_words_are_libpqs(given: str, read: str) -> None:
    assert normalize(given) == f"postgresql://h/d?{read}"


def test_an_unknown_word_is_refused() -> None:
    with refused(WrongUsage, "verify-full"):
        normalize("postgresql://h/d?ssl=maybe")
    with refused(WrongUsage, "ssl-sort in the database address"):
        normalize("postgresql://h/d?ssl-sort=maybe")


@pytest.mark.parametrize("url", ["postgresql://me:hush@hush@h/d", "postgresql://me:hu/hush@h/d"])
def test_a_password_that_is_not_escaped_is_not_told(url: str) -> None:
    with pytest.raises(WrongUsage) as caught:
        read_target(url)
    assert "hush" not in str(caught.value)
