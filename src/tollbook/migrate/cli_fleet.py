"""apply, plan, status and verify on many databases or schemas: the options, the table of results."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

from tollbook.migrate.cli_traffic import read_traffic
from tollbook.migrate.errors import WrongUsage
from tollbook.migrate.events import Event, ignore

if TYPE_CHECKING:
    from tollbook.migrate.application import ApplyResult
    from tollbook.migrate.call import Call
    from tollbook.migrate.fleet import Done, Fleet, FleetLine, Target
    from tollbook.migrate.runlog import RunLog

JOBS = 4
JOBS_MAX = 64
MARKS = {"failed": ("✗", "red"), "skipped": ("·", "yellow")}
OPTIONS = ("databases", "schemas", "jobs", "stop_on_failure")
EXIT_FAILED, EXIT_DRIFT = 1, 3


def fleet_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of commands that can work on many."""
    command = click.option("--stop-on-failure", is_flag=True, help="Begin no other once one has failed.")(
        command
    )
    command = click.option(
        "--jobs",
        type=click.IntRange(1, JOBS_MAX),
        default=JOBS,
        show_default=True,
        help="Work on so many at once.",
    )(command)
    command = click.option(
        "--schemas", metavar="PATTERN", help="Work in each schema that matches, such as 'tenant_*'."
    )(command)
    return click.option(
        "--databases",
        type=click.File(encoding="utf-8"),
        help="A list of addresses, one a line; - reads it here.",
    )(command)


def take(options: dict[str, Any]) -> dict[str, Any] | None:
    """Take those options out of a command's; None where it is to work on one database alone."""
    taken = {name: options.pop(name, None) for name in OPTIONS}
    return taken if taken["databases"] or taken["schemas"] else None


def run(call: Call, command: str, fleet: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Do a command on each target, show a line for each, and exit: 0 all well, 1 one failed, 3 found."""
    from tollbook.migrate import fleet as fleets

    file: TextIO | None = fleet["databases"]
    urls = fleets.read_databases(file.read()) if file else [call.url]
    if command == "apply":
        where = f" in the schemas {fleet['schemas']}" if fleet["schemas"] else ""
        call.confirm(f"Apply to {len(urls)} databases{where}?", auto=options["auto"])
    with _logged(call, command) as log:
        work = WORKS[command](call, options, log)
        done = fleets.run(
            urls,
            work,
            schemas=fleet["schemas"],
            jobs=fleet["jobs"],
            stop_on_failure=fleet["stop_on_failure"],
            told=_Shown(call, log),
        )
    call.answer(done, _show_end)
    sys.exit(EXIT_FAILED if done.failed else 0 if done.sound else EXIT_DRIFT)


def _logged(call: Call, command: str) -> Any:
    from tollbook.migrate.runlog import RunLog

    return RunLog(f"{command}-many", ignore)


class _Shown:
    """Shows each line as its target is done, from whichever thread."""

    def __init__(self, call: Call, log: RunLog) -> None:
        self.call = call
        self.log = log
        self.one_at_a_time = threading.Lock()

    def __call__(self, line: FleetLine) -> None:
        with self.one_at_a_time:
            text = f"{_name(line)}  {line.state}" + (f": {line.message}" if line.message else "")
            self.log(Event("target", text))
            if not self.call.as_json:
                show_line(line)


def _name(line: FleetLine) -> str:
    return f"{line.database}  {line.schema}" if line.schema else line.database


def show_line(line: FleetLine) -> None:
    """Print one target's result."""
    mark, colour = MARKS.get(line.state, ("✓", "green") if line.sound else ("✗", "yellow"))
    count = f" {line.migrations}" if line.migrations else ""
    click.echo(
        f"{click.style(mark, fg=colour)} {_name(line)}  {line.state}{count}  {line.duration_seconds:.2f} s"
    )
    if line.message:
        click.echo("\n".join(f"    {text}" for text in line.message.splitlines()))


def _show_end(fleet: Fleet) -> None:
    tally: dict[str, int] = {}
    for line in fleet.lines:
        tally[line.state] = tally.get(line.state, 0) + 1
    click.echo(
        f"{len(fleet.lines)} targets: " + " · ".join(f"{count} {state}" for state, count in tally.items())
    )
    if fleet.failed:
        click.echo("Run the same command again for those that are not done; what is done is passed over.")


def _apply(call: Call, options: Mapping[str, Any], log: RunLog) -> Callable[[Target], Done]:
    from tollbook.migrate import application
    from tollbook.migrate.fleet import Done

    folders, to, traffic = call.folders, call.target(options["to"]), read_traffic(options)
    saving = _Saving(wanted=not options["skip_backup"])

    def work(target: Target) -> Done:
        with saving.first(target.name) as backup:
            result = go(target, backup=backup)
            if result.backup:
                saving.done.add(target.name)
        return Done("applied" if result.steps else "nothing to do", len(result.steps))

    def go(target: Target, *, backup: bool) -> ApplyResult:
        return application.apply(
            target.url,
            target.place(folders),
            to=target.find(to),
            backup=backup,
            backup_dir=options["backup_dir"],
            lock_timeout_seconds=options["lock_timeout"],
            traffic=traffic,
            listen=_prefixed(target, log),
        )

    return work


class _Saving:
    """Sees to it that one backup does for all schemas of a database: until it is there, one goes alone."""

    def __init__(self, *, wanted: bool) -> None:
        self.wanted = wanted
        self.done: set[str] = set()
        self.gates: dict[str, threading.Lock] = {}
        self.opening = threading.Lock()

    @contextmanager
    def first(self, database: str) -> Generator[bool]:
        """Give whether to back the database up, alone where so."""
        with self.opening:
            gate = self.gates.setdefault(database, threading.Lock())
        if not self.wanted:
            yield False
            return
        with gate:
            if database not in self.done:
                yield True
                return
        yield False


def _prefixed(target: Target, log: RunLog) -> Callable[[Event], None]:
    name = f"{target.name} {target.schema or ''}".rstrip()
    return lambda event: log(Event(event.kind, f"{name}: {event.text}", event.data, event.at))


FOR_ONE = ("sample", "after", "since", "fail_on", "markdown")  # options of a plan that its line cannot show


def _plan(call: Call, options: Mapping[str, Any], log: RunLog) -> Callable[[Target], Done]:
    from tollbook.migrate import rehearsal
    from tollbook.migrate.fleet import Done
    from tollbook.migrate.traffic import Traffic

    if options["depth"] == "static":
        raise WrongUsage("--static reads the files alone, which are the same for all. Give it without them.")
    if any(options[name] for name in FOR_ONE):
        shown = ", ".join(f"--{name.replace('_', '-')}" for name in FOR_ONE)
        raise WrongUsage(f"{shown} are about one database. Plan one of them by --database-url.")
    folders, to = call.folders, call.target(options["to"])

    def work(target: Target) -> Done:
        # A shadow has no schema to stand in for one of many: there it is tried in place, and rolled back.
        live = options["depth"] == "live" or target.schema is not None
        planned = rehearsal.plan(
            target.url,
            target.place(folders),
            depth="live" if live else "shadow",
            to=target.find(to),
            lock_timeout_seconds=options["lock_timeout"],
            traffic=Traffic(queue_max=options["queue_max"]),
            listen=_prefixed(target, log),
        )
        pending = len(planned.pending)
        return Done("pending" if pending else "nothing to do", pending, sound=not pending)

    return work


def _status(call: Call, options: Mapping[str, Any], log: RunLog) -> Callable[[Target], Done]:
    from tollbook.migrate import inspection
    from tollbook.migrate.fleet import Done

    folders = call.folders

    def work(target: Target) -> Done:
        found = inspection.status(target.url, target.place(folders))
        if found.drift:
            return Done("edited or missing", len(found.drift), sound=False)
        if found.pending:
            return Done("pending", len(found.pending), sound=False)
        return Done("applied", len(found.lines))

    return work


def _verify(call: Call, options: Mapping[str, Any], log: RunLog) -> Callable[[Target], Done]:
    from tollbook.migrate import inspection
    from tollbook.migrate.fleet import Done

    folders = call.folders

    def work(target: Target) -> Done:
        # A throw-away server is made from the files alone, which say nothing of the other schemas.
        quick = bool(options.get("quick")) or target.schema is not None
        found = inspection.verify(
            target.url, target.place(folders), quick=quick, listen=_prefixed(target, log)
        )
        return Done(
            "sound" if found.sound else "differs", _count(found.wrong, found.drift), sound=found.sound
        )

    return work


def _count(*several: Sequence[object]) -> int:
    return sum(len(one) for one in several)


WORKS = {"apply": _apply, "plan": _plan, "status": _status, "verify": _verify}
