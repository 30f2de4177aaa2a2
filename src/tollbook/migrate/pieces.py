"""A long text with letters beyond ASCII, parsed statement by statement.

pglast finds the character of each node by going through all such letters behind it: of a whole file that
takes hours where there are many.
"""

import re
from collections.abc import Iterator
from typing import Any

from pglast import ast, parse_sql
from pglast.parser import ParseError

CHARACTERS_MIN = 2**14
LETTER = r"A-Za-z_\x80-\U0010ffff"
# What is no semicolon, or hides those in it, but for dollar quotes. So many at once, as each takes memory.
TOKENS = re.compile(
    rf"(?:[^-/\"'$;{LETTER}]+|[eE]'[^'\\]*(?:\\.[^'\\]*)*'|[{LETTER}][\w$]*|'[^']*'|\"[^\"]*\"|--[^\n]*"
    r"|/\*.*?\*/|-|/(?!\*)){1,1000}",
    re.DOTALL,
)
PLACES = ("location", "list_start", "list_end")
OF_LISTS = ("rexpr_list_start", "rexpr_list_end")  # 0 where there is no list
TAG = re.compile(rf"\$(?:[{LETTER}]\w*)?\$")


def parse(text: str) -> tuple[Any, ...]:
    """Return the statements of a text, as `parse_sql` does. Raises pglast's ParseError."""
    if len(text) < CHARACTERS_MIN or text.isascii():
        return parse_sql(text)
    found: list[Any] = []
    try:
        for start, piece in split(text):
            for one in parse_sql(piece):
                _move(one, start)
                found.append(one)
    except ParseError:  # it is an error, or a body whose semicolons end no statement: the whole tells
        return parse_sql(text)
    return tuple(found)


def split(text: str) -> Iterator[tuple[int, str]]:
    """Give the parts of a text up to each semicolon, with where they begin."""
    start = index = 0
    while index < len(text):
        if tokens := TOKENS.match(text, index):
            index = tokens.end()
        elif text[index] == ";":
            yield start, text[start : index + 1]
            start = index = index + 1
        elif tag := TAG.match(text, index):
            end = text.find(tag[0], tag.end())
            index = len(text) if end < 0 else end + len(tag[0])
        else:  # a lone $, or something that does not end
            index = index + 1 if text[index] == "$" else len(text)
    yield start, text[start:]


def _move(tree: Any, by: int) -> None:
    """Count the places of a piece from where the text begins."""
    left = [tree]
    while left:
        one = left.pop()
        for name in one:
            value: Any = getattr(one, name)
            if isinstance(value, ast.Node):
                left.append(value)
            elif isinstance(value, tuple):
                left += _flatten(value)
            elif value is not None and name.endswith(PLACES) and (value or name not in OF_LISTS):
                setattr(one, name, value + by)


def _flatten(values: Any) -> Iterator[Any]:
    for one in values:
        if isinstance(one, tuple):
            yield from _flatten(one)
        elif isinstance(one, ast.Node):
            yield one
