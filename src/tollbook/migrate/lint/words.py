"""Names and pieces of statements as SQL text: quoted where PostgreSQL needs it."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pglast import ast
from pglast.keywords import COL_NAME_KEYWORDS, RESERVED_KEYWORDS, TYPE_FUNC_NAME_KEYWORDS
from pglast.parser import scan
from pglast.stream import IndentedStream, RawStream

PLAIN = re.compile(r"[a-z_][a-z0-9_$]*")
NAME_BYTES_MAX = 63  # NAMEDATALEN - 1: PostgreSQL cuts what is longer, with only a notice
DEFAULT_SCHEMA = "public"

Key = tuple[str, str]
"""A relation's schema and name, folded as PostgreSQL folds them."""


def is_reserved(name: str) -> bool:
    """Whether a name must be quoted wherever it names a table or column."""
    return name in RESERVED_KEYWORDS or name in TYPE_FUNC_NAME_KEYWORDS


def quote(name: str) -> str:
    """Return an identifier, in double quotes where it needs them."""
    if PLAIN.fullmatch(name) and not is_reserved(name) and name not in COL_NAME_KEYWORDS:
        return name
    return '"' + name.replace('"', '""') + '"'


def quote_all(names: Iterable[str]) -> str:
    """Return identifiers as a list: a, b."""
    return ", ".join(quote(name) for name in names)


def text(value: str) -> str:
    """Return a string literal."""
    return "'" + value.replace("'", "''") + "'"


def show(relation: Any) -> str:
    """Return a relation's name as the statement wrote it."""
    name = quote(relation.relname)
    return f"{quote(relation.schemaname)}.{name}" if relation.schemaname else name


def show_key(key: Key, path: str) -> str:
    """Return a relation's name by its key, with its schema where that is not the first of the path."""
    return quote(key[1]) if key[0] == path else f"{quote(key[0])}.{quote(key[1])}"


def show_names(names: Sequence[Any]) -> str:
    """Return a qualified name given as a list of pglast strings."""
    return ".".join(quote(name.sval) for name in names)


def split(names: Sequence[Any]) -> tuple[str | None, str]:
    """Return the schema (None where it is not said) and the name of a list of pglast strings."""
    words = [name.sval for name in names]
    return (words[-2] if len(words) > 1 else None), words[-1]


def relation_of(names: Sequence[Any]) -> Any:
    """Return a qualified name given as pglast strings as a relation."""
    schema, name = split(names)
    return ast.RangeVar(relname=name, schemaname=schema, inh=True, relpersistence="p")


def make_relation(key: Key) -> Any:
    """Return a key as a relation."""
    return ast.RangeVar(relname=key[1], schemaname=key[0], inh=True, relpersistence="p")


def sql(node: Any) -> str:
    """Return a tree as SQL."""
    return RawStream()(node)


def pretty(node: Any) -> str:
    """Return a tree as SQL of several lines."""
    return IndentedStream(comma_at_eoln=True)(node)


def name_after(*parts: str) -> str:
    """Return a made-up name of several parts, no longer than a name may be."""
    return "_".join(part for part in parts if part).encode()[:NAME_BYTES_MAX].decode(errors="ignore")


def insert_after(statement: str, keyword: str, word: str) -> str:
    """Return a statement with a word after the first token that is this keyword."""
    token = next((one for one in scan(statement) if one.name == keyword), None)
    if token is None:
        return statement
    return f"{statement[: token.end + 1]} {word}{statement[token.end + 1 :]}"


def insert_before(statement: str, keywords: Sequence[str], word: str) -> str:
    """Return a statement with a word before the first token that is one of these keywords."""
    token = next((one for one in scan(statement) if one.name in keywords), None)
    return statement if token is None else f"{statement[: token.start]}{word} {statement[token.start :]}"


def cut(statement: str, first: str, last: str) -> str:
    """Return a statement without its tokens from the first keyword to the last."""
    tokens = scan(statement)
    start = next((one.start for one in tokens if one.name == first), None)
    end = next(
        (one.end for one in tokens if start is not None and one.start >= start and one.name == last), None
    )
    if start is None or end is None:
        return statement
    return statement[:start].rstrip() + statement[end + 1 :]
