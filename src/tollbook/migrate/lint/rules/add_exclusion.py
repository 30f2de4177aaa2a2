"""An exclusion constraint is added: it always builds its index while nobody can use the table."""

from collections.abc import Iterable

from pglast.enums import ConstrType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.added_constraints(ConstrType.CONSTR_EXCLUSION):
        yield Hit(
            f"The exclusion constraint on {show(one.relation)} builds its index and compares every row with "
            "the others under an ACCESS EXCLUSIVE lock.",
            on=one.relation,
            at=unit.locate_part(one.constraint),
        )


RULE = Rule(
    "add-exclusion",
    "error",
    str(__doc__),
    "There is no NOT VALID and no USING INDEX for it: ACCESS EXCLUSIVE is held until the index is built.",
    "On a large table: make a new table with the constraint, copy the rows in batches behind a trigger, and "
    "swap.",
    Example(
        "ALTER TABLE orders ADD CONSTRAINT one_at_a_time EXCLUDE (code WITH =);",
        Claim("AccessExclusiveLock", scan=True),
    ),
    check,
)
