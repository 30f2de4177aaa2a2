"""A table is made whose rows a crash deletes."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import cut, show

UNLOGGED = "u"


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    relation = tree.relation if is_a(tree, ast.CreateStmt) else None
    if is_a(tree, ast.CreateTableAsStmt):
        relation = tree.into.rel
    if relation is not None and relation.relpersistence == UNLOGGED:
        yield Hit(
            f"{show(relation)} is UNLOGGED: a crash of the server empties it, and no replica and no "
            "point-in-time recovery has its rows.",
            f"{cut(unit.text, 'UNLOGGED', 'UNLOGGED')};",
        )


RULE = Rule(
    "unlogged-table",
    "warning",
    str(__doc__),
    "Its rows are not in the write-ahead log: after a crash the table is empty, and after a fail-over it is "
    "too.",
    "Make it a plain table, unless the rows can be lost and are made again by a program. Then say so.",
    Example(
        "CREATE UNLOGGED TABLE carts (id bigint PRIMARY KEY);",
        Claim(changes="SELECT relpersistence FROM pg_class WHERE relname = 'carts'"),
    ),
    check,
    spares_new=False,
)
