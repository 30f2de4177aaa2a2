"""The HTTP API: every book's routes on one app, with health, readiness and metrics."""

from collections.abc import AsyncGenerator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict

from tollbook.books.payments import routes as payments
from tollbook.books.payments.rules import compile_tolls
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.books.payments.solana.node import SolanaNode
from tollbook.books.settlement import routes as settlement
from tollbook.core import clock, http, journal, keys, telemetry
from tollbook.core.chains import Chain, is_solana
from tollbook.core.database import Database
from tollbook.core.http import PROBLEMS, Base, IdempotentRoute, NewId, read_id, require
from tollbook.core.keys import Key, KeyGrant
from tollbook.core.paging import LIMIT_DEFAULT, Cursor, Limit, Page, cut, read_cursor
from tollbook.core.settings import Settings
from tollbook.core.webhooks import routes as webhooks

# Each book, and a table that is there where its migrations were applied.
BOOKS = {"payments": "payments.x402_payments", "settlement": "settlement.settlement_commands"}
READ_KEYS = "keys:read"
WRITE_KEYS = "keys:write"


class NewKey(BaseModel):
    """What a new API key shall be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    scopes: list[str]
    expires_at: AwareDatetime | None = None


def create_api(
    database_url: str,
    settings: PaymentsSettings | None = None,
    books: Collection[str] = tuple(BOOKS),
    core: Settings | None = None,
) -> FastAPI:
    """The app on this database, with these books' routes. It opens its connections when it starts and
    closes them when it ends.

    `settings` say what a transaction hash may buy (POST /v1/payments), `core` where the secret key is; by
    default the environment does.
    Raises WrongPaywall where they cannot work; starting it raises DatabaseUnreachable, NotMigrated.
    """
    settings = settings or PaymentsSettings()
    database = Database(database_url, application="tollbook api")
    chains: dict[str, Chain | SolanaNode] = {}
    tolls = compile_tolls(settings.routes, settings.payees) if settings.routes else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(database)
            for network, url in settings.rpc_urls.items():
                node = SolanaNode(network, url) if is_solana(network) else Chain(network, url)
                chains[network] = await stack.enter_async_context(node)
            async with database.write() as tx:
                await journal.check_epoch(tx)
            yield

    app = FastAPI(
        title="Tollbook",
        version=version("tollbook"),
        summary="The books for x402: what was paid, what it bought, what was used.",
        lifespan=lifespan,
    )
    http.install(app, database, settlement.STREAMS)
    app.include_router(_operations)
    app.include_router(webhooks.make_router(core or Settings()))
    app.include_router(webhooks.make_router(core or Settings(), webhooks.REFERENCE), include_in_schema=False)
    app.state.tables = ["core.journal", *(BOOKS[book] for book in books)]
    routers = {
        "payments": [payments.make_claims_router(tolls, chains), payments.router],
        "settlement": settlement.ROUTERS,
    }
    for book in books:
        for router in routers[book]:
            app.include_router(router)
    app.include_router(_keys)
    return app


_operations = APIRouter(tags=["operations"], responses=PROBLEMS)
_keys = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=IdempotentRoute, responses=PROBLEMS)


@_operations.get("/healthz")
async def is_alive() -> dict[str, str]:
    """The process runs."""
    return {"status": "ok"}


@_operations.get("/readyz")
async def is_ready(request: Request, database: Base) -> dict[str, str]:
    """The database answers and the books are in it."""
    async with database.read() as tx:
        ready = await tx.value(
            "SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest(%(tables)s::text[]) AS name",
            {"tables": request.app.state.tables},
        )
    if not ready:
        raise journal.NotMigrated
    return {"status": "ready"}


@_operations.get("/metrics", response_class=Response)
async def get_metrics(database: Base) -> Response:
    """This process's metrics, for Prometheus."""
    return Response(telemetry.expose(database), media_type=telemetry.CONTENT_TYPE)


def _read_key_id(key_id: str) -> int:
    return read_id("key", key_id)


@_keys.get("", dependencies=[require(READ_KEYS)])
async def list_keys(database: Base, cursor: Cursor = None, limit: Limit = LIMIT_DEFAULT) -> Page[Key]:
    """API keys, the newest first, without their secrets."""
    async with database.read() as tx:
        rows = await keys.page(tx, after=read_cursor(cursor), limit=limit + 1)
    return cut(rows, limit, lambda key: key.key_id)


@_keys.post("", status_code=201)
async def create_key(
    database: Base, caller: Annotated[Key, require(WRITE_KEYS)], wanted: NewKey, key_id: NewId
) -> KeyGrant:
    """Make an API key. Its secret is in this answer and nowhere else."""
    keys.check_within(caller, wanted.scopes)
    async with database.write() as tx:
        return await keys.create(
            tx,
            name=wanted.name,
            scopes=wanted.scopes,
            expires_at=wanted.expires_at,
            key_id=key_id,
            now=clock.now(),
        )


@_keys.post("/{key_id}/revoke", dependencies=[require(WRITE_KEYS)])
async def revoke_key(database: Base, number: Annotated[int, Depends(_read_key_id)]) -> Key:
    """Revoke an API key: it is refused from now on, everywhere."""
    async with database.write() as tx:
        return await keys.revoke(tx, number, now=clock.now())
