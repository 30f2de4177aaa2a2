"""CREATE OR REPLACE VIEW that drops, renames or reorders columns."""

from collections.abc import Iterable
from copy import deepcopy

from pglast import ast

from tollbook.migrate.lint.changes import name_outputs
from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import name_after, quote_all, show, sql


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.ViewStmt) or not tree.replace:
        return
    known, new = unit.table(tree.view), name_outputs(tree)
    if known is None or known.kind != "view" or not known.whole or new is None:
        return
    old = list(known.columns)
    if new[: len(old)] == old:
        return
    name = show(tree.view)
    yield Hit(
        f"{name} has the columns {quote_all(old)}; OR REPLACE may only add behind them, so this fails.",
        "-- Beside the old one, which goes when no code reads it:\n"
        + _rename(unit, name_after(tree.view.relname, "v2")),
    )


def _rename(unit: Unit, name: str) -> str:
    """Return the same view under another name."""
    copy = deepcopy(unit.tree)
    copy.replace = False
    copy.view.relname = name
    return f"{sql(copy)};"


RULE = Rule(
    "replace-view",
    "error",
    str(__doc__),
    "PostgreSQL refuses to take a column from a view, to rename or reorder one, or to change a type: the "
    "migration fails. DROP and CREATE would work, but breaks what reads it, and loses its grants.",
    "Add columns at the end only, or make a second view and let the old one go in a later release.",
    Example(
        "CREATE OR REPLACE VIEW open_orders AS SELECT id, status FROM orders;",
        Claim(fails="42P16"),
        "CREATE VIEW open_orders AS SELECT id, total FROM orders;",
    ),
    check,
    spares_new=False,
)
