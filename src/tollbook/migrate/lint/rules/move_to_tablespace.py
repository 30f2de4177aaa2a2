"""A table is moved into another tablespace."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    for one in (tree.cmds or ()) if is_a(tree, ast.AlterTableStmt) else ():
        if one.subtype != AlterTableType.AT_SetTableSpace:
            continue
        yield Hit(
            f"Moving {show(tree.relation)} to {quote(one.name or '')} copies all of it under an ACCESS "
            "EXCLUSIVE lock.",
            on=tree.relation,
        )
    if is_a(unit.tree, ast.AlterTableMoveAllStmt):
        yield Hit("Moving all of a tablespace copies each of its tables under an ACCESS EXCLUSIVE lock.")


RULE = Rule(
    "move-to-tablespace",
    "error",
    str(__doc__),
    "ACCESS EXCLUSIVE is held while every block is copied: nobody reads or writes for as long.",
    "Do it by hand in a quiet hour, or with a tool that copies beside the live table (pg_repack).",
    Example("ALTER TABLE orders SET TABLESPACE fast;", given="-- a tablespace called fast"),
    check,
)
