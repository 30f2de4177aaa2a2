"""A column may be NULL from now on."""

from collections.abc import Iterable

from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.alterations(AlterTableType.AT_DropNotNull):
        yield Hit(
            f"{show(one.relation)}.{quote(one.name or '')} may be NULL from now on: readers of the running "
            "release do not expect that.",
            on=one.relation,
            at=unit.locate_part(one.def_),
        )


RULE = Rule(
    "drop-not-null",
    "notice",
    str(__doc__),
    "Code that was sure of a value fails on the first row without one, and `<>` and NOT IN pass such rows "
    "over.",
    "Release readers that bear NULL first. If the column is on its way out, say so in an allowance.",
    Example(
        "ALTER TABLE orders ALTER COLUMN status DROP NOT NULL;",
        Claim("AccessExclusiveLock"),
        "ALTER TABLE orders ALTER COLUMN status SET NOT NULL;",
    ),
    check,
    squawk=("ban-drop-not-null",),
)
