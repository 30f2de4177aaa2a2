"""A stored generated column is added."""

from collections.abc import Iterable

from pglast.enums import ConstrType
from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit, find_constraint
from tollbook.migrate.lint.words import quote, show, sql

STORED = "s"


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.added_columns():
        generated = find_constraint(one.def_, ConstrType.CONSTR_GENERATED)
        if generated is not None and generated.generated_kind == STORED:
            table, name = show(one.relation), quote(one.def_.colname)
            yield Hit(
                f"{table}.{name} is computed and stored for every row: the table is written anew under an "
                "ACCESS EXCLUSIVE lock.",
                "-- Computed when it is read (PostgreSQL 18), which writes nothing:\n"
                f"ALTER TABLE {table} ADD COLUMN {name} {sql(one.def_.typeName)} "
                f"GENERATED ALWAYS AS ({sql(generated.raw_expr)}) VIRTUAL;",
                one.relation,
                at=unit.locate_part(one.def_),
            )
    for one in unit.alterations(AlterTableType.AT_SetExpression):
        yield Hit(
            f"A new expression for {show(one.relation)}.{quote(one.name or '')} is computed for every row: "
            "if it is stored, the table is written anew under an ACCESS EXCLUSIVE lock.",
            on=one.relation,
            at=unit.locate_part(one.def_),
        )


RULE = Rule(
    "add-column-generated",
    "error",
    str(__doc__),
    "GENERATED … STORED is computed for each row that is there, so the whole table and its indexes are "
    "written under ACCESS EXCLUSIVE. It cannot be added without, and filled later.",
    "Make it VIRTUAL (PostgreSQL 18), put the expression into a view or an index, or add a plain column, "
    "kept by a trigger and filled in batches.",
    Example(
        "ALTER TABLE orders ADD COLUMN net numeric GENERATED ALWAYS AS (total * 0.8) STORED;",
        Claim("AccessExclusiveLock", rewrite=True),
    ),
    check,
    squawk=("adding-field-with-default",),
)
