"""What only psql reads in a file: its backslash commands, and the rows that follow COPY … FROM STDIN.

The rows are taken out and sent when their COPY runs; of the commands those are passed over that change
nothing of what the file does to the database, and all others are refused by name.
"""

import re
from dataclasses import dataclass

from pglast import ast
from pglast.parser import ParseError

from tollbook.migrate import grammar
from tollbook.migrate.errors import Problem
from tollbook.migrate.files import Script

# All that begins something in which a backslash, a semicolon or a quote is not what it seems (psqlscan.l).
MARK = r"--|/\*|\"|'|\\|;|(?P<word>[A-Za-z_\x80-\uffff][\w$]*)|(?P<tag>\$(?:[A-Za-z_\x80-\uffff]\w*)?\$)"
COMMENT = re.compile(r"/\*|\*/")
COMMAND = re.compile(r"\\(?:[A-Za-z_]+|\S)?")
FILE = re.compile(r"\s*(?:'(?P<quoted>[^']+)'|(?P<plain>\S+))")
END_OF_ROWS = re.compile(r"(?m)^\\\.[ \t]*$")
# Commands that show, or steer psql's own output; and those of pg_dump that guard a script against others.
HARMLESS = frozenset(
    (
        "echo",
        "qecho",
        "warn",
        "timing",
        "pset",
        "x",
        "a",
        "t",
        "H",
        "restrict",
        "unrestrict",
        "conninfo",
        "prompt",
    )
)
# Variables of psql that steer how it runs a script; a migration stops at its first error in any case.
OWN_VARIABLES = frozenset(
    (
        "ON_ERROR_STOP",
        "ON_ERROR_ROLLBACK",
        "ECHO",
        "ECHO_HIDDEN",
        "QUIET",
        "VERBOSITY",
        "SHOW_CONTEXT",
        "HISTFILE",
    )
)
ADVICE = {
    "i": "Put the text of that file here, or make it a migration of its own.",
    "c": "A migration runs on the one database it is applied to: give that in --database-url.",
    "copy": "Write COPY … FROM STDIN with the rows below it and \\. after them, or INSERT.",
    "gexec": "Write it as a DO block that EXECUTEs.",
    "if": "Write the condition in a DO block.",
    "set": "Write the value where it is used; variables are psql's own.",
}
SAME = {"ir": "i", "include": "i", "include_relative": "i", "connect": "c", "gset": "set", "elif": "if"}


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a COPY … FROM STDIN: the index in the text at which they began, and their lines."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Inclusion:
    """A command that puts a file in its place, between two indexes of the text. relative: to its own file."""

    start: int
    end: int
    file: str
    relative: bool


@dataclass(frozen=True, slots=True)
class Plain:
    """A script without psql: text of the same length, what was psql's blanked out; rows; what is refused."""

    text: str
    rows: tuple[Rows, ...]
    problems: tuple[Problem, ...]
    inclusions: tuple[Inclusion, ...] = ()


def strip(script: Script) -> Plain:
    """Take out of a script what only psql reads, leaving every other character at its index."""
    reader = _Reader(script)
    reader.read()
    return Plain("".join(reader.kept), tuple(reader.rows), tuple(reader.problems), tuple(reader.inclusions))


class _Reader:
    """Goes through the text once, as psql does: quotes and comments hide what is in them."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.text = script.text
        self.kept: list[str] = []
        self.rows: list[Rows] = []
        self.problems: list[Problem] = []
        self.inclusions: list[Inclusion] = []
        self.copied = 0  # up to here the text is in `kept`
        self.begun = 0  # where the statement begins that is being read

    def read(self) -> None:
        index = 0
        marks = re.compile(MARK)  # not on import: it takes 5 ms, and few files come here
        while (found := marks.search(self.text, index)) is not None:
            index = self._pass(found)
        self.kept.append(self.text[self.copied :])

    def _pass(self, found: re.Match[str]) -> int:
        """Return where to go on after a mark."""
        mark, end = found[0], found.end()
        if mark == "--":
            return self._find("\n", end)
        if mark == "/*":
            return self._end_comment(end)
        if mark in ("'", '"'):
            return self._end_quote(mark, end, escapes=mark == "'" and self._follows_e(found.start()))
        if found["tag"]:
            return self._find(mark, end)
        if mark == "\\":
            return self._take_command(found.start())
        return self._end_statement(end) if mark == ";" else end

    def _find(self, what: str, index: int) -> int:
        place = self.text.find(what, index)
        return len(self.text) if place < 0 else place + len(what)

    def _end_comment(self, index: int) -> int:
        depth = 1
        while depth and (found := COMMENT.search(self.text, index)) is not None:
            depth += 1 if found[0] == "/*" else -1
            index = found.end()
        return len(self.text) if depth else index

    def _follows_e(self, index: int) -> bool:
        before = self.text[index - 1 : index]
        two = self.text[max(index - 2, 0) : index - 1]
        return before in ("E", "e") and not (two.isalnum() or two in ("_", "$") or two >= "\x80")

    def _end_quote(self, quote: str, index: int, *, escapes: bool) -> int:
        ends = re.compile(r"\\.|'" if escapes else quote, re.DOTALL)
        while (found := ends.search(self.text, index)) is not None:
            index = found.end()
            if found[0] == quote:
                return index
        return len(self.text)

    def _take_command(self, index: int) -> int:
        line_end = self.text.find("\n", index)
        line_end = len(self.text) if line_end < 0 else line_end
        line = self.text[index:line_end]
        match = COMMAND.match(line)
        command = match[0] if match else "\\"
        name, argument = command[1:], line[len(command) :].split()
        if SAME.get(name, name) == "i" and (said := FILE.match(line, len(command))):
            relative = name in ("ir", "include_relative")
            self.inclusions.append(Inclusion(index, line_end, said["quoted"] or said["plain"], relative))
        if not _is_harmless(name, argument[0] if argument else ""):
            self.problems.append(
                Problem(
                    f"{command} is a command of psql, which PostgreSQL itself does not know.",
                    ADVICE.get(SAME.get(name, name), "Write it as SQL, or run this file by psql."),
                    self.script.point(index),
                )
            )
        self._blank(index, line_end)
        return line_end

    def _blank(self, start: int, end: int) -> None:
        self.kept.append(self.text[self.copied : start])
        self.kept.append("\n".join(" " * len(line) for line in self.text[start:end].split("\n")))
        self.copied = end

    def _end_statement(self, index: int) -> int:
        """At a semicolon: if it ends a COPY … FROM STDIN, what follows its line is rows."""
        begun, self.begun = self.begun, index
        if not self._is_copy(self.text[begun:index]):
            return index
        start = self._find("\n", index)
        end = END_OF_ROWS.search(self.text, start)
        if end is None:
            self.problems.append(
                Problem(
                    "The rows of this COPY do not end.",
                    "Write \\. on a line of its own after the last row.",
                    self.script.point(index - 1, caret=False),
                )
            )
            return len(self.text)
        self.rows.append(Rows(start, self.text[start : end.start()]))
        self._blank(start, end.end())
        self.begun = end.end()
        return end.end()

    def _is_copy(self, statement: str) -> bool:
        if "copy" not in statement.lower() or "stdin" not in statement.lower():
            return False
        # Commands of psql may stand before it: they are not SQL, and were read already.
        lines = (line for line in statement.splitlines() if not line.lstrip().startswith("\\"))
        try:
            raw = grammar.parse("\n".join(lines))
        except ParseError:
            return False
        return bool(raw) and takes_rows(raw[-1].stmt)


def _is_harmless(name: str, argument: str) -> bool:
    if name in ("set", "unset"):
        return argument in OWN_VARIABLES
    if name == "encoding":
        return argument.upper().replace("-", "") in ("UTF8", "UNICODE")
    return name in HARMLESS


def takes_rows(tree: object) -> bool:
    """Whether a statement is COPY … FROM STDIN."""
    return isinstance(tree, ast.CopyStmt) and bool(tree.is_from) and not tree.filename and not tree.is_program
