"""Trees of the grammar, walked and asked for what they are."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from typing import Any

from pglast import ast


def is_a(node: Any, *kinds: type) -> bool:
    """Whether a node is of one of these kinds; it stays untyped, as pglast types every field as optional."""
    return isinstance(node, kinds)


def descend(node: Any) -> Iterator[Any]:
    """Give every node of a tree, itself first."""
    left = [node]
    while left:
        one = left.pop()
        if isinstance(one, ast.Node):
            yield one
            for name in _list_parts(type(one)):
                part = getattr(one, name)
                if isinstance(part, (ast.Node, tuple)):
                    left.append(part)
        elif isinstance(one, tuple):
            left += reversed(one)  # pyright: ignore[reportUnknownArgumentType]


@cache
def _list_parts(kind: Any) -> tuple[str, ...]:
    """Return the names of a node's attributes, the last first."""
    return tuple(reversed(kind.__slots__))


def find_columns(node: Any) -> Iterator[str]:
    """Give the name of every column that an expression refers to."""
    for one in descend(node):
        if is_a(one, ast.ColumnRef) and is_a(one.fields[-1], ast.String):
            yield one.fields[-1].sval


def alter(node: Any, change: Callable[[Any], Any]) -> Any:
    """Return a copy of a tree in which each node is what `change` makes of it (None: what it was)."""
    changed = change(node)
    if changed is not None:
        return changed
    if is_a(node, tuple):
        return tuple(alter(one, change) for one in node)
    if not is_a(node, ast.Node):
        return node
    copy = deepcopy(node)
    for name in copy:
        setattr(copy, name, alter(getattr(copy, name), change))
    return copy
