"""A rewrite rule (CREATE RULE), which is not what it looks like."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.RuleStmt):
        yield Hit(
            f"The rule {quote(tree.rulename)} rewrites each query on {show(tree.relation)}: values are "
            "computed twice, COPY passes it by, and the row counts are others.",
            on=tree.relation,
        )


RULE = Rule(
    "create-rule",
    "warning",
    str(__doc__),
    "A rule is a macro: nextval() or now() in the query runs once for each action. RETURNING and row counts "
    "change, COPY ignores it. It takes ACCESS EXCLUSIVE.",
    "A trigger, or a view that can be written to with INSTEAD OF triggers.",
    Example("CREATE RULE keep AS ON DELETE TO orders DO INSTEAD NOTHING;", Claim("AccessExclusiveLock")),
    check,
)
