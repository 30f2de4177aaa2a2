"""A partition is made inside a table in use."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show, sql


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.CreateStmt) or tree.partbound is None:
        return
    parent, partition = show(tree.inhRelations[0]), show(tree.relation)
    yield Hit(
        f"CREATE TABLE {partition} PARTITION OF {parent} takes ACCESS EXCLUSIVE on {parent}: all of its "
        "partitions wait.",
        ""
        if tree.partbound.is_default or tree.partspec is not None
        else f"CREATE TABLE {partition} (LIKE {parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS);\n"
        f"ALTER TABLE {parent} ATTACH PARTITION {partition} {sql(tree.partbound)};",
        tree.inhRelations[0],
    )


RULE = Rule(
    "create-partition",
    "warning",
    str(__doc__),
    "ACCESS EXCLUSIVE on the whole partitioned table, which waits behind every open transaction on any "
    "partition, and all others wait behind it. Where there is a default partition, its rows are read as "
    "well.",
    "Make a table LIKE the parent, then ATTACH PARTITION, which takes SHARE UPDATE EXCLUSIVE on the parent "
    "and lets everybody work (an empty table is read in no time).",
    Example(
        "CREATE TABLE visits_2027 PARTITION OF visits FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');",
        Claim("AccessExclusiveLock", on="visits"),
        "CREATE TABLE visits (id bigint, at date NOT NULL) PARTITION BY RANGE (at);",
    ),
    check,
)
