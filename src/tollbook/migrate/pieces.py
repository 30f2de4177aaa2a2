"""A long text, parsed statement by statement.

pglast finds the character of each node by going through all letters beyond ASCII behind it: of a whole file
that takes hours where there are many. And the parser's own trees are as large as ours, until it is done.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from pglast import ast, parse_sql
from pglast.parser import ParseError

CHARACTERS_MIN = 2**14
ASCII_CHARACTERS_MIN = 2**18  # for the sake of memory alone
ASCII_PIECE = 2**14  # several statements at once, where letters cost nothing
LETTER = r"A-Za-z_\x80-\U0010ffff"
OF_LISTS = ("rexpr_list_start", "rexpr_list_end")  # 0 where there is no list


def parse(text: str, keep: Callable[[Any], Any] = lambda tree: tree) -> tuple[Any, ...]:
    """Return the statements of a text, as `parse_sql` does. Raises pglast's ParseError.

    `keep` may give another tree that is as good for a statement of a long text: its own is then let go.
    """
    if len(text) < (ASCII_CHARACTERS_MIN if text.isascii() else CHARACTERS_MIN):
        return parse_sql(text)
    found: list[Any] = []
    try:
        for start, piece in _gather(text):
            one: Any
            for one in parse_sql(piece):
                if (tree := keep(one.stmt)) is one.stmt:
                    _move(one, start)
                else:
                    one.stmt = tree
                    one.stmt_location += start
                found.append(one)
    except ParseError:  # it is an error, or a body whose semicolons end no statement: the whole tells
        return parse_sql(text)
    return tuple(found)


def _gather(text: str) -> Iterator[tuple[int, str]]:
    least = ASCII_PIECE if text.isascii() else 0
    begin = 0
    for start, piece in split(text):
        end = start + len(piece)
        if end - begin > least or end == len(text):
            yield begin, text[begin:end]
            begin = end


@cache
def _compile() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return what is no semicolon, or hides those in it; and the mark of a dollar quote.

    So many tokens at once, as each takes memory. To compile them takes longer than to parse most folders.
    """
    tokens = re.compile(
        rf"(?:[^-/\"'$;{LETTER}]+|[eE]'[^'\\]*(?:\\.[^'\\]*)*'|[{LETTER}][\w$]*|'[^']*'|\"[^\"]*\"|--[^\n]*"
        r"|/\*.*?\*/|-|/(?!\*)){1,1000}",
        re.DOTALL,
    )
    return tokens, re.compile(rf"\$(?:[{LETTER}]\w*)?\$")


def split(text: str) -> Iterator[tuple[int, str]]:
    """Give the parts of a text up to each semicolon, with where they begin."""
    seen, mark = _compile()
    start = index = 0
    while index < len(text):
        if tokens := seen.match(text, index):
            index = tokens.end()
        elif text[index] == ";":
            yield start, text[start : index + 1]
            start = index = index + 1
        elif tag := mark.match(text, index):
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
        if isinstance(one, tuple):
            left += one  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(one, ast.Node):
            parts, places = _list_names(type(one))
            for name in parts:
                left.append(getattr(one, name))
            for name in places:
                value = getattr(one, name)
                if value is not None and (value or name not in OF_LISTS):
                    setattr(one, name, value + by)


@cache
def _list_names(kind: Any) -> tuple[list[str], list[str]]:
    """Return the names of a node's attributes that hold nodes, and of those that are places."""
    types = {name: slot.c_type for name, slot in kind.__slots__.items()}
    parts = [
        name for name, said in types.items() if said == "ValUnion" or (said.endswith("*") and said != "char*")
    ]
    return parts, [name for name, said in types.items() if said == "ParseLoc" and name != "stmt_len"]
