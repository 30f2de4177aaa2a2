"""Rights are given to everybody."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import ObjectType, RoleSpecType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree.action if is_a(unit.tree, ast.AlterDefaultPrivilegesStmt) else unit.tree
    if not is_a(tree, ast.GrantStmt) or not tree.is_grant:
        return
    if any(one.roletype == RoleSpecType.ROLESPEC_PUBLIC for one in tree.grantees or ()):
        words = ", ".join((one.priv_name or "").upper() for one in tree.privileges or ()) or "ALL"
        names = [show(one) for one in tree.objects or () if is_a(one, ast.RangeVar)]
        table = tree.objtype == ObjectType.OBJECT_TABLE and names and unit.tree is tree
        yield Hit(
            f"GRANT {words} TO PUBLIC gives it to every role there is, and every one to come.",
            f"-- Or the role of the application:\nGRANT {words} ON {', '.join(names)} TO CURRENT_USER;"
            if table
            else "",
        )


RULE = Rule(
    "grant-to-public",
    "warning",
    str(__doc__),
    "PUBLIC is all roles: also those of monitoring, of other applications, and those made later. It cannot "
    "be taken from one of them.",
    "Grant to the role of the application, or to a group role.",
    Example(
        "GRANT SELECT ON customers TO PUBLIC;",
        Claim(
            changes="SELECT count(*) FROM pg_class WHERE relname = 'customers' AND relacl::text LIKE '%{=r/%'"
            " OR relname = 'customers' AND relacl::text LIKE '%,=r/%'"
        ),
    ),
    check,
    spares_new=False,
)
