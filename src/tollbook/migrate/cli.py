"""The commands, thin on the API. They exit with 0 done, 1 refused, 2 usage, 3 drift, 4 unproven."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tollbook.migrate import cli_fleet, jsonlog, report
from tollbook.migrate.call import Call, DefaultFolders, DefaultUrl, logged, reporting
from tollbook.migrate.cli_backup import backup, backup_key, backups, place_option, restore
from tollbook.migrate.cli_deliver import bundle, graph, seed, timeline
from tollbook.migrate.cli_expand import expand
from tollbook.migrate.cli_lint import lint
from tollbook.migrate.cli_plan import plan, show_before_apply
from tollbook.migrate.cli_traffic import lock_option, read_traffic, traffic_options
from tollbook.migrate.cli_verify import check, drift, schema, squash, verify
from tollbook.migrate.errors import WrongUsage

if TYPE_CHECKING:
    from tollbook.migrate.application import ApplyResult

EXIT_DRIFT = 3

Command = TypeVar("Command", bound=Callable[..., Any])


auto_option = click.option("--auto", is_flag=True, help="Ask no questions.")


def backup_options(command: Command) -> Command:
    """Add the options of commands that back up first."""
    command = click.option("--skip-backup", is_flag=True, help="Do not back up first.")(command)
    return place_option(command)


def group(default_folders: DefaultFolders, default_url: DefaultUrl) -> click.Group:
    """Return the group `migrate`; the defaults are asked for only where no option says otherwise."""

    def common(name: str, command: Callable[..., None]) -> Callable[..., None]:
        """Add the options all commands share, and hand them over as one Call."""

        def invoke(
            *,
            dirs: tuple[str, ...],
            format_: str,
            database_url: str | None,
            as_json: bool,
            verbose: bool,
            log: str,
            **options: Any,
        ) -> None:
            call = Call(
                dirs,
                format_,
                database_url,
                (default_folders, default_url),
                as_json=as_json,
                verbose=verbose,
                log_json=log == "json",
            )
            with jsonlog.told(name, on=call.log_json), reporting(call):
                if name in cli_fleet.WORKS and (fleet := cli_fleet.take(options)):
                    cli_fleet.run(call, name, fleet, options)
                else:
                    command(call, **options)

        invoke.__doc__ = command.__doc__
        invoke.__click_params__ = list(getattr(command, "__click_params__", []))  # pyright: ignore[reportFunctionMemberAccess]
        many = cli_fleet.fleet_options(invoke) if name in cli_fleet.WORKS else invoke
        wrapped = click.option("--verbose", "-v", is_flag=True, help="Name every object.")(many)
        wrapped = click.option(
            "--log",
            type=click.Choice(["text", "json"]),
            default="text",
            help="json: what happens as lines of JSON on standard error.",
        )(wrapped)
        wrapped = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")(wrapped)
        wrapped = click.option("--database-url", help="The database (else DATABASE_URL).")(wrapped)
        wrapped = click.option(
            "--format",
            "format_",
            default="auto",
            show_default=True,
            metavar="TOOL",
            help="The tool the folder was made for, where it cannot be told from the files.",
        )(wrapped)
        return click.option(
            "--dir",
            "dirs",
            multiple=True,
            metavar="[NAME=]PATH",
            help="A folder of migrations; repeatable, in order.",
        )(wrapped)

    @click.group()
    def migrate() -> None:
        """Plan, apply, verify and take back migrations."""

    for name, command in COMMANDS.items():
        migrate.command(name)(common(name, command))
    return migrate


@click.option(
    "--to", metavar="VERSION", help="Stop after this version (FOLDER/VERSION with several folders)."
)
@lock_option
@traffic_options
@backup_options
@auto_option
def apply(
    call: Call,
    *,
    to: str | None,
    lock_timeout: float,
    skip_backup: bool,
    backup_dir: str | None,
    auto: bool,
    **options: Any,
) -> None:
    """Apply what is pending, each file in one transaction, proven before it commits.

    Without --auto a dry run is shown first, and a question asked.
    """
    from tollbook.migrate import application

    url, folders, target, traffic = call.url, call.folders, call.target(to), read_traffic(options)
    if not auto:
        call.require_terminal()
        planned = show_before_apply(call, target, lock_timeout, traffic)
        if planned.pending:
            call.confirm(f"Apply {len(planned.pending)} to {planned.database}?", auto=auto)
    with logged(call, "apply") as log:
        result = application.apply(
            url,
            folders,
            to=target,
            backup=not skip_backup,
            backup_dir=backup_dir,
            lock_timeout_seconds=lock_timeout,
            traffic=traffic,
            listen=log,
        )
    call.answer(result, lambda result: _show_result(result, "applied to"))


def _show_result(result: "ApplyResult", what: str) -> None:
    number = len(result.steps)
    done = f"{number} {what} {result.database}." if number else f"Nothing to do on {result.database}."
    click.echo(done)


@click.option("--steps", type=click.IntRange(min=1), help="How many to take back (default 1).")
@click.option("--to", metavar="VERSION", help="Take back what was applied after this version; 0 for all.")
@lock_option
@traffic_options
@backup_options
@auto_option
def revert(
    call: Call,
    *,
    steps: int | None,
    to: str | None,
    lock_timeout: float,
    skip_backup: bool,
    backup_dir: str | None,
    auto: bool,
    **traffic: Any,
) -> None:
    """Take migrations back by their down files, newest first, each in one proven transaction."""
    from tollbook.migrate import reversal

    if steps and to:
        raise WrongUsage("Give --steps or --to, not both.")
    url, folders, target = call.url, call.folders, call.target(to)
    call.confirm(f"Take back {f'everything after {to}' if to else f'the newest {steps or 1}'}?", auto=auto)
    with logged(call, "revert") as log:
        result = reversal.revert(
            url,
            folders,
            steps=steps or 1,
            to=target,
            backup=not skip_backup,
            backup_dir=backup_dir,
            lock_timeout_seconds=lock_timeout,
            traffic=read_traffic(traffic),
            listen=log,
        )
    call.answer(result, lambda result: _show_result(result, "taken back on"))


def status(call: Call) -> None:
    """Show what is applied and what is pending. Exits with 3 if anything is pending, edited or missing."""
    from tollbook.migrate import inspection

    found = inspection.status(call.url, call.folders)
    call.answer(found, report.show_status)
    sys.exit(EXIT_DRIFT if found.pending or found.drift else 0)


@click.option("--to", metavar="VERSION", help="Up to where the database is, where no tool's history says it.")
@click.option("--back", is_flag=True, help="Write what is applied here into the other tool's history.")
@auto_option
def baseline(call: Call, *, to: str | None, back: bool, auto: bool) -> None:
    """Take over what another tool has applied: its history is read, its files checked, nothing is run."""
    from tollbook.migrate import baseline as baselines

    folders = call.folders
    if len(folders) != 1 or (to and back):
        raise WrongUsage("Give one folder by --dir, and either --to or --back.")
    call.confirm("Record as applied without running?", auto=auto)
    if back:
        done = baselines.give_back(call.url, folders[0], listen=call.listen)
    else:
        done = baselines.baseline(call.url, folders[0], to=call.target(to), listen=call.listen)
    call.answer(done, lambda done: report.show_baseline(done, back=back))


@click.argument("name")
def new(call: Call, name: str) -> None:
    """Create the next numbered pair of files."""
    from tollbook.migrate import formats

    folders = call.folders
    if len(folders) != 1:
        raise WrongUsage("Say in which folder: tollbook migrate new NAME --dir PATH")
    made = formats.create_pair(folders[0], name)
    call.answer({"files": [str(path) for path in made]}, lambda made: click.echo("\n".join(made["files"])))


COMMANDS: dict[str, Callable[..., None]] = {
    "plan": lock_option(plan),
    "apply": apply,
    "verify": verify,
    "drift": drift,
    "check": check,
    "schema": schema,
    "squash": squash,
    "status": status,
    "revert": revert,
    "backup": backup,
    "restore": restore,
    "backups": backups,
    "backup-key": backup_key,
    "baseline": baseline,
    "new": new,
    "expand": expand,
    "lint": lint,
    "bundle": bundle,
    "seed": seed,
    "graph": graph,
    "timeline": timeline,
}
