"""What apply would do, seen beforehand: by the files alone, on a shadow, or on the target and rolled back."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import psycopg

from tollbook.migrate import execution, extensions, formats, history, impact, objects, preflight
from tollbook.migrate import shadow as shadows
from tollbook.migrate.application import LOCK_TIMEOUT_SECONDS, TRAFFIC, check, cut
from tollbook.migrate.catalog import Change
from tollbook.migrate.errors import LockHeld, MigrateError, StatementFailed, VerificationFailed
from tollbook.migrate.events import Event, Listener, ignore
from tollbook.migrate.execution import Prepared
from tollbook.migrate.files import Folder, find_schema
from tollbook.migrate.history import Progress
from tollbook.migrate.impact import Warned
from tollbook.migrate.lint.rule import Finding
from tollbook.migrate.objects import Count
from tollbook.migrate.observation import Observation
from tollbook.migrate.retrying import QUERY_CANCELED, RETRIED, read_sqlstate, roll_back
from tollbook.migrate.session import (
    LOCK_WAIT_SECONDS_MAX,
    Connection,
    connected,
    locked,
    name_target,
    read_pid,
    read_url,
)
from tollbook.migrate.shadow import Shadow, Size
from tollbook.migrate.traffic import Guard, Traffic
from tollbook.migrate.walkthrough import CannotRollBack, Walk, Walked

Depth = Literal["static", "shadow", "live"]
# Data exceptions, broken constraints, and what functions raise: with the target's rows they may not come.
ABOUT_ROWS = ("22", "23", "P0")


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A pending migration: what the catalog gained, lost and changed by it, and what was observed.

    warnings: where it would hurt, by the sizes of the target's tables. unproven: why what it promises could
    not be judged wholly, if it could not.
    """

    migration: str
    file: str
    duration_seconds: float
    counts: tuple[Count, ...]
    changes: tuple[Change, ...]
    statements: tuple[Observation, ...] = ()
    warnings: tuple[Warned, ...] = ()
    unproven: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What apply would do. untried: pending migrations that could not be tried, and notes say why.

    depth: how it was found. rows: how many were sampled for the shadow. findings: of the lint, with static.
    """

    database: str
    pending: tuple[str, ...]
    steps: tuple[PlannedStep, ...]
    untried: tuple[str, ...]
    depth: Depth = "live"
    notes: tuple[str, ...] = ()
    rows: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def severities(self) -> tuple[str, ...]:
        """How grave each warning and finding is."""
        warned = [one.severity for step in self.steps for one in step.warnings]
        return (*warned, *(one.severity for one in self.findings))


def plan(
    url: str,
    folders: Sequence[Folder],
    *,
    depth: Literal["shadow", "live"] = "shadow",
    sample: int = 0,
    to: tuple[str, str] | None = None,
    lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
    lock_wait_seconds_max: float = LOCK_WAIT_SECONDS_MAX,
    traffic: Traffic = TRAFFIC,
    listen: Listener = ignore,
) -> Plan:
    """Run what is pending, with every check that apply makes, and leave nothing of it. Raises MigrateError.

    On a shadow the target is only read, and `sample` rows of each table are copied. Live it runs on the
    target in one transaction that is rolled back: its locks are real, what cannot run in a transaction stays
    untried, and sequences which the migrations' own rows advanced stay advanced. It gives way to others as
    apply does, once: LockHeld, InTheWay.
    """
    migrations = formats.read(folders)
    made: Shadow | None = None
    schema = find_schema(folders)
    with ExitStack() as stack:
        with connected(url) as conn, locked(conn, url, listen, lock_wait_seconds_max, schema) as pid:
            standing = preflight.compare(migrations, folders, history.read(conn, folders))
            pending = cut(migrations, standing.pending, to)
            progress = history.read_progress(conn)
            ready = check(conn, standing, pending, progress)
            names = tuple(one.id for one in pending)
            rehearsal = _Rehearsal(name_target(read_url(url)), names, depth, listen)
            if ready and depth == "live":
                with Guard(url, pid, traffic, listen) as guard:
                    rehearsal.run_live(conn, guard, ready, progress, lock_timeout_seconds)
            elif ready:
                made = stack.enter_context(shadows.shadow(url, rows=sample, listen=listen))
        if made:
            rehearsal.run_on(made, ready, progress, lock_timeout_seconds)
        return rehearsal.finish()


def plan_static(
    folders: Sequence[Folder], *, pending: Collection[str] | None = None, to: tuple[str, str] | None = None
) -> Plan:
    """Say what the files promise and what the lint finds in them, without a database. Raises MigrateError.

    pending: the ids (folder/label) of what is not applied yet; without it, that is all.
    """
    from tollbook.migrate.lint import linting

    migrations = formats.read(folders)
    ours = cut(migrations, [one for one in migrations if pending is None or one.id in pending], to)
    ready, problems = preflight.prepare(ours)
    preflight.refuse(problems)
    names = tuple(one.id for one in ours)
    found = linting.lint_migrations(migrations, pending=names)
    steps = tuple(
        PlannedStep(
            one.migration.id,
            str(one.migration.up.path),
            0.0,
            objects.count(one.promises.made, ()),
            tuple(
                [Change(promise.kind, str(promise), None, "") for promise in one.promises.made]
                + [Change(promise.kind, str(promise), "", None) for promise in one.promises.dropped]
            ),
        )
        for one in ready
    )
    return Plan("", names, steps, (), "static", (), 0, tuple(found.findings))


class _Rehearsal:
    """A plan while it is made."""

    def __init__(self, database: str, pending: tuple[str, ...], depth: Depth, listen: Listener) -> None:
        self.database = database
        self.pending = pending
        self.depth: Depth = depth
        self.listen = listen
        self.steps: list[PlannedStep] = []
        self.notes: list[str] = []
        self.rows = 0

    def finish(self) -> Plan:
        untried = self.pending[len(self.steps) :]
        steps, notes = tuple(self.steps), tuple(self.notes)
        return Plan(self.database, self.pending, steps, untried, self.depth, notes, self.rows)

    def run_live(
        self,
        conn: Connection,
        guard: Guard,
        ready: Sequence[Prepared],
        progress: Mapping[tuple[str, str], Progress],
        lock_timeout_seconds: float,
    ) -> None:
        sizes = shadows.read_sizes(conn)
        walk = Walk(conn, guard.pid, lock_timeout_seconds)
        try:
            # As one: what a file locks is held until the last of them is rolled back.
            with guard.watching("The live plan", lock_timeout_seconds):
                for one in ready:
                    if not self._take(walk, one, progress, sizes):
                        return
        except (StatementFailed, VerificationFailed, psycopg.Error) as error:
            _refuse_if_in_the_way(error, guard)
            if not walk.skipped or isinstance(error, psycopg.Error):
                raise
            name = self.pending[len(self.steps)]
            self._note(f"{name} fails live, where not all before it was run: {_shorten(error)}")
        finally:
            roll_back(conn)

    def run_on(
        self,
        made: Shadow,
        ready: Sequence[Prepared],
        progress: Mapping[tuple[str, str], Progress],
        lock_timeout_seconds: float,
    ) -> None:
        self.notes += made.lacks
        self.rows = made.rows
        # A target without rows has none that the shadow lacks.
        lenient = any(size.bytes for size in made.sizes.values())

        def watch() -> Connection:
            return psycopg.connect(made.admin_url, autocommit=True)

        with connected(made.url) as conn:
            walk = Walk(conn, read_pid(conn), lock_timeout_seconds, watch=watch, lenient=lenient)
            for one in ready:
                try:
                    if not self._take(walk, one, progress, made.sizes):
                        return
                except (StatementFailed, VerificationFailed) as error:
                    roll_back(conn)
                    if not _is_shadows_fault(error, made, lenient=lenient, skipped=walk.skipped):
                        raise
                    self._note(
                        f"{one.migration.id} fails on the shadow, which is not all that {made.target} is: "
                        f"{_shorten(error)} "
                        "Give it rows by --sample, or try the database itself by --live."
                    )
                    return

    def _take(
        self,
        walk: Walk,
        one: Prepared,
        progress: Mapping[tuple[str, str], Progress],
        sizes: Mapping[str, Size],
    ) -> bool:
        """Try a migration. False where it cannot be tried, which ends the rehearsal."""
        migration = one.migration
        self.listen(Event("trying", migration.id, {"file": str(migration.up.path)}))
        begun = progress.get((migration.folder, migration.version))
        try:
            walked = walk.take(one, begun.statements if begun else 0)
        except CannotRollBack as why:
            self._note(f"{migration.id} cannot be tried live: {why}.")
            return False
        self.steps.append(self._describe(one, walked, sizes))
        return True

    def _describe(self, one: Prepared, walked: Walked, sizes: Mapping[str, Size]) -> PlannedStep:
        return PlannedStep(
            one.migration.id,
            str(one.migration.up.path),
            walked.seconds,
            objects.count(walked.kept, ()),
            walked.changes,
            walked.observations,
            tuple(impact.judge(walked.observations, sizes, measured=self.depth == "live")),
            walked.unproven,
        )

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.listen(Event("note", text))


def _refuse_if_in_the_way(error: Exception, guard: Guard) -> None:
    """Raise LockHeld where it was others that stood in the way, or they behind us."""
    state = read_sqlstate(error)
    if state in RETRIED or (guard.gave_way and state == QUERY_CANCELED):
        why = f"{guard.gave_way} while it waited" if guard.gave_way else "a lock was not to be had in time"
        whom = f" for {'; '.join(str(one) for one in guard.seen)}" if guard.seen else ""
        raise LockHeld(
            f"The live plan gave way to other sessions: {why}{whom}. It is rolled back. Run it again when "
            "they are done, or on a shadow, without --live.",
            getattr(error, "place", None),
            sqlstate=state,
        ) from error


def _shorten(error: MigrateError) -> str:
    return error.sentence.removesuffix(execution.ROLLED_BACK)


def _is_shadows_fault(error: MigrateError, made: Shadow, *, lenient: bool, skipped: bool) -> bool:
    """Whether a statement may have failed only because the shadow lacks rows or definitions."""
    state = read_sqlstate(error) or ""
    lacks = bool(made.lacks) or state == extensions.CANNOT
    return lacks or skipped or (lenient and state.startswith(ABOUT_ROWS))
