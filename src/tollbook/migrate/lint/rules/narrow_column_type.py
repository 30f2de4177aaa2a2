"""A change of a column's type that loses values, or fails on the first that does not fit."""

from collections.abc import Iterable

from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint import column_types
from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import name_after, quote, show


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.alterations(AlterTableType.AT_AlterColumnType):
        new = column_types.read(one.def_.typeName)
        column = unit.world.column(one.relation, one.name or "")
        if new is None or column is None:
            continue
        if loss := column_types.find_loss(column.type, new):
            table, name = show(one.relation), quote(one.name or "")
            yield Hit(
                f"{table}.{name} from {column.type} to {new}: {loss}.",
                _limit(one.relation, one.name or "", new),
                one.relation,
                at=unit.locate_part(one.def_),
            )


def _limit(relation: object, name: str, new: column_types.Type) -> str:
    """Return a check that says the same of a text's length, without a change of type."""
    if new.name not in ("varchar", "bpchar") or not new.mods:
        return ""
    rule = quote(name_after(getattr(relation, "relname", ""), name, "length"))
    table, size = show(relation), f"length({quote(name)})"
    return (
        f"SELECT count(*) FROM {table} WHERE {size} > {new.mods[0]};\n"
        f"ALTER TABLE {table} ADD CONSTRAINT {rule} CHECK ({size} <= {new.mods[0]}) NOT VALID;\n"
        "-- When no row is left that is longer, in a migration of its own:\n"
        f"-- ALTER TABLE {table} VALIDATE CONSTRAINT {rule};"
    )


RULE = Rule(
    "narrow-column-type",
    "error",
    str(__doc__),
    "What does not fit stops the migration (after it has read up to that row under its lock), or is rounded "
    "or cut without a word.",
    "Keep the type and add a CHECK (NOT VALID, then VALIDATE), or look first how many rows would not fit.",
    Example("ALTER TABLE orders ALTER COLUMN code TYPE varchar(3);", Claim(fails="22001")),
    check,
)
