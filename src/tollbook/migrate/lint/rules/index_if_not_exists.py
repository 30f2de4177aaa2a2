"""CREATE INDEX CONCURRENTLY IF NOT EXISTS, which takes an invalid index for a good one."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import cut, quote


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.IndexStmt) and tree.concurrent and tree.if_not_exists and tree.idxname:
        schema = f"{quote(tree.relation.schemaname)}." if tree.relation.schemaname else ""
        name = quote(tree.idxname)
        words = cut(unit.text, "IF_P", "EXISTS")
        yield Hit(
            f"If an earlier try failed, it left {name} invalid: IF NOT EXISTS then makes none, and no query "
            "uses the one that is there.",
            f"DROP INDEX CONCURRENTLY IF EXISTS {schema}{name};\n{words};",
        )


RULE = Rule(
    "index-if-not-exists",
    "warning",
    str(__doc__),
    "A build that fails or is cancelled leaves the index behind, invalid: it costs every write and serves no "
    "query. IF NOT EXISTS looks at the name alone.",
    "Leave IF NOT EXISTS out (this engine drops an invalid index that it made before it tries again), or "
    "drop the index first.",
    Example("CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_status ON orders (status);"),
    check,
    down=False,
)
