"""A check is added that reads every row under its lock."""

from collections.abc import Iterable
from copy import deepcopy

from pglast.enums import ConstrType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import find_columns
from tollbook.migrate.lint.unit import Added, Unit
from tollbook.migrate.lint.words import name_after, quote, show, sql

WORDS_MAX = 60
KINDS = (ConstrType.CONSTR_CHECK, ConstrType.CONSTR_NOTNULL)


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.added_constraints(*KINDS):
        constraint = one.constraint
        is_check = constraint.contype == ConstrType.CONSTR_CHECK
        # NOT ENFORCED is of checks alone; NOT NULL at a column that is added is for other rules.
        if constraint.skip_validation or (not constraint.is_enforced if is_check else one.column):
            continue
        yield Hit(
            f"{_describe(one)} on {show(one.relation)} is checked on every row under an ACCESS EXCLUSIVE "
            "lock.",
            _add_in_steps(unit, one),
            one.relation,
            at=unit.locate_part(one.constraint),
        )


def _describe(one: Added) -> str:
    """Return the constraint's name, or what it says."""
    words = " ".join(sql(one.constraint).split())
    return quote(one.constraint.conname) if one.constraint.conname else words[:WORDS_MAX]


def _add_in_steps(unit: Unit, one: Added) -> str:
    table = show(one.relation)
    copy = deepcopy(one.constraint)
    used = sorted(set(find_columns(one.constraint.raw_expr)))
    ending = "check" if one.constraint.contype == ConstrType.CONSTR_CHECK else "not_null"
    copy.conname = copy.conname or name_after(one.relation.relname, *used[:1], *one.columns[:1], ending)
    copy.skip_validation = True
    first = ""
    known = unit.table(one.relation)
    if one.column and (known is None or one.column not in known.columns):
        column = next(added.def_ for added in unit.added_columns() if added.def_.colname == one.column)
        kept = [item for item in column.constraints or () if item.contype not in KINDS]
        words = " ".join([quote(one.column), sql(column.typeName), *(sql(item) for item in kept)])
        first = f"ALTER TABLE {table} ADD COLUMN {words};\n"
    return (
        f"{first}ALTER TABLE {table} ADD {sql(copy)};\n"
        "-- In a migration of its own, which lets writers in:\n"
        f"ALTER TABLE {table} VALIDATE CONSTRAINT {quote(copy.conname)};"
    )


RULE = Rule(
    "add-check",
    "error",
    str(__doc__),
    "ACCESS EXCLUSIVE is held while every row is read: nobody reads or writes for as long, and one row that "
    "does not hold stops the migration.",
    "Add it NOT VALID (it holds for new rows at once, and reads none), then VALIDATE CONSTRAINT in a "
    "migration of its own, which takes SHARE UPDATE EXCLUSIVE.",
    Example(
        "ALTER TABLE orders ADD CONSTRAINT total_positive CHECK (total > 0);",
        Claim("AccessExclusiveLock", scan=True),
    ),
    check,
    squawk=("constraint-missing-not-valid",),
)
