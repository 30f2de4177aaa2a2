"""A column of a domain with a constraint is added."""

from collections.abc import Iterable

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show, show_names, split


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.added_columns():
        domain = unit.world.domains.get(unit.world.key(*split(one.def_.typeName.names)))
        if domain is not None and domain.constrained:
            table, name = show(one.relation), quote(one.def_.colname)
            yield Hit(
                f"{table}.{name} is of the domain {show_names(one.def_.typeName.names)}, which has a "
                "constraint: the table is written anew under an ACCESS EXCLUSIVE lock.",
                f"ALTER TABLE {table} ADD COLUMN {name} {domain.base};" if domain.base else "",
                one.relation,
                at=unit.locate_part(one.def_),
            )


RULE = Rule(
    "add-column-domain",
    "error",
    str(__doc__),
    "Even where it has no default, PostgreSQL computes the column for every row, to check it against the "
    "domain: the whole table and its indexes are written under ACCESS EXCLUSIVE.",
    "Add the column with the type beneath the domain, and the check to the table, NOT VALID, then VALIDATE.",
    Example(
        "ALTER TABLE orders ADD COLUMN pieces positive;",
        Claim("AccessExclusiveLock", rewrite=True),
        "CREATE DOMAIN positive AS integer CHECK (VALUE > 0);",
    ),
    check,
)
