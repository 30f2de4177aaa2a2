"""The rows of a COPY … FROM STDIN as INSERTs, for what runs SQL but is not psql."""

import re
from collections.abc import Iterator
from typing import Any

from tollbook.migrate.statements import Statement

ROWS_PER_INSERT = 500
LINE = re.compile(r"((?:\\.|[^\\\n])*)\n", re.DOTALL)  # a line end after a backslash is part of the row
ESCAPED = re.compile(r"\\([0-7]{1,3}|x[0-9A-Fa-f]{1,2}|.)", re.DOTALL)
LETTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
# FREEZE is of speed alone.
UNDERSTOOD = ("format", "delimiter", "null", "freeze")


def find_obstacle(statement: Statement) -> str | None:
    """Say why the rows cannot be INSERTs; None if they can."""
    options = _read_options(statement.tree)
    if options.get("format", "text") != "text":
        return f"The rows of this COPY are of the format {options['format']}, which is not made INSERTs of."
    if other := sorted(set(options) - set(UNDERSTOOD)):
        return f"This COPY has the option {other[0]}, which INSERT does not have."
    return "This COPY has a WHERE, which INSERT does not have." if statement.tree.whereClause else None


def write_inserts(statement: Statement) -> Iterator[str]:
    """Give the INSERTs that do what the COPY does, but that rules of the table are followed."""
    tree = statement.tree
    options = _read_options(tree)
    delimiter, null = options.get("delimiter", "\t"), options.get("null", "\\N")
    parts = [part for part in (tree.relation.schemaname, tree.relation.relname) if part]
    columns = ", ".join(_quote_name(one.sval) for one in tree.attlist or ())
    into = ".".join(_quote_name(part) for part in parts) + (f" ({columns})" if columns else "")
    found = LINE.findall(statement.rows or "")
    field = re.compile(rf"((?:\\.|[^\\{re.escape(delimiter)}])*)(?:{re.escape(delimiter)}|$)", re.DOTALL)
    for start in range(0, len(found), ROWS_PER_INSERT):
        rows = [
            "(" + ", ".join(_write(text, null) for text in _split(line, field)) + ")"
            for line in found[start : start + ROWS_PER_INSERT]
        ]
        yield f"INSERT INTO {into} OVERRIDING SYSTEM VALUE VALUES\n" + ",\n".join(rows) + "\n;"


def _read_options(tree: Any) -> dict[str, str]:
    return {one.defname: str(getattr(one.arg, "sval", "")) for one in tree.options or ()}


def _split(line: str, field: re.Pattern[str]) -> Iterator[str]:
    index = 0
    while (match := field.match(line, index)) is not None:
        yield match[1]
        if match.end() == len(line) and match.end() == match.end(1):
            return
        index = match.end()


def _write(text: str, null: str) -> str:
    return "NULL" if text == null else "'" + ESCAPED.sub(_unescape, text).replace("'", "''") + "'"


def _unescape(match: re.Match[str]) -> str:
    word = match[1]
    if word[0] in "01234567":
        return chr(int(word, 8) & 0x7F)
    if word[0] == "x" and len(word) > 1:
        return chr(int(word[1:], 16) & 0x7F)
    return LETTERS.get(word, word)


def _quote_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
