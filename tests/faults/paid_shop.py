"""A paid app that dies where a test wants it to: one process imports everything, and forks for each life.

It reads one JSON order a line, and tells what happens in JSON lines. A life counts its own boundaries: each
statement and each transaction that PostgreSQL is asked to finish, each transaction that is given to the node,
the handler, and both ends of the answer; before and after. At the one it was told, it kills.
"""

import asyncio
import gc
import json
import os
import re
import signal
import socket
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psycopg
import psycopg_pool.base
import uvicorn
from fastapi import FastAPI
from psycopg.pq import TransactionStatus

from fixtures.running import find_children
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.core import clock
from tollbook.core.local_chain import NETWORK

PROCESSES_MAX = 8
REQUESTS = 2
LATER = timedelta(minutes=10)  # when who died is known to be dead: longer than anything is held
READ_ONLY = "READ ONLY"
ANY = "any"
_TABLES = re.compile(r"(?:INTO|UPDATE|FROM|JOIN|SELECT)\s+((?:payments|core)\.\w+)", re.I)
_NOTHING = {"", "SELECT 1"}


@dataclass
class Life:
    """What one life is told: where its things are, and at which boundary what dies."""

    database_url: str
    data_dir: str
    node_url: str
    operator_key: str
    seller: str
    dies_at: list[object] | None = None  # a boundary, and when it is reached for the how manieth time
    victims: tuple[str, ...] = ("process",)
    counted: str = "payment-signature"  # from the first request with this header on
    late: int = 0  # so many times long after the last one's end

    def __post_init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.counting = False

    def reach(self, what: str) -> None:
        """Pass a boundary, or die there."""
        task = asyncio.current_task()
        mends = task is not None and task.get_coro().__qualname__ == "_mend"  # beside the road, at any time
        if mends or not self.counting:
            return
        self.passed[what] += 1
        tell("boundary", what=what, time=self.passed[what])
        if self.dies_at in ([what, self.passed[what]], [ANY, self.passed.total()]):
            self._kill()

    def _kill(self) -> None:
        tell("killed")
        if "postgres" in self.victims:
            kill_postgres(Path(self.data_dir))
            tell("postgres killed")
            move_clock()
        if "process" in self.victims:
            os.kill(os.getpid(), signal.SIGKILL)


def tell(event: str, **details: object) -> None:
    os.write(1, json.dumps({"event": event, **details}).encode() + b"\n")


def kill_postgres(data_dir: Path) -> None:
    """All of the server at once: none of its processes may see another one die, and still do something."""
    postmaster = int((data_dir / "postgresql/postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGSTOP)
    family = [postmaster, *find_children(postmaster)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in family:
            os.kill(pid, number)


def move_clock() -> None:
    """Whatever was held by who died is held no more."""
    before = clock.now
    clock.now = lambda: before() + LATER


def count_database(life: Life) -> None:
    """Statements that are transactions by themselves, and the ends of the others that did not only read."""
    execute = psycopg.AsyncCursor.execute
    leave = psycopg.AsyncTransaction.__aexit__
    touched: dict[Any, list[str]] = {}

    async def execute_counted(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        text = str(query)
        if text in _NOTHING:  # the pool looks whether the line is up
            return await execute(self, query, *args, **options)
        verb = re.sub(r"--.*", "", text).split(maxsplit=1)[0]
        tables = [READ_ONLY] if READ_ONLY in text else [f"{verb} {table}" for table in _TABLES.findall(text)]
        if self.connection.info.transaction_status != TransactionStatus.IDLE:
            touched.setdefault(self.connection, []).extend(tables)
            return await execute(self, query, *args, **options)
        name = " ".join(dict.fromkeys(tables))
        life.reach(f"before {name}")
        result = await execute(self, query, *args, **options)
        life.reach(f"after {name}")
        return result

    async def leave_counted(self: Any, kind: Any, error: Any, trace: Any) -> Any:
        tables = touched.pop(self.connection, [])
        counts = kind is None and bool(tables) and READ_ONLY not in tables
        name = f"commit {' '.join(dict.fromkeys(tables))}"
        if counts:
            life.reach(f"before {name}")
        result = await leave(self, kind, error, trace)
        if counts:
            life.reach(f"after {name}")
        return result

    psycopg.AsyncCursor.execute = execute_counted
    psycopg.AsyncTransaction.__aexit__ = leave_counted


def count_node(life: Life) -> None:
    """Transactions that leave for the chain."""
    ask = aiohttp.ClientSession._request

    async def ask_counted(self: Any, method: str, url: Any, **options: Any) -> Any:
        if "eth_sendRawTransaction" not in str(options.get("data")):
            return await ask(self, method, url, **options)
        life.reach("before broadcast")
        answer = await ask(self, method, url, **options)
        life.reach("after broadcast")
        return answer

    aiohttp.ClientSession._request = ask_counted


def make_app(life: Life) -> Any:
    app = FastAPI()

    @app.get("/before/{what}")
    @app.get("/after/{what}")
    async def sell(what: str) -> dict[str, str]:
        life.reach("handler")
        return {"what": what}

    app.add_middleware(
        Paywall,  # pyright: ignore[reportArgumentType]
        payees=[Payee(NETWORK, life.seller)],
        routes={
            "GET /before/{what}": PaidRoute("$0.01", settle="before", requests=REQUESTS),
            "GET /after/{what}": PaidRoute("$0.01", requests=REQUESTS),
        },
        facilitator=InProcessFacilitator({NETWORK: life.node_url}, life.operator_key, life.database_url),
        database_url=life.database_url,
        rpc_urls={NETWORK: life.node_url},
    )

    async def count_answer(scope: Any, receive: Any, send: Any) -> None:
        async def send_counted(message: Any) -> None:
            life.reach(f"before {message['type']}")
            await send(message)
            life.reach(f"after {message['type']}")

        wanted = any(name == life.counted.encode() for name, _ in scope.get("headers", ()))
        life.counting = life.counting or wanted
        await app(scope, receive, send_counted if wanted else send)

    return count_answer


def live(life: Life, listener: socket.socket) -> None:
    count_database(life)
    count_node(life)
    psycopg_pool.base.AttemptWithBackoff.INITIAL_DELAY = 0.05  # the server is back in a moment
    for _ in range(life.late):
        move_clock()
    config = uvicorn.Config(make_app(life), log_level="warning", ws="none")
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


def warm_up() -> None:
    """Import what is imported late, once for all lives."""
    context = httpx.create_ssl_context()
    httpx._transports.default.create_ssl_context = lambda **_: context  # which reads all the world's roots
    app = make_app(Life("", "", "http://127.0.0.1:9", "0x" + "11" * 32, "0x" + "22" * 20))
    uvicorn.Config(app, ws="none").load()

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
            await client.get("/free")

    asyncio.run(ask())
    gc.freeze()  # no life's collector need touch, and so copy, what all share


def begin(life: Life, listener: socket.socket) -> int:
    pid = os.fork()
    if not pid:
        os.close(0)
        live(life, listener)
        os._exit(0)
    return pid


def end(alive: list[int]) -> None:
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def main() -> None:
    """Serve lives until there are no more orders, each of which ends the lives before."""
    warm_up()
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(PROCESSES_MAX)]
    tell("listening", ports=[listener.getsockname()[1] for listener in listeners])
    alive: list[int] = []
    for line in sys.stdin:
        order = json.loads(line)
        end(alive)
        alive = [begin(Life(**order["life"]), listener) for listener in listeners[: order["processes"]]]
        tell("done")
    end(alive)


if __name__ == "__main__":
    main()
