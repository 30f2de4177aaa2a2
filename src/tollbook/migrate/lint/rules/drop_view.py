"""A view that running code may read is dropped."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import ObjectType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show

KINDS = (ObjectType.OBJECT_VIEW, ObjectType.OBJECT_MATVIEW)


def check(unit: Unit) -> Iterable[Hit]:
    for view in unit.drops(*KINDS):
        again = unit.made_again(
            ast.ViewStmt, view.relname, lambda tree: tree.view.relname
        ) or unit.made_again(ast.CreateTableAsStmt, view.relname, lambda tree: tree.into.rel.relname)
        yield Hit(
            f"{show(view)} is made again here, but without the grants, and what depends on it has to go "
            "first."
            if again
            else f"Code that still reads {show(view)} fails from the commit on, and its grants are gone.",
            on=view,
            severity="notice" if again else None,
        )


RULE = Rule(
    "drop-view",
    "warning",
    str(__doc__),
    "Dropping locks the view ACCESS EXCLUSIVE and takes the rights granted on it along; made again in the "
    "same file, it comes back without them.",
    "Release code that no longer reads it, then drop it. To change a view, use CREATE OR REPLACE VIEW, which "
    "may add columns at the end and keeps the grants.",
    Example(
        "DROP VIEW open_orders;",
        Claim(changes="SELECT count(*) FROM pg_class WHERE relname = 'open_orders'"),
        "CREATE VIEW open_orders AS SELECT id, total FROM orders WHERE status = 'open';",
    ),
    check,
)
