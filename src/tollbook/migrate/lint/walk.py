"""Going through the files in order: each statement is shown to each rule, then followed."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

from pglast import ast
from pglast.parser import ParseError, scan

from tollbook.migrate import segments, statements
from tollbook.migrate.errors import Place, find
from tollbook.migrate.files import Migration, Script
from tollbook.migrate.lint import allowances, blocks
from tollbook.migrate.lint.allowances import Allowance
from tollbook.migrate.lint.changes import follow
from tollbook.migrate.lint.rule import SEVERITIES, Finding, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import End, File, Unit
from tollbook.migrate.lint.world import World
from tollbook.migrate.statements import Statement

# What works on rows: only the rules that say so are asked.
ON_ROWS = (ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt, ast.SelectStmt, ast.CopyStmt)
WORD = re.compile(r"\S")
REFUSED = "refused"  # not a rule: what the engine itself will not run


@dataclass(frozen=True, slots=True)
class Lint:
    """What was found; allowed counts what comments silenced, squawk is its version where it was asked too."""

    findings: tuple[Finding, ...]
    files: int
    statements: int
    allowed: int
    squawk: str | None = None


@dataclass(slots=True)
class Walk:
    """One going-through: the rules asked, what is pending, and what they found so far."""

    rules: Sequence[Rule]
    pending: Collection[str] | None
    known: frozenset[str]
    reversible: frozenset[str]
    world: World = field(default_factory=World)
    files: list[File] = field(default_factory=list[File])
    findings: list[Finding] = field(default_factory=list[Finding])
    allowed: int = 0

    def visit(self, migration: Migration) -> None:
        """Look at a migration's files, or only follow them where it is applied already."""
        heard = self.pending is None or migration.id in self.pending
        self.world.fresh = {migration.id} if self.pending is None else {*self.pending}
        self.world.path = World().path
        self._read(migration, migration.up, "up", self.world, heard=heard)
        if heard and migration.down:
            world = branch(self.world, migration.down)
            world.fresh = {*world.fresh, migration.id, f"{migration.id} down"}
            self._read(migration, migration.down, "down", world, heard=True)

    def _read(self, migration: Migration, script: Script, part: str, world: World, *, heard: bool) -> None:
        reading = statements.read(script)
        spans = tuple((one.index, one.end) for one in reading.statements)
        reversible = migration.folder in self.reversible
        file = File(migration, script, part, world, reversible, spans=spans)
        if heard:
            self.files.append(file)
            file.allowances = allowances.read(reading.text, spans)
            for problem in reading.problems:
                place = problem.place or Place(str(script.path))
                self.findings.append(Finding(REFUSED, "error", place, f"{problem.what} {problem.next}"))
        made_in = migration.id if part == "up" else f"{migration.id} down"
        rules = [rule for rule in self.rules if heard and (part == "up" or rule.down)]
        of_rows = [rule for rule in rules if rule.of_rows]
        for number, unit in enumerate(begin(file, reading.statements, made_in)):
            if file.units and unit.tree is file.units[-1].tree:
                continue  # of many INSERTs that differ in their constants alone, the first stands for all
            for one in unfold(unit):
                file.units.append(one)
                for rule in of_rows if is_a(one.tree, *ON_ROWS) else rules:
                    self._hear(file, rule, rule.check(one), one.index, number)
                follow(world, one.tree, one)
        for rule in rules:
            self._hear(file, rule, rule.check_file(file), None, None)

    def _hear(
        self, file: File, rule: Rule, hits: Iterable[Hit], index: int | None, number: int | None
    ) -> None:
        for hit in hits:
            if rule.spares_new and hit.on is not None and file.world.is_new(hit.on):
                continue
            at = hit.at if hit.at is not None else index
            statement = number if number is not None or at is None else file.number_at(at)
            place = Place(str(file.script.path)) if at is None else locate(file.script, at)
            self._add(file, rule, hit, place, statement)

    def _add(self, file: File, rule: Rule, hit: Hit, place: Place, statement: int | None) -> None:
        if self.allow(file, rule, statement):
            self.allowed += 1
        else:
            self.findings.append(
                Finding(rule.id, hit.severity or rule.severity, place, hit.sentence, hit.safe_sql)
            )

    def allow(self, file: File, rule: Rule, statement: int | None) -> bool:
        """Whether a comment allows this, which then counts as used; what is of the file, any of it may."""
        found = [
            one
            for one in file.allowances
            if (statement is None or one.covers(statement)) and names(one, rule)
        ]
        for one in found:
            one.used.add(rule.id)
        return bool(found)

    def finish(self) -> None:
        """Ask the rules that look at the end, then look at the allowances themselves."""
        complete = self.known <= {rule.id for rule in self.rules}
        end = End(self.world, self.files, self.known, complete)
        for rule in self.rules:
            for place, hit in rule.check_end(end):
                if (found := self._find(place)) is not None:
                    self._add(found[0], rule, hit, place, found[1])

    def _find(self, place: Place) -> tuple[File, int | None] | None:
        """Return the file of a place, and the number of its statement; None where it is applied already."""
        files = [file for file in self.files if str(file.script.path) == place.path]
        for file in files:  # up and down may stand in one file
            index = find(file.script.text, place.line or 1, place.column or 1)
            if (number := file.number_at(index)) is not None:
                return file, number
        return (files[0], None) if files else None


def names(allowance: Allowance, rule: Rule) -> bool:
    """Whether an allowance names a rule; squawk's own comments name it as squawk does."""
    if allowance.foreign:
        return bool(rule.squawk) and (not allowance.rules or bool({*allowance.rules} & {*rule.squawk}))
    return bool(allowance.reason) and rule.id in allowance.rules


def locate(script: Script, index: int) -> Place:
    """Return the place of a character of a script."""
    return script.point(index, caret=False)


def begin(file: File, found: Sequence[Statement], made_in: str) -> Iterator[Unit]:
    """Give the statements of a file, each with the number of the transaction that it runs in."""
    for number, segment in enumerate(segments.split(found, file.script.options)):
        for one in segment.statements:
            text = file.script.text[one.index : one.end]
            yield Unit(
                one.tree,
                text,
                one.index,
                file.script,
                file.part,
                made_in,
                file.world,
                one.alone,
                number,
                together=segment.statements,
            )


def unfold(unit: Unit) -> Iterator[Unit]:
    """Give a statement, and after a DO what stands inside it."""
    if not is_a(unit.tree, ast.DoStmt):
        yield unit
        return
    body = blocks.read(unit.text)
    unit.hidden = body.hidden
    yield unit
    start = unit.index + blocks.find_body(unit.text)
    text = unit.script.text
    for inner in body.statements:
        index = start
        for _ in range(inner.line - 1):
            index = text.find("\n", index) + 1 or index
        if inner.line > 1:
            word = WORD.search(text, index)
            index = word.start() if word else len(text)
        yield replace(unit, tree=inner.tree, text=inner.text, index=index, block=True, hidden=())


def branch(world: World, script: Script) -> World:
    """Return a world in which a down file may change what it names, without a trace in the first."""
    try:
        named = {script.text[one.start : one.end + 1].strip('"').lower() for one in scan(script.text)}
    except ParseError:
        named = set[str]()
    tables = {key: deepcopy(one) if key[1].lower() in named else one for key, one in world.tables.items()}
    return World(
        tables,
        {key: list(known) for key, known in world.routines.items()},
        deepcopy(world.enums),
        deepcopy(world.domains),
        dict(world.schemas),
        dict(world.triggers),
        dict(world.partition_keys),
        set(world.fresh),
    )


def sort(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings by file and line, the gravest first in a line."""
    order = {severity: number for number, severity in enumerate(SEVERITIES)}
    return tuple(
        sorted(
            findings,
            key=lambda one: (one.place.path, one.place.line or 0, order[one.severity], one.rule),
        )
    )
