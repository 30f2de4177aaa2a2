"""A NOT NULL column is added without a default."""

from collections.abc import Iterable

from pglast.enums import ConstrType

from tollbook.migrate.lint import column_types
from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit, find_constraint
from tollbook.migrate.lint.words import name_after, quote, show, sql

FILLED = (ConstrType.CONSTR_DEFAULT, ConstrType.CONSTR_IDENTITY, ConstrType.CONSTR_GENERATED)


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.added_columns():
        column = one.def_
        required = find_constraint(column, ConstrType.CONSTR_NOTNULL, ConstrType.CONSTR_PRIMARY)
        if required is None or find_constraint(column, *FILLED) or column_types.is_serial(column.typeName):
            continue
        table, name = show(one.relation), quote(column.colname)
        proof = quote(name_after(one.relation.relname, column.colname, "not_null"))
        yield Hit(
            f"{table}.{name} is NOT NULL without a default: it fails as soon as the table holds a row, and "
            "inserts of the running release fail from then on.",
            f"ALTER TABLE {table} ADD COLUMN {name} {sql(column.typeName)};\n"
            "-- Release code that writes it, and fill the old rows in batches. Then:\n"
            f"ALTER TABLE {table} ADD CONSTRAINT {proof} CHECK ({name} IS NOT NULL) NOT VALID;\n"
            f"-- ALTER TABLE {table} VALIDATE CONSTRAINT {proof};",
            one.relation,
            at=unit.locate_part(one.def_),
        )


RULE = Rule(
    "add-column-not-null",
    "error",
    str(__doc__),
    "PostgreSQL has no value for the rows that are there. On an empty table it works, and then breaks the "
    "inserts of the running release, which do not know the column.",
    "Add it nullable or with a constant default (which writes no row), fill it, then make it NOT NULL by a "
    "validated check.",
    Example("ALTER TABLE orders ADD COLUMN region text NOT NULL;", Claim(fails="23502")),
    check,
    squawk=("adding-required-field",),
)
