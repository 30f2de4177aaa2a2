"""A table is attached as a partition without a check that proves its bounds."""

from collections.abc import Iterable
from typing import Any

from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import name_after, quote, show, sql


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.alterations(AlterTableType.AT_AttachPartition):
        partition = one.def_.name
        table = unit.table(partition)
        proven = table is not None and any(
            item.kind == "check" and item.validated for item in table.constraints
        )
        if not proven:
            yield Hit(
                f"Attaching {show(partition)} to {show(one.relation)} reads all of its rows under an ACCESS "
                "EXCLUSIVE lock, for no check says that they fit.",
                _prove(unit, one.relation, one.def_),
                partition,
                at=unit.locate_part(one.def_),
            )


def _prove(unit: Unit, parent: Any, command: Any) -> str:
    """Return the steps with a check of the bounds, where they are of one column that the files name."""
    table, bound = show(command.name), command.bound
    columns = unit.world.partition_keys.get(parent.relname, ())
    if bound is None or bound.strategy != "r" or len(columns) != 1 or len(bound.lowerdatums or ()) != 1:
        return ""
    key, check_name = quote(columns[0]), quote(name_after(command.name.relname, "bounds"))
    low, high = sql(bound.lowerdatums[0]), sql(bound.upperdatums[0])
    words = [f"{key} IS NOT NULL"]
    words += [] if low.upper() == "MINVALUE" else [f"{key} >= {low}"]
    words += [] if high.upper() == "MAXVALUE" else [f"{key} < {high}"]
    return (
        f"ALTER TABLE {table} ADD CONSTRAINT {check_name} CHECK ({' AND '.join(words)}) NOT VALID;\n"
        "-- In a migration of its own, which lets writers in:\n"
        f"ALTER TABLE {table} VALIDATE CONSTRAINT {check_name};\n"
        f"{unit.text};\n"
        f"ALTER TABLE {table} DROP CONSTRAINT {check_name};"
    )


RULE = Rule(
    "attach-partition",
    "error",
    str(__doc__),
    "ACCESS EXCLUSIVE on the partition (and on a default partition, which is read as well) is held while "
    "every row is compared with the bounds.",
    "Add a CHECK of the same bounds NOT VALID, validate it, attach (which then reads nothing), drop the "
    "check. A default partition needs one that says the opposite.",
    Example(
        "ALTER TABLE visits ATTACH PARTITION visits_2026 FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');",
        Claim("AccessExclusiveLock", on="visits_2026", scan=True),
        "CREATE TABLE visits (id bigint, at date NOT NULL) PARTITION BY RANGE (at);\n"
        "CREATE TABLE visits_2026 (id bigint, at date NOT NULL);\n"
        "INSERT INTO visits_2026 SELECT n, '2026-06-01' FROM generate_series(1, 500) AS n;",
    ),
    check,
)
