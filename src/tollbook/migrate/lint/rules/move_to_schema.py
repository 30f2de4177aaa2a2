"""An object is moved into another schema under running code."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.AlterObjectSchemaStmt) and tree.relation is not None:
        name = show(tree.relation)
        yield Hit(
            f"The running release finds {name} no longer where it was, unless {quote(tree.newschema)} is on "
            "its search path.",
            f"-- The new name beside the old one, until no code says the old one.\n"
            f"CREATE VIEW {quote(tree.newschema)}.{quote(tree.relation.relname)} AS SELECT * FROM {name};",
            tree.relation,
        )


RULE = Rule(
    "move-to-schema",
    "warning",
    str(__doc__),
    "To old code it is a rename: queries that say the old schema fail from the commit on. It takes ACCESS "
    "EXCLUSIVE, briefly.",
    "Give the new name by a view, release code that uses it, then move the table and leave a view behind.",
    Example("ALTER TABLE orders SET SCHEMA sales;", Claim("AccessExclusiveLock"), "CREATE SCHEMA sales;"),
    check,
)
