"""CLUSTER and VACUUM FULL: the whole table is written anew."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.ClusterStmt):
        name = show(tree.relation) if tree.relation else "every table that was clustered before"
        yield Hit(
            f"CLUSTER writes {name} anew under an ACCESS EXCLUSIVE lock.",
            f"VACUUM (ANALYZE) {name};" if tree.relation else "",
            tree.relation,
        )
    elif is_a(tree, ast.VacuumStmt) and any(one.defname == "full" for one in tree.options or ()):
        for one in tree.rels or (None,):
            name = show(one.relation) if one else "every table"
            yield Hit(
                f"VACUUM FULL writes {name} anew under an ACCESS EXCLUSIVE lock.",
                f"VACUUM (ANALYZE){f' {name}' if one else ''};",
                one.relation if one else None,
            )


RULE = Rule(
    "cluster",
    "error",
    str(__doc__),
    "ACCESS EXCLUSIVE is held while every row and index is written: nobody reads or writes for as long, and "
    "the table needs its size in disk again.",
    "A plain VACUUM lets everybody work and makes the room usable again. To give it back: pg_repack, by "
    "hand.",
    Example("CLUSTER orders USING orders_pkey;", Claim("AccessExclusiveLock", rewrite=True)),
    check,
    squawk=("prefer-repack",),
)
