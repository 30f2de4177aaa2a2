"""A paid app that dies where a test wants it to: one process imports everything, and forks for each life.

It reads one JSON order a line, and tells what happens in JSON lines. A life counts its own boundaries: each
statement and each transaction that PostgreSQL is asked to finish, each transaction that is given to the node,
the handler, and both ends of the answer; before and after. At the one it was told, it kills.

A life is a shop, or an errand that ends by itself: fetching what channels owe, sending money back, carrying
commands out. Or it is a worker, which does not end.
"""

import asyncio
import fcntl
import gc
import json
import os
import re
import signal
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psycopg
import psycopg_pool.base
import uvicorn
from fastapi import FastAPI, Response
from psycopg.pq import TransactionStatus
from x402.http.middleware.fastapi import set_settlement_overrides

from faults import payroll
from fixtures.running import find_children
from tollbook.books.payments import refund_desk
from tollbook.books.payments.facilitator.families import make_facilitator
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.core import clock
from tollbook.core.chains import JsonRpc, Token
from tollbook.core.database import Database
from tollbook.core.local_chain import (
    NETWORK,
    TOKEN_ADDRESS,
    TOKEN_DECIMALS,
    TOKEN_NAME,
    TOKEN_SYMBOL,
    TOKEN_VERSION,
)
from tollbook.entrypoints.api import create_api
from tollbook.entrypoints.cli import main as run_command

PROCESSES_MAX = 8
REQUESTS = 2
USED = "40%"  # of the price, by the schemes that charge what was used
COUNTED = "x-counted"  # the header of the first request that counts
LATER = timedelta(minutes=10)  # when who died is known to be dead: longer than anything is held
READ_ONLY = "READ ONLY"
ANY = "any"
WORKER = "worker"  # an errand without an end
_TABLES = re.compile(r"(?:INTO|UPDATE|FROM|JOIN|SELECT)\s+((?:payments|settlement|core|stores)\.\w+)", re.I)
_NOTHING = {"", "SELECT 1"}
_voice = 1


@dataclass
class Life:
    """What one life is told: where its things are, and at which boundary what dies."""

    database_url: str
    data_dir: str
    node_url: str
    operator_key: str
    seller: str
    number: int = 0
    dies_at: list[object] | None = None  # a boundary, and when it is reached for the how manieth time
    victims: tuple[str, ...] = ("process",)
    late: int = 0  # so many times long after the last one's end
    transfer: str = "eip3009"
    network: str = NETWORK
    errand: str | None = None
    wanted: dict[str, str] | None = None  # by an errand

    def __post_init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.counting = False

    def reach(self, what: str) -> None:
        """Pass a boundary, or die there."""
        task = _find_task()
        mends = task is not None and task.get_coro().__qualname__ == "_mend"  # beside the road, at any time
        if mends or not self.counting:
            return
        self.passed[what] += 1
        tell("boundary", what=what, time=self.passed[what])
        if self.dies_at in ([what, self.passed[what]], [ANY, self.passed.total()]):
            self._kill()

    def _kill(self) -> None:
        with (Path(self.data_dir) / "armed").open() as armed:
            fcntl.flock(armed, fcntl.LOCK_EX)
            if armed.read() != str(self.number):
                return  # the test has gone on
            tell("killed")
            if "postgres" in self.victims:
                kill_postgres(Path(self.data_dir))
                tell("postgres killed")
                move_clock()
            if "process" in self.victims:
                os.kill(os.getpid(), signal.SIGKILL)


def _find_task() -> asyncio.Task[Any] | None:
    """None in a thread of the SDK's."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def tell(event: str, **details: object) -> None:
    os.write(_voice, json.dumps({"event": event, **details}).encode() + b"\n")


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


@dataclass
class Ledger:
    """Statements that are transactions by themselves, and the ends of the others that did not only read."""

    life: Life

    def __post_init__(self) -> None:
        self.touched: dict[Any, list[str]] = {}

    def begin(self, cursor: Any, query: Any) -> str | None:
        """The name of a statement that is a boundary."""
        text = query.decode() if isinstance(query, bytes) else str(query)
        if text in _NOTHING:  # the pool looks whether the line is up
            return None
        verb = re.sub(r"--.*", "", text).split(maxsplit=1)[0]
        tables = [READ_ONLY] if READ_ONLY in text else [f"{verb} {table}" for table in _TABLES.findall(text)]
        if cursor.connection.info.transaction_status != TransactionStatus.IDLE:
            self.touched.setdefault(cursor.connection, []).extend(tables)
            return None
        name = " ".join(dict.fromkeys(tables))
        return None if name.startswith("SELECT stores.") else name  # who waits for his turn only reads

    def end(self, transaction: Any, kind: Any) -> str | None:
        """The name of a commit that is a boundary."""
        tables = self.touched.pop(transaction.connection, [])
        counts = kind is None and bool(tables) and READ_ONLY not in tables
        return f"commit {' '.join(dict.fromkeys(tables))}" if counts else None

    @contextmanager
    def passing(self, name: str | None) -> Iterator[None]:
        if name is not None:
            self.life.reach(f"before {name}")
        yield
        if name is not None:
            self.life.reach(f"after {name}")


def count_database(life: Life) -> None:
    """Both of psycopg's ways: ours, and that of the stores, which the SDK asks from threads."""
    ledger = Ledger(life)
    execute, leave = psycopg.AsyncCursor.execute, psycopg.AsyncTransaction.__aexit__
    execute_sync, leave_sync = psycopg.Cursor.execute, psycopg.Transaction.__exit__

    async def execute_counted(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        with ledger.passing(ledger.begin(self, query)):
            return await execute(self, query, *args, **options)

    async def leave_counted(self: Any, kind: Any, error: Any, trace: Any) -> Any:
        with ledger.passing(ledger.end(self, kind)):
            return await leave(self, kind, error, trace)

    def execute_sync_counted(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        with ledger.passing(ledger.begin(self, query)):
            return execute_sync(self, query, *args, **options)

    def leave_sync_counted(self: Any, kind: Any, error: Any, trace: Any) -> Any:
        with ledger.passing(ledger.end(self, kind)):
            return leave_sync(self, kind, error, trace)

    psycopg.AsyncCursor.execute, psycopg.AsyncTransaction.__aexit__ = execute_counted, leave_counted
    psycopg.Cursor.execute, psycopg.Transaction.__exit__ = execute_sync_counted, leave_sync_counted


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
    ask_rpc = JsonRpc._ask

    async def ask_rpc_counted(self: Any, method: str, params: Any) -> Any:
        if method != "sendTransaction":
            return await ask_rpc(self, method, params)
        life.reach("before broadcast")
        answer = await ask_rpc(self, method, params)
        life.reach("after broadcast")
        return answer

    JsonRpc._ask = ask_rpc_counted


def make_app(life: Life) -> Any:
    app = FastAPI()

    @app.get("/before/{what}")
    @app.get("/after/{what}")
    async def sell(what: str) -> dict[str, str]:
        life.reach("handler")
        return {"what": what}

    @app.get("/upto/{what}")
    @app.get("/channel/{what}")
    async def sell_by_use(what: str, response: Response) -> dict[str, str]:
        set_settlement_overrides(response, {"amount": USED})
        return await sell(what)

    token = Token(TOKEN_ADDRESS, TOKEN_SYMBOL, TOKEN_DECIMALS, TOKEN_NAME, TOKEN_VERSION)
    payee = Payee(NETWORK, life.seller, token, life.transfer)  # pyright: ignore[reportArgumentType]
    routes = {
        "GET /before/{what}": PaidRoute("$0.01", settle="before", requests=REQUESTS),
        "GET /after/{what}": PaidRoute("$0.01", requests=REQUESTS),
    }
    if life.network == NETWORK:
        routes["GET /upto/{what}"] = PaidRoute("$0.01", scheme="upto")
        routes["GET /channel/{what}"] = PaidRoute("$0.01", scheme="batch-settlement")
    else:
        payee = Payee(life.network, life.seller)
    app.add_middleware(
        Paywall,  # pyright: ignore[reportArgumentType]
        payees=[payee],
        routes=routes,
        facilitator=make_facilitator({life.network: life.node_url}, life.operator_key, life.database_url),
        database_url=life.database_url,
        rpc_urls={life.network: life.node_url},
    )

    async def count_answer(scope: Any, receive: Any, send: Any) -> None:
        async def send_counted(message: Any) -> None:
            life.reach(f"before {message['type']}")
            await send(message)
            life.reach(f"after {message['type']}")

        wanted = any(name == COUNTED.encode() for name, _ in scope.get("headers", ()))
        life.counting = life.counting or wanted
        await app(scope, receive, send_counted if wanted else send)

    return count_answer


async def send_back(life: Life) -> None:
    """A refund by the API, by an operator who looks whether there is one already; and the worker's round."""
    assert life.wanted is not None
    headers = {"Authorization": f"Bearer {life.wanted['key']}", "Idempotency-Key": life.wanted["once"]}
    api = create_api(life.database_url)
    transport = httpx.ASGITransport(api)
    async with (
        Database(life.database_url) as database,
        api.router.lifespan_context(api),
        httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client,
    ):
        path = f"/v1/payments/{life.wanted['payment_id']}/refunds"
        asked = (await client.get(path)).json()["items"]
        life.counting = True
        if not asked or "looks" not in life.wanted:
            answer = await client.post(path, json={"amount": life.wanted["amount"]})
            assert answer.status_code == 201, answer.text
        await refund_desk.carry_out_open(database)


def run_errand(life: Life) -> None:
    os.environ |= {
        "DATABASE_URL": life.database_url,
        "TOLLBOOK_RPC_URLS": json.dumps({NETWORK: life.node_url}),
        "TOLLBOOK_FACILITATOR_KEY": life.operator_key,
    }
    errands = {"refund": send_back, "commands": payroll.carry_out, WORKER: payroll.work}
    if life.errand in errands:
        asyncio.run(errands[life.errand](life))
        return
    life.counting = True
    sys.argv[1:] = ["payments", "channels", "claim", "--network", NETWORK, "--json"]
    run_command()


def live(life: Life, listener: socket.socket) -> None:
    count_database(life)
    count_node(life)
    psycopg_pool.base.AttemptWithBackoff.INITIAL_DELAY = 0.05  # the server is back in a moment
    for _ in range(life.late):
        move_clock()
    if life.errand is not None:
        run_errand(life)
        return
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
        try:
            live(life, listener)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    return pid


def end(alive: list[int]) -> None:
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def main() -> None:
    """Serve lives until there are no more orders, each of which ends the lives before."""
    global _voice
    _voice = os.dup(1)
    os.dup2(2, 1)  # what commands say is no event
    warm_up()
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(PROCESSES_MAX)]
    tell("listening", ports=[listener.getsockname()[1] for listener in listeners])
    alive: list[int] = []
    for line in sys.stdin:
        order = json.loads(line)
        if "life" not in order:
            tell("done")
            continue
        end(alive)
        alive = [begin(Life(**order["life"]), listener) for listener in listeners[: order["processes"]]]
        if order["life"].get("errand", WORKER) not in (None, WORKER):
            os.waitpid(alive.pop(), 0)
        tell("done")
    end(alive)


if __name__ == "__main__":
    main()
