"""PostgreSQL's own grammar: pglast's trees, without its checks of what its own parser has just made."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pglast import ast

from tollbook.migrate import pieces

CONSTANT = (ast.A_Const, ast.SetToDefault)
# What an INSERT, or its VALUES, may have besides.
MORE = ("onConflictClause", "returningClause", "withClause", "override")
MORE_OF_VALUES = ("withClause", "sortClause", "limitCount", "limitOffset", "lockingClause")
_lock = threading.Lock()
_depth = 0
_CHECKED: Any = ast.Node.__setattr__
# The parser's C code gives this one attribute as 0 or 1, and leaves it to the check to make it a bool.
ast.Boolean.__setattr__ = _CHECKED


def parse(text: str) -> tuple[Any, ...]:
    """Return the statements of a text (pglast's RawStmt). Raises pglast's ParseError.

    In a long text all INSERTs of constants into the same columns have the tree of the first.
    """
    with unchecked():
        return pieces.parse(text, _Alike().find)


class _Alike:
    """Knows the INSERTs that differ in nothing but their constants: a file may have a million of them."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], Any] = {}

    def find(self, tree: Any) -> Any:
        """Return the first tree that is alike, or the tree itself."""
        key = _describe(tree) if isinstance(tree, ast.InsertStmt) else None
        return self.known.setdefault(key, tree) if key else tree


def _describe(insert: Any) -> tuple[Any, ...] | None:
    """Return what an INSERT is but for its constants; None where it is more than that."""
    select, table, columns = insert.selectStmt, insert.relation, insert.cols or ()
    if not isinstance(select, ast.SelectStmt) or any(getattr(insert, name) for name in MORE):
        return None
    values: Any = select
    rows = () if any(getattr(values, name) for name in MORE_OF_VALUES) else values.valuesLists or ()
    if not rows or any(column.indirection for column in columns):
        return None
    if not all(isinstance(value, CONSTANT) for row in rows for value in row):
        return None
    return (table.schemaname, table.relname, tuple(column.name for column in columns), len(rows[0]))


@contextmanager
def unchecked() -> Generator[None]:
    """Leave out the checks inside: nine tenths of the time of `parse`. The trees are the same.

    To switch takes as long as to parse a small file: whoever reads many does it around them all. What sets
    attributes of a tree by hand meanwhile, in whatever thread, is not checked either.
    """
    _switch(1)
    try:
        yield
    finally:
        _switch(-1)


def _switch(step: int) -> None:
    global _depth
    with _lock:
        _depth += step
        if _depth == 1 and step == 1:
            del ast.Node.__setattr__
        elif _depth == 0:
            ast.Node.__setattr__ = _CHECKED
