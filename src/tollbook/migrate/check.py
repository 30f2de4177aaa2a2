"""The round trip: on a throw-away server each migration goes up, down and up again, on made-up rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from pglast import ast

from tollbook.migrate import catalog, drift, formats, promises, replay, rows, schema_file, statements
from tollbook.migrate.catalog import Catalog
from tollbook.migrate.drift import Difference
from tollbook.migrate.errors import MigrateError, WrongUsage
from tollbook.migrate.events import Event, Listener, ignore
from tollbook.migrate.files import Folder, Migration, Script
from tollbook.migrate.objects import SHARED_KINDS
from tollbook.migrate.reconcile import Side, reconcile
from tollbook.migrate.replay import NotReplayable, Stage
from tollbook.migrate.session import connected

# Statements that may be run twice whatever they say.
NEUTRAL = (
    ast.GrantStmt,
    ast.CommentStmt,
    ast.SelectStmt,
    ast.VariableSetStmt,
    ast.AlterDefaultPrivilegesStmt,
    ast.AlterOwnerStmt,
)
SERVERS_OWN = "not tried, as it makes or drops roles, which other databases of the server have too."


@dataclass(frozen=True, slots=True)
class Trip:
    """What one migration proved. round_trip, again: proved, failed, or why there was nothing to prove.

    wrong: a sentence for each thing that failed; notes: what could not be tried, and why.
    """

    migration: str
    round_trip: str
    again: str
    wrong: tuple[str, ...]
    notes: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """What was proved of the folders; schema is how a schema file differs from what they make."""

    trips: tuple[Trip, ...]
    unfilled: tuple[str, ...]  # tables that took no made-up rows, with why
    schema: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing failed."""
        return not (self.schema or any(trip.wrong for trip in self.trips))


def check(folders: Sequence[Folder], *, schema: Path | None = None, listen: Listener = ignore) -> Checked:
    """Carry out every migration up, down and up on a throw-away server, without rows and with made-up ones.

    A migration that says it may be run twice is. Raises MigrateError where one cannot be carried out at all.
    """
    migrations = formats.read(folders)
    with replay.staged(listen) as stage:
        drift.admit(stage, migrations)
        walk = _Walk(stage, listen)
        trips = [walk.go(one) for one in migrations]
        differs: tuple[str, ...] = ()
        if schema is not None:
            made = schema_file.SchemaFile(schema_file.dump(walk.url))
            differs = schema_file.compare(schema, made).difference
        return Checked(tuple(trips), tuple(walk.unfilled), differs)


class _Walk:
    """Goes up the migrations on two databases: one without rows, and one with."""

    def __init__(self, stage: Stage, listen: Listener) -> None:
        self.stage = stage
        self.listen = listen
        self.url = stage.make()
        self.full = stage.make()
        self.unfilled: list[str] = []
        self.before = _read(self.url)

    def go(self, one: Migration) -> Trip:
        self.listen(Event("checking", one.id))
        replay.play(self.url, [one], self.listen)
        after = _read(self.url)
        differences, wrong, untried = self._return(one, after)
        again, twice = self._run_again(one, after)
        notes = self._keep(one, after, wrong) if not (wrong or twice) else self._start_anew()
        self.before = after
        trip = "failed" if differences or wrong else untried or "proved"
        return Trip(one.id, trip, again, (*wrong, *twice), tuple(notes), tuple(differences))

    def _return(self, one: Migration, after: Catalog) -> tuple[list[Difference], list[str], str]:
        """Go down and up; what is not as it was, a sentence for each part of the way, or why nobody went."""
        if one.down is None:
            return [], [], "no down file"
        copy = self.stage.make(template=self.url)
        found: list[Difference] = []
        wrong: list[str] = []
        ways = (
            ("down", self.before, lambda: replay.take_back(copy, one, self.listen)),
            ("down and up again", after, lambda: replay.play(copy, [one], self.listen)),
        )
        for way, expected, run in ways:
            try:
                run()
            except NotReplayable as error:
                return (
                    (found, wrong, SERVERS_OWN)
                    if _is_about_roles(error)
                    else (found, [*wrong, str(error)], "")
                )
            differ = drift.find(_read(copy), expected)
            left = _list_shared(one) if way == "down" else set[tuple[str, str]]()
            differ = [
                other
                for other in differ
                if other.expected != "sound" and other.kind != "column order"
                if (other.kind, other.name.replace('"', "")) not in left
            ]
            wrong += [f"{one.id}: after {way}, {_say(other)}." for other in differ]
            found += differ
        return found, wrong, ""

    def _run_again(self, one: Migration, after: Catalog) -> tuple[str, list[str]]:
        if not claims(one):
            return "does not claim it", []
        copy = self.stage.make(template=self.url)
        try:
            replay.play(copy, [one], self.listen)
        except NotReplayable as error:
            return "failed", [f"{one.id} claims that it may be run twice: {error.sentence}"]
        differ = [other for other in drift.find(_read(copy), after) if other.expected != "sound"]
        return "failed" if differ else "proved", [f"{one.id}: run twice, {_say(other)}." for other in differ]

    def _keep(self, one: Migration, after: Catalog, wrong: list[str]) -> list[str]:
        """Go up, down and up on rows: those of tables and columns that the down leaves must be the same."""
        try:
            replay.play(self.full, [one], self.listen)
            self._fill()
            if one.down is None:
                return []
            lasting = _list_columns(self.before, after)
            with connected(self.full) as conn:
                first = rows.digest(conn, lasting)
            replay.take_back(self.full, one, self.listen)
            replay.play(self.full, [one], self.listen)
            with connected(self.full) as conn:
                second = rows.digest(conn, lasting)
            self._fill()
        except NotReplayable as error:
            why = SERVERS_OWN if _is_about_roles(error) else error.sentence
            return [f"With made-up rows it does not run: {why}", *self._start_anew()]
        wrong += [
            f"{one.id}: down and up again, the rows of {table} are not what they were "
            f"({first[table][0]} before, {second[table][0]} after)."
            for table in first
            if first[table] != second[table]
        ]
        return []

    def _start_anew(self) -> list[str]:
        self.full = self.stage.make(template=self.url)
        self._fill()
        return []

    def _fill(self) -> None:
        with connected(self.full) as conn:
            self.unfilled = rows.fill(conn)


def _is_about_roles(error: BaseException | None) -> bool:
    """Whether a role was there already, or is still needed: in another database of the throw-away server."""
    while error is not None and not isinstance(error, psycopg.Error):
        error = error.__cause__
    return error is not None and error.diag.source_function in ("CreateRole", "DropRole")


def _list_shared(one: Migration) -> set[tuple[str, str]]:
    """Return what a migration makes only where it is missing, and others may use: its down may leave it."""
    made = promises.collect(statements.read(one.up).statements).made
    return {(each.kind, each.name or "") for each in made if each.conditional and each.kind in SHARED_KINDS}


def _say(other: Difference) -> str:
    words = {"missing": "is lacking", "extra": "is left", "changed": "is not what it was"}
    return f"the {other.kind} {other.name} {words[other.what]}"


def _read(url: str) -> Catalog:
    with connected(url) as conn:
        return catalog.read(conn)


def _list_columns(before: Catalog, after: Catalog) -> dict[str, list[str]]:
    """Return the columns, by table, that are there on both sides with the same type."""
    found: dict[str, list[str]] = {
        name: []
        for kind, name in before
        if kind == "table" and (kind, name) in after and not before[kind, name].facts["bound"]
    }
    for key, one in before.items():
        lasts = key[0] == "column" and key in after and one.facts["type"] == after[key].facts["type"]
        if lasts and one.parent in found:
            found[one.parent].append(one.facts["name"])
    return found


def claims(one: Migration) -> bool:
    """Whether a migration says it may be run twice: by its header, or by IF NOT EXISTS throughout."""
    if one.up.options.rerunnable or one.repeatable:
        return True
    trees = [statement.tree for statement in statements.read(one.up).statements]
    said = [_is_conditional(tree) for tree in trees if not isinstance(tree, NEUTRAL)]
    return bool(said) and all(said)


def _is_conditional(tree: Any) -> bool:
    if isinstance(tree, ast.AlterTableStmt):
        return all(bool(getattr(part, "missing_ok", False)) for part in tree.cmds or ())
    return any(bool(getattr(tree, name, False)) for name in ("if_not_exists", "replace", "missing_ok"))


@dataclass(frozen=True, slots=True)
class Draft:
    """A down file that was written; proved: whether it leads back to the catalog before the migration."""

    path: str
    proved: bool
    left: tuple[str, ...]


def draft_down(folders: Sequence[Folder], to: tuple[str, str], *, listen: Listener = ignore) -> Draft:
    """Write a missing down file from what the catalog gains by the migration, for a person to review.

    Never overwrites one. Raises MigrateError.
    """
    migrations = formats.read(folders)
    place = next(place for place, one in enumerate(migrations) if (one.folder, one.version) == to)
    one = migrations[place]
    path = _name_down(one)
    with replay.staged(listen) as stage:
        drift.admit(stage, migrations)
        url = stage.make()
        replay.play(url, migrations[:place], listen)
        before = _read_side(url)
        replay.play(url, [one], listen)
        lines = reconcile(_read_side(url), before, drops=True)
        text = "\n".join(
            (f"-- Drafted from what {one.label} makes: review it before you rely on it.", *lines, "")
        )
        left = _try_draft(url, one, path, text, before.objects, listen)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    return Draft(str(path), not left, tuple(left))


def _name_down(one: Migration) -> Path:
    name = one.up.path.name
    stem = name.removesuffix(".sql").removesuffix(".up")
    path = one.up.path.with_name(f"{stem}.down.sql")
    if one.down is not None or path.exists():
        raise MigrateError(f"{one.id} has a down file: {one.down.path if one.down else path}.")
    if stem != one.label:
        raise WrongUsage(f"{name} is of a format that keeps no down file beside it; write it by hand.")
    return path


def _read_side(url: str) -> Side:
    with connected(url) as conn:
        return Side(catalog.read(conn), catalog.read_needs(conn))


def _try_draft(
    url: str, one: Migration, path: Path, text: str, before: Catalog, listen: Listener
) -> list[str]:
    script = Script(path, text, "")
    try:
        replay.take_back(url, Migration(one.folder, one.version, one.label, one.up, script), listen)
    except NotReplayable as error:
        return [error.sentence]
    return [_say(other) for other in drift.find(_read(url), before)]
