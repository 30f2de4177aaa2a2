"""PostgreSQL's own grammar: pglast's trees, without its checks of what its own parser has just made."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pglast import ast

from tollbook.migrate import pieces

_lock = threading.Lock()
_depth = 0
_CHECKED: Any = ast.Node.__setattr__
# The parser's C code gives this one attribute as 0 or 1, and leaves it to the check to make it a bool.
ast.Boolean.__setattr__ = _CHECKED


def parse(text: str) -> tuple[Any, ...]:
    """Return the statements of a text (pglast's RawStmt). Raises pglast's ParseError."""
    with unchecked():
        return pieces.parse(text)


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
