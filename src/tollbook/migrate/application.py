"""Applying what is pending: one transaction per migration, proven before it commits."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from tollbook.migrate import formats, history, objects, preflight, roles
from tollbook.migrate.errors import Problem, WrongUsage
from tollbook.migrate.events import Event, Listener, Teller, ignore
from tollbook.migrate.files import Folder, Migration, find_schema
from tollbook.migrate.history import Applied, Interruption, Progress
from tollbook.migrate.objects import Count, Promise
from tollbook.migrate.preflight import Standing
from tollbook.migrate.session import (
    LOCK_WAIT_SECONDS_MAX,
    Connection,
    connected,
    locked,
    name_target,
    read_url,
)
from tollbook.migrate.traffic import Guard, Traffic

# The grammar and what saves a database are loaded where something is pending: mostly nothing is.
if TYPE_CHECKING:
    from tollbook.migrate.at_once import AtOnce, Parcel
    from tollbook.migrate.backup import Backup
    from tollbook.migrate.course import Course
    from tollbook.migrate.execution import Outcome, Prepared

LOCK_TIMEOUT_SECONDS = 5.0
TRAFFIC = Traffic()


@dataclass(frozen=True, slots=True)
class Step:
    """A migration that was applied, or reverted."""

    migration: str
    duration_seconds: float
    counts: tuple[Count, ...]
    objects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """What a run did; steps is empty where there was nothing to do."""

    database: str
    steps: tuple[Step, ...]
    backup: "Backup | None"
    interrupted: tuple[Interruption, ...]


def apply(
    url: str,
    folders: Sequence[Folder],
    *,
    to: tuple[str, str] | None = None,
    backup: bool = True,
    backup_dir: str | Path | None = None,
    lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
    lock_wait_seconds_max: float = LOCK_WAIT_SECONDS_MAX,
    traffic: Traffic = TRAFFIC,
    listen: Listener = ignore,
) -> ApplyResult:
    """Apply what is pending in the folders, in order, up to a (folder, version) if one is given.

    A database that holds tables is backed up first. A migration that fails is rolled back and ends the
    run; those before it stay. Raises MigrateError.
    """
    migrations = formats.read(folders)
    schema = find_schema(folders)
    with connected(url) as conn, locked(conn, url, listen, lock_wait_seconds_max, schema) as pid:
        database = name_target(read_url(url))
        standing = preflight.compare(migrations, folders, history.read(conn, folders))
        pending = cut(migrations, standing.pending, to)
        interrupted = history.find_interrupted(conn, schema)
        progress = history.read_progress(conn)
        begun = {*progress, *history.read_backfills(conn)} if interrupted else set[tuple[str, str]]()
        half_way = [one.id for one in pending if (one.folder, one.version) in begun]
        half_way += [one.name for one in standing.applied if (one.folder, one.version) in begun]
        tell_interrupted(interrupted, [one.id for one in pending], listen, half_way)
        ready = check(conn, standing, pending, progress)
        if backup and ready:
            check_backup(conn, url, backup_dir)
        if interrupted:
            history.end(conn, [one.run_id for one in interrupted], "interrupted")
        if not ready:
            return ApplyResult(database, (), None, tuple(interrupted))
        from tollbook.migrate.at_once import AtOnce
        from tollbook.migrate.course import Course

        saved = save(conn, url, backup_dir, listen) if backup else None
        history.create(conn)
        run = history.start(conn, "apply", [one.migration.id for one in ready])
        teller = Teller(listen)
        guard = Guard(url, pid, traffic, teller)
        course = Course(conn, pid, run, lock_timeout_seconds, teller, guard)
        earlier = _Earlier(standing.applied)
        steps: list[Step] = []
        with recorded(conn, run), guard, teller:
            at_once = AtOnce(course, ready, {*progress}, teller.tell)
            while len(steps) < len(ready):
                parcel = at_once.take(len(steps))
                guard.wait_for_replicas(conn)
                for one in parcel.ones:
                    teller.put(Event("applying", one.migration.id, {"file": str(one.migration.up.path)}))
                for step in _apply_some(at_once, parcel, progress, earlier):
                    steps.append(step)
                    teller.put(Event("applied", step.migration, {"step": step}))
        return ApplyResult(database, tuple(steps), saved, tuple(interrupted))


def cut(
    migrations: Sequence[Migration], pending: Sequence[Migration], to: tuple[str, str] | None
) -> list[Migration]:
    """Return the pending migrations up to and with a (folder, version); folders after it are left out."""
    if to is None:
        return list(pending)
    places = {(one.folder, one.version): place for place, one in enumerate(migrations)}
    if to not in places:
        raise WrongUsage(f"There is no migration {to[0]}/{to[1]}; `tollbook migrate status` lists them.")
    return [one for one in pending if places[one.folder, one.version] <= places[to]]


def check(
    conn: Connection,
    standing: Standing,
    pending: Sequence[Migration],
    progress: Mapping[tuple[str, str], Progress],
) -> "list[Prepared]":
    """Run every pre-flight check. Returns the migrations ready to run; raises PreflightRefused."""
    problems = preflight.check_history(standing)
    problems += [
        Problem(f"{one.name} is taken back in part.", "Finish that first: tollbook migrate revert.")
        for one in standing.applied
        if (begun := progress.get((one.folder, one.version))) and begun.direction == "down"
    ]
    ready, unreadable = preflight.prepare(pending) if pending else ([], [])
    problems += unreadable
    if pending and not history.exists(conn):
        preflight.refuse(check_foreign(conn, pending))  # that all is there already follows from it
    if pending:
        from tollbook.migrate.course import check_progress

        problems += preflight.check_server(conn)
        problems += preflight.check_objects(conn, ready, progress)
        problems += roles.check(conn, ready)
        for one in ready:
            if begun := progress.get((one.migration.folder, one.migration.version)):
                problems += check_progress(one, begun, "up")
    preflight.refuse(problems)
    return ready


def check_foreign(conn: Connection, pending: Sequence[Migration]) -> list[Problem]:
    """Name what another tool has applied already: it must be taken over, not run a second time."""
    from tollbook.migrate import foreign

    problems: list[Problem] = []
    for keeper in foreign.find_all(conn, pending):
        if applied := foreign.match(keeper, keeper.read(conn), pending)[0]:
            problems.append(
                Problem(
                    f"{keeper.tool} has applied {applied[-1].id} here already ({len(applied)} in all).",
                    "Take over what it applied, without running it: tollbook migrate baseline.",
                )
            )
    return problems


def check_backup(conn: Connection, url: str, backup_dir: str | Path | None) -> None:
    """Refuse what a backup would fail for: folder, tools, room. Without tables there is nothing to save."""
    from tollbook.migrate import backup as backups

    if preflight.holds_tables(conn):
        preflight.refuse(
            [Problem(sentence, "Or give --skip-backup.") for sentence in backups.check(url, backup_dir)]
        )


def save(conn: Connection, url: str, backup_dir: str | Path | None, listen: Listener) -> "Backup | None":
    """Back the database up unless it holds no tables yet. Raises BackupFailed."""
    from tollbook.migrate import backup as backups

    if not preflight.holds_tables(conn):
        listen(Event("no backup", "No backup: the database holds no tables yet."))
        return None
    listen(Event("backing up", "Backing up the database."))
    saved = backups.backup(url, backup_dir)
    listen(
        Event("backup", f"Backup: {saved.location} ({saved.size_bytes:,} bytes)", {"path": saved.location})
    )
    return saved


def tell_interrupted(
    interrupted: Sequence[Interruption],
    next_ones: Sequence[str],
    listen: Listener,
    half_way: Sequence[str] = (),
) -> None:
    """Say of each run that was killed where it stopped: what it had begun is rolled back by the server.

    half_way: those that are no single transaction, and have committed some of it.
    """
    for one in interrupted:
        began = f"The {one.command} that began at {one.started_at:%Y-%m-%d %H:%M:%S} was interrupted"
        if one.at is None:
            text = f"{began} after its last migration was committed; nothing is missing."
        elif one.at in half_way and one.command == "revert":
            text = f"{began}: {one.at} is taken back in part; `revert` goes on behind that."
        elif one.at in half_way:
            text = f"{began}: {one.at} had committed a part; it goes on behind that."
        elif one.command == "apply" and one.at in next_ones:
            text = f"{began}: {one.at} left no trace; applying it now."
        else:
            text = f"{began}: {one.at} was left as it was."
        listen(Event("interrupted", text, {"run": str(one.run_id), "at": one.at}))


class recorded:
    """Record how a run ends; one that is killed, or cut off, stays open for the next to find."""

    def __init__(self, conn: Connection, run: UUID) -> None:
        self.conn = conn
        self.run = run

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self.conn.broken and not self.conn.closed:
            # What was interrupted may still be open. The last file may have left the session read-only, or
            # acting as a role that sees none of ours.
            self.conn.execute("ROLLBACK; RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL")
            history.end(self.conn, [self.run], "done" if error is None else "failed")


class _Earlier:
    """What earlier migrations promised and is there; looked up when the first comes that may remove some."""

    def __init__(self, applied: Sequence[Applied]) -> None:
        self.promises = [promise for one in applied for promise in one.promised]
        self.known = False

    def find(self, conn: Connection) -> list[Promise]:
        """Return what stands now, before a migration runs."""
        if not self.known:
            self.promises = _find_standing(conn, self.promises)
            self.known = True
        return self.promises

    def change(self, kept: Sequence[Promise], removed: Sequence[Promise]) -> None:
        """Take over what a migration made and removed, once it is committed."""
        if removed:
            gone = set(removed)
            self.promises = [promise for promise in self.promises if promise not in gone]
        self.promises += kept


def _apply_some(
    at_once: "AtOnce",
    parcel: "Parcel",
    progress: Mapping[tuple[str, str], Progress],
    earlier: _Earlier,
) -> list[Step]:
    """Apply a parcel's migrations, in order, and return what was committed: at least the first."""
    started = time.monotonic()
    done = at_once.apply(parcel)
    if not done:
        first = parcel.ones[0]
        begun = progress.get((first.migration.folder, first.migration.version))
        kept, removed = _apply_in_steps(at_once.course, first, begun, earlier, started)
        earlier.change(kept, removed)
        return [_tell(first, kept, time.monotonic() - started)]
    for one in done:
        earlier.change(one.made, ())
    return [_tell(one, each.made, each.seconds) for one, each in zip(parcel.ones, done, strict=False)]


def _tell(one: "Prepared", kept: Sequence[Promise], seconds: float) -> Step:
    return Step(one.migration.id, seconds, objects.count(kept, ()), tuple(f"{p.kind} {p}" for p in kept))


def _apply_in_steps(
    course: "Course", one: "Prepared", progress: Progress | None, earlier: _Earlier, started: float
) -> tuple[tuple[Promise, ...], tuple[Promise, ...]]:
    """Return the promises kept, and those of earlier migrations that are no longer."""
    from tollbook.migrate import execution
    from tollbook.migrate.course import carry_out, carry_out_and_keep

    conn = course.conn
    before = earlier.find(conn) if one.promises.may_remove else []
    settings = course.name_settings()

    def finish(outcome: "Outcome", done: int) -> tuple[tuple[Promise, ...], tuple[Promise, ...]]:
        kept = execution.prove(conn, one, outcome, settings)
        removed = _find_removed(conn, before)
        if one.backfill:
            history.end_backfill(conn, one.migration)
        seconds = timedelta(seconds=time.monotonic() - started)
        history.add_and_commit(
            conn, course.run, one.migration, seconds, kept, removed, stepped=bool(done or progress)
        )
        return kept, removed

    if one.backfill:
        from tollbook.migrate import backfill

        progress = carry_out_and_keep(course, one, progress)
        backfill.run(course, one.migration, one.backfill)
    return carry_out(course, one, progress, "up", finish)


def _find_removed(conn: Connection, before: Sequence[Promise]) -> tuple[Promise, ...]:
    """Return which of the promises kept before are no longer, inside the open transaction."""
    still = set(_find_standing(conn, before))
    return tuple(promise for promise in before if promise not in still)


def _find_standing(conn: Connection, promises: Sequence[Promise]) -> list[Promise]:
    from tollbook.migrate import execution

    return execution.find_standing(conn, promises) if promises else []
