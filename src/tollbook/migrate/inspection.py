"""Looking without changing: what is applied, and whether everything it promised is still there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from psycopg import sql

from tollbook.migrate import formats, history, objects, preflight, presence
from tollbook.migrate.events import Listener, ignore
from tollbook.migrate.files import Folder
from tollbook.migrate.history import Applied, Backfilled, Progress
from tollbook.migrate.objects import Count, Promise
from tollbook.migrate.preflight import Standing
from tollbook.migrate.session import Connection, connected, name_target, read_url

if TYPE_CHECKING:
    from tollbook.migrate.drift import Difference

TABLES_COUNTED_MAX = 1_000
# Tables up to this size are counted row by row; larger ones are estimated from the planner's statistics.
COUNTED_BYTES_MAX = 256 * 2**20
UNSOUND_SHOWN_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Line:
    """One migration: applied, pending, edited (since it was applied) or missing (applied, its file gone)."""

    migration: str
    state: str
    applied_at: datetime | None = None
    duration_seconds: float | None = None
    applied_by: str | None = None
    backfill: Backfilled | None = None  # of one that is pending until its back-fill is done
    committed: int | None = None  # statements of one that is no single transaction, and stopped on its way


@dataclass(frozen=True, slots=True)
class Status:
    """Where a database stands against the folders."""

    database: str
    lines: tuple[Line, ...]

    @property
    def pending(self) -> tuple[str, ...]:
        """The names of what apply would apply."""
        return tuple(line.migration for line in self.lines if line.state == "pending")

    @property
    def drift(self) -> tuple[str, ...]:
        """A sentence for each file that is not what was applied."""
        words = {
            "edited": "was edited after it was applied; put the applied text back from version control",
            "missing": "is applied, but its file is gone; put it back from version control",
        }
        return tuple(f"{line.migration} {words[line.state]}" for line in self.lines if line.state in words)


@dataclass(frozen=True, slots=True)
class FolderCounts:
    """The promised objects of one folder's applied migrations, found and promised, by kind."""

    folder: str
    counts: tuple[Count, ...]


@dataclass(frozen=True, slots=True)
class TableRows:
    """A promised table and its rows, of all its partitions if it has any; exact is false for an estimate.

    Of a foreign table it is what the last ANALYZE found.
    """

    table: str
    rows: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Verification:
    """What is there of what was promised. wrong: a sentence for each object that is not; drift: for files.

    replayed: how many migrations were carried out on a throw-away server to compare with what they make,
    object by object; None where only the promises were looked for, and why is in notes.
    """

    database: str
    folders: tuple[FolderCounts, ...]
    counts: tuple[Count, ...]
    wrong: tuple[str, ...]
    drift: tuple[str, ...]
    pending: tuple[str, ...]
    rows: tuple[TableRows, ...]
    replayed: int | None = None
    differences: "tuple[Difference, ...]" = ()
    notes: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing is missing, edited or pending."""
        return not (self.wrong or self.drift or self.pending)


def status(url: str, folders: Sequence[Folder]) -> Status:
    """Return the state of every migration, applied ones in their order. Raises MigrateError."""
    migrations = formats.read(folders)
    with connected(url) as conn:
        standing = preflight.compare(migrations, folders, history.read(conn, folders))
        under_way = history.read_backfills(conn) if standing.pending else {}
        begun = history.read_progress(conn)
    return _describe(name_target(read_url(url)), standing, under_way, begun)


def _describe(
    database: str,
    standing: Standing,
    under_way: Mapping[tuple[str, str], Backfilled] | None = None,
    begun: Mapping[tuple[str, str], Progress] | None = None,
) -> Status:
    edited = {(one.folder, one.version) for one in standing.edited}
    gone = {one.id for one in standing.missing}
    again = {(one.folder, one.version) for one in standing.pending}  # repeatable ones that have changed
    applied = [
        Line(
            one.name,
            "missing" if one.id in gone else "edited" if (one.folder, one.version) in edited else "applied",
            one.applied_at,
            one.duration.total_seconds(),
            one.applied_by,
            committed=stopped.statements if stopped and stopped.direction == "down" else None,
        )
        for one in standing.applied
        if (one.folder, one.version) not in again
        for stopped in [(begun or {}).get((one.folder, one.version))]
    ]
    pending: list[Line] = []
    for one in standing.pending:
        key = (one.folder, one.version)
        stopped = (begun or {}).get(key)
        committed = stopped.statements if stopped else None
        pending.append(Line(one.id, "pending", backfill=(under_way or {}).get(key), committed=committed))
    return Status(database, (*applied, *pending))


def verify(
    url: str, folders: Sequence[Folder], *, quick: bool = False, listen: Listener = ignore
) -> Verification:
    """Compare the catalog with what the applied migrations make on a throw-away server; count rows.

    quick, or where they cannot be carried out there: look for what they promised and no later one removed.
    Raises MigrateError.
    """
    looked = _look_for_promises(url, folders)
    if quick or not looked.folders:
        return looked
    from tollbook.migrate import drift  # it loads the grammar, which looking need not wait for

    try:
        found = drift.drift(url, folders, listen=listen)
    except drift.NotReplayable as error:
        return replace(looked, notes=(f"Only the promises were looked for: {error}",))
    return replace(
        looked,
        counts=found.counts,
        wrong=tuple(str(one) for one in found.differences),
        replayed=found.replayed,
        differences=found.differences,
        notes=found.notes,
    )


def _look_for_promises(url: str, folders: Sequence[Folder]) -> Verification:
    """All from one moment."""
    migrations = formats.read(folders)
    with connected(url) as conn:
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        applied = history.read(conn, folders)
        standing = preflight.compare(migrations, folders, applied)
        expected = find_expected(standing.applied, applied)
        everything = [promise for promises in expected.values() for promise in promises]
        verdict = presence.judge(everything, presence.look_up(conn, everything), ())
        found = _describe(name_target(read_url(url)), standing)
        return Verification(
            database=found.database,
            folders=tuple(
                FolderCounts(name, objects.count(promises, _among(verdict.missing, promises)))
                for name, promises in expected.items()
            ),
            counts=objects.count(everything, verdict.missing),
            wrong=tuple(dict.fromkeys([*verdict.wrong, *_find_unsound(conn, everything)])),
            drift=found.drift,
            pending=found.pending,
            rows=_count_rows(conn, verdict.found),
        )


def find_expected(ours: Sequence[Applied], everything: Sequence[Applied]) -> dict[str, list[Promise]]:
    """Return, by folder, what must be there now: promised, not removed later, each object once."""
    expected: dict[str, list[Promise]] = {one.folder: [] for one in ours}
    seen: set[tuple[object, ...]] = set()
    # By the last that removed it.
    removed_by = {_name(promise): one.id for one in everything for promise in one.removed}
    for one in ours:
        for promise in one.promised:
            name = _name(promise)
            if removed_by.get(name, 0) <= one.id and name not in seen:
                seen.add(name)
                expected[one.folder].append(promise)
    return expected


def _name(promise: Promise) -> tuple[object, ...]:
    return (promise.kind, promise.schema, promise.name, promise.on, promise.args)


def _among(missing: Iterable[Promise], promises: Iterable[Promise]) -> list[Promise]:
    names = {_name(promise) for promise in promises}
    return [promise for promise in missing if _name(promise) in names]


def _find_unsound(conn: Connection, promises: Sequence[Promise]) -> list[str]:
    """Return a sentence for what is unsound on promised tables: indexes, constraints and triggers.

    An index ON ONLY a partitioned table is not: it is complete once those of all partitions are attached.
    """
    rows = conn.execute(
        """WITH promised AS (
            SELECT c.oid, n.nspname, c.relname
            FROM unnest(%(schemas)s::text[], %(tables)s::text[]) AS p (schema, name)
            JOIN pg_namespace n ON n.nspname = p.schema
            JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.name)
        SELECT format('the index %%s.%%s is invalid: an earlier build failed; drop it and build it again',
            p.nspname, x.relname)
        FROM promised p JOIN pg_index i ON i.indrelid = p.oid JOIN pg_class x ON x.oid = i.indexrelid
        WHERE NOT i.indisvalid AND x.relkind = 'i'
        UNION ALL SELECT format('the constraint %%s of %%s.%%s is not validated; ALTER TABLE %%I.%%I '
            'VALIDATE CONSTRAINT %%I', k.conname, p.nspname, p.relname, p.nspname, p.relname, k.conname)
        FROM promised p JOIN pg_constraint k ON k.conrelid = p.oid WHERE NOT k.convalidated
        UNION ALL SELECT format('the trigger %%s of %%s.%%s is disabled; ALTER TABLE %%I.%%I ENABLE '
            'TRIGGER %%I', t.tgname, p.nspname, p.relname, p.nspname, p.relname, t.tgname)
        FROM promised p JOIN pg_trigger t ON t.tgrelid = p.oid
        WHERE t.tgenabled = 'D' AND NOT t.tgisinternal
        LIMIT %(most)s""",
        {
            "schemas": [promise.schema for promise in promises if promise.kind == "table"],
            "tables": [promise.name for promise in promises if promise.kind == "table"],
            "most": UNSOUND_SHOWN_MAX,
        },
    )
    return [row[0] for row in rows]


def _count_rows(conn: Connection, found: Sequence[Promise]) -> tuple[TableRows, ...]:
    return tuple(
        _count_table(conn, promise)
        for promise in [promise for promise in found if promise.kind == "table"][:TABLES_COUNTED_MAX]
    )


def _count_table(conn: Connection, table: Promise) -> TableRows:
    name = sql.Identifier(table.schema or "", table.name or "")
    row = conn.execute(
        """SELECT coalesce(sum(pg_relation_size(c.oid)), 0)::bigint,
            coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint, coalesce(bool_or(c.relkind = 'f'), false)
        FROM pg_class c WHERE c.oid = to_regclass(%(name)s)
          OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass(%(name)s)) WHERE isleaf)""",
        {"name": name.as_string(conn)},
    ).fetchone()
    size, estimate, foreign = row or (0, 0, False)
    if size > COUNTED_BYTES_MAX or foreign:  # those of another server are its business
        return TableRows(str(table), int(estimate), exact=False)
    row = conn.execute(sql.SQL("SELECT count(*) FROM {}").format(name)).fetchone()
    return TableRows(str(table), int(row[0]) if row else 0, exact=True)
