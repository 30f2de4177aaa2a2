"""A table is dropped, with all of its rows."""

from collections.abc import Iterable

from pglast.enums import ObjectType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import name_after, quote, show


def check(unit: Unit) -> Iterable[Hit]:
    for table in unit.drops(ObjectType.OBJECT_TABLE, ObjectType.OBJECT_FOREIGN_TABLE):
        kept = quote(name_after(table.relname, "dropped"))
        yield Hit(
            f"DROP TABLE {show(table)} deletes the table with all of its rows.",
            f"-- Out of the way now; dropped in a later release, when nothing has missed it.\n"
            f"ALTER TABLE {show(table)} RENAME TO {kept};",
            table,
        )


RULE = Rule(
    "drop-table",
    "error",
    str(__doc__),
    "The rows are gone for good once it commits, and code of the running release that still asks for the "
    "table fails. It also takes an ACCESS EXCLUSIVE lock on each table that a foreign key joins to it.",
    "Take the table out of the code first and let that release run. Rename the table, and drop it in a later "
    "release, after a backup that was restored once.",
    Example(
        "DROP TABLE orders;", Claim(changes="SELECT count(*) FROM pg_class WHERE relname LIKE 'orders%'")
    ),
    check,
    squawk=("ban-drop-table",),
)
