"""A column loses its default under running code."""

from collections.abc import Iterable

from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show

KINDS = (AlterTableType.AT_ColumnDefault, AlterTableType.AT_DropIdentity, AlterTableType.AT_DropExpression)


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.alterations(*KINDS):
        if one.def_ is not None or unit.world.is_new_column(one.relation, one.name or ""):
            continue
        column = unit.world.column(one.relation, one.name or "")
        required = column is not None and column.not_null
        name = f"{show(one.relation)}.{quote(one.name or '')}"
        yield Hit(
            f"Inserts of the running release that leave {name} out "
            + (
                "fail from the commit on, for it takes no NULL."
                if required
                else "put NULL there from now on."
            ),
            "",
            one.relation,
            None if required else "notice",
            at=unit.locate_part(one.def_),
        )


RULE = Rule(
    "drop-default",
    "warning",
    str(__doc__),
    "Code that was written when there was a default does not name the column.",
    "Release code that writes the column first, then drop the default.",
    Example(
        "ALTER TABLE orders ALTER COLUMN status DROP DEFAULT;",
        Claim("AccessExclusiveLock"),
        "ALTER TABLE orders ALTER COLUMN status SET DEFAULT 'open', ALTER COLUMN status SET NOT NULL;",
    ),
    check,
)
