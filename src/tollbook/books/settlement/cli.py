"""`tollbook settlement`: commands sent, listed, shown, taken back and tried again, from the command line."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from dataclasses import asdict
from io import BufferedReader
from typing import get_args

import click

from tollbook.books.settlement import commands
from tollbook.books.settlement.commands import Command, Move, Status
from tollbook.core import clock
from tollbook.core.commands import (
    answer,
    answer_page,
    ask,
    json_option,
    limit_option,
    storage_options,
    to_plain,
)
from tollbook.core.database import Database
from tollbook.core.settings import Settings

# The SDK, which knows the networks, takes a second to import: only the commands that need it do.

PART_BYTES = 64 * 1024
EXIT_REJECTED = 1


@click.group("settlement")
def settlement_group() -> None:
    """Commands to pay somebody on a chain, and what became of each."""


@settlement_group.command("ingest")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--dry-run", is_flag=True, help="Say what would become of each; keep and send nothing.")
@storage_options
@json_option
def ingest(file: BufferedReader, *, dry_run: bool, settings: Settings, as_json: bool) -> None:
    """Receive the commands of FILE: one a line (NDJSON), or a JSON array. Without FILE: of standard input.

    Sent again they are answered again. What is wrong is told and the rest is kept; exit code 1 then.
    """
    from tollbook.books.settlement import bulk

    if dry_run:
        _simulate(file, settings, as_json=as_json)
        return

    async def take(database: Database) -> bulk.Counts:
        first = await _read_part(file)
        if bulk.is_array(first):
            results, counts = await bulk.take_array(database, await _read_all(first, file))
            await _tell(b"".join(json.dumps(result).encode() + b"\n" for result in results), as_json=as_json)
            return counts

        async def tell(results: bytes) -> None:
            await _tell(results, as_json=as_json)

        return await bulk.take_stream(database, _read_parts(first, file), tell)

    counts = ask(settings, take)
    if as_json:
        click.echo(bulk.show_end(counts), nl=False)
    else:
        answer(asdict(counts), as_json=False, title="Commands")
    if counts.rejected:
        raise SystemExit(EXIT_REJECTED)


@settlement_group.command("list")
@click.option("--status", type=click.Choice(get_args(Status)))
@click.option("--workflow", "workflow_id", metavar="WORKFLOW_ID", help="Only this workflow's.")
@click.option("--account", "account_ref", metavar="ACCOUNT_REF", help="Only this account's.")
@click.option("--after", metavar="COMMAND_ID", help="Those older than this one.")
@limit_option
@storage_options
@json_option
def list_commands(
    *,
    settings: Settings,
    status: Status | None,
    workflow_id: str | None,
    account_ref: str | None,
    after: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List commands, the newest first."""

    async def read(database: Database) -> list[Command]:
        async with database.read() as tx:
            last = await commands.get(tx, after) if after is not None else None
            return await commands.page(
                tx,
                after=None if last is None else (last.received_at, last.command_id),
                limit=limit + 1,
                status=status,
                workflow_id=workflow_id,
                account_ref=account_ref,
            )

    answer_page(
        ask(settings, read),
        limit,
        last=lambda command: command.command_id,
        shorten=_shorten,
        as_json=as_json,
        title="Commands, newest first",
        empty="No commands yet.",
    )


@settlement_group.command("show")
@click.argument("command_id")
@storage_options
@json_option
def show_command(command_id: str, *, settings: Settings, as_json: bool) -> None:
    """Show one command and every move it made."""

    async def read(database: Database) -> tuple[Command, list[Move]]:
        async with database.read() as tx:
            return await commands.get(tx, command_id), await commands.list_moves(tx, command_id)

    command, history = ask(settings, read)
    if as_json:
        answer({"command": to_plain(command), "history": to_plain(history)}, as_json=True)
    else:
        answer(command, as_json=False)
        answer(history, as_json=False, title="History")


@settlement_group.command("retry")
@click.argument("command_id")
@storage_options
@json_option
def retry_command(command_id: str, *, settings: Settings, as_json: bool) -> None:
    """Try a command that failed again, in a new round."""

    from tollbook.books.settlement import limits

    async def retry(database: Database) -> Command:
        async with database.write() as tx:
            return await limits.retry(tx, command_id, now=clock.now())

    answer(ask(settings, retry), as_json=as_json)


@settlement_group.command("cancel")
@click.argument("command_id")
@click.option("--reason", metavar="TEXT", help="Why, for the history.")
@click.option(
    "--although-it-may-come",
    is_flag=True,
    help="At once, at your risk: a node may yet bring out what it said it refused.",
)
@storage_options
@json_option
def cancel_command(
    command_id: str, *, settings: Settings, reason: str | None, although_it_may_come: bool, as_json: bool
) -> None:
    """Take a command back, as long as no transaction of it is under way.

    One that a node refused stays executed until that can come no more, and is not sent any more.
    """

    from tollbook.books.settlement import endings

    async def cancel(database: Database) -> Command:
        async with database.write() as tx:
            return await endings.cancel(
                tx, command_id, reason, although_it_may_come=although_it_may_come, now=clock.now()
            )

    answer(ask(settings, cancel), as_json=as_json)


def _simulate(file: BufferedReader, settings: Settings, *, as_json: bool) -> None:
    """Tell what would become of each command. Raises CommandMalformed for the first that is none."""

    from tollbook.books.settlement import bulk
    from tollbook.books.settlement.dry_run import SIMULATED_MAX, Forecast, simulate
    from tollbook.books.settlement.errors import CommandMalformed
    from tollbook.books.settlement.requests import Order
    from tollbook.books.settlement.settings import SettlementSettings

    async def forecast(database: Database) -> list[Forecast]:
        orders: list[Order] = []
        for read in bulk.read_all(await _read_all(b"", file)):
            if isinstance(read, CommandMalformed):
                raise read
            orders.append(read)
        if len(orders) > SIMULATED_MAX:
            raise bulk.ArrayMalformed(f"A dry run has {SIMULATED_MAX} commands at most. Give less.")
        return await simulate(database, SettlementSettings(), orders)

    answer(ask(settings, forecast), as_json=as_json, title="What would become of them", empty="No commands.")


async def _read_part(file: BufferedReader) -> bytes:
    """What there is by now: in a thread, so that what came before is stored while nothing comes."""
    return await asyncio.to_thread(file.read1, PART_BYTES)


async def _read_all(first: bytes, file: BufferedReader) -> bytes:
    from tollbook.books.settlement import bulk

    body = bytearray(first)
    while len(body) <= bulk.ARRAY_BYTES_MAX and (part := await _read_part(file)):
        body += part
    if len(body) > bulk.ARRAY_BYTES_MAX:
        raise bulk.ArrayMalformed(
            f"So much at once has {bulk.ARRAY_BYTES_MAX} bytes at most. Send a command a line, or less."
        )
    return bytes(body)


async def _read_parts(first: bytes, file: BufferedReader) -> AsyncGenerator[bytes]:
    part = first
    while part:
        yield part
        part = await _read_part(file)


async def _tell(results: bytes, *, as_json: bool) -> None:
    """Everything to programs; to people what was rejected, in words."""
    if as_json:
        sys.stdout.buffer.write(results)
        sys.stdout.buffer.flush()  # who waits for each result gets it
        return
    for line in results.splitlines():
        result = json.loads(line)
        if result["status"] == "rejected":
            click.echo(f"line {result['line']}: {result['detail']}", err=True)


def _shorten(command: Command) -> dict[str, object]:
    """What fits a terminal's width of a command."""
    payee = command.payee
    return {
        "command": command.command_id,
        "received": f"{command.received_at:%Y-%m-%d %H:%M:%S}",
        "status": command.status,
        "amount": None if command.amount is None else f"{command.amount:f}",
        "asset": command.asset_symbol or command.asset,
        "network": command.network or (f"chain {command.chain_id}" if command.chain_id else "default"),
        "payee": f"{payee[:8]}…{payee[-4:]}" if payee else None,
        "error": command.error,
    }
