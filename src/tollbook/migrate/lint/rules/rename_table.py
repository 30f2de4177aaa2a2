"""A table, view or sequence is renamed under running code."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import ObjectType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show

KINDS = {
    ObjectType.OBJECT_TABLE: "TABLE",
    ObjectType.OBJECT_VIEW: "VIEW",
    ObjectType.OBJECT_MATVIEW: "MATERIALIZED VIEW",
    ObjectType.OBJECT_SEQUENCE: "SEQUENCE",
    ObjectType.OBJECT_FOREIGN_TABLE: "FOREIGN TABLE",
}


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.RenameStmt) and tree.renameType in KINDS and tree.relation is not None:
        old, new = show(tree.relation), quote(tree.newname)
        schema = f"{quote(tree.relation.schemaname)}." if tree.relation.schemaname else ""
        table = tree.renameType in (ObjectType.OBJECT_TABLE, ObjectType.OBJECT_FOREIGN_TABLE)
        yield Hit(
            f"The running release still says {old}: every query of it fails from the commit on.",
            f"-- The new name beside the old one, for reading and writing, until no code says the old one.\n"
            f"CREATE VIEW {schema}{new} AS SELECT * FROM {old};"
            if table
            else "",
            tree.relation,
        )


RULE = Rule(
    "rename-table",
    "error",
    str(__doc__),
    "Between the commit and the last old process, the old code fails; rolling the release back fails as "
    "well. It takes ACCESS EXCLUSIVE, briefly. And where a later file makes something of the old name, old "
    "code writes into it without a word.",
    "Give the new name by a view, which may be written to while it is a plain SELECT *; release code that "
    "uses it; then, in one transaction, drop the view and rename the table, with a view of the old name left "
    "behind.",
    Example("ALTER TABLE orders RENAME TO purchases;", Claim("AccessExclusiveLock")),
    check,
    squawk=("renaming-table",),
)
