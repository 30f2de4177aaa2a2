"""Results in words for people, and as JSON for programs."""

import dataclasses
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from tollbook.migrate.errors import MigrateError, PreflightRefused
from tollbook.migrate.events import Event
from tollbook.migrate.objects import show_counts

if TYPE_CHECKING:
    from tollbook.migrate.application import Step
    from tollbook.migrate.baseline import Baseline
    from tollbook.migrate.catalog import Change
    from tollbook.migrate.inspection import Status, Verification

MARKS = {"gained": ("+", "green"), "lost": ("-", "red"), "changed": ("~", "yellow")}
STATES = {"applied": "green", "pending": "yellow", "edited": "red", "missing": "red"}
TOLD = (
    "waiting",
    "shadow",
    "interrupted",
    "retrying",
    "backing up",
    "backup",
    "no backup",
    "note",
    "backfill",
)


def write_json(value: Any) -> str:
    """Return a result, or anything made of dataclasses, as JSON."""
    return json.dumps(value, default=_plain, ensure_ascii=False, indent=2)


def write_line(value: Any) -> str:
    """Return the same as one line."""
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Path | UUID):
        return str(value)
    raise TypeError(type(value).__name__)


def describe_error(error: MigrateError) -> dict[str, Any]:
    """Return an error as the object that --json prints."""
    return {
        "error": error.reason,
        "message": str(error) if isinstance(error, PreflightRefused) else error.sentence,
        "place": error.place,
        "problems": error.problems if isinstance(error, PreflightRefused) else [],
        "exit_code": error.exit_code,
        **error.details,
    }


def show_event(event: Event, *, verbose: bool) -> None:
    """Print what people want to know of a run while it goes on."""
    step: Step | None = event.data.get("step")
    if step is not None:
        show_step(event.kind, step, verbose=verbose)
    elif event.kind in TOLD:
        click.echo(event.text)


def show_step(what: str, step: "Step", *, verbose: bool) -> None:
    """Print one applied or reverted migration with its counts."""
    counts = show_counts(step.counts)
    mark = click.style("✓", fg="green")
    click.echo(
        f"{mark} {what} {step.migration}  {step.duration_seconds * 1000:.0f} ms"
        + (f"  {counts}" if counts else "")
    )
    for name in step.objects if verbose else ():
        click.echo(f"    {name}")


def show_change(change: "Change") -> None:
    """Print an object that was gained, lost or changed."""
    mark, colour = MARKS[change.what]
    click.secho(f"  {mark} {change.kind} {change.name}", fg=colour)
    if change.what == "changed":
        for word, text in (("was", change.before), ("now", change.after)):
            lines = " ".join((text or "").split())
            click.echo(f"      {word} {lines}")


def show_status(status: "Status") -> None:
    """Print each migration with its state."""
    click.echo(f"Migrations of {status.database}")
    width = max((len(line.migration) for line in status.lines), default=0)
    for line in status.lines:
        state = click.style(f"{line.state:8}", fg=STATES[line.state])
        when = f"{line.applied_at:%Y-%m-%d %H:%M:%S}" if line.applied_at else ""
        took = f"{line.duration_seconds * 1000:.0f} ms" if line.duration_seconds is not None else ""
        way = "stopped" if line.state == "pending" else "taken back in part"
        so_far = f"{way}, {line.committed} of its statements committed" if line.committed else ""
        shown = f"{so_far if when and so_far else when or line.backfill or so_far}  {took}"
        click.echo(f"  {state} {line.migration:{width}}  {shown}".rstrip())
    tally = {state: sum(line.state == state for line in status.lines) for state in STATES}
    shown = [f"{number} {state}" for state, number in tally.items() if number]
    click.echo(" · ".join(shown) or "No migrations.")


def show_verification(result: "Verification") -> None:
    """Print counts, rows and every difference."""
    click.echo(f"Verifying {result.database}")
    for folder in result.folders if result.replayed is None else ():
        if counts := show_counts(folder.counts):
            click.echo(f"  {folder.folder}: {counts}")
    if len(result.folders) > 1 or result.replayed is not None:
        click.echo(f"  all: {show_counts(result.counts)}")
    for row in result.rows:
        click.echo(f"  {row.rows:>15,} rows {'' if row.exact else '(estimated) '}in {row.table}")
    for note in result.notes:
        click.echo(note)
    for sentence in (*result.wrong, *result.drift):
        click.secho(f"✗ {sentence}", fg="red")
    if result.pending:
        names = ", ".join(result.pending)
        click.secho(f"✗ pending: {names}. Apply with: tollbook migrate apply", fg="yellow")
    if result.sound:
        what = "was promised" if result.replayed is None else f"{result.replayed} migrations make"
        click.secho(f"✓ everything that {what} is there", fg="green")


def show_baseline(done: "Baseline", *, back: bool) -> None:
    """Print what was taken over from another tool's history, or told to it."""
    what = f"told to {done.tool}" if back else f"taken over{f' from {done.tool}' if done.tool else ''}"
    for name in done.taken:
        click.echo(f"  {name}")
    click.echo(f"{len(done.taken)} {what} on {done.database}.")
    for sentence in done.missing:
        click.secho(f"✗ {sentence}", fg="yellow")
