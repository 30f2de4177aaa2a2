"""A column is added with a default that differs from row to row."""

from collections.abc import Iterable
from typing import Any

from pglast import ast
from pglast.enums import ConstrType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import descend, is_a
from tollbook.migrate.lint.unit import Unit, find_constraint
from tollbook.migrate.lint.words import quote, show, sql

# Volatile functions that people write as defaults (pg_proc.provolatile = 'v'), and those known not to be.
VOLATILE = frozenset((
    "random", "random_normal", "gen_random_uuid", "gen_random_bytes", "gen_salt", "uuidv4", "uuidv7",
    "uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v4", "clock_timestamp", "timeofday",
    "nextval", "currval", "lastval", "setval", "txid_current", "pg_current_xact_id",
))  # fmt: skip
STABLE = frozenset((
    "now", "transaction_timestamp", "statement_timestamp", "current_setting", "to_timestamp", "to_char",
    "to_date", "lower", "upper", "concat", "md5", "date_trunc", "date_part", "extract", "age",
    "timezone", "make_interval", "make_date", "jsonb_build_object", "jsonb_build_array",
    "json_build_object", "json_build_array", "to_json", "to_jsonb", "to_tsvector", "array_fill",
    "array_length", "int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange", "point",
    "box", "abs", "round", "floor", "ceil", "coalesce", "repeat", "encode", "decode", "sha256", "left",
    "right", "length", "replace", "format",
))  # fmt: skip


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.added_columns():
        default = find_constraint(one.def_, ConstrType.CONSTR_DEFAULT)
        found = list(_find_volatile(default.raw_expr)) if default else []
        if not found:
            continue
        table, name = show(one.relation), quote(one.def_.colname)
        sure = all(function in VOLATILE for function in found)
        yield Hit(
            f"The default of {table}.{name} calls {found[0]}(), which "
            + ("differs" if sure else "may differ (it is not known here)")
            + " from row to row: the table is written anew under an ACCESS EXCLUSIVE lock.",
            f"ALTER TABLE {table} ADD COLUMN {name} {sql(one.def_.typeName)};\n"
            f"ALTER TABLE {table} ALTER COLUMN {name} SET DEFAULT {sql(default.raw_expr)};\n"
            "-- In batches, each committed, until it updates none:\n"
            f"UPDATE {table} SET {name} = DEFAULT WHERE ctid = ANY (ARRAY(\n"
            f"    SELECT ctid FROM {table} WHERE {name} IS NULL LIMIT 1000 FOR UPDATE SKIP LOCKED));",
            one.relation,
            None if sure else "warning",
            at=unit.locate_part(one.def_),
        )


def _find_volatile(expression: Any) -> Iterable[str]:
    """Give the functions in an expression that are volatile, or not known."""
    for one in descend(expression):
        if is_a(one, ast.FuncCall) and one.funcname[-1].sval not in STABLE:
            yield one.funcname[-1].sval


RULE = Rule(
    "add-column-volatile-default",
    "error",
    str(__doc__),
    "A constant default (and one that is the same throughout a statement, such as now()) is kept in the "
    "catalog once, and no row is touched. A volatile one must be computed for each row: the whole table and "
    "its indexes are written under ACCESS EXCLUSIVE.",
    "Add the column without it, set the default for new rows, and fill the old ones in batches.",
    Example(
        "ALTER TABLE orders ADD COLUMN token uuid DEFAULT gen_random_uuid();",
        Claim("AccessExclusiveLock", rewrite=True),
    ),
    check,
    squawk=("adding-field-with-default",),
)
