"""A unique constraint is added that builds its index while nobody can use the table."""

from collections.abc import Iterable

from pglast.enums import ConstrType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Added, Unit
from tollbook.migrate.lint.words import name_after, quote, quote_all, show, sql


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.added_constraints(ConstrType.CONSTR_UNIQUE):
        if not one.constraint.indexname:
            yield Hit(
                f"The unique constraint on {show(one.relation)} ({quote_all(one.columns)}) builds its index "
                "under an ACCESS EXCLUSIVE lock.",
                _build_first(unit, one),
                one.relation,
                at=unit.locate_part(one.constraint),
            )


def _build_first(unit: Unit, one: Added) -> str:
    table = show(one.relation)
    name = quote(one.constraint.conname or name_after(one.relation.relname, *one.columns, "key"))
    first = ""
    if one.column:
        column = next(added.def_ for added in unit.added_columns() if added.def_.colname == one.column)
        first = f"ALTER TABLE {table} ADD COLUMN {quote(one.column)} {sql(column.typeName)};\n"
    apart = " NULLS NOT DISTINCT" if one.constraint.nulls_not_distinct else ""
    more = [key.sval for key in one.constraint.including or ()]
    include = f" INCLUDE ({quote_all(more)})" if more else ""
    return (
        f"{first}CREATE UNIQUE INDEX CONCURRENTLY {name} ON {table} "
        f"({quote_all(one.columns)}){include}{apart};\n"
        f"ALTER TABLE {table} ADD CONSTRAINT {name} UNIQUE USING INDEX {name};"
    )


RULE = Rule(
    "add-unique",
    "error",
    str(__doc__),
    "ACCESS EXCLUSIVE is held while every row is read and the index is built; a value that comes twice stops "
    "it.",
    "CREATE UNIQUE INDEX CONCURRENTLY in a file of its own, then ADD CONSTRAINT … UNIQUE USING INDEX, which "
    "reads nothing.",
    Example(
        "ALTER TABLE orders ADD CONSTRAINT orders_code_key UNIQUE (code);",
        Claim("AccessExclusiveLock", scan=True),
    ),
    check,
    squawk=("disallowed-unique-constraint",),
)
