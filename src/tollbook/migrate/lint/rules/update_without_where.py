"""UPDATE without WHERE: every row is written anew."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint import batches
from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show


def check(unit: Unit) -> Iterable[Hit]:
    for tree in unit.writes(ast.UpdateStmt):
        if tree.whereClause is None and not tree.fromClause:
            names = [one.name for one in tree.targetList or ()]
            fresh = all(unit.world.is_new_column(tree.relation, name) for name in names)
            yield Hit(
                f"UPDATE {show(tree.relation)} has no WHERE: it writes every row anew and locks each until "
                "it commits.",
                batches.split(tree),
                tree.relation,
                "warning" if fresh else None,  # what only fills columns that are new loses nothing
            )


RULE = Rule(
    "update-without-where",
    "error",
    str(__doc__),
    "The old values are gone. The table doubles in size, each row stays locked until the commit, and "
    "replicas and autovacuum have as much to do as after loading it anew.",
    "Update in batches by key, each in a transaction of its own, and only rows that still differ.",
    Example(
        "UPDATE orders SET status = 'closed';",
        Claim(changes="SELECT count(*) FROM orders WHERE status = 'open'"),
    ),
    check,
    of_rows=True,
)
