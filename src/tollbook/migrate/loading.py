"""A backup loaded into a database, its grants given, and all of it counted there against the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from tollbook.migrate import grants
from tollbook.migrate.archive import Archive, opened
from tollbook.migrate.clearing import CLEAR
from tollbook.migrate.contents import KINDS, TABLES
from tollbook.migrate.errors import RestoreFailed
from tollbook.migrate.pg_tools import Running, Target, running
from tollbook.migrate.relay import reached

CHUNK_BYTES = 1 << 20
TAIL_BYTES = 4096  # the script's end, held back until all of it is known to be good; it has about 200
# pg_restore 17 and newer ask for it; servers before 17 do not know it.
NEW_SETTING, NEW_SETTING_MAJOR = b"SET transaction_timeout = 0;\n", 17

DIFFERENT = "tollbook: not the same: "  # begins the error for all that is otherwise than in the manifest

# What is there against what the manifest says, in the session that loaded it: every difference in one error.
_PROOF = f"""
SET statement_timeout = 0;
SET row_security = off;
DO $proof$
DECLARE
    expected jsonb := current_setting('tollbook.expected')::jsonb;
    said text[] := '{{}}';
    known record;
    found bigint;
    forced boolean;
BEGIN
    SELECT count(*) INTO found FROM ({TABLES}) AS tables;
    IF found <> (expected ->> 'table_count')::bigint THEN
        said := said || format('the backup has %s tables, the database %s',
                               expected ->> 'table_count', found);
    END IF;
    FOR known IN SELECT key AS name, value::bigint AS rows FROM jsonb_each_text(expected -> 'tables') LOOP
        IF to_regclass(known.name) IS NULL THEN
            said := said || format('%s is not there', known.name);
            CONTINUE;
        END IF;
        -- We own it; what was forced on owners too is forced again when it is counted.
        forced := (SELECT relforcerowsecurity FROM pg_class WHERE oid = known.name::regclass);
        IF forced THEN EXECUTE format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', known.name); END IF;
        EXECUTE 'SELECT count(*) FROM ONLY ' || known.name INTO found;
        IF forced THEN EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', known.name); END IF;
        IF found <> known.rows THEN
            said := said || format('%s has %s rows in the backup and %s in the database',
                                   known.name, known.rows, found);
        END IF;
    END LOOP;
    FOR known IN
        SELECT kind, coalesce(e.value::bigint, 0) AS wanted, coalesce(f.count, 0) AS had
        FROM jsonb_each_text(expected -> 'objects') AS e (kind, value) FULL JOIN ({KINDS}) AS f USING (kind)
        WHERE expected ? 'objects'
    LOOP
        IF known.wanted <> known.had THEN
            said := said || format('the backup has %s of kind %s, the database %s',
                                   known.wanted, known.kind, known.had);
        END IF;
    END LOOP;
    IF jsonb_array_length(expected -> 'history') > 0 THEN
        EXECUTE 'SELECT count(*) FROM tollbook_migrate.history AS h WHERE h.reverted_at IS NULL
                 AND $1 ? (h.folder || ''/'' || h.version)' INTO found USING expected -> 'history';
        IF found <> jsonb_array_length(expected -> 'history') THEN
            said := said || 'the migrations in force are not those of the backup'::text;
        END IF;
    END IF;
    IF said <> '{{}}' THEN
        RAISE EXCEPTION '{DIFFERENT}%', array_to_string(said, '; ');
    END IF;
END
$proof$;
ANALYZE;
"""  # noqa: S608  (constants alone)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Roles named in grants that are not on the server, and grants that it refused, each with its reason."""

    missing_roles: tuple[str, ...]
    lost_grants: tuple[str, ...]


def load(archive: Archive, target: Target, major: int, *, in_place: bool, jobs: int) -> Loaded:
    """Load a backup into a database and verify it there. Raises RestoreFailed, OSError, psycopg.Error.

    `major` is the server's version. The database is empty, or `in_place`: then all in it that is not an
    extension's is dropped first, and everything happens in one transaction of psql, which gets pg_restore's
    script through us, and its COMMIT only when all of the rest has gone well. So it is also, without the one
    transaction, on servers before 17, which do not know a setting that pg_restore makes. Everywhere else
    pg_restore loads by itself, with several jobs. Whichever program is killed, nothing is taken for whole.
    """
    chosen = grants.choose(archive.grants, _list_roles(target))
    closing = chosen.write() + _write_proof(archive)
    poured = in_place or major < NEW_SETTING_MAJOR
    jobs = 1 if poured else jobs
    # Led through us, the programs end when this process does.
    with reached(target, always=True) as near, opened(archive, jobs=jobs) as path:
        if poured:
            said = _pour(archive, path, near, closing, major, in_place=in_place)
        else:
            _load_directly(archive, path, near, jobs)
            said = _close(near, closing, archive)
    return Loaded(chosen.missing, grants.find_lost(said))


def _list_roles(target: Target) -> set[str]:
    with target.connect() as connection:
        return {str(name) for (name,) in connection.execute("SELECT rolname FROM pg_roles")}


def _write_proof(archive: Archive) -> bytes:
    known = archive.manifest.contents if archive.manifest else None
    expected: dict[str, Any] = asdict(known) if known else {"tables": {}}
    expected["table_count"] = archive.tables
    literal = json.dumps(expected, ensure_ascii=False).replace("'", "''")
    return f"SELECT set_config('tollbook.expected', '{literal}', false);\n{_PROOF}".encode()


def _load_directly(archive: Archive, path: Path | None, near: Target, jobs: int) -> None:
    options = ["--no-owner", "--no-acl", "--exit-on-error", *([f"--jobs={jobs}"] if jobs > 1 else [])]
    command = [archive.reader, *options, *([path] if path else [])]
    with running(command, near, feed=path is None) as process, _feeding(archive, path, process) as check:
        if error := process.finish():
            raise _failed(archive, near, error)
        check()


@contextmanager
def _feeding(archive: Archive, path: Path | None, process: Running) -> Generator[Callable[[], None]]:
    """Feed pg_restore where it has no path; gives what raises whatever was wrong with the file."""
    if path is not None:
        yield lambda: None
        return
    with ThreadPoolExecutor(1) as pool:
        fed = pool.submit(_feed, archive, process)
        try:
            yield fed.result
        except RestoreFailed:
            process.process.kill()  # else the feeder would wait for it
            if (cause := fed.exception()) is not None:  # it was given only a part: that is why
                raise cause from None
            raise
        except BaseException:
            process.process.kill()
            raise


def _feed(archive: Archive, process: Running) -> None:
    """Give pg_restore all of it; read to the end, where the checksum is, even what it does not want."""
    wanted = True
    try:
        for chunk in archive.read():
            try:
                if wanted:
                    process.stdin.write(chunk)
            except BrokenPipeError:
                wanted = False
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()


def _close(near: Target, closing: bytes, archive: Archive) -> tuple[str, ...]:
    """Grant, and verify; return what psql said."""
    with running(_psql(archive), near, feed=True) as psql:
        with suppress(BrokenPipeError):
            psql.stdin.write(closing)
            psql.stdin.close()
        if error := psql.finish():
            raise _failed(archive, near, error)
        return tuple(psql.said)


def _psql(archive: Archive) -> list[str | Path]:
    return [archive.loader, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"]


class NotTheSame(RestoreFailed):
    """What was loaded is not what the manifest says."""


def _failed(archive: Archive, near: Target, error: str) -> RestoreFailed:
    _, different, said = error.partition(DIFFERENT)
    kind = NotTheSame if different else RestoreFailed
    error = said or error
    return kind(
        f"{archive.location} could not be restored: {near.clean(error)}. Nothing that was there has changed. "
        "Correct that and try again.",
        said=near.clean(error),
    )


def _pour(
    archive: Archive, path: Path | None, near: Target, closing: bytes, major: int, *, in_place: bool
) -> tuple[str, ...]:
    once = ["--single-transaction"] if in_place else []
    command = [archive.reader, "--no-owner", "--no-acl", *once, "--file=-", *([path] if path else [])]
    with (
        running(_psql(archive), near, feed=True) as psql,
        running(command, feed=path is None, piped=True) as source,
        _feeding(archive, path, source) as check,
    ):
        failure = None
        with suppress(BrokenPipeError):  # psql has ended, and says why
            tail = _copy(source, psql.stdin, major, in_place=in_place)
            failure = source.finish()
            if failure is None:
                check()
                _finish(psql.stdin, tail, closing, in_place=in_place)
        if failure := failure or psql.finish():
            raise _failed(archive, near, failure)
        return tuple(psql.said)


def _copy(source: Running, sink: IO[bytes], major: int, *, in_place: bool) -> bytes:
    """Give psql the script but for its end; return that."""
    if in_place:
        sink.write(CLEAR)
    tail = b""
    while chunk := source.stdout.read(CHUNK_BYTES):
        if not tail and major < NEW_SETTING_MAJOR:
            chunk = chunk.replace(NEW_SETTING, b"", 1)  # it stands at the head of the script
        tail += chunk
        sink.write(tail[:-TAIL_BYTES])
        tail = tail[-TAIL_BYTES:]
    return tail


def _finish(sink: IO[bytes], tail: bytes, closing: bytes, *, in_place: bool) -> None:
    """Give psql the verification and the script's end, with the COMMIT if all is in one transaction."""
    head, commit, rest = tail.rpartition(b"COMMIT;\n") if in_place else (tail, b"", b"")
    assert bool(commit) == in_place
    sink.write(head + closing + commit + rest)
    sink.close()
