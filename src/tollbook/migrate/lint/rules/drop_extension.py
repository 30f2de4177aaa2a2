"""An extension is dropped, with its types and functions."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import ObjectType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.DropStmt) and tree.removeType == ObjectType.OBJECT_EXTENSION:
        for name in tree.objects or ():
            yield Hit(
                f"DROP EXTENSION {quote(name.sval)} takes its functions, types and operators from all who "
                "use them."
            )


RULE = Rule(
    "drop-extension",
    "error",
    str(__doc__),
    "With CASCADE, columns of its types and indexes of its operator classes go too. Others in the same "
    "database may use it, and its data (a job queue, a message log) goes with it.",
    "Ask pg_depend who uses it, move them, and drop it without CASCADE, by hand.",
    Example(
        "DROP EXTENSION hstore;",
        Claim(changes="SELECT count(*) FROM pg_extension WHERE extname = 'hstore'"),
        "CREATE EXTENSION hstore;",
    ),
    check,
)
