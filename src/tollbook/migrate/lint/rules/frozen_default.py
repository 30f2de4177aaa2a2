"""A default of 'now', which is the moment of the migration for ever."""

from collections.abc import Iterable
from typing import Any

from pglast import ast
from pglast.enums import ConstrType
from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit, find_constraint
from tollbook.migrate.lint.words import quote, show

MEANT = {
    "now": "now()",
    "today": "CURRENT_DATE",
    "yesterday": "CURRENT_DATE - 1",
    "tomorrow": "CURRENT_DATE + 1",
}


def check(unit: Unit) -> Iterable[Hit]:
    for relation, column in unit.declared_columns():
        default = find_constraint(column, ConstrType.CONSTR_DEFAULT)
        if default is not None:
            yield from _judge(relation, column.colname, default.raw_expr)
    for one in unit.alterations(AlterTableType.AT_ColumnDefault):
        yield from _judge(one.relation, one.name or "", one.def_)


def _judge(relation: Any, name: str, value: Any) -> Iterable[Hit]:
    cast = is_a(value, ast.TypeCast)
    word = getattr(getattr(value.arg if cast else value, "val", None), "sval", None)
    if cast and isinstance(word, str) and (meant := MEANT.get(word.strip().lower())):
        table, column = show(relation), quote(name)
        yield Hit(
            f"'{word}' is computed once, when the default is set: every row of {table} gets the moment of "
            "the migration.",
            f"ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT {meant};",
        )


EXAMPLE = "ALTER TABLE orders ALTER COLUMN paid_at SET DEFAULT 'now'::timestamptz;"
RULE = Rule(
    "frozen-default",
    "error",
    str(__doc__),
    "A constant with a cast is read when the statement is: 'now'::timestamptz becomes the time of that day.",
    "now() (or CURRENT_TIMESTAMP, CURRENT_DATE), which is computed for each statement.",
    Example(
        EXAMPLE,
        Claim(
            changes="SELECT pg_get_expr(adbin, adrelid) ~ '^''[0-9]{4}-' FROM pg_attrdef "
            "WHERE adrelid = 'orders'::regclass"
        ),
        first=EXAMPLE,
    ),
    check,
    spares_new=False,
    down=False,
)
