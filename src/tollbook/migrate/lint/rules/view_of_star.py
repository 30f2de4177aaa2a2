"""A view of SELECT *, which is frozen the moment it is made."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from pglast import ast

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show, sql


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    query: Any = tree.query if is_a(tree, ast.ViewStmt) else None
    if not is_a(query, ast.SelectStmt):
        return
    for target in query.targetList or ():
        value = target.val
        if is_a(value, ast.ColumnRef) and is_a(value.fields[-1], ast.A_Star):
            yield Hit(
                f"The * of {show(tree.view)} becomes the columns there are now: later ones are not in the "
                "view, and none of them can be dropped.",
                _name_columns(unit, query),
            )
            return


def _name_columns(unit: Unit, query: Any) -> str:
    """Return the view with a list for its *, where that is of one table whose columns the files say."""
    sources = query.fromClause or ()
    table = unit.table(sources[0]) if len(sources) == 1 and is_a(sources[0], ast.RangeVar) else None
    if table is None or not table.whole or len(query.targetList) != 1:
        return ""
    copy: Any = deepcopy(unit.tree)
    names = [ast.ColumnRef(fields=(ast.String(sval=name),)) for name in table.columns]
    copy.query.targetList = tuple(ast.ResTarget(val=name) for name in names)
    return f"{sql(copy)};"


RULE = Rule(
    "view-of-star",
    "notice",
    str(__doc__),
    "It is expanded once. On a database made from a schema file the same view has other columns than on one "
    "that was migrated, and OR REPLACE then fails on one of them.",
    "Name the columns.",
    Example("CREATE VIEW all_orders AS SELECT * FROM orders;"),
    check,
    spares_new=False,
    down=False,
)
