"""A serial or identity column is added to a table with rows."""

from collections.abc import Iterable

from pglast.enums import ConstrType

from tollbook.migrate.lint import column_types
from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit, find_constraint
from tollbook.migrate.lint.words import name_after, quote, show


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.added_columns():
        serial = column_types.is_serial(one.def_.typeName)
        if not serial and find_constraint(one.def_, ConstrType.CONSTR_IDENTITY) is None:
            continue
        table, name = show(one.relation), quote(one.def_.colname)
        sequence = quote(name_after(one.relation.relname, one.def_.colname, "seq"))
        kind = column_types.read(one.def_.typeName)
        schema = f"{quote(one.relation.schemaname)}." if one.relation.schemaname else ""
        yield Hit(
            f"{table}.{name} is numbered row by row: the table is written anew under an ACCESS EXCLUSIVE "
            "lock.",
            f"ALTER TABLE {table} ADD COLUMN {name} {kind};\n"
            f"CREATE SEQUENCE {schema}{sequence} AS {kind} OWNED BY {table}.{name};\n"
            f"ALTER TABLE {table} ALTER COLUMN {name} SET DEFAULT nextval('{schema}{sequence}');\n"
            "-- In batches, each committed, until it updates none:\n"
            f"UPDATE {table} SET {name} = DEFAULT WHERE ctid = ANY (ARRAY(\n"
            f"    SELECT ctid FROM {table} WHERE {name} IS NULL LIMIT 1000 FOR UPDATE SKIP LOCKED));",
            one.relation,
            at=unit.locate_part(one.def_),
        )


RULE = Rule(
    "add-column-numbered",
    "error",
    str(__doc__),
    "Each row that is there gets its number at once, so the whole table and its indexes are written under "
    "ACCESS EXCLUSIVE.",
    "Add a plain column, a sequence of its own as the default for new rows, and number the old ones in "
    "batches.",
    Example(
        "ALTER TABLE orders ADD COLUMN number bigint GENERATED ALWAYS AS IDENTITY;",
        Claim("AccessExclusiveLock", rewrite=True),
    ),
    check,
    squawk=("adding-serial-primary-key-field",),
)
