"""A json column where jsonb is meant."""

from collections.abc import Iterable

from tollbook.migrate.lint import column_types
from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show


def check(unit: Unit) -> Iterable[Hit]:
    for relation, column in unit.declared_columns():
        kind = column_types.read(column.typeName)
        if kind and kind.name == "json":
            yield Hit(
                f"{show(relation)}.{quote(column.colname)} is json: SELECT DISTINCT, GROUP BY and = on it "
                "fail, and each look into it parses the text anew.",
                unit.retype(column.colname, "jsonb"),
                at=unit.locate_part(column),
            )


RULE = Rule(
    "json-type",
    "notice",
    str(__doc__),
    "json has no equality (any DISTINCT or UNION over the table fails) and no useful index; keys may come "
    "twice.",
    "jsonb, unless the text must come back byte by byte (signatures); then text, or json with an allowance.",
    Example(
        "CREATE TABLE hooks (id bigint PRIMARY KEY, body json);\nSELECT DISTINCT body FROM hooks;",
        Claim(fails="42883"),
    ),
    check,
    spares_new=False,
    down=False,
)
