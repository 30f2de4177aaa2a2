"""The books set against the chains from the command line: `tollbook payments reconcile`, refunds and more."""

import re
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from tollbook.books.payments import payments, refunds
from tollbook.books.payments.payments import Payment
from tollbook.books.payments.reconciler import differences
from tollbook.books.payments.reconciler.differences import Difference
from tollbook.books.payments.refunds import Refund
from tollbook.core import clock
from tollbook.core.commands import Id, answer, answer_page, ask, json_option, limit_option, storage_options
from tollbook.core.database import Database
from tollbook.core.errors import Refusal
from tollbook.core.settings import Settings

# The SDK, and what stands on it, takes a second to import: only the commands that need it do.
if TYPE_CHECKING:
    from tollbook.books.payments.reconciler.reconcile import Report

EXIT_FAILED = 1
EXIT_OPEN = 3
NOTE_CHARS_MAX = 110
UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_AGE = re.compile(r"([0-9]{1,6})([mhd])")


class Moment(click.ParamType):  # pyright: ignore[reportMissingTypeArgument] - not generic in click 8.1
    """A moment, as 2026-11-21, 2026-11-21T14:00 (UTC), or how long ago, as 90m, 6h, 30d."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the moment with its time zone, or fail as wrong usage."""
        if isinstance(value, datetime):
            return value
        age = _AGE.fullmatch(str(value))
        if age is not None:
            return clock.now() - timedelta(**{UNITS[age[2]]: int(age[1])})
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{str(value)[:40]!r} is no moment like 2026-11-21, 2026-11-21T14:00, 6h or 30d.")
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@click.command("reconcile")
@click.option("--since", type=Moment(), help="Look again at all from then on: 2026-11-21, or 6h, 30d.")
@storage_options
@json_option
def reconcile(*, settings: Settings, since: datetime | None, as_json: bool) -> None:
    """Compare the books with the chains, name what differs, and mend what is safe to mend.

    Without --since: what is open, recent, or new on the chains of TOLLBOOK_RPC_URLS. Safe at any time, also
    twice at once. With the operator's key it goes on with the refunds that were asked for. Ends with 3 while
    differences are open, with 1 where a chain's node did not answer. docs/reconcile.md says what each kind of
    difference means.
    """

    from tollbook.books.payments import refund_desk
    from tollbook.books.payments.reconciler.reconcile import open_reconciler
    from tollbook.books.payments.settings import PaymentsSettings

    async def run(database: Database) -> "Report":
        async with open_reconciler(database, PaymentsSettings()) as reconciler:
            report = await reconciler.run(since)
        with suppress(Refusal):  # without a key or a node they wait on, and are named where that takes long
            await refund_desk.carry_out_open(database)
        return report

    report = ask(settings, run)
    if as_json:
        answer(report, as_json=True)
    else:
        rows = [_shorten(difference) for difference in report.differences]
        answer(rows, as_json=False, title="Differences seen", empty=_say_clean(report))
        click.echo(f"{report.looked_at} rows and transfers looked at; {report.open_count} differences open.")
        for network, sentence in report.unreachable.items():
            click.echo(f"Not compared: {network}. {sentence}", err=True)
    sys.exit(EXIT_FAILED if report.unreachable else EXIT_OPEN if report.open_count else 0)


@click.command("differences")
@click.option("--all", "everything", is_flag=True, help="Also those mended or accepted.")
@click.option("--after", type=Id("dif"), metavar="DIF_ID", help="Those older than this one.")
@limit_option
@storage_options
@json_option
def list_differences(
    *, settings: Settings, everything: bool, after: int | None, limit: int, as_json: bool
) -> None:
    """List the open differences, the newest first. Ends with 3 where there are any."""

    async def read(database: Database) -> tuple[list[Difference], int]:
        async with database.read() as tx:
            status = None if everything else "open"
            rows = await differences.page(tx, status=status, after=after, limit=limit + 1)
            return rows, await differences.count_open(tx)

    found, open_count = ask(settings, read)
    answer_page(
        found,
        limit,
        last=lambda difference: differences.show(difference.difference_id),
        shorten=_shorten,
        as_json=as_json,
        title="Differences, newest first",
        empty="No open differences.",
    )
    sys.exit(EXIT_OPEN if open_count else 0)


@click.command("accept")
@click.argument("difference_id", type=Id("dif"))
@click.option("--note", required=True, help="Why it may stay as it is.")
@storage_options
@json_option
def accept_difference(difference_id: int, *, settings: Settings, note: str, as_json: bool) -> None:
    """Let an open difference be: you have looked at it. It is not counted again."""

    async def accept(database: Database) -> Difference:
        async with database.write() as tx:
            return await differences.accept(tx, difference_id, note, now=clock.now())

    answer(ask(settings, accept), as_json=as_json)


@click.command("refund")
@click.argument("payment_id", type=Id("pay"))
@click.option("--amount", metavar="0.05", help="In whole tokens. Default: all that is left.")
@click.option("--reason", help="Kept with the refund.")
@storage_options
@json_option
def refund_payment(
    payment_id: int, *, settings: Settings, amount: str | None, reason: str | None, as_json: bool
) -> None:
    """Send a payment back to its payer, whole or in part, from the operator's account.

    The operator's key (TOLLBOOK_FACILITATOR_KEY or TOLLBOOK_FACILITATOR_KEY_FILE; on Solana
    TOLLBOOK_SOLANA_KEY or TOLLBOOK_SOLANA_KEY_FILE) pays, by the nodes of TOLLBOOK_RPC_URLS. It is never more
    than was paid. A whole refund ends the payment. While the payment is not final its refund is `requested`,
    and the worker or `reconcile` goes on with it.
    """

    from tollbook.books.payments import refund_desk
    from tollbook.books.payments.settings import PaymentsSettings

    async def send(database: Database) -> Refund:
        async with database.read() as tx:
            payment = await payments.get(tx, payment_id)
        minor = None if amount is None else _read_amount(amount, payment)
        async with refund_desk.open_desk(database, PaymentsSettings()) as desk:
            return await desk.refund(payment_id, amount=minor, reason=reason)

    answer(ask(settings, send), as_json=as_json)


@click.command("refunds")
@click.option("--payment", "payment_id", type=Id("pay"), metavar="PAY_ID", help="Only this payment's.")
@click.option("--after", type=Id("ref"), metavar="REF_ID", help="Those older than this one.")
@limit_option
@storage_options
@json_option
def list_refunds(
    *, settings: Settings, payment_id: int | None, after: int | None, limit: int, as_json: bool
) -> None:
    """List refunds, the newest first."""

    async def read(database: Database) -> list[Refund]:
        async with database.read() as tx:
            return await refunds.page(tx, after=after, limit=limit + 1, payment_id=payment_id)

    answer_page(
        ask(settings, read),
        limit,
        last=lambda refund: refunds.show(refund.refund_id),
        shorten=_shorten_refund,
        as_json=as_json,
        title="Refunds, newest first",
        empty="No refunds yet.",
    )


def _say_clean(report: "Report") -> str:
    asked = [network for network in report.networks if network not in report.unreachable]
    if not asked:
        return "No chain was asked: name its node in TOLLBOOK_RPC_URLS. The books agree with themselves."
    return f"The books agree with {', '.join(asked)}."


COMMANDS = (reconcile, list_differences, accept_difference, refund_payment, list_refunds)


def _read_amount(text: str, payment: Payment) -> int:
    from tollbook.books.payments.rules import WrongPaywall, read_price

    try:
        return read_price(text, payment.decimals)
    except WrongPaywall:
        raise click.UsageError(
            f"--amount {text[:40]!r} is no positive amount with at most {payment.decimals} decimals."
        ) from None


def _shorten(difference: Difference) -> dict[str, object]:
    """What fits a terminal's width of a difference."""
    note = difference.note
    return {
        "difference": differences.show(difference.difference_id),
        "kind": difference.kind,
        "status": difference.status,
        "about": _name_subject(difference),
        "booked": difference.amount_booked,
        "moved": difference.amount_moved,
        "note": note if len(note) <= NOTE_CHARS_MAX else f"{note[: NOTE_CHARS_MAX - 1]}…",
    }


def _name_subject(difference: Difference) -> str:
    if difference.refund_id is not None:
        return refunds.show(difference.refund_id)
    if difference.payment_id is not None:
        return payments.show(difference.payment_id)
    return difference.tx_hash or difference.subject


def _shorten_refund(refund: Refund) -> dict[str, object]:
    return {
        "refund": refunds.show(refund.refund_id),
        "payment": payments.show(refund.payment_id),
        "requested": f"{refund.requested_at:%Y-%m-%d %H:%M:%S}",
        "status": refund.status,
        "amount": refund.amount,
        "to": f"{refund.to_address[:8]}…{refund.to_address[-4:]}",
        "transaction": refund.tx_hash or refund.error,
    }
