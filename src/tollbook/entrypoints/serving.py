"""Servers and jobs side by side in one process, from the first port taken to the last one freed."""

import asyncio
import errno
import gc
import json
import logging
import signal
import socket
from collections.abc import Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import click
import uvicorn

from tollbook.core.errors import Refusal

BACKLOG = 2048
IDLE_SECONDS_MAX = 75  # longer than clients keep theirs: who asks as it is closed gets no answer
STOP_SECONDS_MAX = 10
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class PortTaken(Refusal):
    """Another program listens where we would."""

    reason = "port-taken"

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            f"Port {port} of {host} is taken by another program. Nothing was started. End that program, or "
            f"choose another port with --port (`lsof -i :{port}` or `ss -ltnp` names who has it).",
            port=port,
        )


class NoSuchHost(Refusal):
    """This machine has no such address to listen on, or we may not."""

    reason = "cannot-listen"

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(
            f"Cannot listen on {host} port {port}: {why}. Nothing was started: change --host or --port.",
            port=port,
        )


@dataclass(frozen=True, slots=True)
class Teller:
    """Tells people what happens in sentences, and programs in JSON, an object a line."""

    as_json: bool

    def say(self, event: str, sentence: str, **facts: object) -> None:
        """Tell one thing, on standard output."""
        if self.as_json:
            at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            sentence = json.dumps(
                {"event": event, "at": at, "message": sentence.strip(), **facts}, default=str
            )
        click.echo(sentence)


@contextmanager
def listening(host: str, port: int) -> Generator[socket.socket]:
    """Yield a socket that listens there: from now on the port is ours. Raises PortTaken, NoSuchHost."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # With its protocol, or else asyncio does not see that it is TCP and lets Nagle hold every answer's
        # body back until its head is acknowledged: 40 ms.
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise NoSuchHost(host, port, error.strerror or str(error)) from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(host, port) from None
            raise NoSuchHost(host, port, error.strerror or str(error)) from None
        yield listener


@contextmanager
def terminable() -> Generator[None]:
    """Make SIGTERM what Ctrl-C is, so that whoever is asked to end closes what he opened."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    """uvicorn without its own hand on the signals: one Ctrl-C stops all servers and jobs, in our order."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@dataclass(frozen=True, slots=True)
class Site:
    """An application and the sockets on which it is served."""

    app: Any
    listener: socket.socket


async def run(sites: Sequence[Site], jobs: Mapping[str, Coroutine[Any, Any, object]]) -> None:
    """Serve and work until SIGINT or SIGTERM, then stop all of it. A second signal does not wait.

    A server or job that ends by itself ends everything; its exception is raised then.
    """
    # What was made by now stays as long as the process: the collector need not look through it again and
    # again. Measured: a third of what a stream of commands costs.
    gc.collect()
    gc.freeze()
    servers = [_make_server(site) for site in sites]
    serving = [
        asyncio.create_task(server.serve(sockets=[site.listener]), name="server")
        for server, site in zip(servers, sites, strict=True)
    ]
    working = [asyncio.create_task(job, name=name) for name, job in jobs.items()]
    with _stop_signal(servers) as stop:
        stopped = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({stopped, *serving, *working}, return_when=asyncio.FIRST_COMPLETED)
        failed = next((task for task in (*serving, *working) if task.done() and not task.cancelled()), None)
        stopped.cancel()
        for task in working:  # first: an agent's open request would keep its server from ending
            task.cancel()
        await asyncio.wait(working, timeout=STOP_SECONDS_MAX) if working else None
        for server in servers:
            server.should_exit = True
        await asyncio.wait(serving)
    if failed is not None and not stop.is_set():
        failed.result()
        raise RuntimeError(f"The {failed.get_name()} ended by itself.")


def _make_server(site: Site) -> _Server:
    config = uvicorn.Config(
        site.app,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=IDLE_SECONDS_MAX,
        timeout_graceful_shutdown=STOP_SECONDS_MAX,
    )
    return _Server(config)


@contextmanager
def _stop_signal(servers: Sequence[_Server]) -> Generator[asyncio.Event]:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask_to_stop() -> None:
        for server in servers:
            server.force_exit = stop.is_set()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask_to_stop)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def log_warnings() -> None:
    """Write warnings and worse to standard error, a line each."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
