"""A foreign key is added that checks every row while both tables take no writes."""

from collections.abc import Iterable
from copy import deepcopy

from pglast import ast
from pglast.enums import ConstrType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Added, Unit, find_constraint
from tollbook.migrate.lint.words import name_after, quote, quote_all, show, sql


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.added_constraints(ConstrType.CONSTR_FOREIGN):
        if one.constraint.skip_validation or not one.constraint.is_enforced or _is_empty(unit, one):
            continue
        yield Hit(
            f"The foreign key on {show(one.relation)} ({quote_all(one.columns)}) checks every row while "
            f"neither it nor {show(one.constraint.pktable)} takes writes.",
            _add_in_steps(unit, one),
            one.relation,
            at=unit.locate_part(one.constraint),
        )


def _is_empty(unit: Unit, one: Added) -> bool:
    """Whether it is at a column that is added without a default: all NULL, so PostgreSQL looks nothing up."""
    columns = [added.def_ for added in unit.added_columns() if added.def_.colname == one.column]
    return bool(columns) and find_constraint(columns[0], ConstrType.CONSTR_DEFAULT) is None


def _add_in_steps(unit: Unit, one: Added) -> str:
    table = show(one.relation)
    copy = deepcopy(one.constraint)
    copy.fk_attrs = tuple(ast.String(sval=name) for name in one.columns)
    copy.conname = copy.conname or name_after(one.relation.relname, *one.columns, "fkey")
    copy.skip_validation = True
    known = unit.table(one.relation)
    first = ""
    if one.column and (known is None or one.column not in known.columns):
        column = next(added.def_ for added in unit.added_columns() if added.def_.colname == one.column)
        first = f"ALTER TABLE {table} ADD COLUMN {quote(one.column)} {sql(column.typeName)};\n"
    if known and known.partitioned:
        return ""  # NOT VALID is not to be had on partitioned tables before PostgreSQL 18
    return (
        f"{first}ALTER TABLE {table} ADD {sql(copy)};\n"
        "-- In a migration of its own, which lets writers in:\n"
        f"ALTER TABLE {table} VALIDATE CONSTRAINT {quote(copy.conname)};"
    )


RULE = Rule(
    "add-foreign-key",
    "error",
    str(__doc__),
    "SHARE ROW EXCLUSIVE on both tables, held while each row is looked up in the other: no inserts, updates "
    "or deletes on either for as long.",
    "Add it NOT VALID (it holds for new rows at once, and reads none), then VALIDATE CONSTRAINT in a "
    "migration of its own, which takes SHARE UPDATE EXCLUSIVE and lets writers in. On a table partitioned, "
    "before PostgreSQL 18, do this for each partition.",
    Example(
        "ALTER TABLE orders ADD CONSTRAINT orders_customer_fkey FOREIGN KEY (customer_id) REFERENCES "
        "customers;",
        Claim("ShareRowExclusiveLock", scan=True),
    ),
    check,
    squawk=("adding-foreign-key-constraint", "constraint-missing-not-valid"),
)
