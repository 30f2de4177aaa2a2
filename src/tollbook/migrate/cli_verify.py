"""The commands that compare: verify, drift, check, schema, squash; and how they answer."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tollbook.migrate.errors import WrongUsage
from tollbook.migrate.events import ignore

if TYPE_CHECKING:
    from tollbook.migrate.call import Call
    from tollbook.migrate.check import Checked, Draft
    from tollbook.migrate.drift import Difference, Drift
    from tollbook.migrate.squash import Squash

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


@click.option(
    "--draft-down", metavar="VERSION", help="Write the missing down file of this migration, to review."
)
@click.option("--schema", type=click.Path(dir_okay=False), help="The schema file is to be what they make.")
def check(call: "Call", *, draft_down: str | None, schema: str | None) -> None:
    """Carry every migration up, down and up on a throw-away server, with made-up rows. Needs no database.

    Exits with 3 if the catalog or the rows are not what they were.
    """
    from tollbook.migrate import check as checks

    if draft_down is not None:
        target = call.target(draft_down)
        assert target is not None
        draft = checks.draft_down(call.folders, target, listen=call.listen)
        call.answer(draft, _show_draft)
        return
    path = Path(schema) if schema else None
    found = checks.check(call.folders, schema=path, listen=call.listen)
    call.answer(found, _show_checked)
    sys.exit(0 if found.sound else EXIT_DRIFT)


def _show_draft(draft: "Draft") -> None:
    click.echo(f"Wrote {draft.path}: review it.")
    for sentence in draft.left:
        click.secho(f"✗ {sentence}", fg="yellow")
    if draft.proved:
        click.echo("It leads back to the catalog before; rows that the migration removes do not come back.")


def _show_checked(found: "Checked") -> None:
    for trip in found.trips:
        mark = click.style("✗", fg="red") if trip.wrong else click.style("✓", fg="green")
        again = {"proved": ", runs twice", "failed": ", does not run twice"}.get(trip.again, "")
        click.echo(f"{mark} {trip.migration}  up, down, up: {trip.round_trip}{again}")
        for sentence in (*trip.wrong, *trip.notes):
            click.echo(f"    {sentence}")
    if found.unfilled:
        click.echo(f"No rows could be made up for: {', '.join(found.unfilled)}")
    _show_difference_of_files(found.schema)


def _show_difference_of_files(lines: tuple[str, ...]) -> None:
    colours = {"+": "green", "-": "red"}
    for line in lines:
        click.secho(line, fg=colours.get(line[:1]))


@click.option("--out", type=click.Path(dir_okay=False), help="The file to write (default: print it).")
@click.option(
    "--check", "only_check", is_flag=True, help="Compare the file of --out; exits with 3 if it differs."
)
def schema(call: "Call", *, out: str | None, only_check: bool) -> None:
    """Write what the migrations make as one SQL file that loads. Needs no database."""
    from tollbook.migrate import schema_file

    if only_check and not out:
        raise WrongUsage("Say which file to compare: tollbook migrate schema --out schema.sql --check")
    listen = call.listen if out else ignore
    made = schema_file.write(call.folders, listen=listen)
    if only_check:
        made = schema_file.compare(Path(out or ""), made)
        call.answer(made, lambda made: _show_difference_of_files(made.difference))
        sys.exit(EXIT_DRIFT if made.difference else 0)
    if out:
        made = schema_file.save(Path(out), made)
    call.answer(
        made, lambda made: click.echo(f"Wrote {made.path}." if made.path else made.text, nl=bool(made.path))
    )


@click.option("--to", required=True, metavar="VERSION", help="The last migration that goes into the one.")
@click.option("--rows/--no-rows", "keep_rows", default=None, help="Whether the rows they insert are kept.")
def squash(call: "Call", *, to: str, keep_rows: bool | None) -> None:
    """Make the migrations up to VERSION one file, after it is proved to make the same. Needs no database."""
    from tollbook.migrate import squash as squashes

    if len(folders := call.folders) != 1:
        raise WrongUsage("Give one folder: tollbook migrate squash --dir PATH --to VERSION")
    done = squashes.finish(folders[0])  # one that was killed, whose folder nobody can read yet
    if done is None:
        target = call.target(to)
        assert target is not None
        done = squashes.squash(folders[0], target, keep_rows=keep_rows, listen=call.listen)
    call.answer(done, _show_squash)


def _show_squash(done: "Squash") -> None:
    click.echo(f"Wrote {done.path} in place of {', '.join(done.replaced)}; it brings {done.rows} rows.")
    click.echo(f"Their files are in {done.archive}. Databases that have them all go on as they are.")


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
