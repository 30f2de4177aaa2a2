"""Old history made one migration, after both roads are seen to lead to the same schema and the same rows."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tollbook.migrate import catalog, drift, formats, replay, rows, schema_file
from tollbook.migrate.catalog import Catalog
from tollbook.migrate.errors import MigrateError, WrongUsage
from tollbook.migrate.events import Event, Listener, ignore
from tollbook.migrate.files import Folder, Migration, Script, list_sql, read_script
from tollbook.migrate.formats.native import FILE_NAME, parse_version
from tollbook.migrate.preflight import ARCHIVE, parse_number
from tollbook.migrate.replay import Stage
from tollbook.migrate.session import Connection, connected

FILES_OF_ONE = ("up", "down", "check", "undo", "rollback", "backfill")
SHOWN_MAX = 20


class SquashRefused(MigrateError):
    """The migrations cannot be made one; no file was touched."""

    reason = "squash-refused"
    status = 409


@dataclass(frozen=True, slots=True)
class Squash:
    """The file that was written, what it replaces, where that went, and how many rows it brings."""

    path: str
    replaced: tuple[str, ...]
    archive: str
    rows: int


def squash(
    folder: Folder, to: tuple[str, str], *, keep_rows: bool | None = None, listen: Listener = ignore
) -> Squash:
    """Make all migrations of a folder up to `to` one, and move their files to the folder's archive.

    keep_rows: whether the rows that they insert are kept; None refuses where there are any. Databases that
    have all of them go on as they are. Raises MigrateError; no file is touched then. Killed at any moment, no
    file is lost: `finish`, then the same again, does the rest.
    """
    format_ = formats.recognise(folder.path) if folder.format == "auto" else folder.format
    if format_ != "native":
        raise SquashRefused(f"Only plain numbered SQL files can be made one; these are of {format_}.")
    migrations = formats.read([folder])
    place = next(place for place, one in enumerate(migrations) if (one.folder, one.version) == to)
    old, later = migrations[: place + 1], migrations[place + 1 :]
    path = _name(old)
    with replay.staged(listen) as stage:
        drift.admit(stage, migrations)
        url = stage.make()
        replay.play(url, old, listen)
        _refuse_what_is_lost(url, old)
        number = _count_rows(url)
        text = _write(url, old, number, keep_rows=keep_rows)
        listen(Event("proving", "Proving that both roads lead to the same."))
        _prove(stage, url, _read(path, text, old[-1]), later, with_rows=bool(keep_rows), listen=listen)
    archive = put_in_place(path, text, _list_files(old))
    return Squash(str(path), tuple(one.id for one in old), str(archive), number if keep_rows else 0)


def _name(old: Sequence[Migration]) -> Path:
    last = old[-1]
    digits = re.match(r"[0-9]+(?:[.-][0-9]+)*", last.label)
    path = last.up.path.with_name(f"{digits[0] if digits else last.version}_squashed.up.sql")
    known = {f"{one.label}{part}.sql" for one in old for part in ("", ".up")}
    if strange := next((one for one in old if one.up.path.name not in known), None):
        raise SquashRefused(
            f"{strange.up.path.name} holds more than the SQL that goes up; make it two files."
        )
    if len(old) == 1:
        raise SquashRefused(f"{last.id} is one already.")
    return path


def _refuse_what_is_lost(url: str, old: Sequence[Migration]) -> None:
    """A dump of one database holds neither roles nor owners."""
    _, made = replay.find_roles(old)
    if made:
        raise SquashRefused(
            f"These migrations make roles ({', '.join(sorted(made))}), which are not of one database. Move "
            "their CREATE ROLE to a migration that stays, or to what sets up the server."
        )
    with connected(url) as conn:
        row = conn.execute("SELECT current_user::text").fetchone()
        user = row[0] if row else ""
        owned = [one for one in catalog.read(conn).values() if one.owner not in (None, user)]
    if strange := [f"{one.name} ({one.owner})" for one in owned if one.name != "public"]:
        raise SquashRefused(
            f"These have owners of their own: {', '.join(strange[:SHOWN_MAX])}. Squash up to before that."
        )


def _count_rows(url: str) -> int:
    with connected(url) as conn:
        tables: dict[str, list[str]] = {name: [] for kind, name in catalog.read(conn) if kind == "table"}
        return sum(number for number, _ in rows.digest(conn, tables).values())


def _write(url: str, old: Sequence[Migration], number: int, *, keep_rows: bool | None) -> str:
    if number and keep_rows is None:
        raise WrongUsage(
            f"These migrations insert {number} rows. Say whether a new database is to have them: --rows or "
            "--no-rows."
        )
    first, last = old[0], old[-1]
    text = f"-- {first.label} to {last.label}, squashed; their files are in {ARCHIVE}/.\n"
    if number and keep_rows:  # before the triggers, which would fire
        text += schema_file.run_dump(url, "--column-inserts", "--rows-per-insert=100")
    else:
        text += schema_file.run_dump(url, "--schema-only") + _write_refreshes(url)
    # Databases that have the old ones never run this file: by the digest they too see that it was edited.
    digest = sha256(text.encode()).hexdigest()
    return f"-- tollbook: replaces={first.version}..{last.version} digest={digest}\n{text}"


def _write_refreshes(url: str) -> str:
    """Return what fills the materialized views that are filled, as a dump without rows does not."""
    with connected(url) as conn:
        views = conn.execute(
            """SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind = 'm' AND c.relispopulated ORDER BY c.oid"""
        ).fetchall()
    return "".join(f"\nREFRESH MATERIALIZED VIEW {name};\n" for (name,) in views)


def _read(path: Path, text: str, last: Migration) -> Migration:
    """Read the new file as it will be read, before it is there."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    try:
        script = read_script(beside)
    finally:
        beside.unlink()
    label = path.name.removesuffix(".up.sql")
    return Migration(
        last.folder, last.version, label, Script(path, script.text, script.checksum, script.options)
    )


def _prove(
    stage: Stage, url: str, new: Migration, later: Sequence[Migration], *, with_rows: bool, listen: Listener
) -> None:
    """Refuse where a database by the new road differs, now or after the migrations that follow."""
    other = stage.make()
    replay.play(other, [new], listen)
    _compare(url, other, with_rows=with_rows)
    if later:
        twin = stage.make(template=url)
        for road in (url, other, twin):
            replay.play(road, later, listen)
        _compare(url, other, with_rows=with_rows, twin=twin)


def _compare(url: str, other: str, *, with_rows: bool, twin: str | None = None) -> None:
    """Refuse where two databases differ; not by values that differ from a twin's too, as now() and random."""
    with connected(url) as conn, connected(other) as there:
        have, want = catalog.read(there), catalog.read(conn)
        found = [str(one) for one in drift.find(have, want) if one.expected != "sound"]
        if not found and with_rows:
            columns = _list_columns(want)
            if twin:
                columns = _leave_chance(conn, twin, columns)
            sums = rows.digest(conn, columns), rows.digest(there, columns)
            found = [f"the rows of {name} differ" for name in sums[0] if sums[0][name] != sums[1][name]]
    if found:
        raise SquashRefused(f"The new road does not lead to the same: {'; '.join(found[:SHOWN_MAX])}.")


def _leave_chance(conn: Connection, twin: str, columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the columns whose values the same migrations make again."""
    with connected(twin) as there:
        sums = rows.digest(conn, columns), rows.digest(there, columns)
        return columns | {
            table: [
                name
                for name in columns[table]
                if rows.digest(conn, {table: [name]}) == rows.digest(there, {table: [name]})
            ]
            for table in sums[0]
            if sums[0][table] != sums[1][table]
        }


def _list_columns(objects: Catalog) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for kind, name in objects if kind == "table"}
    for one in objects.values():
        if one.kind == "column" and one.parent in found:
            found[one.parent].append(one.facts["name"])
    return found


def put_in_place(path: Path, text: str, files: Sequence[Path]) -> Path:
    """Write a file in place of others, which go to the archive; whenever it ends, no file is lost."""
    archive = path.parent / ARCHIVE
    _copy(files, archive)
    _put(path, text.encode())
    _take_away(files)
    return archive


def finish(folder: Folder) -> Squash | None:
    """End a squash that was killed once its file was there: what it stands for, and is kept, goes.

    None where there is nothing to end.
    """
    archive = folder.path / ARCHIVE
    for new in sorted(folder.path.glob("*_squashed.up.sql")):
        replaces = read_script(new).options.replaces
        first, last = (parse_number(version) for version in replaces) if replaces else ([], [])
        left = [
            path
            for path in list_sql(folder.path)
            if path != new
            and (match := FILE_NAME.fullmatch(path.name))
            and first <= parse_number(parse_version(match["version"])) <= last
            and _is_kept(path, archive)
        ]
        if left:
            _take_away(left)
            return Squash(str(new), tuple(path.name for path in left), str(archive), 0)
    return None


def _list_files(old: Sequence[Migration]) -> list[Path]:
    names = [
        one.up.path.with_name(f"{one.label}{part}.sql")
        for one in old
        for part in ("", *(f".{part}" for part in FILES_OF_ONE))
    ]
    return [path for path in names if path.exists()]


def _is_kept(path: Path, archive: Path) -> bool:
    copy = archive / path.name
    return copy.exists() and copy.read_bytes() == path.read_bytes()


def _copy(files: Sequence[Path], archive: Path) -> None:
    there = [path for path in files if (archive / path.name).exists() and not _is_kept(path, archive)]
    if there:
        raise SquashRefused(f"{archive / there[0].name} is there, and another file. Rename one of them.")
    archive.mkdir(exist_ok=True)
    for path in files:
        _put(archive / path.name, path.read_bytes())
    _sync(archive.parent)


def _take_away(files: Sequence[Path]) -> None:
    """Take files away, the last up file last: until then the folder is refused, as two have one number."""

    def rank(path: Path) -> tuple[list[int], bool, str]:
        match = FILE_NAME.fullmatch(path.name)
        assert match is not None
        return parse_number(parse_version(match["version"])), (match["part"] or "up") == "up", path.name

    for path in sorted(files, key=rank):
        path.unlink()
        _sync(path.parent)


def _put(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, also after a crash of the machine."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
