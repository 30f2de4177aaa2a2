"""A role is dropped."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote


def check(unit: Unit) -> Iterable[Hit]:
    if is_a(unit.tree, ast.DropRoleStmt):
        for role in unit.tree.roles or ():
            name = quote(role.rolename or "")
            yield Hit(
                f"{name} is of the whole server: what logs in as it, to any database, is refused from the "
                "commit on.",
                f"ALTER ROLE {name} NOLOGIN;",
            )


RULE = Rule(
    "drop-role",
    "warning",
    str(__doc__),
    "Roles belong to the server, not to the database that is migrated. It fails where the role owns "
    "something in another database, so the same file works here and not there.",
    "NOLOGIN first; when nobody has missed it, reassign what it owns in every database, and drop it by hand.",
    Example(
        "DROP ROLE visitor;",
        Claim(changes="SELECT count(*) FROM pg_roles WHERE rolname = 'visitor'"),
        "DROP ROLE IF EXISTS visitor;\nCREATE ROLE visitor;",
    ),
    check,
)
