"""SQL that is put together only when it runs, so nobody can look at it before."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show_names

SHOWN_MAX = 3


def check(unit: Unit) -> Iterable[Hit]:
    if unit.hidden:
        shown = "; ".join(unit.hidden[:SHOWN_MAX])
        more = f"; and {len(unit.hidden) - SHOWN_MAX} more" if len(unit.hidden) > SHOWN_MAX else ""
        yield Hit(f"What this block does cannot be told from the file: {shown}{more}.")
    elif is_a(unit.tree, ast.CallStmt) and not unit.block:
        name = show_names(unit.tree.funccall.funcname)
        yield Hit(f"What CALL {name} does cannot be told from the file.")


RULE = Rule(
    "opaque-sql",
    "notice",
    str(__doc__),
    "No rule here sees it: neither what it locks nor what it deletes. The same file can do different things "
    "on different databases.",
    "Write the statement out, or EXECUTE a constant string. `tollbook migrate plan` runs it and shows what "
    "it did.",
    Example("DO $$\nBEGIN\n    EXECUTE 'DROP TABLE ' || current_setting('app.old_table');\nEND $$;"),
    check,
    spares_new=False,
)
