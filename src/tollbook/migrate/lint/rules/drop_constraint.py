"""A constraint is dropped: what it ruled out may enter."""

from collections.abc import Iterable

from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show

WORDS = {
    "check": "rows that it ruled out may enter",
    "foreign": "rows may refer to nothing",
    "unique": "values may come twice, and queries lose its index",
    "primary": "keys may come twice, queries lose its index, and upserts that name it fail",
    "exclusion": "rows may overlap, and queries lose its index",
}


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.alterations(AlterTableType.AT_DropConstraint):
        table = unit.table(one.relation)
        known = table.find_constraint(one.name) if table and one.name else None
        if known and (known.made_in in unit.world.fresh or _is_replaced(unit, known.expression)):
            continue
        if known and known.kind == "not null":
            continue
        then = WORDS.get(known.kind if known else "", "what it ruled out may enter")
        yield Hit(
            f"Without {quote(one.name or '')} on {show(one.relation)}, {then}; bringing it back reads every "
            "row.",
            on=one.relation,
            at=unit.locate_part(one.def_),
        )


def _is_replaced(unit: Unit, expression: str) -> bool:
    """Whether a check is dropped for the NOT NULL that it proved."""
    return expression.upper().endswith("IS NOT NULL")


RULE = Rule(
    "drop-constraint",
    "notice",
    str(__doc__),
    "It takes ACCESS EXCLUSIVE (for a foreign key, on both tables), briefly; but what enters meanwhile "
    "stays, and keeps the constraint from being put back.",
    "Drop it only with code that upholds the rule, or add its successor (NOT VALID, then VALIDATE) before.",
    Example(
        "ALTER TABLE orders DROP CONSTRAINT total_positive;",
        Claim("AccessExclusiveLock"),
        "ALTER TABLE orders ADD CONSTRAINT total_positive CHECK (total > 0);",
    ),
    check,
    squawk=("ban-drop-constraint",),
)
