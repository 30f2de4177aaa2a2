"""The command `plan`: its three depths, and how it answers."""

import sys
from typing import TYPE_CHECKING, Any

import click

from tollbook.migrate.cli_traffic import QUEUE_DEFAULT
from tollbook.migrate.errors import WrongUsage
from tollbook.migrate.events import Event

if TYPE_CHECKING:
    from tollbook.migrate.call import Call
    from tollbook.migrate.rehearsal import Plan
    from tollbook.migrate.traffic import Traffic

EXIT_PENDING = 3


@click.option("--static", "depth", flag_value="static", help="By the files alone: no database is needed.")
@click.option("--live", "depth", flag_value="live", help="On the database itself, and rolled back.")
@click.option("--shadow", "depth", flag_value="shadow", default=True, help="On a shadow of it (the default).")
@click.option("--sample", type=click.IntRange(min=0), default=0, help="Rows of each table for the shadow.")
@click.option("--after", metavar="VERSION", help="With --static: what is applied (0 for nothing).")
@click.option("--since", metavar="REF", help="With --static: what this branch of git has is applied.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "notice", "never"]),
    help="Exit with 3 only for warnings as grave as this, or graver.",
)
@click.option(
    "--queue-max",
    type=click.IntRange(min=0),
    default=QUEUE_DEFAULT,
    show_default=True,
    help="With --live: give way when more sessions wait behind; 0: never.",
)
@click.option("--markdown", is_flag=True, help="Answer as a pull request's comment.")
@click.option(
    "--to", metavar="VERSION", help="Stop after this version (FOLDER/VERSION with several folders)."
)
def plan(call: "Call", *, fail_on: str | None, markdown: bool, **options: Any) -> None:
    """Show what is pending and what it does: locks, rewrites, scans, rows, and objects.

    It really runs, on a throw-away copy of the schema; the database is only read. Exits with 3 if anything is
    pending (with --fail-on: if that is warned of), 0 otherwise.
    """
    from tollbook.migrate import plan_text

    planned = _make(call, quiet=markdown, **options)
    if markdown:
        click.echo(plan_text.write_markdown(planned))
    else:
        call.answer(planned, lambda planned: plan_text.show(planned, verbose=call.verbose))
    if plan_text.reaches(planned, fail_on) if fail_on else planned.pending:
        sys.exit(EXIT_PENDING)


def _make(
    call: "Call",
    *,
    depth: Any,
    sample: int,
    after: str | None,
    since: str | None,
    to: str | None,
    lock_timeout: float,
    queue_max: int,
    quiet: bool,
) -> "Plan":
    from tollbook.migrate import rehearsal
    from tollbook.migrate.call import logged
    from tollbook.migrate.cli_lint import find_pending
    from tollbook.migrate.traffic import Traffic

    if depth == "static":
        if after is not None and since is not None:
            raise WrongUsage("Give --after or --since, not both.")
        pending = find_pending(call, after, since)
        return rehearsal.plan_static(call.folders, pending=pending, to=call.target(to))
    if after is not None or since is not None:
        raise WrongUsage("--after and --since go with --static; else the database says what is pending.")
    if sample and depth == "live":
        raise WrongUsage("--sample gives rows to a shadow; --live has all of them.")
    with logged(call, "plan", quiet=quiet) as log:
        return rehearsal.plan(
            call.url,
            call.folders,
            depth=depth,
            sample=sample,
            to=call.target(to),
            lock_timeout_seconds=lock_timeout,
            traffic=Traffic(queue_max=queue_max),
            listen=log,
        )


def show_before_apply(
    call: "Call", to: tuple[str, str] | None, lock_timeout: float, traffic: "Traffic"
) -> "Plan":
    """Show the plan that apply asks about: on a shadow, or where none can start on the database itself."""
    from tollbook.migrate import plan_text, rehearsal
    from tollbook.migrate.shadow import ShadowUnavailable

    def make(depth: Any) -> "Plan":
        return rehearsal.plan(
            call.url,
            call.folders,
            depth=depth,
            to=to,
            lock_timeout_seconds=lock_timeout,
            traffic=traffic,
            listen=call.listen,
        )

    try:
        planned = make("shadow")
    except ShadowUnavailable as error:
        text = f"{error.sentence} Trying it live, which is rolled back."
        call.listen(Event("note", text))
        planned = make("live")
    if planned.pending:
        plan_text.show(planned, verbose=call.verbose)
    return planned
