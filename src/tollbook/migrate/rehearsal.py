"""The dry run: every pending migration really runs, in one transaction that is rolled back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tollbook.migrate import catalog, execution, formats, history, objects, preflight
from tollbook.migrate.application import (
    LOCK_TIMEOUT_SECONDS,
    check,
    cut,
)
from tollbook.migrate.catalog import Change
from tollbook.migrate.course import UNSAFE_NEW_ENUM_VALUE, name_role, name_settings
from tollbook.migrate.errors import StatementFailed
from tollbook.migrate.events import Event, Listener, ignore
from tollbook.migrate.execution import RESET, Prepared
from tollbook.migrate.files import Folder
from tollbook.migrate.objects import Count
from tollbook.migrate.retrying import read_sqlstate, roll_back
from tollbook.migrate.segments import Segment
from tollbook.migrate.session import (
    LOCK_WAIT_SECONDS_MAX,
    Connection,
    connected,
    locked,
    name_target,
    read_url,
)


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A pending migration that ran in the dry run, and what the catalog gained, lost and changed by it."""

    migration: str
    duration_seconds: float
    counts: tuple[Count, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What apply would do. untried: pending migrations that cannot run in one transaction with the rest."""

    database: str
    pending: tuple[str, ...]
    steps: tuple[PlannedStep, ...]
    untried: tuple[str, ...]


def plan(
    url: str,
    folders: Sequence[Folder],
    *,
    to: tuple[str, str] | None = None,
    lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
    lock_wait_seconds_max: float = LOCK_WAIT_SECONDS_MAX,
    listen: Listener = ignore,
) -> Plan:
    """Run what is pending, with every check that apply makes, and roll it all back. Raises MigrateError.

    Nothing is left behind, save that sequences which the migrations' own rows advanced stay advanced.
    """
    migrations = formats.read(folders)
    with connected(url) as conn, locked(conn, url, listen, lock_wait_seconds_max) as pid:
        standing = preflight.compare(migrations, folders, history.read(conn))
        pending = cut(migrations, standing.pending, to)
        ready = check(conn, standing, pending, history.read_progress(conn))
        names = tuple(one.id for one in pending)
        steps: list[PlannedStep] = []
        if ready:
            conn.execute("BEGIN")
            try:
                _rehearse(conn, ready, pid, name_settings(lock_timeout_seconds), steps, listen)
            finally:
                roll_back(conn)
        return Plan(name_target(read_url(url)), names, tuple(steps), names[len(steps) :])


def _rehearse(
    conn: Connection,
    ready: Sequence[Prepared],
    pid: int,
    settings: str,
    steps: list[PlannedStep],
    listen: Listener,
) -> None:
    before = catalog.snapshot(conn)
    for number, one in enumerate(ready):
        listen(Event("trying", one.migration.id, {"file": str(one.migration.up.path)}))
        started = time.monotonic()
        if name := next((one.alone for one in one.reading.statements if one.alone), None):
            text = f"{one.migration.id} has {name}, which cannot run in a transaction that is rolled back."
            listen(Event("note", text))
            return
        opening = f"SAVEPOINT step_{number}; {RESET} {settings} {name_role(one.migration.up.options)}"
        try:
            whole = Segment(0, one.reading.statements)
            outcome = execution.perform(conn, one, whole, pid, opening, opening.count(";"))
            kept = execution.prove(conn, one, outcome, settings)
        except StatementFailed as error:
            if read_sqlstate(error) != UNSAFE_NEW_ENUM_VALUE:
                raise
            # A value that is added to an enum can be used only after it is committed.
            listen(
                Event(
                    "note",
                    f"{one.migration.id} uses a new enum value: it can only be tried once that is applied.",
                )
            )
            return
        seconds = time.monotonic() - started
        after = catalog.snapshot(conn)
        changes = tuple(catalog.diff(before, after))
        steps.append(PlannedStep(one.migration.id, seconds, objects.count(kept, ()), changes))
        before = after
