"""A partition is detached without CONCURRENTLY."""

from collections.abc import Iterable

from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.alterations(AlterTableType.AT_DetachPartition):
        if not one.def_.concurrent:
            parent, partition = show(one.relation), show(one.def_.name)
            yield Hit(
                f"Detaching {partition} takes ACCESS EXCLUSIVE on {parent}: all of its partitions wait.",
                f"ALTER TABLE {parent} DETACH PARTITION {partition} CONCURRENTLY;",
                one.relation,
                at=unit.locate_part(one.def_),
            )


RULE = Rule(
    "detach-partition",
    "warning",
    str(__doc__),
    "ACCESS EXCLUSIVE on the whole partitioned table, which waits behind every open transaction on any "
    "partition, and all others wait behind it.",
    "DETACH PARTITION … CONCURRENTLY, in a file of its own (it is refused where there is a default "
    "partition).",
    Example(
        "ALTER TABLE visits DETACH PARTITION visits_2026;",
        Claim("AccessExclusiveLock", on="visits"),
        "CREATE TABLE visits (id bigint, at date NOT NULL) PARTITION BY RANGE (at);\n"
        "CREATE TABLE visits_2026 PARTITION OF visits FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');",
    ),
    check,
    squawk=("require-concurrent-partition-detach",),
)
