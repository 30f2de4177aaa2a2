"""`tollbook payments` and `tollbook tokens`: the book read, and its upkeep, from the command line."""

from datetime import timedelta
from typing import get_args

import click

from tollbook.books.payments import analytics, payments, tokens
from tollbook.books.payments.payments import Payment, Status
from tollbook.books.payments.reconciler.cli import COMMANDS
from tollbook.books.payments.schemes.cli import channels_group
from tollbook.core import clock
from tollbook.core.commands import Id, answer, answer_page, ask, json_option, limit_option, storage_options
from tollbook.core.database import Database
from tollbook.core.settings import Settings

# The SDK, and what stands on it, takes a second to import: only the commands that need it do.

HOURS_DEFAULT = 24
HOURS_MAX = 24 * 366


@click.group("payments")
def payments_group() -> None:
    """What was paid and what it bought."""


payments_group.add_command(channels_group)
for command in COMMANDS:
    payments_group.add_command(command)


@payments_group.command("list")
@click.option("--status", type=click.Choice(get_args(Status)))
@click.option("--from", "from_address", metavar="ADDRESS", help="Only this payer's.")
@click.option("--network", metavar="NETWORK", help="Only this network's, by name or CAIP-2 id.")
@click.option("--after", type=Id("pay"), metavar="PAY_ID", help="Those older than this one.")
@limit_option
@storage_options
@json_option
def list_payments(
    *,
    settings: Settings,
    status: Status | None,
    from_address: str | None,
    network: str | None,
    after: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """List payments, the newest first."""
    payer = _read_payer(from_address) if from_address else None
    chain = _read_network(network) if network else None

    async def read(database: Database) -> list[Payment]:
        async with database.read() as tx:
            return await payments.page(
                tx, after=after, limit=limit + 1, status=status, from_address=payer, network=chain
            )

    answer_page(
        ask(settings, read),
        limit,
        last=lambda payment: payments.show(payment.payment_id),
        shorten=_shorten,
        as_json=as_json,
        title="Payments, newest first",
        empty="No payments yet.",
    )


@payments_group.command("show")
@click.argument("payment_id", type=Id("pay"))
@storage_options
@json_option
def show_payment(payment_id: int, *, settings: Settings, as_json: bool) -> None:
    """Show one payment."""

    async def read(database: Database) -> Payment:
        async with database.read() as tx:
            return await payments.get(tx, payment_id)

    answer(ask(settings, read), as_json=as_json)


@payments_group.command("stats")
@storage_options
@json_option
def show_stats(*, settings: Settings, as_json: bool) -> None:
    """Show the last 24 hours of each chain."""

    async def read(database: Database) -> list[payments.Stats]:
        async with database.read() as tx:
            return await payments.stats(tx)

    answer(ask(settings, read), as_json=as_json, title="The last 24 hours", empty="No payments in 24 hours.")


@payments_group.command("cleanup")
@storage_options
@json_option
def clean_up(*, settings: Settings, as_json: bool) -> None:
    """Expire what is past its time now, as the worker does every hour."""
    from tollbook.books.payments import jobs

    answer({"expired": ask(settings, jobs.clean_up)}, as_json=as_json)


@payments_group.command("analytics")
@click.option("--hours", default=HOURS_DEFAULT, show_default=True, type=click.IntRange(1, HOURS_MAX))
@storage_options
@json_option
def show_analytics(*, settings: Settings, hours: int, as_json: bool) -> None:
    """Bring the analytics up to date, as the worker does every hour, and show the last hours."""
    from tollbook.books.payments import jobs

    until = clock.now() + timedelta(hours=1)
    since = until - timedelta(hours=hours + 1)

    async def count(database: Database) -> list[analytics.Hour]:
        await jobs.count_up(database)
        async with database.read() as tx:
            return await analytics.hours(tx, since=since, until=until)

    found = ask(settings, count)
    rows = found if as_json else [_shorten_hour(hour) for hour in found]
    answer(rows, as_json=as_json, title=f"The last {hours} hours", empty="Nothing in these hours.")


@click.group("tokens")
def tokens_group() -> None:
    """Access tokens: list and revoke them."""


@tokens_group.command("list")
@click.option("--payment", "payment_id", type=Id("pay"), metavar="PAY_ID", help="Only this payment's.")
@click.option("--after", type=Id("tok"), metavar="TOK_ID", help="Those older than this one.")
@limit_option
@storage_options
@json_option
def list_tokens(
    *, settings: Settings, payment_id: int | None, after: int | None, limit: int, as_json: bool
) -> None:
    """List tokens, the newest first; their secrets are not kept and cannot be shown."""

    async def read(database: Database) -> list[tokens.Token]:
        async with database.read() as tx:
            return await tokens.page(tx, after=after, limit=limit + 1, payment_id=payment_id)

    answer_page(
        ask(settings, read),
        limit,
        last=lambda token: tokens.show(token.token_id),
        as_json=as_json,
        title="Tokens, newest first",
        empty="No tokens yet.",
    )


@tokens_group.command("revoke")
@click.argument("token_id", type=Id("tok"))
@storage_options
@json_option
def revoke_token(token_id: int, *, settings: Settings, as_json: bool) -> None:
    """Revoke a token: every process refuses it within a second."""

    async def revoke(database: Database) -> tokens.Token:
        async with database.write() as tx:
            return await tokens.revoke(tx, token_id, now=clock.now())

    answer(ask(settings, revoke), as_json=as_json)


def _read_payer(address: str) -> str:
    from tollbook.core.chains import normalize_address

    return normalize_address(address)


def _read_network(name: str) -> str:
    from tollbook.core.chains import find_network

    return find_network(name).id


def _shorten_hour(hour: analytics.Hour) -> dict[str, object]:
    """What fits a terminal's width of an hour."""
    return {
        "hour": f"{hour.hour_bucket:%Y-%m-%d %H:%M}",
        "chain": hour.chain,
        "endpoint": hour.endpoint,
        "payments": hour.total_payments,
        "usdc": f"{hour.total_amount_usdc.normalize():f}",
        "payers": hour.unique_payers,
        "requests": hour.total_requests,
        "errors": hour.error_count,
        "ms": round(hour.response_time_ms_total / hour.total_requests) if hour.total_requests else None,
    }


def _shorten(payment: Payment) -> dict[str, object]:
    """What fits a terminal's width of a payment."""
    return {
        "payment": payments.show(payment.payment_id),
        "created": f"{payment.created_at:%Y-%m-%d %H:%M:%S}",
        "status": payment.status
        if payment.settlement == "settled"
        else f"{payment.status}, {payment.settlement}",
        "usdc": f"{payment.amount_usdc.normalize():f}",
        "chain": payment.chain,
        "from": f"{payment.from_address[:8]}…{payment.from_address[-4:]}",
        "endpoint": payment.endpoint,
        "used": f"{payment.requests_used}/{payment.requests_allocated}",
    }
