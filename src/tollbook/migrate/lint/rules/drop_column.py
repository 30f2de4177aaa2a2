"""A column is dropped, with all of its values."""

from collections.abc import Iterable

from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import name_after, quote, quote_all, show


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.alterations(AlterTableType.AT_DropColumn):
        assert one.name
        if unit.world.is_new_column(one.relation, one.name):
            continue
        yield Hit(
            f"Dropping {show(one.relation)}.{quote(one.name)} deletes its value in every row.",
            _keep(unit, one.relation, one.name),
            one.relation,
            at=unit.locate_part(one.def_),
        )


def _keep(unit: Unit, relation: object, column: str) -> str:
    """Return SQL that frees the column from the code and saves its values, before it goes."""
    table = unit.table(relation)
    key = next((one.columns for one in table.constraints if one.kind == "primary"), ()) if table else ()
    known = table.columns.get(column) if table else None
    kept = quote(name_after(getattr(relation, "relname", ""), column, "kept"))
    free = ""
    if column not in key and (known is None or known.not_null):
        free = f"ALTER TABLE {show(relation)} ALTER COLUMN {quote(column)} DROP NOT NULL;\n"
    return (
        "-- Let go of it now; drop it in a later release, when no code reads it.\n"
        f"{free}CREATE TABLE {kept} AS SELECT {quote_all(dict.fromkeys((*key, column)))} FROM "
        f"{show(relation)};"
    )


RULE = Rule(
    "drop-column",
    "error",
    str(__doc__),
    "The values are gone for good once it commits (a down file can bring back the column, not what was in "
    "it), and every query of the running release that names it fails.",
    "Release code that no longer reads or writes the column (make it nullable first, so that inserts may "
    "leave it out), keep a copy of the values, and drop it in a later release.",
    Example(
        "ALTER TABLE orders DROP COLUMN code;",
        Claim(
            changes="SELECT count(*) FROM pg_attribute "
            "WHERE attrelid = 'orders'::regclass AND attname = 'code'"
        ),
    ),
    check,
    squawk=("ban-drop-column",),
)
