"""An index is built while the table takes no writes."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import insert_after, quote, show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.IndexStmt) and not tree.concurrent:
        table = unit.table(tree.relation)
        partitioned = table is not None and table.partitioned
        if not tree.relation.inh and (table is None or partitioned):
            return  # ON ONLY a partitioned table: nothing is built
        yield Hit(
            f"CREATE INDEX{f' {quote(tree.idxname)}' if tree.idxname else ''} keeps writers out of "
            f"{show(tree.relation)} until it is built"
            + (" (on a partitioned table CONCURRENTLY is for each partition)." if partitioned else "."),
            "" if partitioned else f"{insert_after(unit.text, 'INDEX', 'CONCURRENTLY')};",
            tree.relation,
        )


RULE = Rule(
    "create-index",
    "error",
    str(__doc__),
    "SHARE is held while every row is read and the index is written: inserts, updates and deletes wait.",
    "CREATE INDEX CONCURRENTLY, in a file of its own: it takes SHARE UPDATE EXCLUSIVE, reads the table twice "
    "and lets everybody work. If it fails it leaves an invalid index, which the engine drops before it tries "
    "again. On a partitioned table: CREATE INDEX ON ONLY the parent, CONCURRENTLY on each partition, then "
    "ALTER INDEX … ATTACH PARTITION.",
    Example("CREATE INDEX orders_status ON orders (status);", Claim("ShareLock", scan=True)),
    check,
    squawk=("require-concurrent-index-creation",),
)
