"""What rules look at: a statement in its place, a file, and the end, each with the schema at that point."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from pglast import ast, parse_sql
from pglast.enums import ConstrType, ObjectType
from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.errors import Place
from tollbook.migrate.files import Migration, Script
from tollbook.migrate.lint.allowances import Allowance
from tollbook.migrate.lint.trees import descend, is_a
from tollbook.migrate.lint.words import pretty, relation_of
from tollbook.migrate.lint.world import Table, World
from tollbook.migrate.statements import Statement

TABLES = (ObjectType.OBJECT_TABLE, ObjectType.OBJECT_FOREIGN_TABLE)


@dataclass(frozen=True, slots=True)
class Alteration:
    """One command of an ALTER TABLE; def_ is its argument in pglast."""

    relation: Any
    name: str | None
    def_: Any
    command: Any


@dataclass(frozen=True, slots=True)
class Added:
    """A constraint that a statement declares; column is set where it stands at a column."""

    relation: Any
    constraint: Any
    column: str | None
    to_existing: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a key or a foreign key is of."""
        if self.column:
            return (self.column,)
        return tuple(name.sval for name in self.constraint.keys or self.constraint.fk_attrs or ())


@dataclass(slots=True)
class Unit:
    """A statement to look at. block: it stands inside DO, and `index` is that of its line there."""

    tree: Any
    text: str
    index: int
    script: Script
    part: str  # up or down
    made_in: str  # the migration's id
    world: World = field(repr=False)
    alone: str | None  # what in it cannot run in a transaction
    transaction: int  # in which of its file's it runs
    block: bool = False
    together: Sequence[Statement] = field(default=(), repr=False)  # all of the same transaction
    hidden: tuple[str, ...] = ()  # what of a DO or a function cannot be seen, in words

    def made_again(self, kind: type, name: str, find: Callable[[Any], str]) -> bool:
        """Whether the same transaction makes, further on, what has this kind and name (without schema)."""
        later = (one.tree for one in self.together if one.index > self.index)
        return any(is_a(tree, kind) and find(tree) == name for tree in later)

    @property
    def place(self) -> Place:
        """Where it stands."""
        return self.locate(self.index)

    def locate(self, index: int) -> Place:
        """Return the place of a character of its file."""
        return self.script.point(index, caret=False)

    def locate_part(self, node: Any) -> int | None:
        """Return where a part of the statement begins in the file; inside a block only the line is known."""
        location = getattr(node, "location", None)
        return location if location and not self.block else None

    def table(self, relation: Any) -> Table | None:
        """Return what is known of a relation before this statement."""
        return self.world.find(relation)

    def alterations(self, *kinds: AlterTableType) -> Iterator[Alteration]:
        """Give the commands of an ALTER TABLE that are of these kinds (all, without)."""
        tree = self.tree
        if is_a(tree, ast.AlterTableStmt) and tree.objtype in TABLES:
            for command in tree.cmds or ():
                if not kinds or command.subtype in kinds:
                    yield Alteration(tree.relation, command.name, command.def_, command)

    def writes(self, kind: type) -> Iterator[Any]:
        """Give the statement, and what stands in its WITH, where that is of this kind (UPDATE, DELETE)."""
        clause = getattr(self.tree, "withClause", None)
        for one in (self.tree, *(each.ctequery for each in (clause.ctes if clause else ()))):
            if is_a(one, kind):
                yield one

    def drops(self, *kinds: ObjectType) -> Iterator[Any]:
        """Give what a DROP of one of these kinds names, each as the relation that its name would be."""
        if is_a(self.tree, ast.DropStmt) and self.tree.removeType in kinds:
            for name in self.tree.objects or ():
                yield relation_of(getattr(name, "objname", None) or getattr(name, "names", None) or name)

    def added_columns(self) -> Iterator[Alteration]:
        """Give the columns that an ALTER TABLE adds."""
        return self.alterations(AlterTableType.AT_AddColumn)

    def declared_columns(self) -> Iterator[tuple[Any, Any]]:
        """Give relation and column of every column declared, by CREATE TABLE or ADD COLUMN."""
        tree = self.tree.base if is_a(self.tree, ast.CreateForeignTableStmt) else self.tree
        if is_a(tree, ast.CreateStmt):
            for element in tree.tableElts or ():
                if is_a(element, ast.ColumnDef) and element.typeName is not None:
                    yield tree.relation, element
        for added in self.added_columns():
            yield added.relation, added.def_

    def retype(self, column: str, definition: str) -> str:
        """Return the whole statement with a column declared by another type and what follows that."""
        copy = deepcopy(self.tree)
        made: Any = parse_sql(f"CREATE TABLE t (c {definition})")[0].stmt
        declared = made.tableElts[0]
        for one in descend(copy):
            if is_a(one, ast.ColumnDef) and one.colname == column:
                kept = [item for item in one.constraints or () if item.contype != ConstrType.CONSTR_IDENTITY]
                one.typeName = declared.typeName
                one.constraints = (*(declared.constraints or ()), *kept)
        return f"{pretty(copy)};"

    def declared_constraints(self, *kinds: ConstrType) -> Iterator[Added]:
        """Give every constraint declared, by CREATE TABLE or ALTER TABLE."""
        if is_a(self.tree, ast.CreateStmt):
            for element in self.tree.tableElts or ():
                if is_a(element, ast.Constraint) and element.contype in kinds:
                    yield Added(self.tree.relation, element, None, to_existing=False)
        for one in self.alterations(AlterTableType.AT_AddConstraint):
            if one.def_.contype in kinds:
                yield Added(one.relation, one.def_, None, to_existing=True)
        for relation, column in self.declared_columns():
            for constraint in column.constraints or ():
                if constraint.contype in kinds:
                    existing = is_a(self.tree, ast.AlterTableStmt)
                    yield Added(relation, constraint, column.colname, to_existing=existing)

    def added_constraints(self, *kinds: ConstrType) -> Iterator[Added]:
        """Give the constraints that an ALTER TABLE adds, also those at a column it adds."""
        return (one for one in self.declared_constraints(*kinds) if one.to_existing)


def find_constraint(column: Any, *kinds: ConstrType) -> Any:
    """Return the first constraint of these kinds that stands at a column, or None."""
    return next((one for one in column.constraints or () if one.contype in kinds), None)


@dataclass(slots=True)
class File:
    """A script with its units, those inside DO blocks too, and the schema after it."""

    migration: Migration
    script: Script
    part: str
    world: World = field(repr=False)
    reversible: bool  # whether its folder is one of those that have ways back
    units: list[Unit] = field(default_factory=list[Unit])
    spans: tuple[tuple[int, int], ...] = ()
    allowances: list[Allowance] = field(default_factory=list[Allowance])

    def number_at(self, index: int) -> int | None:
        """Return the number of the statement that a character belongs to, if any."""
        number = bisect_right(self.spans, index, key=lambda span: span[0]) - 1
        return number if number >= 0 and index < self.spans[number][1] else None


@dataclass(frozen=True, slots=True)
class End:
    """The schema after the last file."""

    world: World
    files: Sequence[File]
    known: frozenset[str]  # the ids of all rules there are
    complete: bool  # whether every one was asked
