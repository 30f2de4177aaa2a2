"""Many rows are written in the transaction that holds a table's lock."""

from collections.abc import Iterable
from typing import Any

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.rules.many_tables import find_locked
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import File, Unit
from tollbook.migrate.lint.words import show


def check_file(file: File) -> Iterable[Hit]:
    locked: dict[int, dict[str, Unit]] = {}
    for unit in file.units:
        written = _find_written(unit)
        held = locked.setdefault(unit.transaction, {})
        if written is not None and held:
            yield Hit(
                f"{show(written)} is written row by row while this transaction holds "
                f"{', '.join(sorted(held))} locked.",
                f"-- In the next migration, in batches, each committed:\n{unit.text};",
                written,
                at=unit.index,
            )
        for name in find_locked(unit):
            held.setdefault(name, unit)


def _find_written(unit: Unit) -> Any:
    """Return the table that a statement may write many rows of, or None."""
    tree = unit.tree
    if is_a(tree, ast.UpdateStmt, ast.DeleteStmt):
        return None if is_by_key(unit) else tree.relation
    if is_a(tree, ast.InsertStmt) and is_a(tree.selectStmt, ast.SelectStmt):
        return tree.relation if tree.selectStmt.fromClause else None
    return None


def is_by_key(unit: Unit) -> bool:
    """Whether it names its rows by constants of the primary key."""
    where, table = unit.tree.whereClause, unit.table(unit.tree.relation)
    keys = [one.columns for one in table.constraints if one.kind == "primary"] if table else []
    if not is_a(where, ast.A_Expr) or not is_a(where.lexpr, ast.ColumnRef):
        return False
    column = where.lexpr.fields[-1]
    right: Any = where.rexpr if is_a(where.rexpr, tuple) else (where.rexpr,)
    constant = all(is_a(one, ast.A_Const) for one in right)
    return is_a(column, ast.String) and constant and (column.sval,) in keys


RULE = Rule(
    "backfill-with-ddl",
    "error",
    str(__doc__),
    "The lock of the ALTER TABLE (ACCESS EXCLUSIVE, mostly) is held until the commit: it lasts as long as "
    "the rows take, and nobody reads or writes meanwhile.",
    "One migration changes the table, which takes a moment; the next writes the rows, in batches, each "
    "committed.",
    Example(
        "ALTER TABLE orders ADD COLUMN region text;\n"
        "UPDATE orders SET region = 'EU' WHERE customer_id < 400;",
        Claim("AccessExclusiveLock", scan=True),
        first="ALTER TABLE orders ADD COLUMN region text;",
    ),
    check_file=check_file,
)
