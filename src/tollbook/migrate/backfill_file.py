"""A back-fill as its file has it: one statement for a range of keys, and how large its batches are.

-- tollbook: table=orders key=id batch=1000 pause=50ms
UPDATE orders SET total_cents = total * 100 WHERE id BETWEEN :first AND :last
"""

from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any

from pglast import ast
from pglast.parser import ParseError, scan

from tollbook.migrate import grammar
from tollbook.migrate.errors import Problem, point
from tollbook.migrate.files import Script

BATCH_ROWS = 1_000
PAUSE_SECONDS = 0.0
MARKS = ("first", "last")
COLON = "ASCII_58"
CHANGES = (ast.UpdateStmt, ast.InsertStmt, ast.DeleteStmt, ast.MergeStmt)
EXAMPLE = "-- tollbook: table=orders key=id batch=1000 pause=50ms"


@dataclass(frozen=True, slots=True)
class Backfill:
    """A back-fill, read: its statement is cut at its marks, which stand between the pieces."""

    script: Script
    table: str
    key: tuple[str, ...]
    pieces: tuple[str, ...]
    marks: tuple[str, ...]
    index: int  # where in the file the statement begins

    @property
    def batch(self) -> int:
        """The rows of a batch, at most."""
        return self.script.options.batch or BATCH_ROWS

    @property
    def pause_seconds(self) -> float:
        """The pause after each batch."""
        return self.script.options.pause_seconds or PAUSE_SECONDS

    @property
    def fingerprint(self) -> str:
        """What it does to which rows; how fast it does so may change while it is under way."""
        parts = (self.table, *self.key, *self.pieces, *self.marks)
        return sha256("\0".join(parts).encode()).hexdigest()

    def render(self, first: str, last: str) -> str:
        """Return the statement for a range of keys, both ends within, given as SQL."""
        values = {"first": first, "last": last}
        shown = [values[mark] for mark in self.marks]
        return "".join(part for pair in zip(self.pieces, [*shown, ""], strict=True) for part in pair)


def read(script: Script) -> tuple[Backfill | None, list[Problem]]:
    """Read a back-fill's file by grammar; what is wrong with it is a problem with its line."""
    options = script.options
    if not options.table or not options.key:
        return None, [
            _refuse(script, 0, "This back-fill does not say its table and key.", f"Begin with {EXAMPLE}")
        ]
    try:
        found = _find_marks(script.text)
        raw: tuple[Any, ...] = grammar.parse(_blank(script.text, found))
    except ParseError as error:
        return None, [_refuse(script, int(error.args[1]), f"{error.args[0]}.", "Correct the SQL.")]
    if len(raw) != 1 or not isinstance(raw[0].stmt, CHANGES):
        what = "A back-fill is one UPDATE, INSERT, DELETE or MERGE."
        return None, [
            _refuse(script, raw[1].stmt_location if len(raw) > 1 else 0, what, "Split the migration.")
        ]
    if _changes_key(raw[0].stmt, options.table, options.key):
        what = "The statement changes its own key, so a row may come before it twice, or never."
        return None, [_refuse(script, 0, what, "Choose a key that stays.")]
    if {mark for _, mark in found} != set(MARKS):
        what = "The statement does not say :first and :last, so every batch would change every row."
        return None, [_refuse(script, 0, what, f"Write WHERE {options.key[0]} BETWEEN :first AND :last")]
    start = raw[0].stmt_location
    end = start + (raw[0].stmt_len or len(script.text[start:].rstrip()))
    pieces, done = list[str](), start
    for index, mark in found:
        pieces.append(script.text[done:index])
        done = index + 1 + len(mark)
    pieces.append(script.text[done:end])
    marks = tuple(mark for _, mark in found)
    return Backfill(script, options.table, options.key, tuple(pieces), marks, _skip(script.text, start)), []


def _changes_key(tree: Any, table: str, key: tuple[str, ...]) -> bool:
    if not isinstance(tree, ast.UpdateStmt) or tree.relation is None:
        return False
    same = tree.relation.relname == table.rpartition(".")[2].strip('"')
    return same and not {target.name for target in tree.targetList or ()}.isdisjoint(key)


def _find_marks(text: str) -> list[tuple[int, str]]:
    """Return where :first and :last stand: a colon with the word right behind it, by the grammar's tokens."""
    tokens = scan(text)
    return [
        (colon.start, word)
        for colon, name in pairwise(tokens)
        if colon.name == COLON
        and name.start == colon.end + 1
        and (word := text[name.start : name.end + 1].lower()) in MARKS
    ]


def _blank(text: str, found: list[tuple[int, str]]) -> str:
    """Return the text with parameters in place of the marks, every other character where it was."""
    for index, mark in found:
        parameter = f"${MARKS.index(mark) + 1}".ljust(len(mark) + 1)
        text = text[:index] + parameter + text[index + len(parameter) :]
    return text


def _skip(text: str, start: int) -> int:
    """Return the index of the statement's first word, behind the comments before it."""
    return next((one.start for one in scan(text) if one.start >= start and "COMMENT" not in one.name), start)


def _refuse(script: Script, index: int, what: str, then: str) -> Problem:
    return Problem(what, then, point(str(script.path), script.text, index, caret=False))
