"""Many rows are changed in one statement."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint import batches
from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.rules.backfill_with_ddl import is_by_key
from tollbook.migrate.lint.trees import descend, is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show, sql


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.UpdateStmt, ast.DeleteStmt) or tree.whereClause is None:
        return
    if is_by_key(unit) or _is_bounded(unit):
        return
    what = "written anew" if is_a(tree, ast.UpdateStmt) else "deleted"
    yield Hit(
        f"Every row of {show(tree.relation)} that matches is {what} in one transaction, and stays locked "
        "until it commits.",
        _split(unit),
        tree.relation,
    )


def _is_bounded(unit: Unit) -> bool:
    """Whether a LIMIT somewhere in it keeps it small."""
    return any(is_a(one, ast.SelectStmt) and one.limitCount is not None for one in descend(unit.tree))


def _split(unit: Unit) -> str:
    """Return the statement for a thousand rows, where it is of one table alone."""
    tree = unit.tree
    if is_a(tree, ast.UpdateStmt):
        return batches.split(tree)
    if tree.usingClause or tree.withClause or tree.relation.alias:
        return ""
    table = show(tree.relation)
    return (
        "-- Again and again, each time in a transaction of its own, until it deletes none.\n"
        f"DELETE FROM {table} WHERE ctid = ANY (ARRAY(\n"
        f"    SELECT ctid FROM {table} WHERE {sql(tree.whereClause)} LIMIT 1000 FOR UPDATE SKIP LOCKED));"
    )


RULE = Rule(
    "large-update",
    "notice",
    str(__doc__),
    "Each row stays locked until the commit, the old versions of all of them stay in the table, replicas lag "
    "behind, and if it is stopped in the last minute it begins again at the first row.",
    "In batches by key, each in a transaction of its own.",
    Example("UPDATE orders SET status = 'late' WHERE paid_at IS NULL;"),
    check,
    of_rows=True,
)
