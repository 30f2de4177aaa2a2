"""The schema as the files so far have made it: what a rule must know of what a statement touches."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tollbook.migrate.errors import Place
from tollbook.migrate.lint.column_types import Type
from tollbook.migrate.lint.words import DEFAULT_SCHEMA, Key


@dataclass(slots=True)
class Column:
    """A column: its type (None: unknown), whether it takes NULL, and which migration made it."""

    name: str
    type: Type | None
    not_null: bool = False
    made_in: str = ""


@dataclass(slots=True)
class Constraint:
    """A constraint: its kind (check, foreign, unique, primary, exclusion), columns and check's words."""

    kind: str
    name: str | None
    columns: tuple[str, ...] = ()
    expression: str = ""
    refers: Key | None = None
    validated: bool = True
    enforced: bool = True
    place: Place | None = None
    made_in: str = ""


@dataclass(slots=True)
class Index:
    """An index: its columns in order ('' for an expression), and what it covers of the table."""

    name: str | None
    columns: tuple[str, ...]
    unique: bool = False
    partial: bool = False
    made_in: str = ""


@dataclass(slots=True)
class Table:
    """A table or view as far as the files say; whole is false where they do not say all of its columns."""

    key: Key
    kind: str
    made_in: str
    place: Place
    columns: dict[str, Column] = field(default_factory=dict[str, Column])
    whole: bool = True
    constraints: list[Constraint] = field(default_factory=list[Constraint])
    indexes: list[Index] = field(default_factory=list[Index])
    partitioned: bool = False
    secured_at: Place | None = None  # where row level security was switched on
    secured_in: str = ""
    policies: int = 0
    temporary: bool = False

    def has_index_on(self, columns: tuple[str, ...]) -> bool:
        """Whether an index, or a key's own, begins with these columns in any order."""
        wanted = set(columns)
        keys = [one.columns for one in self.constraints if one.kind in ("primary", "unique")]
        every = [one.columns for one in self.indexes if not one.partial] + keys
        return any(set(one[: len(wanted)]) == wanted for one in every)

    def find_constraint(self, name: str) -> Constraint | None:
        """Return the constraint of a name."""
        return next((one for one in self.constraints if one.name == name), None)


@dataclass(slots=True)
class Routine:
    """A function or procedure: its input types, the names of its inputs, and what it returns, as words."""

    inputs: tuple[str, ...]
    names: tuple[str, ...]
    returns: str
    made_in: str


@dataclass(slots=True)
class Enum:
    """An enum: what made it, and which migration added which value."""

    made_in: str
    added: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class Domain:
    """A domain: the type beneath it, as words, and whether it has a constraint."""

    base: str
    constrained: bool


@dataclass(slots=True)
class World:
    """Tables, routines and enums by name. fresh: the migrations whose works are new, hence empty."""

    tables: dict[Key, Table] = field(default_factory=dict[Key, Table])
    routines: dict[Key, list[Routine]] = field(default_factory=dict[Key, list[Routine]])
    enums: dict[Key, Enum] = field(default_factory=dict[Key, Enum])
    domains: dict[Key, Domain] = field(default_factory=dict[Key, Domain])
    schemas: dict[str, str] = field(default_factory=dict[str, str])  # name: made in
    triggers: dict[Key, str] = field(default_factory=dict[Key, str])  # table and name: made in
    partition_keys: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    fresh: set[str] = field(default_factory=set[str])
    path: str = DEFAULT_SCHEMA

    def key(self, schema: str | None, name: str) -> Key:
        """Return a name's key; without a schema it is in the first of the search path."""
        return schema or self.path, name

    def find(self, relation: Any) -> Table | None:
        """Return what the files know of a relation; a name without a schema may be in any."""
        if found := self.tables.get(self.key(relation.schemaname, relation.relname)):
            return found
        if relation.schemaname:
            return None
        return next((one for key, one in self.tables.items() if key[1] == relation.relname), None)

    def column(self, relation: Any, name: str) -> Column | None:
        """Return what the files know of a column."""
        table = self.find(relation)
        return table.columns.get(name) if table else None

    def is_new(self, relation: Any) -> bool:
        """Whether a relation was made by what is not yet applied: nobody uses it, and it is empty."""
        if relation.relpersistence == "t" or relation.schemaname == "pg_temp":
            return True
        # By its full name alone: a namesake in another schema may well be in use.
        table = self.tables.get(self.key(relation.schemaname, relation.relname))
        return table is not None and (table.made_in in self.fresh or table.temporary)

    def is_new_column(self, relation: Any, name: str) -> bool:
        """Whether a column was made by what is not yet applied."""
        column = self.column(relation, name)
        return column is not None and column.made_in in self.fresh

    def find_index(self, schema: str | None, name: str) -> tuple[Table, Index] | None:
        """Return an index by name, with its table."""
        for table in self.tables.values():
            if schema in (None, table.key[0]):
                for index in table.indexes:
                    if index.name == name:
                        return table, index
        return None

    def all_constraints(self) -> Iterator[tuple[Table, Constraint]]:
        """Give every constraint with its table."""
        for table in self.tables.values():
            for constraint in table.constraints:
                yield table, constraint
