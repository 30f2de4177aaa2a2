"""A time without its zone."""

from collections.abc import Iterable

from tollbook.migrate.lint import column_types
from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show


def check(unit: Unit) -> Iterable[Hit]:
    for relation, column in unit.declared_columns():
        kind = column_types.read(column.typeName)
        if kind and kind.name == "timestamp":
            yield Hit(
                f"{show(relation)}.{quote(column.colname)} is a timestamp without time zone: which moment it "
                "means depends on who wrote it.",
                unit.retype(column.colname, f"timestamptz{f'({kind.mods[0]})' if kind.mods else ''}"),
                at=unit.locate_part(column),
            )


RULE = Rule(
    "timestamp-without-zone",
    "notice",
    str(__doc__),
    "The zone is dropped without a word when a value with one is stored. Sessions with other TimeZones write "
    "other values for the same moment; now() is one hour off twice a year.",
    "timestamptz, which takes the same room and keeps the moment.",
    Example("CREATE TABLE visits (id bigint PRIMARY KEY, at timestamp NOT NULL);"),
    check,
    spares_new=False,
    down=False,
    squawk=("prefer-timestamp-tz",),
)
