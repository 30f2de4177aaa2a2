"""LOCK TABLE: a lock held until the migration commits."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show

MODES = (
    "ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "SHARE", "SHARE ROW EXCLUSIVE",
    "EXCLUSIVE", "ACCESS EXCLUSIVE",
)  # fmt: skip
SHARE_NUMBER = 5  # from here on, writers wait
ALL_NUMBER = 8


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.LockStmt) and tree.mode >= SHARE_NUMBER:
        waits = "readers and writers" if tree.mode == ALL_NUMBER else "writers"
        for table in tree.relations or ():
            yield Hit(
                f"LOCK TABLE {show(table)} IN {MODES[tree.mode - 1]} MODE keeps {waits} out until this "
                "transaction ends.",
                on=table,
            )


RULE = Rule(
    "lock-table",
    "warning",
    str(__doc__),
    "It is held from here to the commit, whatever the statements in between take.",
    "Leave it out: each statement takes the lock it needs. Where several tables must be locked in one order, "
    "lock them in a file that does little else.",
    Example("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE;", Claim("AccessExclusiveLock")),
    check,
)
