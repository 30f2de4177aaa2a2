"""A schema is dropped."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import DropBehavior, ObjectType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import name_after, quote


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.DropStmt) or tree.removeType != ObjectType.OBJECT_SCHEMA:
        return
    for name in tree.objects or ():
        made_in = unit.world.schemas.get(name.sval)
        if made_in in unit.world.fresh:
            continue
        everything = tree.behavior == DropBehavior.DROP_CASCADE
        yield Hit(
            f"DROP SCHEMA {quote(name.sval)}{' CASCADE deletes everything in it' if everything else ''}"
            f"{'' if everything else ' takes it from whoever still uses it'}.",
            "-- Out of the way now; dropped in a later release, when nothing has missed it.\n"
            f"ALTER SCHEMA {quote(name.sval)} RENAME TO {quote(name_after(name.sval, 'dropped'))};",
        )


RULE = Rule(
    "drop-schema",
    "error",
    str(__doc__),
    "With CASCADE, every table in it goes with all rows, and so does what refers to them from elsewhere.",
    "Rename the schema, let a release run without it, and drop it later, object by object.",
    Example(
        "DROP SCHEMA old CASCADE;",
        Claim(changes="SELECT count(*) FROM pg_class WHERE relname = 'orders_of_last_year'"),
        "CREATE SCHEMA old CREATE TABLE orders_of_last_year (id bigint PRIMARY KEY);",
    ),
    check,
)
