"""A value of an enum is renamed under running code."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show_names, text


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.AlterEnumStmt) and tree.oldVal and tree.newVal:
        name = show_names(tree.typeName or ())
        yield Hit(
            f"The running release still writes {text(tree.oldVal)} into {name}, which fails from the commit "
            "on.",
            f"-- Beside the old one; move the rows in batches, and leave the old value unused.\n"
            f"ALTER TYPE {name} ADD VALUE {text(tree.newVal)};",
        )


RULE = Rule(
    "rename-enum-value",
    "error",
    str(__doc__),
    "Old code that writes or compares with the old word fails, and drivers that keep a type's words read a "
    "value they do not know. A value cannot be taken out of an enum at all.",
    "Add the new value, release code that reads both, write the new one, and move the rows in batches.",
    Example(
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue';",
        Claim(changes="SELECT count(*) FROM pg_enum WHERE enumlabel = 'sad'"),
        "CREATE TYPE mood AS ENUM ('glad', 'sad');",
    ),
    check,
)
