"""A table is made without a primary key."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.errors import Place
from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import End, Unit
from tollbook.migrate.lint.words import quote


def check_end(end: End) -> Iterable[tuple[Place, Hit]]:
    made = {place for file in end.files for unit in file.units if (place := _find_made(unit))}
    for table in end.world.tables.values():
        keyed = any(one.kind in ("primary", "unique") for one in table.constraints)
        keyed = keyed or any(one.unique for one in table.indexes)
        if (
            table.kind == "table"
            and table.whole
            and not keyed
            and not table.temporary
            and table.place in made
        ):
            yield (
                table.place,
                Hit(f"{quote(table.key[1])} has no primary key: two equal rows cannot be told apart."),
            )


def _find_made(unit: Unit) -> Place | None:
    """Return the place of a CREATE TABLE that is no partition (which has its parent's key)."""
    return unit.place if is_a(unit.tree, ast.CreateStmt) and unit.tree.partbound is None else None


RULE = Rule(
    "no-primary-key",
    "notice",
    str(__doc__),
    "Logical replication refuses UPDATE and DELETE on it (and stops the publisher's writers), back-fills in "
    "batches have nothing to go by, and a row that came twice cannot be deleted once.",
    "Give it a primary key: a natural one, or `id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY`.",
    Example("CREATE TABLE visits (page text NOT NULL, at timestamptz NOT NULL);"),
    check_end=check_end,
    spares_new=False,
    down=False,
)
