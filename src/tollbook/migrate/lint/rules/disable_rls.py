"""Row level security is switched off."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import ObjectType
from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, relation_of, show


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.alterations(AlterTableType.AT_DisableRowSecurity, AlterTableType.AT_NoForceRowSecurity):
        yield Hit(
            f"From the commit on, whoever may read {show(one.relation)} reads every row of every tenant.",
            on=one.relation,
            at=unit.locate_part(one.def_),
        )
    tree = unit.tree
    if is_a(tree, ast.DropStmt) and tree.removeType == ObjectType.OBJECT_POLICY:
        for name in tree.objects or ():
            table = relation_of(name[:-1])
            known = unit.table(table)
            if known is None or known.secured_in not in unit.world.fresh:
                yield Hit(
                    f"Without the policy {quote(name[-1].sval)}, other rows of {show(table)} are seen than "
                    "before: more where it was restrictive, none where it was the last.",
                    on=table,
                    severity="warning",
                )


RULE = Rule(
    "disable-rls",
    "error",
    str(__doc__),
    "The policies are what keeps tenants apart. Without them a query that forgot its WHERE shows everything.",
    "Change the policies instead (ALTER POLICY, or a new one before the old is dropped, in one transaction).",
    Example(
        "ALTER TABLE orders DISABLE ROW LEVEL SECURITY;",
        Claim(changes="SELECT relrowsecurity FROM pg_class WHERE relname = 'orders'"),
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY;\nCREATE POLICY own ON orders USING (true);",
    ),
    check,
)
