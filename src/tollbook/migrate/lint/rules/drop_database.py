"""A database is dropped."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import name_after, quote


def check(unit: Unit) -> Iterable[Hit]:
    if is_a(unit.tree, ast.DropdbStmt) and unit.tree.dbname:
        name = unit.tree.dbname
        yield Hit(
            f"DROP DATABASE {quote(name)} deletes a whole database; a migration changes one, and destroys "
            "none.",
            f"ALTER DATABASE {quote(name)} RENAME TO {quote(name_after(name, 'dropped'))};",
        )


RULE = Rule(
    "drop-database",
    "error",
    str(__doc__),
    "It cannot run in a transaction, so nothing takes it back, and no backup of this engine covers it.",
    "Do it by hand, by somebody who looks at what is in it, after a backup that was restored once.",
    Example("DROP DATABASE archive;", given="-- a database called archive"),
    check,
    squawk=("ban-drop-database",),
)
