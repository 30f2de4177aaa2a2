"""Taking migrations back: their down statements, newest first, one proven transaction each."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tollbook.migrate import (
    execution,
    formats,
    headers,
    history,
    objects,
    preflight,
    presence,
    promises,
    roles,
    statements,
)
from tollbook.migrate.application import (
    LOCK_TIMEOUT_SECONDS,
    TRAFFIC,
    ApplyResult,
    Step,
    check_backup,
    recorded,
    save,
    tell_interrupted,
)
from tollbook.migrate.course import Course, carry_out, check_progress
from tollbook.migrate.errors import NoWayBack, Problem, VerificationFailed, WrongUsage
from tollbook.migrate.events import Event, Listener, ignore
from tollbook.migrate.execution import Outcome, Prepared
from tollbook.migrate.files import Folder, Migration, Script
from tollbook.migrate.history import Applied, Progress
from tollbook.migrate.objects import SHARED_KINDS, Promise
from tollbook.migrate.session import (
    LOCK_WAIT_SECONDS_MAX,
    connected,
    locked,
    name_target,
    read_url,
)
from tollbook.migrate.traffic import Guard, Traffic

STEPS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class _Way:
    """An applied migration with its down statements, ready to run, and what must be gone after them."""

    applied: Applied
    down: Prepared
    gone: tuple[Promise, ...]


def revert(
    url: str,
    folders: Sequence[Folder],
    *,
    steps: int = 1,
    to: tuple[str, str] | None = None,
    backup: bool = True,
    backup_dir: str | Path | None = None,
    lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
    lock_wait_seconds_max: float = LOCK_WAIT_SECONDS_MAX,
    traffic: Traffic = TRAFFIC,
    listen: Listener = ignore,
) -> ApplyResult:
    """Take back the newest migrations: `steps` of them, or all that were applied after (folder, version).

    The down file is used where there is one, else the down statements kept in the history. Raises
    MigrateError; NoWayBack, before anything is changed, where one of them has no down statements.
    """
    if not 1 <= steps <= STEPS_MAX:
        raise WrongUsage(f"--steps must be from 1 to {STEPS_MAX}.")
    migrations = {(one.folder, one.version): one for one in formats.read(folders)}
    with connected(url) as conn, locked(conn, url, listen, lock_wait_seconds_max) as pid:
        everything = history.read(conn)
        names = {folder.name for folder in folders}
        ours = [one for one in everything if one.folder in names and not _repeats(one, migrations)]
        chosen = choose(ours, steps, to)
        interrupted = history.find_interrupted(conn)
        progress = history.read_progress(conn)
        half_way = [one.name for one in everything if (one.folder, one.version) in progress]
        tell_interrupted(interrupted, (), listen, half_way)
        ways = _prepare(chosen, migrations, everything)
        database = name_target(read_url(url))
        if not ways:
            return ApplyResult(database, (), None, tuple(interrupted))
        problems = preflight.check_server(conn)
        problems += roles.check(conn, [way.down for way in ways])
        problems += [
            Problem(
                f"{_name(one, migrations)} is applied in part: {one.statements} of its statements.",
                "Finish that first: correct what is left of its file, apply it, and take it back then.",
            )
            for one in progress.values()
            if one.direction == "up" and one.folder in names
        ]
        for way in ways:
            if begun := progress.get((way.applied.folder, way.applied.version)):
                problems += check_progress(way.down, begun, "down")
        preflight.refuse(problems)
        if backup:
            check_backup(conn, url, backup_dir)
        saved = save(conn, url, backup_dir, listen) if backup else None
        history.end(conn, [one.run_id for one in interrupted], "interrupted")
        history.create(conn)
        run = history.start(conn, "revert", [one.applied.name for one in ways])
        guard = Guard(url, pid, traffic, listen)
        course = Course(conn, pid, run, lock_timeout_seconds, listen, guard)
        done: list[Step] = []
        with recorded(conn, run), guard:
            for way in ways:
                guard.wait_for_replicas(conn)
                listen(Event("reverting", way.applied.name))
                key = (way.applied.folder, way.applied.version)
                done.append(_revert_one(course, way, progress.get(key)))
                listen(Event("reverted", way.applied.name, {"step": done[-1]}))
        return ApplyResult(database, tuple(done), saved, tuple(interrupted))


def _repeats(applied: Applied, migrations: dict[tuple[str, str], Migration]) -> bool:
    """Whether it runs whenever its text has changed: it has no way back, its next text takes its place."""
    file = migrations.get((applied.folder, applied.version))
    return file is not None and file.repeatable


def _name(progress: Progress, migrations: dict[tuple[str, str], Migration]) -> str:
    file = migrations.get((progress.folder, progress.version))
    return file.id if file else f"{progress.folder}/{progress.version}"


def choose(applied: Sequence[Applied], steps: int, to: tuple[str, str] | None) -> list[Applied]:
    """Return what to take back, newest first. Raises WrongUsage where the target is not applied."""
    newest_first = sorted(applied, key=lambda one: -one.id)
    if to is None:
        return newest_first[:steps]
    target = next((one for one in applied if (one.folder, one.version) == to), None)
    if target is None and to[1] == "0":  # where one has the number 0, it is that one which stays
        return [one for one in newest_first if one.folder == to[0]]
    if target is None:
        raise WrongUsage(f"{to[0]}/{to[1]} is not applied; `tollbook migrate status` lists what is.")
    return [one for one in newest_first if one.id > target.id]


def _prepare(
    chosen: Sequence[Applied], migrations: dict[tuple[str, str], Migration], everything: Sequence[Applied]
) -> list[_Way]:
    without = [one.name for one in chosen if _find_down(one, migrations) is None]
    if without:
        raise NoWayBack(
            f"{', '.join(without)}: there is no down file, and none was kept when it was applied. Write one "
            "beside its up file, or restore a backup. Nothing was changed."
        )
    standing = list(everything)
    ways: list[_Way] = []
    for one in chosen:
        standing.remove(one)
        down = _find_down(one, migrations)
        assert down is not None
        reading = statements.read(down)
        preflight.refuse(reading.problems)
        made = promises.collect(reading.statements)
        # What an earlier migration promises too, or the down statements put back, is to stay.
        kept = [promise for earlier in standing for promise in earlier.promised] + made.made
        gone = tuple(
            p for p in one.promised if _must_go(p) and not any(promises.same(p, other) for other in kept)
        )
        migration = Migration(one.folder, one.version, one.label, down)
        ways.append(_Way(one, Prepared(migration, reading, made), gone))
    return ways


def _must_go(promise: Promise) -> bool:
    return promise.made and not (promise.conditional and promise.kind in SHARED_KINDS)


def _find_down(applied: Applied, migrations: dict[tuple[str, str], Migration]) -> Script | None:
    migration = migrations.get((applied.folder, applied.version))
    if migration is not None and migration.down is not None:
        return migration.down
    if applied.down_sql is None:
        return None
    path = Path(f"{applied.label}.down.sql (as kept in the history)")
    text = applied.down_sql
    return Script(path, text, sha256(text.encode()).hexdigest(), headers.read(path, text))


def _revert_one(course: Course, way: _Way, progress: Progress | None) -> Step:
    started = time.monotonic()

    def finish(outcome: Outcome, done: int) -> None:
        execution.prove(course.conn, way.down, outcome, "")
        if left := execution.find_standing(course.conn, way.gone):
            raise VerificationFailed(
                f"The down statements of {way.applied.name} leave behind: "
                f"{', '.join(f'the {promise.kind} {promise}' for promise in left)}. It is rolled back, and "
                "the migration stays applied. Complete its down file and run again.",
                left=[str(promise) for promise in left],
            )
        if absent := presence.find_missing(course.conn, way.applied.removed):
            text = (
                f"{way.applied.name} had removed what its down statements do not put back: "
                f"{', '.join(str(promise) for promise in absent)}."
            )
            course.listen(Event("note", text))
        history.take_back_and_commit(course.conn, course.run, way.applied, stepped=bool(done or progress))

    carry_out(course, way.down, progress, "down", finish)
    shown = tuple(f"{promise.kind} {promise}" for promise in way.gone)
    return Step(way.applied.name, time.monotonic() - started, objects.count(way.gone, ()), shown)
