"""A script taken apart by PostgreSQL's own grammar: its statements, how each can run, and what must not."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pglast import ast
from pglast.enums import DiscardMode, ObjectType, ReindexObjectType, TransactionStmtKind
from pglast.enums.parsenodes import AlterTableType
from pglast.parser import ParseError

from tollbook.migrate import grammar, psql
from tollbook.migrate.errors import Problem
from tollbook.migrate.files import Script

NESTED_KINDS = {
    TransactionStmtKind.TRANS_STMT_SAVEPOINT,
    TransactionStmtKind.TRANS_STMT_RELEASE,
    TransactionStmtKind.TRANS_STMT_ROLLBACK_TO,
}
OPENING_KINDS = {TransactionStmtKind.TRANS_STMT_BEGIN, TransactionStmtKind.TRANS_STMT_START}
NOT_SENT = "COPY … TO STDOUT gives its rows to the client, which here is nobody."


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: pglast's tree, where its text begins and ends (index from 0), and how it can run.

    alone names what in it cannot run inside a transaction, as its writer knows it. rows is what a
    COPY … FROM STDIN is sent. block counts the COMMITs of the file before it: what has the same number is to
    be committed together. modes are those of the file's own BEGIN.
    """

    tree: Any
    index: int
    end: int
    alone: str | None = None
    rows: str | None = None
    block: int = 0
    explicit: bool = False  # between a BEGIN and a COMMIT of the file's own
    modes: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the grammar says of a script. With problems it must not be run.

    text is what is to be sent: the script's, less what only psql reads, and less BEGIN and COMMIT.
    """

    statements: tuple[Statement, ...]
    problems: tuple[Problem, ...]
    text: str = ""


def read(script: Script) -> Reading:
    """Parse a script; every statement that may not stand in a migration is a problem with its line."""
    if script.refusal:
        return Reading((), (script.refusal,))
    plain = psql.Plain(script.text, (), ())
    try:
        raw: tuple[Any, ...] = grammar.parse(script.text)
    except ParseError as error:
        plain = psql.strip(script)
        if plain.problems:
            return Reading((), plain.problems)
        try:
            raw = grammar.parse(plain.text)
        except ParseError as left:
            return Reading((), (_explain(script, left if plain.rows else error),))
    return _Sorter(script, plain).sort(raw)


class _Sorter:
    """Goes through the statements of a script in order: what is the engine's, what runs, what must not."""

    def __init__(self, script: Script, plain: psql.Plain) -> None:
        self.script = script
        self.plain = plain
        self.statements: list[Statement] = []
        self.problems: list[Problem] = []
        self.blanks: list[tuple[int, int]] = []
        self.block = 0
        self.modes: str | None = None  # of the BEGIN that is open

    def sort(self, raw: Sequence[Any]) -> Reading:
        ends = [node.stmt_location for node in raw[1:]] + [len(self.plain.text)]
        for node, following in zip(raw, ends, strict=False):
            length = node.stmt_len or len(self.plain.text[node.stmt_location :].rstrip())
            self._take(node.stmt, node.stmt_location, node.stmt_location + length, following)
        if not self.blanks:
            return Reading(tuple(self.statements), tuple(self.problems), self.plain.text)
        pieces, done = list[str](), 0
        for start, end in self.blanks:
            pieces += [self.plain.text[done:start], " " * (end - start)]
            done = end
        pieces.append(self.plain.text[done:])
        return Reading(tuple(self.statements), tuple(self.problems), "".join(pieces))

    def _take(self, tree: Any, index: int, end: int, following: int) -> None:
        if isinstance(tree, ast.TransactionStmt) and tree.kind not in NESTED_KINDS:
            self._steer(tree, index, end)
            return
        if isinstance(tree, ast.CopyStmt) and not tree.filename and not tree.is_program and not tree.is_from:
            self._refuse(index, NOT_SENT, "Take it out; a migration has nobody to show rows to.")
        if name := _name_misread(tree, self.script.text):
            self._refuse(
                index,
                f"Under this {name} the server would read the file otherwise than it was read here.",
                "Take it out: a file is UTF-8, and a backslash in '…' is a backslash.",
            )
        rows = self._find_rows(index, following) if psql.takes_rows(tree) else None
        if rows is None and psql.takes_rows(tree):
            self._refuse(
                index,
                "This COPY is followed by no rows.",
                "Write them below it, and \\. on a line after them.",
            )
        if (forbidden := UNDER_US.get(kind_of(tree))) and (name := forbidden(tree)):
            self._refuse(index, f"{name} would end the engine's own hold on the session.", "Take it out.")
        check = OUTSIDE.get(kind_of(tree))
        alone = check(tree) if check else None
        if alone and self.modes is not None:
            self._refuse(
                index,
                f"{alone} cannot run inside a transaction, and this file has begun one.",
                "Put it behind the COMMIT.",
            )
        self.statements.append(
            Statement(tree, index, end, alone, rows, self.block, self.modes is not None, self.modes or "")
        )

    def _find_rows(self, index: int, following: int) -> str | None:
        """Return the rows that stand behind a statement and before the next."""
        place = bisect_right(self.plain.rows, index, key=lambda one: one.index)
        return next((one.text for one in self.plain.rows[place : place + 1] if one.index <= following), None)

    def _steer(self, tree: Any, index: int, end: int) -> None:
        """BEGIN and COMMIT say what belongs together; the engine itself begins and commits."""
        if tree.kind in OPENING_KINDS and self.modes is not None and not tree.options:
            pass  # begun already: for the server a warning and no more
        elif tree.kind in OPENING_KINDS and self.modes is None:
            text = self.plain.text[index:end]
            self.modes = text if tree.options else ""
            self.block += 1 if self.statements and self.statements[-1].block == self.block else 0
        elif tree.kind == TransactionStmtKind.TRANS_STMT_COMMIT and not tree.chain:
            self.modes = None
            self.block += 1
        else:
            word = TransactionStmtKind(tree.kind).name.removeprefix("TRANS_STMT_").replace("_", " ")
            self._refuse(
                index,
                f"{word} cannot stand here: what a migration has done it cannot undo half.",
                "Take it out, or split the file where it stands.",
            )
        self.blanks.append((index, end))

    def _refuse(self, index: int, what: str, then: str) -> None:
        place = self.script.point(index, caret=False)
        self.problems.append(Problem(what, then, place))


# What is no SQL of PostgreSQL's, by the mark at which its grammar gives up.
FOREIGN_MARKS = {
    "{{": "This is a template: write the SQL that it is rendered to;",
    "{%": "This is a template: write the SQL that it is rendered to;",
    "<%": "This is a template: write the SQL that it is rendered to;",
    "${": "This is a placeholder of another tool: write its value;",
    "`": "Names in backticks are MySQL's or SQLite's: write them in double quotes;",
    ":": "A variable of psql (:name) must be written out;",
}


FOREIGN_WORDS = {
    "auto_increment": "This is MySQL's: write GENERATED BY DEFAULT AS IDENTITY;",
    "autoincrement": "This is SQLite's: write GENERATED BY DEFAULT AS IDENTITY;",
    "delimiter": "This is for the client of MySQL: take it out, and write bodies between $$;",
    "engine": "This is MySQL's: take it out;",
    "go": "This is for the client of SQL Server: take it out;",
    "pragma": "This is SQLite's: take it out;",
}


def _explain(script: Script, error: ParseError) -> Problem:
    """Say why a script does not parse."""
    message, index = str(error.args[0]), int(error.args[1])
    advice = f"{_advise(script.text, index)} nothing was run."
    return Problem(f"{message[:1].lower()}{message[1:]}.", advice, script.point(index))


def _advise(text: str, index: int) -> str:
    """Return what to do about what is no SQL of PostgreSQL's at an index."""
    here = text[index : index + 1]
    if here and not here.isascii() and unicodedata.category(here) in ("Cf", "Zs"):
        name = unicodedata.name(here, "").lower()
        return f"The character here cannot be seen (U+{ord(here):04X}, {name}): take it out;"
    if (word := re.match(r"\w+", text[index:])) and word[0].lower() in FOREIGN_WORDS:
        return FOREIGN_WORDS[word[0].lower()]
    near = text[max(index - 2, 0) : index + 2]
    return next((advice for mark, advice in FOREIGN_MARKS.items() if mark in near), "Correct the SQL;")


def kind_of(tree: object) -> type:
    """Return a statement's kind: its class in pglast."""
    return type(tree)


def _name_misread(tree: Any, text: str) -> str | None:
    """Return the setting by which a statement would change what the rest of the text means, if it does."""
    if not isinstance(tree, ast.VariableSetStmt) or not tree.args:
        return None
    value = str(getattr(getattr(tree.args[0], "val", None), "sval", "")).lower().replace("-", "")
    if tree.name == "client_encoding" and value not in ("utf8", "unicode") and not text.isascii():
        return "client_encoding"
    off = tree.name == "standard_conforming_strings" and value not in ("on", "true", "yes", "1")
    return tree.name if off and "\\" in text else None


def _always(name: str) -> Callable[[Any], str | None]:
    return lambda tree: name


def _name_alter_table(tree: Any) -> str | None:
    for command in tree.cmds or ():
        if command.subtype == AlterTableType.AT_DetachPartition and command.def_.concurrent:
            return "DETACH PARTITION CONCURRENTLY"
    return None


def _name_alter_database(tree: Any) -> str | None:
    return (
        "ALTER DATABASE SET TABLESPACE"
        if any(o.defname == "tablespace" for o in tree.options or ())
        else None
    )


def _name_reindex(tree: Any) -> str | None:
    if any(option.defname == "concurrently" for option in tree.params or ()):
        return "REINDEX CONCURRENTLY"
    if tree.kind in (
        ReindexObjectType.REINDEX_OBJECT_DATABASE,
        ReindexObjectType.REINDEX_OBJECT_SYSTEM,
        ReindexObjectType.REINDEX_OBJECT_SCHEMA,
    ):
        return "REINDEX of a whole schema or database"
    return None


def _name_drop(tree: Any) -> str | None:
    return (
        "DROP INDEX CONCURRENTLY" if tree.concurrent and tree.removeType == ObjectType.OBJECT_INDEX else None
    )


# By kind of statement: what in it cannot run in a transaction block, named as its writer knows it.
OUTSIDE: dict[type, Callable[[Any], str | None]] = {
    ast.IndexStmt: lambda tree: "CREATE INDEX CONCURRENTLY" if tree.concurrent else None,
    ast.DropStmt: _name_drop,
    ast.ReindexStmt: _name_reindex,
    ast.AlterTableStmt: _name_alter_table,
    ast.VacuumStmt: lambda tree: "VACUUM" if tree.is_vacuumcmd else None,
    ast.CreatedbStmt: _always("CREATE DATABASE"),
    ast.DropdbStmt: _always("DROP DATABASE"),
    ast.AlterDatabaseStmt: _name_alter_database,
    ast.CreateTableSpaceStmt: _always("CREATE TABLESPACE"),
    ast.DropTableSpaceStmt: _always("DROP TABLESPACE"),
    ast.AlterSystemStmt: _always("ALTER SYSTEM"),
    ast.ClusterStmt: lambda tree: None if tree.relation else "CLUSTER of a whole database",
    ast.CreateSubscriptionStmt: _always("CREATE SUBSCRIPTION"),
    ast.DropSubscriptionStmt: _always("DROP SUBSCRIPTION"),
}
# What would take the engine's own hold on the session with it: its lock.
UNDER_US: dict[type, Callable[[Any], str | None]] = {
    ast.DiscardStmt: lambda tree: "DISCARD ALL" if tree.target == DiscardMode.DISCARD_ALL else None,
}
