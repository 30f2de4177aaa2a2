"""Amounts in a type that is not made for them: money, or floating point."""

from collections.abc import Iterable

from tollbook.migrate.lint import column_types
from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show

AMOUNTS = (
    "amount",
    "price",
    "cost",
    "total",
    "balance",
    "fee",
    "salary",
    "tax",
    "subtotal",
    "money",
    "payment",
)


def check(unit: Unit) -> Iterable[Hit]:
    for relation, column in unit.declared_columns():
        kind = column_types.read(column.typeName)
        name = f"{show(relation)}.{quote(column.colname)}"
        if kind and kind.name == "money":
            yield Hit(
                f"{name} is money: its currency and its digits are the server's lc_monetary, not the "
                "value's.",
                unit.retype(column.colname, "numeric(19, 4)"),
                at=unit.locate_part(column),
            )
        elif kind and kind.name in column_types.FLOATS and _is_amount(column.colname):
            yield Hit(
                f"{name} is {kind}: 0.1 + 0.2 is not 0.3 there, and sums depend on the order of the rows.",
                unit.retype(column.colname, "numeric(19, 4)"),
                at=unit.locate_part(column),
            )


def _is_amount(name: str) -> bool:
    return any(word in AMOUNTS for word in name.lower().split("_"))


RULE = Rule(
    "money-type",
    "notice",
    str(__doc__),
    "A dump restored under another lc_monetary changes the values of money. Floating point cannot hold most "
    "decimal fractions: sums are off by a little, and differ from run to run.",
    "numeric, or integers of the smallest unit, with the currency in a column of its own.",
    Example("CREATE TABLE bills (id bigint PRIMARY KEY, amount money NOT NULL);"),
    check,
    spares_new=False,
    down=False,
)
