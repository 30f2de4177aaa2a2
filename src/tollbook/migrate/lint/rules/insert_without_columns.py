"""INSERT without the names of its columns."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import insert_before, quote_all, show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.InsertStmt) or tree.cols or tree.selectStmt is None:
        return
    table = unit.table(tree.relation)
    values = tree.selectStmt.valuesLists
    number = len(values[0]) if values else len(tree.selectStmt.targetList or ())
    names = list(table.columns)[:number] if table and table.whole else []
    safe = ""
    if names and len(names) == number:
        safe = f"{insert_before(unit.text, ('VALUES', 'SELECT'), f'({quote_all(names)})')};"
    yield Hit(
        f"INSERT INTO {show(tree.relation)} names no columns: which value goes where depends on how the "
        "table was made on each database.",
        safe,
    )


RULE = Rule(
    "insert-without-columns",
    "notice",
    str(__doc__),
    "The order of columns differs between a database that was migrated and one made from a schema file; one "
    "more column, and it fails, or puts values into the wrong place.",
    "Name the columns.",
    Example("INSERT INTO customers VALUES (501, 'a@example.org', 'new');"),
    check,
    spares_new=False,
    of_rows=True,
)
