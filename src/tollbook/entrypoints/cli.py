"""The command line: every command of Tollbook, each loaded when it is asked for."""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import click

from tollbook.core.commands import json_option, storage_options

if TYPE_CHECKING:
    from tollbook.core.settings import Settings

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
PORT_DEFAULT = 8402
FACILITATOR_PORT_DEFAULT = 8404
CONFIRMATIONS_MAX = 1000
BOOKS = ("payments", "settlement")


class Door(NamedTuple):
    """A group of commands that a module brings: where it is, and what it is for."""

    module: str
    attribute: str
    help: str


# What the books and the engine offer; their modules are slow to import and most runs need none of them.
DOORS = {
    "payments": Door("tollbook.books.payments.cli", "payments_group", "What was paid and what it bought."),
    "keys": Door("tollbook.entrypoints.api_keys", "group", "API keys and their scopes."),
    "webhooks": Door(
        "tollbook.core.webhooks.cli", "group", "Who is told of what happens, and what became of it."
    ),
    "settlement": Door("tollbook.books.settlement.cli", "settlement_group", "Commands to pay somebody."),
    "tokens": Door("tollbook.books.payments.cli", "tokens_group", "Access tokens: list and revoke them."),
    "migrate": Door("tollbook.entrypoints.migrations", "group", "Plan, apply, verify and revert migrations."),
}


class Doors(click.Group):
    """The commands below and those of DOORS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command's name."""
        return [*self.commands, *DOORS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; None where there is none."""
        door = DOORS.get(cmd_name)
        if door is None:
            return super().get_command(ctx, cmd_name)
        return getattr(import_module(door.module), door.attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with their help, importing none of them."""
        rows = [(name, command.get_short_help_str(limit=90)) for name, command in self.commands.items()]
        rows += [(name, door.help) for name, door in DOORS.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=Doors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tollbook")
def tollbook() -> None:
    """The books for x402 on PostgreSQL: what was paid, what it bought, what was used.

    Without a database of your own (DATABASE_URL), an embedded PostgreSQL is used and started on demand.
    """


@tollbook.command()
@click.argument("books", nargs=-1, type=click.Choice(BOOKS))
@click.option("--demo", is_flag=True, help="Add a local chain, a paid API and an agent that pays it.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=PORT_DEFAULT, show_default=True, type=click.IntRange(1, 65535))
@storage_options
@json_option
def up(
    books: tuple[str, ...], *, settings: "Settings", demo: bool, host: str, port: int, as_json: bool
) -> None:
    """Start everything: database, migrations, API and worker, until Ctrl-C."""
    from tollbook.entrypoints.up import Wish, start

    start(Wish(books or BOOKS, settings, host, port, demo=demo, as_json=as_json))


@tollbook.command()
@storage_options
@json_option
def worker(*, settings: "Settings", as_json: bool) -> None:
    """Run the background jobs alone, until Ctrl-C."""
    from tollbook.entrypoints.up import run_worker

    run_worker(settings, as_json=as_json)


@tollbook.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address the API shall have.")
@click.option("--port", default=PORT_DEFAULT, show_default=True, type=click.IntRange(1, 65535))
@click.option("--rpc", "rpc", multiple=True, metavar="NETWORK=URL", help="A chain's node to ask as well.")
@click.option(
    "--key-file",
    "key_files",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="As `tollbook facilitator` has it: can that account pay for settlements there?",
)
@storage_options
@json_option
def doctor(
    *,
    settings: "Settings",
    host: str,
    port: int,
    rpc: tuple[str, ...],
    key_files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Say what is wrong, and what to do about it. Exit code 1 where something is."""
    from tollbook.entrypoints.doctor import examine, show

    findings = examine(settings, host, port, read_rpc_urls(rpc), key_files)
    show(findings, as_json=as_json)
    if any(finding.state == "wrong" for finding in findings):
        raise SystemExit(EXIT_FAILED)


@tollbook.command()
@click.option("--rpc", multiple=True, required=True, metavar="NETWORK=URL", help="As base=https://node/…")
@click.option(
    "--key-file",
    "key_files",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="An operator's private key, EVM's or Solana's, mode 0600; several share the work. Without: "
    "TOLLBOOK_FACILITATOR_KEY, TOLLBOOK_SOLANA_KEY.",
)
@click.option(
    "--recipient",
    "recipients",
    multiple=True,
    metavar="ADDRESS",
    help="Settle payments to this address, and to the others named so, alone. Without: to anybody.",
)
@click.option(
    "--confirmations",
    multiple=True,
    metavar="NETWORK=N",
    help="Answer a settlement when its block is the first of so many. Without: at once. Solana: 32 is final.",
)
@click.option(
    "--sign-refunds",
    is_flag=True,
    help="Sign refunds of channels for sellers. Only where nobody but sellers reaches this facilitator.",
)
@click.option(
    "--gwei-max",
    type=click.IntRange(1, 1_000_000),
    help="More than this is not offered for a unit of gas, on any network. Without: what is sane on each.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=FACILITATOR_PORT_DEFAULT, show_default=True, type=click.IntRange(1, 65535))
@storage_options
@json_option
def facilitator(
    rpc: tuple[str, ...],
    key_files: tuple[Path, ...],
    recipients: tuple[str, ...],
    confirmations: tuple[str, ...],
    *,
    sign_refunds: bool,
    gwei_max: int | None,
    settings: "Settings",
    host: str,
    port: int,
    as_json: bool,
) -> None:
    """Verify and settle x402 payments for servers in any language, until Ctrl-C."""
    from tollbook.entrypoints.facilitator import Wish, run_facilitator

    urls, depths = read_rpc_urls(rpc), read_confirmations(confirmations)
    wei_max = None if gwei_max is None else gwei_max * 10**9
    run_facilitator(
        Wish(settings, urls, key_files, recipients, depths, sign_refunds, wei_max, host, port, as_json)
    )


def read_rpc_urls(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the nodes by CAIP-2 network, of `NETWORK=URL` texts. Raises click.UsageError."""
    from tollbook.core.chains import find_network

    urls: dict[str, str] = {}
    for pair in pairs:
        name, equals, url = pair.partition("=")
        if not equals or not url.startswith(("http://", "https://")):
            raise click.UsageError("--rpc: give a network and its node's URL, as base=https://…")
        urls[find_network(name).id] = url
    return urls


def read_confirmations(pairs: tuple[str, ...]) -> dict[str, int]:
    """Return the depths by CAIP-2 network, of `NETWORK=N` texts. Raises click.UsageError."""
    from tollbook.core.chains import find_network

    depths: dict[str, int] = {}
    for pair in pairs:
        name, _, depth = pair.partition("=")
        if not depth.isdecimal() or not 0 < int(depth) <= CONFIRMATIONS_MAX:
            raise click.UsageError(
                f"--confirmations {pair[:60]}: give a network and how many blocks, as base=6."
            )
        depths[find_network(name).id] = int(depth)
    return depths


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; a refusal is told on standard error, in one line."""
    as_json = "--json" in arguments
    try:
        code = tollbook.main(arguments, prog_name="tollbook", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except click.ClickException as error:
        return _tell(_describe_misuse(error), error.exit_code, as_json=as_json)
    except Exception as error:
        described = _describe(error)
        if described is None:
            raise
        return _tell(described, getattr(error, "exit_code", EXIT_FAILED), as_json=as_json)
    return code if isinstance(code, int) else 0


def _describe_misuse(error: click.ClickException) -> dict[str, Any]:
    context = getattr(error, "ctx", None)
    help_hint = f" Try: {context.command_path} --help" if context is not None else ""
    return {"error": "wrong-usage", "message": error.format_message() + help_hint}


def _describe(error: Exception) -> dict[str, Any] | None:
    """Return a refusal as a JSON object; None for an exception that nobody foresaw."""
    facts = getattr(error, "facts", None)
    if callable(facts):  # the migration engine's own, which knows nothing of the core
        return cast(dict[str, Any], facts())
    reason = getattr(error, "reason", None)
    if isinstance(reason, str) and hasattr(error, "exit_code"):
        details: dict[str, Any] = getattr(error, "details", {})
        return {"error": reason, "message": str(error), **details}
    return _describe_database_error(error)


def _describe_database_error(error: Exception) -> dict[str, Any] | None:
    """Return what an unmigrated database, or one whose server refuses, comes to; None for anything else."""
    if type(error).__module__.partition(".")[0] != "psycopg":
        return None
    import psycopg

    if isinstance(error, (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)):
        said = "This database has no Tollbook tables yet. Run: tollbook migrate apply (or tollbook up)."
        return {"error": "not-migrated", "message": said}
    if isinstance(error, psycopg.OperationalError):
        said = (str(error).strip().splitlines() or ["no answer"])[0]
        return {"error": "database-failed", "message": f"The database failed: {said}. Try: tollbook doctor."}
    return None


def _tell(described: dict[str, Any], code: int, *, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({**described, "exit_code": code}, ensure_ascii=False, default=str), err=True)
    else:
        click.echo(f"tollbook: {described['message']}", err=True)
    return code
