"""A type or domain that running code may name is dropped."""

from collections.abc import Iterable

from pglast.enums import ObjectType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show


def check(unit: Unit) -> Iterable[Hit]:
    for name in unit.drops(ObjectType.OBJECT_TYPE, ObjectType.OBJECT_DOMAIN):
        known = unit.world.enums.get(unit.world.key(name.schemaname, name.relname))
        if known is None or known.made_in not in unit.world.fresh:
            yield Hit(f"Code that casts to {show(name)} or binds parameters of it fails from the commit on.")


RULE = Rule(
    "drop-type",
    "warning",
    str(__doc__),
    "Drivers look types up by their number and keep it: sessions that are open go on using one that is gone.",
    "Move the columns to their new type in an earlier release; drop the type when no code names it.",
    Example(
        "DROP TYPE mood;",
        Claim(changes="SELECT count(*) FROM pg_type WHERE typname = 'mood'"),
        "CREATE TYPE mood AS ENUM ('glad', 'sad');",
    ),
    check,
)
