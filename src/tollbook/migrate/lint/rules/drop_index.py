"""An index is dropped while nobody can use its table."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import ObjectType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.DropStmt) or tree.concurrent:
        return
    for index in unit.drops(ObjectType.OBJECT_INDEX):
        found = unit.world.find_index(index.schemaname, index.relname)
        if found and (found[0].made_in in unit.world.fresh or found[0].partitioned):
            continue
        maybe = "IF EXISTS " if tree.missing_ok else ""
        yield Hit(
            f"DROP INDEX {show(index)} takes ACCESS EXCLUSIVE on its table: it waits behind every open "
            "transaction there, and all others wait behind it.",
            f"DROP INDEX CONCURRENTLY {maybe}{show(index)};",
        )


RULE = Rule(
    "drop-index",
    "warning",
    str(__doc__),
    "ACCESS EXCLUSIVE on the table, which every query on it then waits for; and the queries that used the "
    "index read the whole table from then on.",
    "DROP INDEX CONCURRENTLY, one index at a time, in a file of its own. Look in pg_stat_user_indexes first "
    "whether it is still used, on the replicas too.",
    Example(
        "DROP INDEX orders_status;",
        Claim("AccessExclusiveLock"),
        "CREATE INDEX orders_status ON orders (status);",
    ),
    check,
    squawk=("require-concurrent-index-deletion",),
)
