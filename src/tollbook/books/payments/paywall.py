"""The paywall: ASGI middleware that sells requests of an app's routes for x402 payments.

It stands before routing, passes bodies through unbuffered in both directions, and leaves free routes alone.
Wire format: x402 version 2, HTTP transport (PAYMENT-REQUIRED, PAYMENT-SIGNATURE, PAYMENT-RESPONSE).
"""

import asyncio
import gc
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta

from psycopg.errors import InsufficientPrivilege

from tollbook.books.payments import partitions
from tollbook.books.payments.facilitator.in_process import Facilitator, wake
from tollbook.books.payments.facilitator.ledgered import LedgeredFacilitator
from tollbook.books.payments.facilitator.remote import RemoteFacilitator
from tollbook.books.payments.purchases import ANSWERS_KEPT, Purchases
from tollbook.books.payments.rules import PaidRoute, Payee, Toll, compile_tolls
from tollbook.books.payments.schemes.terms import Terms
from tollbook.books.payments.schemes.upto import take_usage
from tollbook.books.payments.sellers import Books, Seller, make_seller
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.books.payments.solana.node import SolanaNode
from tollbook.books.payments.solana.truth import SolanaTruth
from tollbook.books.payments.truth import ChainTruth
from tollbook.books.payments.usage import Meter
from tollbook.books.payments.wire import (
    App,
    HandlerFailed,
    Message,
    Receive,
    Scope,
    Send,
    answer_again,
    read_headers,
    refuse,
    with_paid_headers,
)
from tollbook.core import journal, storage
from tollbook.core.chains import Chain, is_solana
from tollbook.core.database import Database
from tollbook.core.errors import Refusal
from tollbook.core.settings import Settings

__all__ = ["PaidRoute", "Payee", "Paywall"]

EVM = "eip155:"
PREFLIGHT_HEADER = b"access-control-request-method"

logger = logging.getLogger(__name__)


class Paywall:
    """Sell an app's routes: `app.add_middleware(Paywall, payees=[...], routes={...}, facilitator=...)`.

    `routes` maps "GET /weather/{city}" to a PaidRoute; `payees` say who is paid on which network;
    `facilitator` is a URL or a Facilitator in this process, or several, asked in their order. `rpc_urls` (or
    TOLLBOOK_RPC_URLS) name the chains' nodes, by CAIP-2 id: what no facilitator can tell is looked up there.
    For `answers_kept` a payer who lost his answer gets it again with the same payment. The books are in
    `database_url`, or else where the settings say (DATABASE_URL; the embedded server of TOLLBOOK_DATA_DIR);
    `tollbook up` makes them. Raises WrongPaywall at once where the configuration cannot work.
    """

    def __init__(
        self,
        app: App,
        *,
        routes: Mapping[str, PaidRoute],
        payees: Sequence[Payee],
        facilitator: str | Facilitator | list[str | Facilitator],
        database_url: str | None = None,
        rpc_urls: Mapping[str, str] | None = None,
        answers_kept: timedelta = ANSWERS_KEPT,
    ) -> None:
        self.app = app
        self._tolls = compile_tolls(routes, payees)
        several = isinstance(facilitator, list)
        self._facilitators: list[str | Facilitator] = list(facilitator) if several else [facilitator]
        self._database_url = database_url
        self._rpc_urls = rpc_urls
        self._answers_kept = answers_kept
        self._books: Books | None = None
        self._opening = asyncio.Lock()
        self._failure: Refusal | None = None  # of the last attempt to open the books
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waking: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass free requests on as they are; sell the others."""
        if scope["type"] == "http":
            toll = self._find_toll(scope)
            if toll is not None:
                await self._sell(toll, scope, receive, send)
                return
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, self._with_lifespan(send))
            return
        await self.app(scope, receive, send)

    def _find_toll(self, scope: Scope) -> Toll | None:
        """By the path as the app's router sees it, and by the whole one: behind a mount they differ."""
        method, path = scope["method"], scope["path"]
        if method == "OPTIONS" and any(name == PREFLIGHT_HEADER for name, _ in scope["headers"]):
            return None  # the browser's question before it pays, which no app answers with goods
        root = scope.get("root_path", "")
        if root and path.startswith(root + "/"):
            toll = self._tolls.find(method, path[len(root) :])
            if toll is not None:
                return toll
        return self._tolls.find(method, path)

    async def close(self) -> None:
        """Let go of the books, after the settlements and usage rows under way are written."""
        if self._books is not None:
            books, self._books = self._books, None
            await books.close()

    def _with_lifespan(self, send: Send) -> Send:
        async def send_lifespan(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._waking = asyncio.create_task(wake(self._facilitators))
            if message["type"] == "lifespan.shutdown.complete":
                await self.close()
            await send(message)

        return send_lifespan

    async def _open(self) -> "Books":
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # test clients begin a new loop for each request
            self._loop, self._opening, self._books = loop, asyncio.Lock(), None
        seen = self._failure
        async with self._opening:
            if self._books is None:
                if self._failure is not None and self._failure is not seen:  # it failed while we waited
                    raise self._failure.with_traceback(None)
                try:
                    self._books = await self._open_books()
                except Refusal as refusal:
                    self._failure = refusal
                    raise
                # Requests that wait for their commit outlive the collector's young generation, and each full
                # collection then walked every imported library: a third of the rate (bench/paid_http.py).
                gc.freeze()
            return self._books

    async def _sell(self, toll: Toll, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = read_headers(scope)
        try:
            books = await self._open()
            toll = await books.terms.complete(toll)
            seller, receive = await make_seller(books, toll, wanted, scope, receive)
            answer = await seller.open()
        except Refusal as refusal:
            await refuse(toll, scope, send, refusal)
            return
        if answer is None:
            await _Passage(self.app, toll, seller).run(scope, receive, send)
        else:
            await answer_again(answer, toll, scope, send)

    async def _open_books(self) -> "Books":
        async with AsyncExitStack() as stack:
            url = self._database_url
            if url is None:
                found = await asyncio.to_thread(storage.open_storage, Settings())
                stack.callback(found.close)
                url = found.url
            database = await stack.enter_async_context(Database(url, application="tollbook paywall"))
            async with database.write() as tx:
                await journal.check_epoch(tx)
            await _make_room(database)
            meter = await stack.enter_async_context(Meter(url))
            rpc_urls = PaymentsSettings().rpc_urls if self._rpc_urls is None else self._rpc_urls
            chains = {
                network: await stack.enter_async_context(Chain(network, node))
                for network, node in rpc_urls.items()
                if network.startswith(EVM)
            }
            nodes = {
                network: await stack.enter_async_context(SolanaNode(network, node))
                for network, node in rpc_urls.items()
                if is_solana(network)
            }
            facilitators = dict(self._name_facilitators(stack))
            truth = ChainTruth(chains, {"solana": SolanaTruth(database, nodes)})
            ledgered = LedgeredFacilitator(database, facilitators, truth)
            purchases = Purchases(database, ledgered, self._answers_kept)
            stack.push_async_callback(purchases.close)
            return Books(stack.pop_all(), meter, purchases, Terms(ledgered, url, purchases))

    def _name_facilitators(self, stack: AsyncExitStack) -> Iterator[tuple[str, Facilitator]]:
        """Those given by URL are ours to close."""
        for number, facilitator in enumerate(self._facilitators):
            if isinstance(facilitator, str):
                remote = RemoteFacilitator(facilitator)
                stack.push_async_callback(remote.aclose)
                yield remote.name, remote
            else:
                yield f"in process {number}", facilitator


class _Passage:
    """One paid request on its way through the app: its answer leaves when it is counted, not before."""

    def __init__(self, app: App, toll: Toll, seller: Seller) -> None:
        self._app = app
        self._toll = toll
        self._seller = seller
        self._started = time.monotonic_ns()
        self._began = False  # the app has begun an answer
        self._refused = False  # and it was replaced by a refusal

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._begin(message, scope, send)
            elif not self._refused:
                await self._seller.copy(message)
                await send(message)

        try:
            await self._app(scope, receive, send_counted)
        except Exception:
            if not self._began:
                await self._fall_over(scope, send)
            raise
        finally:
            if not self._began:  # cancelled, or an app that said nothing
                await self._seller.give_up(_find_endpoint(self._toll, scope), self._milliseconds())
            await self._seller.close()

    async def _begin(self, message: Message, scope: Scope, send: Send) -> None:
        self._began = True
        endpoint = _find_endpoint(self._toll, scope)
        own, usage = take_usage(message.get("headers", ()))
        try:
            headers = await self._seller.answer(message["status"], endpoint, self._milliseconds(), usage)
        except Refusal as refusal:
            self._refused = True
            await refuse(self._toll, scope, send, refusal, self._seller.receipt())
            return
        start = {**message, "headers": with_paid_headers(own, headers)}
        await self._seller.copy(start)
        await send(start)

    async def _fall_over(self, scope: Scope, send: Send) -> None:
        """The app raised. Who has paid already gets his receipt with the 500; others get the server's own."""
        self._began = True
        await self._seller.give_up(_find_endpoint(self._toll, scope), self._milliseconds())
        if self._seller.receipt():
            await refuse(self._toll, scope, send, HandlerFailed(), self._seller.receipt())

    def _milliseconds(self) -> int:
        return (time.monotonic_ns() - self._started) // 1_000_000


async def _make_room(database: Database) -> None:
    """Make the partitions of the weeks to come, for sellers who run no worker."""
    try:
        await partitions.make_partitions(database)
        await journal.make_partitions(database)
    except InsufficientPrivilege:
        logger.warning("the paywall may not make partitions: run `tollbook worker`, which may")


def _find_endpoint(toll: Toll, scope: Scope) -> str:
    """The route that served the request as its framework names it, or else the toll's key."""
    path = getattr(scope.get("route"), "path", None)
    return f"{scope['method']} {path}" if path else toll.key
