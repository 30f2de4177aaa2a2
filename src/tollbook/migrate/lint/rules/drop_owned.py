"""Everything a role owns is dropped, whatever that is."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote


def check(unit: Unit) -> Iterable[Hit]:
    if not is_a(unit.tree, ast.DropOwnedStmt):
        return
    roles = [role for role in unit.tree.roles or () if role.rolename]
    for role in roles or (None,):
        name = quote(role.rolename) if role else "CURRENT_USER"
        yield Hit(
            f"DROP OWNED BY {name} deletes every object of that role in this database, unnamed and unseen.",
            f"REASSIGN OWNED BY {name} TO CURRENT_USER;" if role else "",
        )


RULE = Rule(
    "drop-owned",
    "error",
    str(__doc__),
    "What goes depends on the database it runs on: a table that somebody made by hand under that role goes "
    "too.",
    "Hand the objects over with REASSIGN OWNED, revoke the rights, and drop by name what is to go.",
    Example(
        "DROP OWNED BY reporter;",
        Claim(changes="SELECT count(*) FROM pg_class WHERE relname = 'reports'"),
        "DROP ROLE IF EXISTS reporter;\nCREATE ROLE reporter;\nCREATE TABLE reports (id bigint PRIMARY "
        "KEY);\n"
        "ALTER TABLE reports OWNER TO reporter;",
    ),
    check,
)
