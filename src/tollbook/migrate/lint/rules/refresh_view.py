"""A materialized view is refreshed while nobody can read it."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.RefreshMatViewStmt) and not tree.concurrent and not tree.skipData:
        name = show(tree.relation)
        yield Hit(
            f"REFRESH keeps everybody from reading {name} while its query runs.",
            f"REFRESH MATERIALIZED VIEW CONCURRENTLY {name};",
            tree.relation,
        )


RULE = Rule(
    "refresh-view",
    "warning",
    str(__doc__),
    "ACCESS EXCLUSIVE on the view is held while its query runs and its indexes are built.",
    "REFRESH … CONCURRENTLY, which needs a unique index on plain columns and lets readers in.",
    Example(
        "REFRESH MATERIALIZED VIEW sums;",
        Claim("AccessExclusiveLock", on="sums", rewrite=True),
        "CREATE MATERIALIZED VIEW sums AS SELECT status, sum(total) FROM orders GROUP BY 1;\n"
        "CREATE UNIQUE INDEX sums_status ON sums (status);",
    ),
    check,
)
