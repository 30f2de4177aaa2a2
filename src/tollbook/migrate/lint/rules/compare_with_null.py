"""A comparison with NULL, which is never true."""

from collections.abc import Iterable
from typing import Any

from pglast import ast
from pglast.enums import A_Expr_Kind, NullTestType

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.trees import alter, descend, is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import sql

OPERATORS = {"=": "IS NULL", "<>": "IS NOT NULL", "!=": "IS NOT NULL"}
LOOKED_AT = (
    ast.UpdateStmt, ast.DeleteStmt, ast.InsertStmt, ast.SelectStmt, ast.ViewStmt, ast.IndexStmt,
    ast.CreateStmt, ast.AlterTableStmt,
)  # fmt: skip


def check(unit: Unit) -> Iterable[Hit]:
    if is_a(unit.tree, *LOOKED_AT) and _may_hold(unit.text):
        for expression in _find(unit.tree):
            operand = sql(expression.lexpr)
            right = f"{operand} {OPERATORS[expression.name[-1].sval]}"
            yield Hit(
                f"{sql(expression)} is never true, not even for NULL: {right} is meant.",
                f"{sql(alter(unit.tree, _mend))};",
            )


def _may_hold(text: str) -> bool:
    """Whether a statement must be gone through: rows of data, with a NULL or without, need not."""
    return ("=" in text or ">" in text) and "null" in text.lower()


def _find(tree: Any) -> Iterable[Any]:
    """Give the comparisons of anything with the word NULL; SET x = NULL is none."""
    for one in descend(tree):
        if is_a(one, ast.A_Expr) and one.kind == A_Expr_Kind.AEXPR_OP and one.lexpr is not None:
            null = is_a(one.rexpr, ast.A_Const) and one.rexpr.isnull
            if null and one.name[-1].sval in OPERATORS:
                yield one


def _mend(node: Any) -> Any:
    """Return the test for NULL that a comparison with NULL means."""
    if not any(node is one for one in _find(node)):
        return None
    kind = NullTestType.IS_NULL if node.name[-1].sval == "=" else NullTestType.IS_NOT_NULL
    return ast.NullTest(arg=node.lexpr, nulltesttype=kind)


RULE = Rule(
    "compare-with-null",
    "warning",
    str(__doc__),
    "x = NULL is NULL, whatever x is: a WHERE with it finds no row, a CHECK with it refuses none, and no "
    "error says so.",
    "IS NULL, IS NOT NULL, or IS DISTINCT FROM.",
    Example("UPDATE orders SET status = 'new' WHERE status = NULL;"),
    check,
    spares_new=False,
    of_rows=True,
)
