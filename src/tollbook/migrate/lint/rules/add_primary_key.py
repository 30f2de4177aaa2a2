"""A primary key is added that builds its index while nobody can use the table."""

from collections.abc import Iterable

from pglast.enums import ConstrType

from tollbook.migrate.lint import column_types
from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Added, Unit
from tollbook.migrate.lint.words import name_after, quote, quote_all, show


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.added_constraints(ConstrType.CONSTR_PRIMARY):
        if one.constraint.indexname or _is_numbered(unit, one):
            continue
        yield Hit(
            f"The primary key of {show(one.relation)} ({quote_all(one.columns)}) builds its index"
            + (" and reads every row for NULLs" if _find_nullable(unit, one) else "")
            + " under an ACCESS EXCLUSIVE lock.",
            _build_first(unit, one),
            one.relation,
            at=unit.locate_part(one.constraint),
        )


def _is_numbered(unit: Unit, one: Added) -> bool:
    """Whether it comes with a numbered column, which writes the table anew: that is said by another rule."""
    for added in unit.added_columns():
        kinds = {item.contype for item in added.def_.constraints or ()}
        if added.def_.colname == one.column:
            return column_types.is_serial(added.def_.typeName) or ConstrType.CONSTR_IDENTITY in kinds
    return False


def _find_nullable(unit: Unit, one: Added) -> list[str]:
    table = unit.table(one.relation)
    known = table.columns if table else {}
    return [name for name in one.columns if name not in known or not known[name].not_null]


def _build_first(unit: Unit, one: Added) -> str:
    if one.column:
        return ""
    table = show(one.relation)
    name = quote(one.constraint.conname or name_after(one.relation.relname, "pkey"))
    steps: list[str] = []
    for column in _find_nullable(unit, one):
        proof = quote(name_after(one.relation.relname, column, "not_null"))
        steps += [
            f"ALTER TABLE {table} ADD CONSTRAINT {proof} CHECK ({quote(column)} IS NOT NULL) NOT VALID;",
            f"ALTER TABLE {table} VALIDATE CONSTRAINT {proof};",
            f"ALTER TABLE {table} ALTER COLUMN {quote(column)} SET NOT NULL;",
            f"ALTER TABLE {table} DROP CONSTRAINT {proof};",
        ]
    steps += [
        f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON {table} ({quote_all(one.columns)});",
        f"ALTER TABLE {table} ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {name};",
    ]
    return "\n".join(steps)


RULE = Rule(
    "add-primary-key",
    "error",
    str(__doc__),
    "ACCESS EXCLUSIVE is held while the index is built, and, where a column may be NULL, while every row is "
    "read.",
    "Make the columns NOT NULL by a validated check, build the index CONCURRENTLY in a file of its own, then "
    "ADD CONSTRAINT … PRIMARY KEY USING INDEX.",
    Example(
        "ALTER TABLE visits ADD PRIMARY KEY (id);",
        Claim("AccessExclusiveLock", on="visits", scan=True),
        "CREATE TABLE visits (id bigint);\nINSERT INTO visits SELECT generate_series(1, 500);",
    ),
    check,
    squawk=("adding-serial-primary-key-field",),
)
