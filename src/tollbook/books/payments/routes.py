"""The payments book over HTTP: /v1/payments."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from tollbook.books.payments import analytics, claims, jobs, payers, payments, refunds, tokens
from tollbook.books.payments.analytics import EndpointStats
from tollbook.books.payments.claims import Claimed, ClaimRequest
from tollbook.books.payments.payers import TopPayer
from tollbook.books.payments.payments import Payment, Stats, Status
from tollbook.books.payments.refunds import Refund
from tollbook.books.payments.rules import Tolls
from tollbook.books.payments.solana.node import SolanaNode
from tollbook.books.payments.tokens import Token
from tollbook.core import clock, telemetry
from tollbook.core.chains import Chain
from tollbook.core.errors import Refusal
from tollbook.core.http import PROBLEMS, Base, Caller, IdempotentRoute, NewId, read_id, require
from tollbook.core.paging import LIMIT_DEFAULT, Cursor, Limit, Page, cut, read_cursor

READ = "payments:read"
WRITE = "payments:write"

ADDRESS_LENGTH_MAX = 64
NETWORK_LENGTH_MAX = 64


class NothingToClaim(Refusal):
    """The server sells nothing that a transaction hash could buy."""

    reason = "nothing-to-claim"
    status = 501


class NewRefund(BaseModel):
    """What is to be sent back: minor units as a text, or all that is left."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    amount: str | None = Field(default=None, pattern=r"^[1-9][0-9]{0,77}$", examples=["50000"])
    reason: str | None = Field(default=None, max_length=refunds.REASON_LETTERS_MAX)


@dataclass(frozen=True, slots=True)
class Done:
    """How many rows a job that was run by hand touched."""

    count: int


def _read_payment_id(pay_id: str) -> int:
    return read_id("pay", pay_id)


def _read_token_id(tok_id: str) -> int:
    return read_id("tok", tok_id)


PaymentPath = Annotated[int, Depends(_read_payment_id)]
TokenPath = Annotated[int, Depends(_read_token_id)]
Address = Annotated[str | None, Query(max_length=ADDRESS_LENGTH_MAX, description="Who paid.")]
Network = Annotated[
    str | None, Query(max_length=NETWORK_LENGTH_MAX, description="A CAIP-2 network, as eip155:8453.")
]

router = APIRouter(prefix="/v1/payments", tags=["payments"], route_class=IdempotentRoute, responses=PROBLEMS)


@router.get("", dependencies=[require(READ)])
async def list_payments(
    database: Base,
    status: Status | None = None,
    from_address: Address = None,
    network: Network = None,
    cursor: Cursor = None,
    limit: Limit = LIMIT_DEFAULT,
) -> Page[Payment]:
    """Payments, the newest first."""
    async with database.read() as tx:
        rows = await payments.page(
            tx,
            after=read_cursor(cursor),
            limit=limit + 1,
            status=status,
            from_address=from_address,
            network=network,
        )
    return cut(rows, limit, lambda payment: payment.payment_id)


@router.get("/stats", dependencies=[require(READ)])
async def get_stats(database: Base) -> list[Stats]:
    """What each chain brought in the last 24 hours."""
    async with database.read() as tx:
        return await payments.stats(tx)


@router.get("/top-payers", dependencies=[require(READ)])
async def list_top_payers(database: Base) -> list[TopPayer]:
    """The hundred who paid most, over all time."""
    async with database.read() as tx:
        return await payers.top(tx)


@router.get("/endpoints", dependencies=[require(READ)])
async def list_endpoints(database: Base) -> list[EndpointStats]:
    """Each paid endpoint's last 24 hours."""
    async with database.read() as tx:
        return await analytics.endpoints(tx)


@router.get("/tokens", dependencies=[require(READ)])
async def list_tokens(
    database: Base, payment: str | None = None, cursor: Cursor = None, limit: Limit = LIMIT_DEFAULT
) -> Page[Token]:
    """Access tokens, the newest first, without their secrets; of one payment, or of all."""
    payment_id = None if payment is None else read_id("pay", payment)
    async with database.read() as tx:
        rows = await tokens.page(tx, after=read_cursor(cursor), limit=limit + 1, payment_id=payment_id)
    return cut(rows, limit, lambda token: token.token_id)


@router.post("/tokens/{tok_id}/revoke", dependencies=[require(WRITE)])
async def revoke_token(database: Base, token_id: TokenPath) -> Token:
    """Revoke an access token: within a second every process refuses it."""
    async with database.write() as tx:
        return await tokens.revoke(tx, token_id, now=clock.now())


@router.post("/cleanup", dependencies=[require(WRITE)])
async def clean_up(database: Base) -> Done:
    """Expire now what is past its time; the worker does it every hour."""
    return Done(await jobs.clean_up(database))


@router.post("/analytics", dependencies=[require(WRITE)])
async def count_up(database: Base) -> Done:
    """Bring the analytics up to date now; the worker does it every hour."""
    return Done(await jobs.count_up(database))


@router.get("/{pay_id}", dependencies=[require(READ)])
async def get_payment(database: Base, payment_id: PaymentPath) -> Payment:
    """One payment."""
    async with database.read() as tx:
        return await payments.get(tx, payment_id)


@router.get("/{pay_id}/refunds", dependencies=[require(READ)])
async def list_refunds(
    database: Base, payment_id: PaymentPath, cursor: Cursor = None, limit: Limit = LIMIT_DEFAULT
) -> Page[Refund]:
    """What of a payment went back to its payer, or is on its way; the newest first."""
    async with database.read() as tx:
        await payments.get(tx, payment_id)
        rows = await refunds.page(tx, after=read_cursor(cursor), limit=limit + 1, payment_id=payment_id)
    return cut(rows, limit, lambda refund: refund.refund_id)


@router.post("/{pay_id}/refunds", status_code=201, dependencies=[require(WRITE)])
async def request_refund(
    database: Base, payment_id: PaymentPath, wanted: NewRefund, refund_id: NewId
) -> Refund:
    """Ask for a payment to be sent back, whole or in part. The sum is taken at once, and the worker sends it.

    Its status is `requested` until then; it ends as `done` or `failed`, with its error.
    """
    async with database.write() as tx:
        amount = None if wanted.amount is None else int(wanted.amount)
        return await refunds.request(
            tx, payment_id, amount=amount, reason=wanted.reason, refund_id=refund_id, now=clock.now()
        )


def make_claims_router(tolls: Tolls | None, chains: Mapping[str, Chain | SolanaNode]) -> APIRouter:
    """POST /v1/payments: what a transaction buys depends on what this server sells and whom it asks."""
    claiming = APIRouter(tags=["payments"], route_class=IdempotentRoute, responses=PROBLEMS)

    @claiming.post("/v1/payments", status_code=201)
    async def claim_payment(database: Base, caller: Caller, request: ClaimRequest) -> Claimed:
        """Present a transaction that paid already; it buys an access token, once.

        The payer signs for it, or a caller whose API key has payments:write vouches for him.
        """
        if tolls is None:
            raise NothingToClaim(
                "This server sells nothing by transaction hash. Its operator sets TOLLBOOK_ROUTES, "
                "TOLLBOOK_PAYEES and TOLLBOOK_RPC_URLS."
            )
        vouched = caller is not None and caller.allows(WRITE)
        claimed = await claims.claim(database, chains, tolls, request, vouched=vouched, now=clock.now())
        telemetry.PAYMENTS.labels(claimed.payment.network, "claimed").inc()
        return claimed

    return claiming
