"""An index that another one does the work of."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, quote_all, show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.IndexStmt) or tree.whereClause is not None or tree.unique:
        return
    if tree.accessMethod not in (None, "btree") or any(
        not one.name or one.opclass for one in tree.indexParams or ()
    ):
        return
    table = unit.table(tree.relation)
    wanted = tuple(one.name for one in tree.indexParams or ())
    if table is None:
        return
    keys = [(one.name, one.columns) for one in table.constraints if one.kind in ("primary", "unique")]
    every = [(one.name, one.columns) for one in table.indexes if not one.partial] + keys
    if found := next((name for name, columns in every if columns[: len(wanted)] == wanted), None):
        yield Hit(
            f"{quote(found)} begins with {quote_all(wanted)} too: one more index on {show(tree.relation)} "
            "costs every write and serves no query.",
        )


RULE = Rule(
    "redundant-index",
    "notice",
    str(__doc__),
    "Each index is written at every insert and at most updates, takes memory, and is vacuumed.",
    "Leave it out: an index on (a, b) serves queries on a.",
    Example("CREATE INDEX CONCURRENTLY orders_id ON orders (id);"),
    check,
    spares_new=False,
    down=False,
)
