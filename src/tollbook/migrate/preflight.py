"""Everything that can be known to stand in the way before a run changes anything, all named at once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from tollbook.migrate import history, presence
from tollbook.migrate.errors import Place, PreflightRefused, Problem
from tollbook.migrate.files import Folder, Migration, Script
from tollbook.migrate.history import Applied, Progress
from tollbook.migrate.objects import Promise
from tollbook.migrate.session import Connection

# The grammar takes a twentieth of a second to load, and is needed only where something is pending.
if TYPE_CHECKING:
    from tollbook.migrate import statements
    from tollbook.migrate.execution import Prepared

SERVER_VERSION_MIN = 150000
ARCHIVE = "squashed"  # the folder, in theirs, that keeps the files a squashed one stands for


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a database stands against the folders."""

    applied: tuple[Applied, ...]  # of these folders, oldest first
    pending: tuple[Migration, ...]
    edited: tuple[Migration, ...]
    missing: tuple[Applied, ...]  # applied, but the file is gone
    elsewhere: tuple[Applied, ...]  # applied under the name of a folder that was not given
    late: tuple[tuple[Migration, Applied], ...]  # pending, but ordered before one that is applied
    # squashed ones of which a part is applied, with the last that is
    halfway: tuple[tuple[Migration, Applied], ...] = ()


def compare(
    migrations: Sequence[Migration], folders: Sequence[Folder], applied: Sequence[Applied]
) -> Standing:
    """Set the files beside the history."""
    names = {folder.name for folder in folders}
    ours = [one for one in applied if one.folder in names]
    by_key = {(one.folder, one.version): one for one in ours}
    files = {(one.folder, one.version): one for one in migrations}
    replaced, halfway = _find_replaced(migrations, ours)
    changed = [
        one
        for key, one in files.items()
        if (key in by_key and by_key[key].checksum != one.up.checksum and key not in replaced)
        or _is_edited(one.up)
    ]
    pending = {
        key
        for key, one in files.items()
        if not one.ahead_of and (key not in by_key or (one in changed and one.repeatable))
    }
    return Standing(
        applied=tuple(ours),
        pending=tuple(_add_ahead(migrations, pending)),
        edited=tuple(one for one in changed if not one.repeatable),
        missing=tuple(one for key, one in by_key.items() if key not in files and key not in replaced),
        elsewhere=tuple(one for one in applied if one.folder not in names),
        late=tuple(_find_late(migrations, by_key)),
        halfway=halfway,
    )


def _add_ahead(migrations: Sequence[Migration], pending: set[tuple[str, str]]) -> Iterator[Migration]:
    """Give what is pending, and what runs ahead of that, in order."""
    for one in migrations:
        if (one.folder, one.version) in pending or any((one.folder, to) in pending for to in one.ahead_of):
            yield one


def _find_replaced(
    migrations: Sequence[Migration], applied: Sequence[Applied]
) -> tuple[set[tuple[str, str]], tuple[tuple[Migration, Applied], ...]]:
    """Return what is applied and stood for by a squashed one now, and the squashed of which a part is.

    A squashed one has the version of the last that it replaces: where that is applied, all of it is.
    """
    replaced: set[tuple[str, str]] = set()
    halfway: list[tuple[Migration, Applied]] = []
    for one in migrations:
        if one.up.options.replaces is None:
            continue
        first, last = (parse_number(version) for version in one.up.options.replaces)
        found = [
            old for old in applied if old.folder == one.folder and first <= parse_number(old.version) <= last
        ]
        replaced |= {(old.folder, old.version) for old in found}
        if found and one.version not in {old.version for old in found}:
            halfway.append((one, found[-1]))
    return replaced, tuple(halfway)


def _is_edited(script: Script) -> bool:
    """Whether a squashed file is not the text any more that was proved: databases may never have run it."""
    digest = script.options.digest
    return digest is not None and sha256(script.text.partition("\n")[2].encode()).hexdigest() != digest


def parse_number(version: str) -> list[int]:
    """Return a version as numbers that can be compared."""
    return [int(part) for part in version.split(".") if part.isdecimal()]


def _find_late(
    migrations: Sequence[Migration], applied: Mapping[tuple[str, str], Applied]
) -> Iterator[tuple[Migration, Applied]]:
    """Give the pending migrations that stand before an applied one of their folder, with the last such."""
    newest: dict[str, Applied] = {}
    for one in reversed(migrations):
        done = applied.get((one.folder, one.version))
        if one.repeatable:  # stands behind all others, wherever those come to
            continue
        if done is not None:
            newest.setdefault(one.folder, done)
        elif one.folder in newest and not (one.after or one.late):
            yield one, newest[one.folder]


def check_history(standing: Standing) -> list[Problem]:
    """Name what is edited, missing or out of order, and what to do about each."""
    problems = [
        Problem(
            f"{one.id} was edited after it was {'squashed' if one.up.options.digest else 'applied'}.",
            "Put the applied text back (from version control) and write the change as a new migration.",
            Place(str(one.up.path)),
        )
        for one in standing.edited
    ]
    problems += [
        Problem(
            f"{one.name} is applied, but its file is gone.",
            "Put the file back (from version control), or take the migration back by `revert`: its down "
            "statements are kept in the database.",
        )
        for one in standing.missing
    ]
    problems += [
        Problem(
            f"{one.id} comes before {newest.name}, which is applied already.",
            "Give it a later number, in all of its files.",
            Place(str(one.up.path)),
        )
        for one, newest in standing.late
    ]
    problems += [
        Problem(
            f"{one.id} stands for several migrations; here only those up to {newest.name} are applied.",
            "Apply the rest of them first, from where they were moved to: tollbook migrate apply --dir "
            f"{one.folder}={one.up.path.parent / ARCHIVE}. Then run this again.",
            Place(str(one.up.path)),
        )
        for one, newest in standing.halfway
    ]
    return problems + _find_renamed_folder(standing)


def _find_renamed_folder(standing: Standing) -> list[Problem]:
    known = {(one.label, one.checksum): one.folder for one in standing.elsewhere}
    for one in standing.pending:
        folder = known.get((one.label, one.up.checksum))
        # The same folder in another schema is no folder that was renamed.
        if folder and folder.partition("@")[0] != one.folder.partition("@")[0]:
            return [
                Problem(
                    f"{one.label} is applied already, in a folder that was then called {folder}.",
                    f"Give the folder that name: --dir {folder}={one.up.path.parent}",
                )
            ]
    return []


def prepare(pending: Iterable[Migration]) -> tuple[list["Prepared"], list[Problem]]:
    """Read the pending files by grammar; return them ready to run, and what must not run."""
    from tollbook.migrate import grammar

    with grammar.unchecked():
        read = [_prepare(migration) for migration in pending]
    return [one for one, _ in read], [problem for _, problems in read for problem in problems]


def _prepare(migration: Migration) -> tuple["Prepared", list[Problem]]:
    from tollbook.migrate import backfill_file, promises, statements
    from tollbook.migrate.execution import Prepared

    up = statements.read(migration.up)
    check = statements.read(migration.check) if migration.check else None
    problems = [*up.problems, *(check.problems if check else ())]
    if check:
        problems += _refuse_cuts(migration.check, check)
    if migration.down:  # found now, not on the day it is needed
        problems += statements.read(migration.down).problems
    made = promises.collect(up.statements)
    if migration.up.program:  # nobody can tell beforehand what it makes or drops
        made.opaque = made.may_remove = True
    fill, wrong = backfill_file.read(migration.backfill) if migration.backfill else (None, [])
    return Prepared(migration, up, made, check, fill), [*problems, *wrong]


def _refuse_cuts(script: Script | None, reading: "statements.Reading") -> list[Problem]:
    """A check runs inside the migration's transaction and is undone, so nothing in it can commit."""
    return [
        Problem(
            f"{one.alone or 'COMMIT'} cannot stand in a check: it is undone after it ran.",
            "Take it out.",
            _point(script, one.index) if script else None,
        )
        for one in reading.statements
        if one.alone or one.block
    ]


def check_server(conn: Connection) -> list[Problem]:
    """Check version, role and rights of the server's side."""
    problems: list[Problem] = []
    if conn.info.server_version < SERVER_VERSION_MIN:
        problems.append(
            Problem(
                f"The server is PostgreSQL {conn.info.server_version // 10000}.",
                f"Use version {SERVER_VERSION_MIN // 10000} or newer.",
            )
        )
    row = conn.execute(
        """SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
            has_database_privilege(current_database(), 'CREATE'), current_user::text,
            current_database()::text, current_setting('standard_conforming_strings') = 'on'"""
    ).fetchone()
    assert row is not None
    standby, read_only, may_create, user, database, conforming = row
    if not conforming:
        problems.append(
            Problem(
                "standard_conforming_strings is off here: a backslash in '…' would not be one.",
                f"Set it to on for {user} or {database}.",
            )
        )
    if standby:
        problems.append(
            Problem("The server is a standby, which takes no changes.", "Give the primary's address.")
        )
    elif read_only:
        problems.append(
            Problem(
                "Transactions are read-only here.",
                f"Set default_transaction_read_only to off for {user} or {database}.",
            )
        )
    elif not may_create and not history.exists(conn):
        problems.append(
            Problem(
                f"{user} may not create schemas in {database}.",
                f'As its owner: GRANT CREATE ON DATABASE "{database}" TO "{user}"',
            )
        )
    return problems


def check_objects(
    conn: Connection, ready: Sequence["Prepared"], progress: Mapping[tuple[str, str], Progress]
) -> list[Problem]:
    """Check extensions, schema rights, and objects that are there already.

    Marks each promise of the migrations by whether it will be made or was there before.
    """
    from tollbook.migrate.promises import hangs_on, same

    asked = [promise for one in ready for promise in one.promises.made]
    problems = _check_extensions(conn, ready)
    ours = [one for one in ready if not one.migration.up.options.role]  # others have the rights of their role
    problems += _check_schema_rights(conn, [promise for one in ours for promise in one.promises.made])
    row = conn.execute("SELECT current_schemas(false)::text[]").fetchone()
    path: list[str] = row[0] if row else []
    there: dict[tuple[str, str | None], list[Promise]] = {}
    for promise in presence.judge(asked, presence.look_up(conn, asked), path).found:
        there.setdefault((promise.kind, promise.name), []).append(promise)
    dropped: list[Promise] = []
    opaque = False
    for one in ready:
        dropped += one.promises.dropped
        opaque = opaque or one.promises.opaque or one.promises.taking
        marked: list[Promise] = []
        for promise in one.promises.made:
            known = there.setdefault((promise.kind, promise.name), [])
            before = next((other for other in known if promise.name and same(promise, other)), None)
            marked.append(replace(promise, made=False) if before else promise)
            # No conflict if it is dropped before, or if something could drop it that the grammar cannot see.
            begun = (one.migration.folder, one.migration.version) in progress
            freed = begun or opaque or any(same(gone, promise) or hangs_on(promise, gone) for gone in dropped)
            if before and not promise.conditional and not freed:
                problems.append(_name_conflict(one.migration, before))
            known.append(marked[-1])
        one.promises.made[:] = marked
    return problems


def _name_conflict(migration: Migration, promise: Promise) -> Problem:
    return Problem(
        f"{migration.id} makes the {promise.kind} {promise}, which is there already.",
        "If an earlier file or a hand made it, drop or rename it, or write IF NOT EXISTS / OR REPLACE.",
        Place(str(migration.up.path)),
    )


def _check_extensions(conn: Connection, ready: Sequence["Prepared"]) -> list[Problem]:
    wanted = [(name, index, one.migration.up) for one in ready for name, index in one.promises.extensions]
    if not wanted:
        return []
    rows = conn.execute(
        """SELECT name::text FROM pg_available_extensions WHERE name = ANY(%(names)s)""",
        {"names": [name for name, _, _ in wanted]},
    )
    available = {row[0] for row in rows}
    return [
        Problem(
            f"The server has no extension {name}.",
            "Install its package on the server (or choose a server that offers it), then run again.",
            _point(script, index),
        )
        for name, index, script in wanted
        if name not in available
    ]


def _point(script: Script, index: int) -> Place:
    return script.point(index, caret=False)


def _check_schema_rights(conn: Connection, asked: Sequence[Promise]) -> list[Problem]:
    schemas = sorted({promise.schema for promise in asked if promise.schema and promise.kind != "trigger"})
    bare = any(promise.schema is None and promise.kind not in ("schema", "extension") for promise in asked)
    rows = conn.execute(
        """SELECT nspname::text, current_user::text FROM pg_namespace
        WHERE (nspname = ANY(%(schemas)s) OR (%(bare)s AND nspname = current_schema()))
          AND NOT has_schema_privilege(oid, 'CREATE')""",
        {"schemas": schemas, "bare": bare},
    )
    return [
        Problem(
            f"{user} may not create objects in the schema {schema}.",
            f'As its owner: GRANT CREATE ON SCHEMA "{schema}" TO "{user}"',
        )
        for schema, user in rows
    ]


def holds_tables(conn: Connection) -> bool:
    """Whether there is anything to lose: a table that is not the system's, an extension's or the engine's."""
    row = conn.execute(
        """SELECT EXISTS (
            SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname !~ '^pg_'
              AND n.nspname NOT IN ('information_schema', 'tollbook_migrate')
              AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e'
                AND d.classid = 'pg_class'::regclass))"""
    ).fetchone()
    return bool(row and row[0])


def refuse(problems: Sequence[Problem]) -> None:
    """Raise PreflightRefused if there are problems."""
    if problems:
        raise PreflightRefused(problems)
