"""A plan in words: for a terminal, and in Markdown for a pull request."""

from collections.abc import Iterable, Sequence

import click

from tollbook.migrate.lint.rule import SEVERITIES
from tollbook.migrate.objects import show_counts
from tollbook.migrate.observation import NOTABLE, Lock, Observation, Touched, Written
from tollbook.migrate.rehearsal import Plan, PlannedStep
from tollbook.migrate.report import MARKS, show_change

COLOURS = {"error": "red", "warning": "yellow", "notice": "cyan"}
NAMES_SHOWN_MAX = 4
STATEMENTS_SHOWN_MAX = 200  # in a comment, whose length is bounded
SHADOW = "Each file really ran on a shadow: the schema of {0} with {1}."
HOW = {
    "static": "By the files alone; nothing was run.",
    "live": "What was tried really ran on {0}, and was rolled back.",
}


def reaches(plan: Plan, gate: str) -> bool:
    """Whether any warning is as grave as the gate, or graver; never is a gate that nothing reaches."""
    grave = SEVERITIES[: SEVERITIES.index(gate) + 1] if gate in SEVERITIES else ()
    return any(severity in grave for severity in plan.severities)


def show(plan: Plan, *, verbose: bool = False) -> None:
    """Print what each pending migration would do."""
    if not plan.pending:
        click.echo(f"Nothing is pending{f' on {plan.database}' if plan.database else ''}.")
        return
    click.echo(_say_how(plan))
    for note in plan.notes:
        click.secho(f"! {note}", fg="yellow")
    for step in plan.steps:
        _show_step(plan, step, verbose=verbose)
    for name in plan.untried:
        click.echo(f"\n{name}  not tried")
    for one in plan.findings:
        click.secho(f"\n{one.severity} ", fg=COLOURS[one.severity], nl=False)
        click.echo(f"{one.rule} at {one.place}\n  {one.sentence}")
    click.echo(f"\n{_tally(plan)} Apply with: tollbook migrate apply")


def _say_how(plan: Plan) -> str:
    if plan.depth == "shadow":
        return SHADOW.format(plan.database, f"{plan.rows:,} sampled rows" if plan.rows else "no rows")
    return HOW[plan.depth].format(plan.database)


def _tally(plan: Plan) -> str:
    counts = [(plan.severities.count(one), one) for one in SEVERITIES]
    grave = " · ".join(f"{number} {name}{'' if number == 1 else 's'}" for number, name in counts if number)
    return f"{len(plan.pending)} pending{f' · {grave}' if grave else ''}."


def _show_step(plan: Plan, step: PlannedStep, *, verbose: bool) -> None:
    took = "" if plan.depth == "static" else f"{step.duration_seconds * 1000:.0f} ms  "
    click.secho(f"\n{step.migration}  {took}{show_counts(step.counts)}".rstrip(), bold=True)
    for change in step.changes:
        show_change(change)
    if not step.changes:
        click.echo("  the catalog stays as it is")
    for one in step.statements:
        lines = list(describe(one, verbose=verbose))
        if lines:
            click.echo(f"  line {one.line}: {one.text}  {one.seconds * 1000:.0f} ms")
        for line in lines:
            click.echo(f"      {line}")
    if step.unproven:
        click.secho(f"  ! not proven: {step.unproven}", fg="yellow")
    for warned in step.warnings:
        click.secho(f"  {warned.severity} ", fg=COLOURS[warned.severity], bold=True, nl=False)
        click.echo(f"line {warned.line}: {warned.sentence}")


def describe(one: Observation, *, verbose: bool = False) -> Iterable[str]:
    """Give a line for each kind of thing that was observed of a statement; none for a harmless one."""
    if one.untried:
        yield f"not run: {one.untried}"
    if one.alone:
        yield f"runs outside a transaction ({one.alone})"
    by_mode: dict[str, list[Lock]] = {}
    for lock in one.locks:
        if verbose or (lock.mode in NOTABLE and lock.kind != "index"):
            by_mode.setdefault(lock.mode, []).append(lock)
    for mode, locks in by_mode.items():
        yield f"locks {mode}: {_list([lock.relation for lock in locks])} ({locks[0].blocks})"
    yield from _describe_files(one.written)
    if one.scans:
        yield f"reads all of {_list([scan.relation for scan in one.scans])}"
    if one.rows:
        yield f"rows {_list([_name_rows(rows) for rows in one.rows])}"


def _describe_files(written: Sequence[Written]) -> Iterable[str]:
    for what in ("rewritten", "emptied"):
        tables = [one.relation for one in written if one.what == what and one.kind != "index"]
        if tables:
            yield f"{what}: {_list(tables)}"
    for what in ("built", "rebuilt"):
        indexes = [one.relation for one in written if one.what == what and one.kind == "index"]
        if indexes:
            yield f"{what}: {'index' if len(indexes) == 1 else 'indexes'} {_list(indexes)}"


def _name_rows(rows: Touched) -> str:
    parts = ((rows.inserted, "+"), (rows.updated, "~"), (rows.deleted, "-"))
    return f"{rows.relation} {' '.join(f'{sign}{number:,}' for number, sign in parts if number)}"


def _list(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN_MAX
    return ", ".join(names[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def write_markdown(plan: Plan) -> str:
    """Return the plan as a comment on a pull request."""
    if not plan.pending:
        return "### Migrations: nothing is pending."
    lines = [f"### Migrations: {_tally(plan)}", "", _say_how(plan), ""]
    lines += [f"> {note}" for note in plan.notes] + ([""] if plan.notes else [])
    for step in plan.steps:
        lines += _write_step(plan, step)
    lines += [f"- `{name}`: not tried" for name in plan.untried]
    for one in plan.findings:
        lines.append(f"- **{one.severity}** `{one.rule}` at `{one.place}`<br>{one.sentence}")
    return "\n".join(lines).rstrip()


def _write_step(plan: Plan, step: PlannedStep) -> list[str]:
    counts = show_counts(step.counts)
    lines = [f"#### `{step.migration}`{f' ({counts})' if counts else ''}", ""]
    lines += [f"- **{one.severity}** line {one.line}: {one.sentence}" for one in step.warnings]
    if step.unproven:
        lines.append(f"- not proven: {step.unproven}")
    if step.changes:
        shown = "\n".join(f"{MARKS[one.what][0]} {one.kind} {one.name}" for one in step.changes)
        lines += ["", "```diff", *(line.replace("~ ", "! ", 1) for line in shown.splitlines()), "```"]
    seen = [(one, list(describe(one))) for one in step.statements]
    rows = [
        f"| {one.line} | `{_cell(one.text)}` | {'<br>'.join(map(_cell, said))} |"
        for one, said in seen[:STATEMENTS_SHOWN_MAX]
        if said
    ]
    if rows:
        lines += ["", "| Line | Statement | Observed |", "|---|---|---|", *rows]
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")
