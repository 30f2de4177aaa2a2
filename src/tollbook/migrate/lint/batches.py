"""An UPDATE in batches: the same statement for a thousand rows, to be repeated until it finds none."""

from typing import Any

from pglast import ast

from tollbook.migrate.lint.trees import descend, find_columns, is_a
from tollbook.migrate.lint.words import quote, show, sql

CHANGING = (ast.FuncCall, ast.SQLValueFunction, ast.SubLink, ast.MultiAssignRef, ast.SetToDefault)


def split(tree: Any) -> str:
    """Return the batch of an UPDATE; nothing where a second run would change what the first has done."""
    if not _is_repeatable(tree):
        return ""
    table = show(tree.relation)
    values = ", ".join(f"{quote(one.name)} = {sql(one.val)}" for one in tree.targetList)
    still = " OR ".join(f"{quote(one.name)} IS DISTINCT FROM ({sql(one.val)})" for one in tree.targetList)
    where = f"({sql(tree.whereClause)}) AND ({still})" if tree.whereClause is not None else still
    return (
        "-- Again and again, each time in a transaction of its own, until it updates none.\n"  # noqa: S608
        f"UPDATE {table} SET {values} WHERE ctid = ANY (ARRAY(\n"
        f"    SELECT ctid FROM {table} WHERE {where} LIMIT 1000 FOR UPDATE SKIP LOCKED));"
    )


def _is_repeatable(tree: Any) -> bool:
    """Whether it is of one table by its own name, and its values are the same however often they are set."""
    if tree.fromClause or tree.withClause or tree.relation.alias or tree.returningClause:
        return False
    names = {one.name for one in tree.targetList}
    for one in tree.targetList:
        if one.indirection or names & set(find_columns(one.val)):
            return False
        if any(is_a(node, *CHANGING) for node in descend(one.val)):
            return False
    return True
