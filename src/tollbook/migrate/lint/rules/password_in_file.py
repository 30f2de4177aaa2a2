"""A password stands in the file."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from pglast import ast

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, sql

HASHED = ("SCRAM-SHA-256$", "md5")


def check(unit: Unit) -> Iterable[Hit]:
    tree: Any = unit.tree
    if is_a(tree, ast.CreateRoleStmt, ast.AlterRoleStmt):
        role = tree.role if is_a(tree, ast.CreateRoleStmt) else tree.role.rolename
        for option in tree.options or ():
            word = getattr(option.arg, "sval", None)
            if option.defname == "password" and word and not word.startswith(HASHED):
                yield Hit(
                    f"The password of {quote(role or '')} is in plain words in the file, in its repository's "
                    "history, and, from the run on, in the server's log.",
                    _leave_out(tree),
                )


def _leave_out(tree: Any) -> str:
    """Return the statement without the password, if it says anything else."""
    copy = deepcopy(tree)
    copy.options = tuple(option for option in tree.options if option.defname != "password")
    return f"{sql(copy)};" if copy.options or is_a(tree, ast.CreateRoleStmt) else ""


RULE = Rule(
    "password-in-file",
    "error",
    str(__doc__),
    "Whoever may read the code may log in, for as long as the password stands. Statements are logged as they "
    "are sent, and this engine keeps what it ran.",
    "Create the role without one, and set it by hand (psql's \\password sends it hashed) or from a secret "
    "store.",
    Example("CREATE ROLE clerk LOGIN PASSWORD 'correct horse';", given="DROP ROLE IF EXISTS clerk;"),
    check,
    spares_new=False,
)
