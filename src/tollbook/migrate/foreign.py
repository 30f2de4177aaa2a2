"""The histories that other tools have left in the database: found, and set beside the files."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from tollbook.migrate import whereabouts
from tollbook.migrate.errors import MigrateError
from tollbook.migrate.files import Migration
from tollbook.migrate.formats import flyway
from tollbook.migrate.keepers import AGAIN, KEEPERS, Keeper, Kept
from tollbook.migrate.session import Connection

Rows = dict[str, Kept]
Files = Mapping[str, Migration]


def find_all(conn: Connection, migrations: Sequence[Migration]) -> list[Keeper]:
    """Return the keepers whose tables are in this database, where the settings of these files have them."""
    found: list[Keeper] = []
    for usual in KEEPERS:  # two have tables of one name, the more particular one comes first
        keeper = whereabouts.locate(usual, migrations)
        if keeper.table not in {one.table for one in found} and _has(conn, keeper):
            found.append(keeper)
    return found


def find(conn: Connection, migrations: Sequence[Migration]) -> Keeper | None:
    """Return the keeper of these files' history; None where no known tool has been at work.

    Raises MigrateError where there are several and not one alone knows the files.
    """
    found = find_all(conn, migrations)
    if len(found) > 1:
        knowing = [one for one in found if match(one, one.read(conn), migrations)[0]]
        found = knowing if len(knowing) == 1 else found
    if len(found) > 1:
        raise MigrateError(
            f"{' and '.join(one.tool for one in found)} have both left a history here "
            f"({', '.join(one.table for one in found)}). Rename the table that is not in force any more."
        )
    return found[0] if found else None


def _has(conn: Connection, keeper: Keeper) -> bool:
    rows = conn.execute(
        """SELECT attname::text FROM pg_attribute
        WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped""",
        {"table": keeper.table},
    )
    columns = frozenset[str](row[0] for row in rows)
    return keeper.columns == columns if keeper.bare else keeper.columns <= columns


def match(
    keeper: Keeper, history: Iterable[Kept], migrations: Sequence[Migration]
) -> tuple[list[Migration], list[Migration], list[str]]:
    """Set a tool's history beside the files.

    Returns the migrations it says are applied, those of them whose file is not the one it applied, and the
    keys it has no file for. A repeatable one of another file is to be applied again: it is in neither.
    """
    files: dict[str, Migration] = {}
    for one in migrations:
        key = keeper.key(one)
        while key in files:  # a change of Sqitch's that was reworked
            key += AGAIN
        files[key] = one
    rows = {one.key: one for one in history}
    rows = READINGS.get(keeper.tool, _as_it_is)(rows, files)
    edited = {
        key: one
        for key, one in files.items()
        if key in rows and (kept := rows[key].checksum) is not None and kept not in keeper.checksums(one)
    }
    applied = [one for key, one in files.items() if key in rows and not (one.repeatable and key in edited)]
    unknown = [key for key in rows if key not in files]
    return applied, [one for one in edited.values() if not one.repeatable], unknown


def _as_it_is(rows: Rows, files: Files) -> Rows:
    return rows


def _take_all_before(rows: Rows, files: Files) -> Rows:
    """golang-migrate and tern keep one row: that migration is applied, and all before it."""
    keys = list(files)
    upto = max((keys.index(key) + 1 for key in rows if key in files), default=0)
    return {key: Kept(key) for key in keys[:upto]} or rows


def _take_below_floors(rows: Rows, files: Files) -> Rows:
    """What is below a baseline, by its version, counts as applied."""
    for floor in [one for one in rows.values() if one.floor]:
        del rows[floor.key]
        upto = flyway.parse_version(floor.key)
        below = (
            key for key, one in files.items() if not one.repeatable and flyway.parse_version(key) <= upto
        )
        rows = {key: Kept(key) for key in below} | rows
    return rows


def _take_ancestors(rows: Rows, files: Files) -> Rows:
    """Alembic's table holds the heads alone: they are applied, and all they build on."""
    found: Rows = {}
    open_ = list(rows)
    while open_:
        version = open_.pop()
        if version not in found:
            found[version] = Kept(version)
            open_ += files[version].after if version in files else ()
    return found


def _leave_squashed(rows: Rows, files: Files) -> Rows:
    """Prisma squashes by hand: rows whose files are gone stay before one that was said to be applied."""
    keys = list(rows)
    upto = max((place for place, key in enumerate(keys) if rows[key].floor and key in files), default=0)
    return {key: rows[key] for place, key in enumerate(keys) if place >= upto or key in files}


def _leave_other_projects(rows: Rows, files: Files) -> Rows:
    """Sqitch keeps several projects in one table."""
    ours = {key.partition(":")[0] for key in files}
    return {key: one for key, one in rows.items() if key.partition(":")[0] in ours}


READINGS: Mapping[str, Callable[[Rows, Files], Rows]] = {
    "Alembic": _take_ancestors,
    "Atlas": _take_below_floors,
    "Flyway": _take_below_floors,
    "Prisma": _leave_squashed,
    "Sqitch": _leave_other_projects,
    "golang-migrate": _take_all_before,
    "tern": _take_all_before,
}
