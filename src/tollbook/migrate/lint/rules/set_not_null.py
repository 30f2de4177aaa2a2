"""SET NOT NULL that reads every row under its lock."""

from collections.abc import Iterable

from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import name_after, quote, show


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.alterations(AlterTableType.AT_SetNotNull):
        name = one.name or ""
        column = unit.world.column(one.relation, name)
        if (column and column.not_null) or _is_proven(unit, one.relation, name):
            continue
        table, proof = show(one.relation), quote(name_after(one.relation.relname, name, "not_null"))
        yield Hit(
            f"SET NOT NULL on {table}.{quote(name)} reads every row under an ACCESS EXCLUSIVE lock.",
            f"ALTER TABLE {table} ADD CONSTRAINT {proof} CHECK ({quote(name)} IS NOT NULL) NOT VALID;\n"
            f"ALTER TABLE {table} VALIDATE CONSTRAINT {proof};\n"
            f"ALTER TABLE {table} ALTER COLUMN {quote(name)} SET NOT NULL;\n"
            f"ALTER TABLE {table} DROP CONSTRAINT {proof};",
            one.relation,
            at=unit.locate_part(one.def_),
        )


def _is_proven(unit: Unit, relation: object, name: str) -> bool:
    """Whether a validated check says already that the column is not null."""
    table = unit.table(relation)
    wanted = f"{quote(name)} is not null".lower()
    return table is not None and any(
        one.kind == "check" and one.validated and wanted in one.expression.lower().split(" or ")[0]
        for one in table.constraints
    )


RULE = Rule(
    "set-not-null",
    "error",
    str(__doc__),
    "Every row is read while ACCESS EXCLUSIVE keeps out readers and writers, unless a validated CHECK proves "
    "already that none is NULL.",
    "Add CHECK (… IS NOT NULL) NOT VALID, validate it (in a transaction of its own, it lets writers in), "
    "then SET NOT NULL, which now reads nothing, and drop the check. From PostgreSQL 18 on, ADD CONSTRAINT … "
    "NOT NULL … NOT VALID says the same.",
    Example("ALTER TABLE orders ALTER COLUMN status SET NOT NULL;", Claim("AccessExclusiveLock", scan=True)),
    check,
    squawk=("adding-not-nullable-field",),
)
