"""What a statement was seen to do: locks, rewrites, full scans, rows, and what the catalog gained or lost."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, LiteralString

from tollbook.migrate import catalog
from tollbook.migrate.catalog import Change
from tollbook.migrate.session import Connection

TEXT_CHARACTERS_MAX = 160
# Definitions are read after each statement that defines something; once that took so long, after each file.
CATALOG_SECONDS_MAX = 5.0
# From the weakest to the strongest, with what happens to others while it is held.
MODES = {
    "AccessShareLock": ("ACCESS SHARE", "DROP and most of ALTER TABLE wait"),
    "RowShareLock": ("ROW SHARE", "most DDL waits"),
    "RowExclusiveLock": ("ROW EXCLUSIVE", "most DDL waits"),
    "ShareUpdateExclusiveLock": ("SHARE UPDATE EXCLUSIVE", "DDL and VACUUM wait, reads and writes go on"),
    "ShareLock": ("SHARE", "writes wait"),
    "ShareRowExclusiveLock": ("SHARE ROW EXCLUSIVE", "writes wait"),
    "ExclusiveLock": ("EXCLUSIVE", "writes wait"),
    "AccessExclusiveLock": ("ACCESS EXCLUSIVE", "reads and writes wait"),
}
ORDER = tuple(words for words, _ in MODES.values())
BLOCKS = dict(MODES.values())
STOPS_WRITES = frozenset(ORDER[ORDER.index("SHARE") :])
NOTABLE = frozenset(ORDER[ORDER.index("SHARE UPDATE EXCLUSIVE") :])
TABLES = ("r", "p", "m", "f")
KINDS = {
    "r": "table",
    "p": "table",
    "f": "foreign table",
    "m": "materialized view",
    "v": "view",
    "i": "index",
    "I": "index",
    "S": "sequence",
    "c": "type",
}


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock on a relation.

    blocks says what waits while it is held.
    `of` is, here and below, the whole table (of a partition the topmost, of an index its table) by the name
    it had before the first statement of all.
    """

    mode: str
    relation: str
    kind: str
    of: str
    blocks: str


@dataclass(frozen=True, slots=True)
class Written:
    """A relation whose file was written anew: rewritten, emptied (TRUNCATE), built (an index), or rebuilt."""

    what: str
    relation: str
    kind: str
    of: str


@dataclass(frozen=True, slots=True)
class Scan:
    """A table that was read from its first row to its last, perhaps several times, and the rows read."""

    relation: str
    of: str
    rows: int


@dataclass(frozen=True, slots=True)
class Touched:
    """A table's rows that were added, changed and removed, by triggers too."""

    relation: str
    of: str
    inserted: int
    updated: int
    deleted: int


@dataclass(frozen=True, slots=True)
class Observation:
    """A statement and what it was seen to do.

    number counts from 1 in its script; tag is the server's, such as UPDATE 3. locks are those it took,
    held those (that stop writes) which its transaction had from earlier statements. alone: what it is that
    cannot run in a transaction. untried: why it was not run, and so nothing was seen. changes are empty after
    many statements; the file has them all.
    """

    number: int
    line: int
    text: str
    tag: str = ""
    seconds: float = 0.0
    locks: tuple[Lock, ...] = ()
    held: tuple[Lock, ...] = ()
    written: tuple[Written, ...] = ()
    scans: tuple[Scan, ...] = ()
    rows: tuple[Touched, ...] = ()
    changes: tuple[Change, ...] = ()
    alone: str | None = None
    untried: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an observation is made of, beside its statement."""

    locks: tuple[Lock, ...]
    held: tuple[Lock, ...]
    written: tuple[Written, ...]
    scans: tuple[Scan, ...]
    rows: tuple[Touched, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class _Relation:
    name: str
    kind: str
    file: int
    table: int  # of an index: its table; else itself
    root: str  # of a partition: the topmost table
    scans: int
    read: int
    inserted: int
    updated: int
    deleted: int


@dataclass(frozen=True, slots=True)
class _State:
    relations: Mapping[int, _Relation] = field(default_factory=dict[int, _Relation])
    locks: frozenset[tuple[int, str]] = frozenset()
    catalog_writes: int = 0


class Observer:
    """Looks at a session before and after each of its statements. It adds no lock but on system catalogs."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.catalog = self.file_catalog = catalog.snapshot(conn)
        self.spent_seconds = 0.0  # on the catalog, statement by statement
        self.behind = False
        self.first = self.last = _read(conn, alone=False)
        self.names = dict(self.first.relations)  # of all that ever was: a lock outlasts its table
        self.wholes = {oid: one.root for oid, one in self.first.relations.items() if one.table == oid}

    def begin(self, *, anew: bool = True, alone: bool = False) -> None:
        """Look at a transaction that has just begun, or (not anew) goes on under another file.

        alone: there is none, and counts are those of all sessions.
        """
        self.last = _read(self.conn, alone=alone)
        if anew:
            self.first = self.last

    def look(self, tag: str, *, alone: bool = False, sampled: Iterable[tuple[int, str]] = ()) -> Seen:
        """Return what has happened since the last look. sampled: locks that another session saw held."""
        before, after = self.last, _read(self.conn, alone=alone)
        self.last = after
        names = self.names = {**self.names, **after.relations, **before.relations}
        # What this very transaction has made, nobody else can wait for.
        old = before.relations if alone else self.first.relations
        taken = set(sampled) if alone else after.locks - before.locks
        kept = before.locks & after.locks if not alone else frozenset[tuple[int, str]]()
        wrote = alone or after.catalog_writes != before.catalog_writes
        changes = self._compare() if wrote else ()
        whole = {oid: self._whole(one, names) for oid, one in names.items()}
        written = tuple(_find_written(before, after, old, whole, tag))
        emptied = {one.relation for one in written if one.what == "emptied"}
        return Seen(
            _name_locks(taken, names, old, whole, ORDER),
            _name_locks(kept, names, old, whole, STOPS_WRITES),
            written,
            tuple(_find_scans(before, after, old, whole, emptied)),
            tuple(_find_touched(before, after, whole)),
            changes,
        )

    def _compare(self) -> tuple[Change, ...]:
        """Return what the catalog gained, lost and changed by the last statement, while there is time."""
        if self.spent_seconds > CATALOG_SECONDS_MAX:
            self.behind = True
            return ()
        began = time.monotonic()
        then, self.catalog = self.catalog, catalog.snapshot(self.conn)
        self.spent_seconds += time.monotonic() - began
        return tuple(catalog.diff(then, self.catalog))

    def end_file(self) -> tuple[Change, ...]:
        """Return what the catalog gained, lost and changed since the last file ended."""
        if self.behind:
            self.start_over()
        then, self.file_catalog = self.file_catalog, self.catalog
        return tuple(catalog.diff(then, self.catalog))

    def start_over(self) -> None:
        """Look at the catalog anew: what was looked at is rolled back."""
        self.catalog, self.behind = catalog.snapshot(self.conn), False

    def _whole(self, one: _Relation, names: Mapping[int, _Relation]) -> str:
        table = names.get(one.table, one)
        return self.wholes.get(one.table, table.root)


def _read(conn: Connection, *, alone: bool = False) -> _State:
    # A session's counts go into the shared ones when it is idle; the sum of both stays right.
    rows = conn.execute(RELATIONS, {"all": alone}, prepare=False).fetchall()
    relations = {row[0]: _Relation(*row[1:]) for row in rows}
    locks = frozenset((relation, mode) for relation, mode in conn.execute(LOCKS))
    row = conn.execute(CATALOG_WRITES).fetchone()
    return _State(relations, locks, int(row[0]) if row else 0)


def read_locks(conn: Connection, pid: int) -> list[tuple[int, str, bool]]:
    """Return the relations another session has locked or waits for: oid, mode, and whether it has it."""
    rows: list[Any] = conn.execute(LOCKS_OF, {"pid": pid}).fetchall()
    return rows


def shorten(text: str) -> str:
    """Return a statement on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= TEXT_CHARACTERS_MAX else line[: TEXT_CHARACTERS_MAX - 1] + "…"


def _name_locks(
    locks: Iterable[tuple[int, str]],
    names: Mapping[int, _Relation],
    old: Mapping[int, _Relation],
    whole: Mapping[int, str],
    modes: Iterable[str],
) -> tuple[Lock, ...]:
    """Name locks on what was there before, strongest first; of each relation the strongest."""
    wanted = frozenset(modes)
    found: dict[int, Lock] = {}
    for oid, raw in sorted(locks, key=lambda one: ORDER.index(MODES[one[1]][0])):
        mode = MODES[raw][0]
        if oid in old and mode in wanted:
            kind = KINDS.get(names[oid].kind, "relation")
            found[oid] = Lock(mode, names[oid].name, kind, whole[oid], BLOCKS[mode])
    return tuple(sorted(found.values(), key=lambda one: (-ORDER.index(one.mode), one.relation)))


def _find_written(
    before: _State, after: _State, old: Mapping[int, _Relation], whole: Mapping[int, str], tag: str
) -> Iterable[Written]:
    # By name: a changed type drops an index and makes it again.
    files = {one.name: one.file for one in before.relations.values()}
    verb = "emptied" if tag.startswith("TRUNCATE") else "rewritten"
    for oid, one in after.relations.items():
        if one.kind not in ("r", "m", "i") or not one.file or one.table not in old:
            continue
        was = before.relations[oid].file if oid in before.relations else files.get(one.name)
        if was == one.file or (was is None and one.kind != "i"):
            continue  # as it was, or a new table
        what = "built" if was is None else "rebuilt" if one.kind == "i" and verb != "emptied" else verb
        yield Written(what, one.name, KINDS[one.kind], whole[oid])


def _find_scans(
    before: _State, after: _State, old: Mapping[int, _Relation], whole: Mapping[int, str], emptied: set[str]
) -> Iterable[Scan]:
    for oid, one in after.relations.items():
        was = before.relations.get(oid)
        if oid in old and was and one.kind in TABLES and one.scans > was.scans and one.name not in emptied:
            yield Scan(one.name, whole[oid], one.read - was.read)


def _find_touched(before: _State, after: _State, whole: Mapping[int, str]) -> Iterable[Touched]:
    for oid, one in after.relations.items():
        was = before.relations.get(oid)
        counts = (one.inserted, one.updated, one.deleted)
        since = (was.inserted, was.updated, was.deleted) if was else (0, 0, 0)
        rows = tuple(now - then for now, then in zip(counts, since, strict=True))
        if one.kind in TABLES and any(count > 0 for count in rows):
            yield Touched(one.name, whole[oid], *rows)


RELATIONS: LiteralString = """
SELECT c.oid::bigint, quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relkind::text,
    c.relfilenode::bigint, coalesce(i.indrelid, c.oid)::bigint,
    CASE WHEN c.relispartition AND r.oid IS NOT NULL
        THEN quote_ident(rn.nspname) || '.' || quote_ident(r.relname)
        ELSE quote_ident(n.nspname) || '.' || quote_ident(c.relname) END,
    pg_stat_get_xact_numscans(c.oid) + CASE WHEN %(all)s THEN pg_stat_get_numscans(c.oid) ELSE 0 END,
    pg_stat_get_xact_tuples_returned(c.oid)
        + CASE WHEN %(all)s THEN pg_stat_get_tuples_returned(c.oid) ELSE 0 END,
    pg_stat_get_xact_tuples_inserted(c.oid)
        + CASE WHEN %(all)s THEN pg_stat_get_tuples_inserted(c.oid) ELSE 0 END,
    pg_stat_get_xact_tuples_updated(c.oid)
        + CASE WHEN %(all)s THEN pg_stat_get_tuples_updated(c.oid) ELSE 0 END,
    pg_stat_get_xact_tuples_deleted(c.oid)
        + CASE WHEN %(all)s THEN pg_stat_get_tuples_deleted(c.oid) ELSE 0 END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index i ON i.indexrelid = c.oid
LEFT JOIN pg_class r ON c.relispartition AND r.oid = pg_partition_root(c.oid)
LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace
WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'tollbook_migrate')
  AND c.relkind <> 'S'
"""
LOCKS: LiteralString = """
SELECT l.relation::bigint, l.mode FROM pg_locks l
WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
LOCKS_OF: LiteralString = """
SELECT l.relation::bigint, l.mode, l.granted FROM pg_locks l
WHERE l.pid = %(pid)s AND l.locktype = 'relation'
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
# Rows of the system's own tables that this transaction wrote: where there are none, nothing was defined.
CATALOG_WRITES: LiteralString = """
SELECT coalesce(sum(pg_stat_get_xact_tuples_inserted(oid) + pg_stat_get_xact_tuples_updated(oid)
    + pg_stat_get_xact_tuples_deleted(oid)), 0)::bigint
FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'
"""
