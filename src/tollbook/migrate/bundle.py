"""Migrations as one SQL file for psql and its like: guarded, proven and recorded as `apply` does it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pglast import ast

from tollbook.migrate import copied, formats, history, preflight, promises, segments, statements
from tollbook.migrate.application import LOCK_TIMEOUT_SECONDS, cut
from tollbook.migrate.course import name_roles, name_settings
from tollbook.migrate.errors import NoWayBack, Problem, point
from tollbook.migrate.execution import BEGIN, RESET, RESET_ROLE, Prepared
from tollbook.migrate.files import Folder, Migration, Script
from tollbook.migrate.segments import Segment
from tollbook.migrate.session import connected
from tollbook.migrate.statements import Reading, Statement, kind_of

FUNCTIONS = Path(__file__).with_name("bundle.sql")
# Where the session writes nothing but in a transaction that its guard has let through.
CLOSED = "SET default_transaction_read_only = on;"
UNDO = "TBUND"  # the state of an error that says no more than: what a check did is undone
ENCODING = "SET client_encoding = 'UTF8'; SET standard_conforming_strings = on;"


@dataclass(frozen=True, slots=True)
class Bundle:
    """One SQL file. migrations: what it applies, or takes back, in order; after: what must be applied before.

    text is the whole file.
    """

    undo: bool
    migrations: tuple[str, ...]
    after: str | None
    text: str


@dataclass(frozen=True, slots=True)
class _Known:
    """A migration as the guard in the file asks the history for it."""

    folder: str
    version: str
    name: str
    checksum: str
    repeatable: bool = False

    def pack(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "version": self.version,
            "name": self.name,
            "checksum": self.checksum,
            "repeatable": self.repeatable,
        }


def bundle(
    folders: Sequence[Folder],
    *,
    url: str | None = None,
    from_version: tuple[str, str] | None = None,
    to: tuple[str, str] | None = None,
    undo: bool = False,
    psql: bool = False,
    lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
) -> Bundle:
    """Return the file that applies what a database lacks: what is pending at `url`, or after `from_version`.

    With neither it is for an empty database. undo: the file that takes the same migrations back. psql: rows
    of COPY stay as they are; otherwise they become INSERTs. Raises MigrateError where a file cannot be in it.
    """
    migrations = formats.read(folders)
    base, chosen = _choose(migrations, folders, url, from_version, to)
    if undo:  # what repeats has no way back
        chosen = [one for one in chosen if not one.repeatable]
    writer = _Writer(base, [_know(one) for one in chosen], psql=psql, lock_timeout=lock_timeout_seconds)
    text = writer.write_undo(chosen) if undo else writer.write(chosen)
    return Bundle(undo, tuple(one.id for one in chosen), base[-1].name if base else None, text)


def _choose(
    migrations: Sequence[Migration],
    folders: Sequence[Folder],
    url: str | None,
    from_version: tuple[str, str] | None,
    to: tuple[str, str] | None,
) -> tuple[list[_Known], list[Migration]]:
    """Return what must be applied before, and what is to be bundled."""
    if url is not None and from_version is None:
        base, pending = _ask(url, migrations, folders)
    else:
        before = cut(migrations, migrations, from_version) if from_version else []
        base = [_know(one) for one in before]
        pending = [one for one in migrations if one not in before]
    return base, cut(migrations, pending, to)


def _ask(
    url: str, migrations: Sequence[Migration], folders: Sequence[Folder]
) -> tuple[list[_Known], list[Migration]]:
    with connected(url) as conn:
        standing = preflight.compare(migrations, folders, history.read(conn))
        problems = preflight.check_history(standing)
        for folder, version in history.read_progress(conn):
            problems.append(
                Problem(f"{folder}/{version} stopped half way.", "Finish it by `tollbook migrate apply`.")
            )
    preflight.refuse(problems)
    again = {(one.folder, one.version) for one in standing.pending}
    base = [
        _Known(one.folder, one.version, one.label, one.checksum)
        for one in standing.applied
        if (one.folder, one.version) not in again
    ]
    return base, list(standing.pending)


def _know(one: Migration) -> _Known:
    return _Known(one.folder, one.version, one.label, one.up.checksum, one.repeatable)


def quote(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def _quote_json(value: Any) -> str:
    return quote(json.dumps(value, ensure_ascii=False)) + "::jsonb"


class _Writer:
    """Writes the file: its head, a transaction or several for each migration, its end."""

    def __init__(
        self, base: Sequence[_Known], chosen: Sequence[_Known], *, psql: bool, lock_timeout: float
    ) -> None:
        self.base = base
        self.chosen = chosen
        self.psql = psql
        self.lock_timeout = lock_timeout
        self.engine = quote(history.engine_version())

    def write(self, chosen: Sequence[Migration]) -> str:
        ready, problems = preflight.prepare(chosen)
        problems += [problem for one in ready for problem in self._find_unfit(one)]
        preflight.refuse(problems)
        parts = [self._head("apply", self.chosen)]
        for one, known in zip(ready, self.chosen, strict=True):
            parts += self._write_migration(one, known)
        return "\n".join([*parts, _END])

    def write_undo(self, chosen: Sequence[Migration]) -> str:
        without = [one.id for one in chosen if one.down is None]
        if without:
            raise NoWayBack(f"{', '.join(without)}: there is no down file. Write one beside its up file.")
        downs: list[Prepared] = []
        problems: list[Problem] = []
        for one in chosen:
            assert one.down is not None
            reading = statements.read(one.down)
            downs.append(Prepared(replace(one, up=one.down), reading, promises.collect(reading.statements)))
            problems += [*reading.problems, *self._find_unfit(downs[-1])]
        preflight.refuse(problems)
        pairs = list(zip(downs, self.chosen, strict=True))[::-1]
        parts = [self._head("revert", [known for _, known in pairs])]
        for one, known in pairs:
            parts += self._write_way_back(one, known)
        return "\n".join([*parts, _END])

    def _find_unfit(self, one: Prepared) -> Iterator[Problem]:
        """Name what a file without an engine beside it cannot do."""
        script = one.migration.up
        if script.program:
            text = f"{one.migration.id} is a program, not SQL."
            yield Problem(text, "Apply it by `tollbook migrate apply`.", point(str(script.path), "", 0))
        if one.backfill:
            text = f"{one.migration.id} has a back-fill, which runs in batches between transactions."
            yield Problem(text, "Apply it by `tollbook migrate apply`.")
        for statement in one.reading.statements:
            if statement.alone and _tell_done(statement) is None:
                yield Problem(
                    f"{statement.alone} cannot run in a transaction, and a file cannot see how it ended.",
                    "Give an index its name; otherwise apply it by `tollbook migrate apply`, and bundle what "
                    "is before it (--to) and after it (--from-version).",
                    script.point(statement.index, caret=False),
                )
            if statement.rows is not None and not self.psql and (said := copied.find_obstacle(statement)):
                yield Problem(
                    said,
                    "Give --psql, which keeps COPY as it is, if psql will run the file.",
                    script.point(statement.index, caret=False),
                )
        for statement in one.check.statements if one.check else ():
            if statement.rows is not None:
                yield Problem(f"The check of {one.migration.id} has a COPY.", "Write INSERT.")

    def _head(self, command: str, planned: Sequence[_Known]) -> str:
        names = ", ".join(f"{one.folder}/{one.name}" for one in planned) or "nothing"
        before = f" It needs {self.base[-1].folder}/{self.base[-1].name}." if self.base else ""
        does = "applies" if command == "apply" else "takes back"
        text = FUNCTIONS.read_text(encoding="utf-8")
        base, bundled = ([one.pack() for one in ones] for ones in (self.base, planned))
        return f"""-- Made by `tollbook migrate bundle` {history.engine_version()}.
-- This file {does}: {names}.{before}
-- Run it once: psql --no-psqlrc -v ON_ERROR_STOP=1 -f FILE. Each migration is proven and recorded in the
-- transaction it runs in; what the database is not ready for is refused, and nothing is changed.
{RESET} DISCARD TEMP;
{CLOSED} {ENCODING}
BEGIN READ WRITE;
SET LOCAL client_min_messages = warning;
DO $tollbook$ BEGIN IF to_regclass('tollbook_migrate.backfills') IS NULL THEN{history.SCHEMA_SQL}
END IF; END $tollbook$;
{text}
DO $tollbook$ BEGIN
PERFORM pg_temp.tollbook_open({quote(command)}, {self.engine},
    {_quote_json(base)},
    {_quote_json(bundled)});
END $tollbook$;
COMMIT;
"""

    def _write_migration(self, one: Prepared, known: _Known) -> Iterator[str]:
        promised = _quote_json([promise.pack() for promise in one.promises.made])
        # What a part before the last made is there when that begins; only what IF NOT EXISTS says may not be.
        cut = len(_split(one)) > 1
        asked = [promise.pack() for promise in one.promises.made if promise.conditional or not cut]
        removing = "true" if one.promises.may_remove else "false"
        begin = _call("begin", quote(one.migration.id), _quote_json(asked), removing)
        down = quote(one.migration.down.text) if one.migration.down else "NULL"
        end = [RESET_ROLE, _call("prove", promised), *self._write_check(one)]
        end.append(_call("end", _quote_json(known.pack()), self.engine, down))
        yield from self._write_parts(one, known, "up", begin, end)

    def _write_way_back(self, one: Prepared, known: _Known) -> Iterator[str]:
        begin = _call("begin", quote(one.migration.id), "'[]'", "false")
        kept = _quote_json([promise.pack() for promise in one.promises.made])
        end = [RESET_ROLE, _call("take_back", _quote_json(known.pack()), kept)]
        yield from self._write_parts(one, known, "down", begin, end)

    def _write_parts(
        self, one: Prepared, known: _Known, direction: str, begin: str, end: Sequence[str]
    ) -> Iterator[str]:
        options, reading = one.migration.up.options, one.reading
        yield f"\n-- {one.migration.id}\n{RESET} {CLOSED} {ENCODING}"
        yield name_settings(self.lock_timeout, options)
        *before, last = _split(one)
        if last.alone:
            before, last = [*before, last], Segment(last.end, ())
        for segment in before:
            mark = _call("turn", _quote_json(known.pack()), quote(direction), str(segment.first))
            done = segments.fingerprint(reading.text, reading.statements[: segment.end])
            keep = _call("keep", _quote_json(known.pack()), quote(direction), str(segment.end), quote(done))
            if segment.alone:
                yield from _write_alone(one, segment, mark, keep)
            else:
                roles = name_roles(one, segment.first)
                yield from (_open(segment), mark, *roles, *self._write_statements(one, segment))
                yield from ("SET CONSTRAINTS ALL IMMEDIATE;", RESET_ROLE, keep, "COMMIT;")
        turn = _call("turn", _quote_json(known.pack()), quote(direction), str(last.first))
        roles = name_roles(one, last.first)
        yield from (_open(last), turn, begin, *roles, *self._write_statements(one, last))
        yield from ("SET CONSTRAINTS ALL IMMEDIATE;", *end, "COMMIT;")

    def _write_statements(self, one: Prepared, segment: Segment) -> Iterator[str]:
        for statement in segment.statements:
            text = _cut_text(one.reading, statement)
            if statement.rows is None:
                yield f"{text}\n;"
            elif self.psql:
                yield f"{text};\n{statement.rows}\\.\n"
            else:
                yield from copied.write_inserts(statement)

    def _write_check(self, one: Prepared) -> Iterator[str]:
        script = one.migration.check
        if script is None or one.check is None:
            return
        probes = [_write_probe(script, one.check, statement) for statement in one.check.statements]
        settings = f"{RESET} {ENCODING} {name_settings(self.lock_timeout)}"
        # No savepoint: going back to one would lift the failure of a check too, where psql does not stop.
        yield _quote_do(
            "\nBEGIN\n"
            + "\n".join([settings, *probes])
            + f"\nRAISE EXCEPTION SQLSTATE '{UNDO}';\nEXCEPTION WHEN SQLSTATE '{UNDO}' THEN NULL;\nEND;\n"
        )


_END = f"""
{RESET} {CLOSED}
BEGIN READ WRITE;
DO $tollbook$ BEGIN PERFORM pg_temp.tollbook_close(); END $tollbook$;
COMMIT;
RESET ALL;
"""


def _call(function: str, *arguments: str) -> str:
    return _quote_do(_perform(function, *arguments))


def _perform(function: str, *arguments: str) -> str:
    return f"PERFORM pg_temp.tollbook_{function}({', '.join(arguments)});"


def _quote_do(body: str) -> str:
    """Return a DO block, its quotes such that nothing in the body ends it."""
    tag = "$tollbook$"
    while tag in body:
        tag = f"{tag[:-1]}_$"
    return f"DO {tag} BEGIN {body} END {tag};"


def _split(one: Prepared) -> tuple[Segment, ...]:
    """Cut a script where it must be committed; behind a new value of an enum where it seems to be used."""
    found = one.reading.statements
    used = any(
        segments.adds_value(statement)
        and any(statement.tree.newVal in _cut_text(one.reading, later) for later in found[place + 1 :])
        for place, statement in enumerate(found)
    )
    return segments.split(found, one.migration.up.options, after_new_values=used)


def _open(segment: Segment) -> str:
    return f"{segment.modes};\nSET TRANSACTION READ WRITE;" if segment.modes else BEGIN


def _cut_text(reading: Reading, statement: Statement) -> str:
    return reading.text[statement.index : statement.end].strip()


def _write_probe(script: Script, check: Reading, statement: Statement) -> str:
    place = str(point(script.path.name, script.text, statement.index, caret=False))
    asks = script.options.truths and isinstance(statement.tree, ast.SelectStmt)
    asks = asks and not statement.tree.intoClause
    return _perform("check", quote(place), quote(_cut_text(check, statement)), "true" if asks else "false")


def _write_alone(one: Prepared, segment: Segment, turn: str, keep: str) -> Iterator[str]:
    """Only what proves that it is its turn opens the session for it: after a failure it cannot run."""
    statement = segment.statements[0]
    role = " ".join(name_roles(one, segment.first)).replace("SET LOCAL", "SET")
    yield f"{CLOSED}\n{BEGIN}\n{turn}"
    yield f"SET default_transaction_read_only = off; {role}\nCOMMIT;"
    yield f"{_cut_text(one.reading, statement)}\n;"
    said = quote(f"tollbook: {statement.alone} did not succeed; drop what it left, and run it again")
    ended = f"IF NOT ({_tell_done(statement)}) THEN RAISE EXCEPTION USING MESSAGE = {said}; END IF;"
    yield f"{CLOSED}\n{BEGIN}\n{RESET_ROLE}\n{_quote_do(ended)}\n{keep}\nCOMMIT;"


def _tell_done(statement: Statement) -> str | None:
    """Return the condition under which a statement has succeeded; None where nobody can tell."""
    tree: Any = statement.tree
    if kind_of(tree) is ast.IndexStmt and tree.idxname:
        table = ".".join(
            _quote_name(part) for part in (tree.relation.schemaname, tree.relation.relname) if part
        )
        return (
            "EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indisvalid "
            f"AND i.indrelid = to_regclass({quote(table)}) AND c.relname = {quote(tree.idxname)})"
        )
    if kind_of(tree) is ast.DropStmt:
        names = [".".join(_quote_name(part.sval) for part in name) for name in tree.objects or ()]
        return " AND ".join(f"to_regclass({quote(name)}) IS NULL" for name in names)
    return None


def _quote_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
