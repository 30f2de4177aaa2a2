"""NOT IN of a query, which finds nothing as soon as that has a NULL."""

import re
from collections.abc import Iterable
from typing import Any

from pglast import ast
from pglast.enums import BoolExprType, SubLinkType

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.trees import descend, is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import sql

NOT = re.compile(r"\bNOT\b", re.IGNORECASE)  # rows of data have none
LOOKED_AT = (ast.UpdateStmt, ast.DeleteStmt, ast.InsertStmt, ast.ViewStmt)


def check(unit: Unit) -> Iterable[Hit]:
    if is_a(unit.tree, *LOOKED_AT) and NOT.search(unit.text):
        for one in descend(unit.tree):
            if _is_not_in(one):
                yield Hit(
                    f"If the query of {sql(one.args[0].testexpr)} NOT IN (…) gives a single NULL, this finds "
                    "no row at all.",
                )


def _is_not_in(node: Any) -> bool:
    if not is_a(node, ast.BoolExpr) or node.boolop != BoolExprType.NOT_EXPR:
        return False
    link = node.args[0]
    # x = ANY (…) is written with an operator's name, IN without.
    return is_a(link, ast.SubLink) and link.subLinkType == SubLinkType.ANY_SUBLINK and not link.operName


RULE = Rule(
    "not-in-subquery",
    "notice",
    str(__doc__),
    "x NOT IN (1, NULL) is NULL for every x: the statement does nothing, and no error says so. It is also "
    "slow: the planner cannot turn it into a join.",
    "NOT EXISTS (SELECT FROM … WHERE …), which means what was meant.",
    Example(
        "DELETE FROM orders WHERE customer_id NOT IN (SELECT referrer FROM visits);",
        given="CREATE TABLE visits (id bigint PRIMARY KEY, referrer bigint);\n"
        "INSERT INTO visits VALUES (1, NULL);",
    ),
    check,
    spares_new=False,
    of_rows=True,
)
