"""Rights that running code may need are taken."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import RoleSpecType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.GrantStmt) or tree.is_grant:
        return
    tables = [one for one in tree.objects or () if is_a(one, ast.RangeVar)]
    if tables and all(unit.world.is_new(one) for one in tables):
        return
    for one in tree.grantees or ():
        # To take from PUBLIC what it should never have had breaks only whom it should.
        if one.roletype != RoleSpecType.ROLESPEC_PUBLIC:
            yield Hit(
                f"What runs as {quote(one.rolename or 'this role')} and still needs it fails from the commit "
                "on."
            )


RULE = Rule(
    "revoke",
    "notice",
    str(__doc__),
    "A right that is missing shows only when it is used: by the nightly job, by the one report of the "
    "quarter.",
    "Release code that does without, look who used it (pg_stat_statements, an audit log), then revoke.",
    Example(
        "REVOKE SELECT ON orders FROM CURRENT_USER;",
        Claim(changes="SELECT has_table_privilege('orders', 'SELECT')"),
    ),
    check,
)
