"""The commands that compare: verify, drift, check, schema, squash; and how they answer."""

import sys
from typing import TYPE_CHECKING

import click

from tollbook.migrate.events import ignore

if TYPE_CHECKING:
    from tollbook.migrate.cli import Call
    from tollbook.migrate.drift import Difference, Drift

EXIT_DRIFT = 3
COLOURS = {"missing": "red", "extra": "yellow", "changed": "red"}


@click.option("--quick", is_flag=True, help="Look for what was promised only; no throw-away server.")
def verify(call: "Call", *, quick: bool) -> None:
    """Compare the catalog with what the applied files make, and count the rows.

    They are carried out on a throw-away server. Exits with 3 on any difference.
    """
    from tollbook.migrate import inspection, report

    found = inspection.verify(call.url, call.folders, quick=quick, listen=call.listen)
    call.answer(found, report.show_verification)
    if found.differences and not call.as_json:
        click.echo("The SQL that reconciles them: tollbook migrate drift --sql")
    sys.exit(0 if found.sound else EXIT_DRIFT)


@click.option(
    "--sql", "only_sql", is_flag=True, help="Print the SQL that makes the database as the files do."
)
def drift(call: "Call", *, only_sql: bool) -> None:
    """Name each object that is not as the applied files make it. Exits with 3 if there is one."""
    from tollbook.migrate import drift as drifts

    found = drifts.drift(call.url, call.folders, listen=ignore if only_sql else call.listen)
    call.answer(found, lambda found: _show_sql(found) if only_sql else _show_drift(found))
    sys.exit(EXIT_DRIFT if found.differences else 0)


def _show_sql(found: "Drift") -> None:
    for text in found.sql:
        click.echo(text)


def _show_drift(found: "Drift") -> None:
    from tollbook.migrate.objects import show_counts

    click.echo(f"{found.database} against its {found.replayed} applied migrations")
    click.echo(f"  {show_counts(found.counts)}")
    for one in found.differences:
        show_difference(one)
    for note in found.notes:
        click.echo(note)
    if not found.differences:
        click.secho("✓ no drift", fg="green")


def show_difference(one: "Difference") -> None:
    """Print what differs, with both definitions where there are two."""
    click.secho(f"  {one.what:8} {one.kind} {one.name}", fg=COLOURS[one.what])
    if one.what == "changed":
        click.echo(f"           files {' '.join((one.expected or '').split())}")
        click.echo(f"           here  {' '.join((one.found or '').split())}")
