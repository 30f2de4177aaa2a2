"""A key that ends at two billion, or sooner."""

from collections.abc import Iterable

from pglast.enums import ConstrType

from tollbook.migrate.lint import column_types
from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit, find_constraint
from tollbook.migrate.lint.words import quote, show

LAST = {"int2": "32,767", "int4": "2,147,483,647"}


def check(unit: Unit) -> Iterable[Hit]:
    keys = {
        one.columns[0]
        for one in unit.declared_constraints(ConstrType.CONSTR_PRIMARY)
        if len(one.columns) == 1
    }
    for relation, column in unit.declared_columns():
        kind = column_types.read(column.typeName)
        if kind is None or kind.array or kind.name not in LAST:
            continue
        numbered = column_types.is_serial(column.typeName) or find_constraint(
            column, ConstrType.CONSTR_IDENTITY
        )
        if column.colname in keys or numbered:
            rest = " GENERATED ALWAYS AS IDENTITY" if numbered else ""
            yield Hit(
                f"{show(relation)}.{quote(column.colname)} is {kind}: after {LAST[kind.name]} every insert "
                "fails.",
                unit.retype(column.colname, f"bigint{rest}"),
                at=unit.locate_part(column),
            )


RULE = Rule(
    "int-primary-key",
    "warning",
    str(__doc__),
    "Numbers are used up by failed inserts and upserts too. When they end, every insert fails, and the "
    "change to bigint writes the whole table, and each that refers to it, anew.",
    "bigint from the start: four bytes more, which alignment often takes anyway.",
    Example("CREATE TABLE visits (id serial PRIMARY KEY, at timestamptz NOT NULL);"),
    check,
    spares_new=False,
    down=False,
    squawk=("prefer-bigint-over-int", "prefer-bigint-over-smallint"),
)
