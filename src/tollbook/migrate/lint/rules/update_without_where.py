"""UPDATE without WHERE: every row is written anew."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show, sql


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.UpdateStmt) or tree.whereClause is not None or tree.fromClause:
        return
    fresh = [one.name for one in tree.targetList or () if unit.world.is_new_column(tree.relation, one.name)]
    values = ", ".join(f"{quote(one.name)} = {sql(one.val)}" for one in tree.targetList or ())
    table = show(tree.relation)
    still = " OR ".join(
        f"{quote(one.name)} IS DISTINCT FROM ({sql(one.val)})" for one in tree.targetList or ()
    )
    yield Hit(
        f"UPDATE {table} has no WHERE: it writes every row anew and locks each until it commits.",
        "-- Again and again, each time in a transaction of its own, until it updates none.\n"
        f"UPDATE {table} SET {values} WHERE ctid = ANY (ARRAY(\n"
        f"    SELECT ctid FROM {table} WHERE {still} LIMIT 1000 FOR UPDATE SKIP LOCKED));",
        tree.relation,
        # What only fills columns that are new loses nothing.
        "warning" if fresh and len(fresh) == len(tree.targetList or ()) else None,
    )


RULE = Rule(
    "update-without-where",
    "error",
    str(__doc__),
    "The old values are gone. The table doubles in size, each row stays locked until the commit, and "
    "replicas and autovacuum have as much to do as after loading it anew.",
    "Update in batches by key, each in a transaction of its own, and only rows that still differ.",
    Example(
        "UPDATE orders SET status = 'closed';",
        Claim(changes="SELECT count(*) FROM orders WHERE status = 'open'"),
    ),
    check,
)
