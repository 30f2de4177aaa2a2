"""A char(n) column, which pads its values with blanks."""

from collections.abc import Iterable

from tollbook.migrate.lint import column_types
from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show


def check(unit: Unit) -> Iterable[Hit]:
    for relation, column in unit.declared_columns():
        kind = column_types.read(column.typeName)
        if kind and kind.name == "bpchar":
            name = quote(column.colname)
            length = f" CHECK (length({name}) = {kind.mods[0]})" if kind.mods else ""
            yield Hit(
                f"{show(relation)}.{name} is {kind}: shorter values are padded with blanks, which "
                "comparisons ignore and LIKE does not.",
                unit.retype(column.colname, f"text{length}"),
                at=unit.locate_part(column),
            )


RULE = Rule(
    "char-type",
    "notice",
    str(__doc__),
    "'a' is stored as 'a   ', takes that room, equals 'a' but is not LIKE 'a', and loses its own trailing "
    "blanks. It is no faster than text, and a longer n writes the whole table anew.",
    "text with a CHECK on its length, which can be changed without touching a row.",
    Example("CREATE TABLE places (id bigint PRIMARY KEY, country char(2) NOT NULL);"),
    check,
    spares_new=False,
    down=False,
    squawk=("ban-char-field",),
)
