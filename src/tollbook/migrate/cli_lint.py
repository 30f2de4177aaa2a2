"""The command `lint`: options, and how its answer is shown."""

import sys
from typing import TYPE_CHECKING

import click

from tollbook.migrate import report
from tollbook.migrate.errors import WrongUsage

if TYPE_CHECKING:
    from tollbook.migrate.call import Call

EXIT_HAZARDS = 3  # what every checking command exits with


@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "notice", "never"]),
    default="error",
    show_default=True,
    help="Exit with 3 for findings as grave as this, or graver.",
)
@click.option("--rule", "rules", multiple=True, metavar="ID", help="Ask this rule alone; repeatable.")
@click.option("--after", metavar="VERSION", help="What is applied: look at later files alone (0 for all).")
@click.option("--since", metavar="REF", help="Look at files alone that this branch of git does not have.")
@click.option("--pending", is_flag=True, help="Ask the database, and look at what is pending alone.")
@click.option("--markdown", "shape", flag_value="markdown", help="Answer as a pull request's comment.")
@click.option("--sarif", "shape", flag_value="sarif", help="Answer in SARIF, for code scanning.")
@click.option("--rules", "listing", is_flag=True, help="List the rules.")
@click.option("--no-squawk", is_flag=True, help="Do not ask squawk, even if it is installed.")
def lint(
    call: "Call",
    *,
    fail_on: str,
    rules: tuple[str, ...],
    after: str | None,
    since: str | None,
    pending: bool,
    shape: str | None,
    listing: bool,
    no_squawk: bool,
) -> None:
    """Look for hazards in the files: locks, rewrites, losses, and what breaks running code.

    Needs no database, and runs nothing. Each file is looked at as if it were applied alone; --after, --since
    and --pending say which are not applied yet, and what these make is new to all of them.
    """
    from tollbook.migrate import lint as linter
    from tollbook.migrate.lint import page, showing

    if listing:
        if shape == "markdown":
            click.echo(page.write_page(), nl=False)
            return
        call.answer(showing.list_rules(), lambda _: showing.show_rules())
        return
    if sum((after is not None, since is not None, pending)) > 1:
        raise WrongUsage("Give one of --after, --since and --pending.")
    squawk = not no_squawk
    if pending:
        found = linter.lint_pending(call.url, call.folders, rules=rules, ask_squawk=squawk)
    else:
        wanted = find_pending(call, after, since)
        found = linter.lint(call.folders, pending=wanted, rules=rules, ask_squawk=squawk)
    if shape == "markdown":
        click.echo(showing.write_markdown(found))
    elif shape == "sarif":
        click.echo(report.write_json(showing.write_sarif(found)))
    else:
        call.answer(found, showing.show)
    if showing.reaches(found, fail_on):
        sys.exit(EXIT_HAZARDS)


def find_pending(call: "Call", after: str | None, since: str | None) -> set[str] | None:
    """Return which migrations are not applied yet, if an option says so."""
    from tollbook.migrate import formats
    from tollbook.migrate.lint import pending

    if since is not None:
        return pending.find_since(formats.read(call.folders), call.folders, since)
    target = call.target(after)
    return pending.find_after(formats.read(call.folders), *target) if target else None
