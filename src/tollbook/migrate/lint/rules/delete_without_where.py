"""DELETE without WHERE: every row."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import name_after, quote, show


def check(unit: Unit) -> Iterable[Hit]:
    for tree in unit.writes(ast.DeleteStmt):
        if tree.whereClause is None and not tree.usingClause:
            kept = quote(name_after(tree.relation.relname, "kept"))
            yield Hit(
                f"DELETE FROM {show(tree.relation)} has no WHERE: it deletes every row.",
                f"-- Keep the rows first, and say which are meant.\n"
                f"CREATE TABLE {kept} AS TABLE {show(tree.relation)};",
                tree.relation,
            )


RULE = Rule(
    "delete-without-where",
    "error",
    str(__doc__),
    "All rows go, and until it commits each stays locked: whoever updates one waits.",
    "Say which rows are meant (`WHERE true` if it is all, with an allowance), keep a copy, and delete in "
    "batches.",
    Example("DELETE FROM orders;", Claim(changes="SELECT count(*) FROM orders")),
    check,
    of_rows=True,
)
