"""Statements inside DO blocks and function bodies, as far as PL/pgSQL says them in plain words."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pglast import ast, parse_plpgsql
from pglast.parser import ParseError, scan

from tollbook.migrate import grammar
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.words import quote, text

QUOTED = ("SCONST", "USCONST")
DEPTH_MAX = 200


@dataclass(frozen=True, slots=True)
class Inner:
    """A statement inside a block: its tree and words, and the line of the body it stands on (from 1)."""

    tree: Any
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Body:
    """What could be read of a block, and what not, each in words."""

    statements: tuple[Inner, ...]
    hidden: tuple[str, ...]


def read(text: str) -> Body:
    """Take a DO statement apart. What is put together only when it runs is named in hidden."""
    try:
        parsed: Any = parse_plpgsql(text)
    except (ParseError, json.JSONDecodeError):
        return Body((), ("a body that cannot be read before it runs",))
    if not any("action" in one["PLpgSQL_function"] for one in parsed):
        return Body((), ("a body in another language than PL/pgSQL",))
    found: list[Inner] = []
    hidden: list[str] = []
    for kind, node in _walk(parsed, 0):
        line = int(node.get("lineno", 1))
        if kind == "PLpgSQL_stmt_execsql":
            _add(node["sqlstmt"], line, found, hidden)
        elif kind in ("PLpgSQL_stmt_dynexecute", "PLpgSQL_stmt_dynfors"):
            _add_dynamic(node.get("query"), line, found, hidden)
        elif kind == "PLpgSQL_stmt_perform":
            _add(node["expr"], line, found, hidden)
        elif kind == "PLpgSQL_stmt_call":
            hidden.append(f"line {line}: {_query(node.get('expr'))}, which can do anything")
    return Body(tuple(found), tuple(hidden))


def _walk(node: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Give every statement of what parse_plpgsql returned, with its kind."""
    if depth > DEPTH_MAX:
        return
    if is_a(node, dict):
        for kind, value in node.items():
            if is_a(value, dict) and kind.startswith("PLpgSQL_stmt_"):
                yield kind, value
            yield from _walk(value, depth + 1)
    elif is_a(node, list):
        for one in node:
            yield from _walk(one, depth + 1)


def _query(expression: Any) -> str:
    return str(expression["PLpgSQL_expr"]["query"]) if expression else ""


def _add(expression: Any, line: int, found: list[Inner], hidden: list[str]) -> None:
    query = _query(expression)
    try:
        found += [Inner(node.stmt, query, line) for node in grammar.parse(query)]
    except ParseError:
        hidden.append(f"line {line}: a statement that cannot be read before it runs")


def _add_dynamic(expression: Any, line: int, found: list[Inner], hidden: list[str]) -> None:
    query = _query(expression)
    try:
        tree: Any = grammar.parse(f"SELECT {query}")[0].stmt
        words = fold(tree.targetList[0].val)
    except (ParseError, IndexError):
        words = None
    if words is None:
        hidden.append(f"line {line}: EXECUTE {query}, which is put together only when it runs")
        return
    try:
        found += [Inner(node.stmt, words, line) for node in grammar.parse(words)]
    except ParseError:
        hidden.append(f"line {line}: EXECUTE of what does not parse")


def fold(node: Any) -> str | None:
    """Return the text that an expression of constants comes to, or None."""
    if is_a(node, ast.A_Const):
        return getattr(node.val, "sval", None)
    if is_a(node, ast.TypeCast):
        return fold(node.arg)
    if is_a(node, ast.A_Expr) and [name.sval for name in node.name] == ["||"]:
        left, right = fold(node.lexpr), fold(node.rexpr)
        return left + right if left is not None and right is not None else None
    if is_a(node, ast.FuncCall) and node.funcname[-1].sval == "format":
        return _format([fold(argument) for argument in node.args or ()])
    return None


def _format(words: list[str | None]) -> str | None:
    """Return what format() makes of constants, with the plain %s, %I and %L alone."""
    if not words or any(word is None for word in words):
        return None
    head, values = str(words[0]), iter(str(word) for word in words[1:])
    writers = {"s": str, "I": quote, "L": text}
    made: list[str] = []
    rest = head
    while "%" in rest:
        before, _, rest = rest.partition("%")
        made.append(before)
        letter, rest = rest[:1], rest[1:]
        value = "%" if letter == "%" else next(values, None)
        if value is None or letter not in (*writers, "%"):
            return None
        made.append("%" if letter == "%" else writers[letter](value))
    return "".join([*made, rest])


def find_body(text: str) -> int:
    """Return where the body of a DO statement begins in its text, for its lines to be counted from."""
    token = next((one for one in scan(text) if one.name in QUOTED), None)
    return token.start if token else 0
