"""What is judged: a chain, the books, a facilitator's server, a shop behind the paywall; all on 127.0.0.1."""

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import uvicorn
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

import tollbook
from tollbook import embedded
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.books.payments.facilitator.remote import RemoteFacilitator
from tollbook.books.payments.facilitator.server import facilitator_app
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, LocalChain
from tollbook.migrate import Folder, apply

SOURCE = Path(tollbook.__file__).parent
PURSE = 1_000_000_000  # minor units: 1,000 test dollars
PRICE = "$0.01"
AMOUNT = 10_000  # the same in minor units
PATH = "/goods"
OTHER_PATH = "/other-goods"
RECEIPT_SECONDS_MAX = 3.0  # a judge that stops the chain's mining waits so long for its answer
START_SECONDS_MAX = 30.0
POLL_SECONDS = 0.01
SETTLE_SECONDS_MAX = 5.0
STOP_SECONDS_MAX = 2


Settle = Literal["after", "before"]  # the handler: when the money moves


@dataclass(frozen=True, slots=True)
class Stage:
    """The parts that the judges meet. `facilitator_url` is the facilitator's server, over real HTTP."""

    chain: LocalChain
    token: str
    seller: LocalAccount
    database_url: str
    facilitator_url: str

    def make_payer(self) -> LocalAccount:
        """Return a fresh account with test dollars."""
        return self.chain.make_account(amount=PURSE)


@contextmanager
def open_stage() -> Generator[Stage]:
    """Yield the stage; all of it goes at the end."""
    with ExitStack() as stack:
        server = stack.enter_context(embedded.throwaway())
        folders = [Folder("core", SOURCE / "core/migrations")]
        folders.append(Folder("payments", SOURCE / "books/payments/migrations"))
        apply(server.url(), folders, backup=False)
        chain = stack.enter_context(LocalChain.start())
        token = chain.ensure_token()
        operator = chain.make_account(wei=GAS_MONEY_WEI)
        url = stack.enter_context(serve(_make_facilitator(chain, operator, server.url())))
        yield Stage(chain, token, chain.make_account(), server.url(), url)


def _make_facilitator(chain: LocalChain, operator: LocalAccount, database_url: str) -> Starlette:
    facilitator = InProcessFacilitator(
        {NETWORK: chain.url}, "0x" + operator.key.hex(), database_url, receipt_seconds_max=RECEIPT_SECONDS_MAX
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        yield
        await facilitator.aclose()

    return Starlette(routes=[Mount("/", facilitator_app(facilitator))], lifespan=lifespan)


def make_shop(
    database_url: str,
    facilitator_url: str,
    network: str,
    pay_to: str,
    settle: Settle = "after",
    settle_seconds_max: float = SETTLE_SECONDS_MAX,
) -> Paywall:
    """Return an app with two paid routes of one price, whose answers count how often their handler ran.

    It waits for `settle_seconds_max` for an answer of /settle.
    """
    app = FastAPI()
    deliveries = 0

    @app.get(PATH)
    @app.get(OTHER_PATH)
    async def read_goods() -> dict[str, int]:  # pyright: ignore[reportUnusedFunction] - FastAPI has it
        nonlocal deliveries
        deliveries += 1
        return {"delivery": deliveries}

    terms = PaidRoute(PRICE, lifetime=timedelta(hours=1), settle=settle)
    return Paywall(
        app,
        routes=dict.fromkeys((f"GET {PATH}", f"GET {OTHER_PATH}"), terms),
        payees=[Payee(network, pay_to)],
        facilitator=RemoteFacilitator(facilitator_url, settle_seconds_max=settle_seconds_max),
        database_url=database_url,
    )


@contextmanager
def serve(app: Any) -> Generator[str]:
    """Yield the URL under which an ASGI app answers, served by a thread of its own while the block runs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=STOP_SECONDS_MAX)
        server = uvicorn.Server(config)
        started = threading.Event()
        thread = threading.Thread(target=_run, args=(server, listener, started), daemon=True)
        thread.start()
        if not started.wait(START_SECONDS_MAX):
            raise RuntimeError("the app did not start")
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def _run(server: uvicorn.Server, listener: socket.socket, started: threading.Event) -> None:
    async def run() -> None:
        running = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not running.done():  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(POLL_SECONDS)
        started.set()
        await running

    asyncio.run(run())
