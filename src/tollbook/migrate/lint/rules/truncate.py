"""A table is emptied."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import name_after, quote, show


def check(unit: Unit) -> Iterable[Hit]:
    if is_a(unit.tree, ast.TruncateStmt):
        for table in unit.tree.relations or ():
            kept = quote(name_after(table.relname, "kept"))
            yield Hit(
                f"TRUNCATE {show(table)} deletes every row, under an ACCESS EXCLUSIVE lock.",
                f"-- Keep the rows, then delete them in small steps, each committed.\n"
                f"CREATE TABLE {kept} AS TABLE {show(table)};\n"
                f"DELETE FROM {show(table)} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {show(table)} LIMIT "
                "1000));",
                table,
            )


RULE = Rule(
    "truncate",
    "error",
    str(__doc__),
    "The rows are gone for good, no delete trigger fires, readers are locked out until it commits, and "
    "transactions with an older snapshot see an empty table.",
    "Keep a copy, and delete in batches, each in a transaction of its own.",
    Example("TRUNCATE orders;", Claim("AccessExclusiveLock", rewrite=True)),
    check,
    squawk=("ban-truncate",),
)
