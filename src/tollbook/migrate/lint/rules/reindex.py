"""REINDEX without CONCURRENTLY."""

from collections.abc import Iterable
from typing import Any

from pglast import ast
from pglast.enums import ReindexObjectType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import insert_after, make_relation, show

WORDS = {ReindexObjectType.REINDEX_OBJECT_INDEX: "INDEX", ReindexObjectType.REINDEX_OBJECT_TABLE: "TABLE"}


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.ReindexStmt) or any(one.defname == "concurrently" for one in tree.params or ()):
        return
    word = WORDS.get(tree.kind)
    name = show(tree.relation) if tree.relation else "everything in it"
    yield Hit(
        f"REINDEX of {name} keeps writers out, and readers that would use the index, until it is built.",
        f"{insert_after(unit.text, word, 'CONCURRENTLY')};" if word else "",
        find_table(unit) if word == "INDEX" else tree.relation,
    )


def find_table(unit: Unit) -> Any:
    """Return the table that the index is on, as far as the files say."""
    found = unit.world.find_index(unit.tree.relation.schemaname, unit.tree.relation.relname)
    return make_relation(found[0].key) if found else None


RULE = Rule(
    "reindex",
    "error",
    str(__doc__),
    "SHARE on the table and ACCESS EXCLUSIVE on the index, held while it is built anew: writers wait, and so "
    "does the planning of every query on the table.",
    "REINDEX … CONCURRENTLY, by hand or in a file of its own: it lets everybody work.",
    Example("REINDEX TABLE orders;", Claim("ShareLock")),
    check,
    squawk=("require-concurrent-reindex",),
)
