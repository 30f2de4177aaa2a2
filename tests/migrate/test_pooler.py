"""A pooler in transaction mode: the session lock would hold nothing there, so the engine refuses."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from click.testing import Result

PROTOCOL = 196_608
ENCRYPTION_REQUESTS = (80_877_103, 80_877_104)
FALSE_PID = 4_000_000


def receive(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        if not (more := sock.recv(length - len(data))):
            raise ConnectionError
        data += more
    return data


def read_message(sock: socket.socket) -> tuple[bytes, bytes]:
    kind, length = struct.unpack("!cI", receive(sock, 5))
    return kind, kind + struct.pack("!I", length) + receive(sock, length - 4)


class Pooler:
    """Lends one server session to all its clients, a transaction at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.user, self.database = query["user"], parts.path[1:]
        self.server = socket.socket(socket.AF_UNIX)
        self.server.connect(str(Path(query["host"]) / f".s.PGSQL.{query['port']}"))
        words = ["user", self.user, "database", self.database, "client_encoding", "utf8", "", ""]
        startup = struct.pack("!I", PROTOCOL) + "\0".join(words).encode()
        self.server.sendall(struct.pack("!I", len(startup) + 4) + startup)
        self.greeting = b""
        while True:
            kind, message = read_message(self.server)
            if kind == b"Z":
                break
            self.greeting += b"" if kind == b"K" else message
        self.lent = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"postgresql://{self.user}@127.0.0.1:{self.listener.getsockname()[1]}/{self.database}"
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self.serve, args=(client,)))
            self.threads[-1].start()

    def serve(self, client: socket.socket) -> None:
        with client:
            try:
                while struct.unpack(
                    "!I", receive(client, struct.unpack("!I", receive(client, 4))[0] - 4)[:4]
                )[0] in (ENCRYPTION_REQUESTS):
                    client.sendall(b"N")
                client.sendall(self.greeting + struct.pack("!cIIIcIc", b"K", 12, FALSE_PID, 1, b"Z", 5, b"I"))
                while self.relay(client):
                    pass
            except (ConnectionError, OSError):
                return

    def relay(self, client: socket.socket) -> bool:
        """Carry one transaction; False when the client says goodbye."""
        kind, message = read_message(client)
        if kind == b"X":
            return False
        with self.lent:
            while True:
                self.server.sendall(message)
                if kind in (b"Q", b"S") and self.answer(client) == b"I":
                    return True
                kind, message = read_message(client)

    def answer(self, client: socket.socket) -> bytes:
        while True:
            kind, message = read_message(self.server)
            client.sendall(message)
            if kind == b"Z":
                return message[-1:]

    def stop(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(10)
        self.server.close()


@pytest.fixture
def pooler(url: str) -> Iterator[Pooler]:
    pooler = Pooler(url)
    yield pooler
    pooler.stop()


def test_a_transaction_pooler_is_refused_before_anything_is_changed(
    write: Any, apply: Callable[..., Result], pooler: Pooler, ask: Any
) -> None:
    write("0001_a", up="CREATE TABLE a (i int)")
    result = apply(to=pooler.url)
    assert result.exit_code == 1, result.output
    assert "transaction mode" in result.output
    assert ask("SELECT to_regclass('a')") is None
    assert ask("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


def test_to_look_through_a_pooler_leaves_its_session_as_it_was(
    write: Any, apply: Callable[..., Result], run: Callable[..., Result], pooler: Pooler
) -> None:
    write("0001_a", up="CREATE TABLE a (i int)")
    assert apply().exit_code == 0
    assert run("drift", to=pooler.url).exit_code == 0
    with psycopg.connect(pooler.url, autocommit=True) as lent:
        assert lent.execute("SHOW default_transaction_read_only").fetchone() == ("off",)
        assert lent.execute("SHOW lock_timeout").fetchone() == ("0",)
