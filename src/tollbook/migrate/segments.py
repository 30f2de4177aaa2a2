"""A script cut where it must be committed: nearly always nowhere, so that the file is one transaction.

A cut is where the file's own COMMIT stands, around a statement that cannot run inside a transaction, and
between all statements of a file that asks for no transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from pglast import ast

from tollbook.migrate.headers import Options
from tollbook.migrate.statements import Statement

# A new value of an enum can be used only when it is committed.
UNSAFE_NEW_ENUM_VALUE = "55P04"
# Of a program: it sent what cannot run inside a transaction.
OUTSIDE_ONLY = "25001"
WANT_OF_COMMIT = (OUTSIDE_ONLY, UNSAFE_NEW_ENUM_VALUE)  # why a program may fail that commits where it asks to
# By what the server says: which statements may be the cause, and so run outside a transaction. The first is
# of what commits itself; the second of what cannot be in a transaction where the table is partitioned, or a
# subscription is enabled, which no file tells.
SET_APART: dict[str, dict[type, str]] = {
    "2D000": {ast.DoStmt: "DO", ast.CallStmt: "CALL"},
    OUTSIDE_ONLY: {
        ast.ReindexStmt: "REINDEX of a partitioned table",
        ast.ClusterStmt: "CLUSTER of a partitioned table",
        ast.AlterSubscriptionStmt: "ALTER SUBSCRIPTION",
    },
}


@dataclass(frozen=True, slots=True)
class Segment:
    """Statements that are committed together. first: the number (from 0) of the first in its script."""

    first: int
    statements: tuple[Statement, ...]

    @property
    def alone(self) -> str | None:
        """What it is that cannot run inside a transaction; None for a transaction."""
        return self.statements[0].alone if self.statements else None

    @property
    def modes(self) -> str:
        """The file's own BEGIN, where that says more than the word."""
        return self.statements[0].modes if self.statements else ""

    @property
    def end(self) -> int:
        """The number of the first statement after it."""
        return self.first + len(self.statements)


def split(
    statements: Sequence[Statement], options: Options, *, after_new_values: bool = False
) -> tuple[Segment, ...]:
    """Cut a script. A script without statements is one empty transaction.

    after_new_values cuts behind ALTER TYPE … ADD VALUE too: a value can be used only when it is committed.
    """
    segments: list[list[Statement]] = []
    for statement in statements:
        before = segments[-1][-1] if segments else None
        if before is None or _must_cut(before, statement, options, after_new_values=after_new_values):
            segments.append([])
        segments[-1].append(statement)
    found: list[Segment] = []
    for members in segments or [[]]:
        found.append(Segment(found[-1].end if found else 0, tuple(members)))
    return tuple(found)


def _must_cut(before: Statement, after: Statement, options: Options, *, after_new_values: bool) -> bool:
    if before.alone or after.alone or before.block != after.block:
        return True
    if not options.transaction and not (before.explicit and after.explicit):
        return True
    return after_new_values and adds_value(before) and not adds_value(after)


def adds_value(statement: Statement) -> bool:
    """Whether a statement is ALTER TYPE … ADD VALUE."""
    tree = statement.tree
    return isinstance(tree, ast.AlterEnumStmt) and not tree.oldVal


def may_commit(statement: Statement) -> bool:
    """Whether a statement may have a COMMIT of its own in it, which only outside a transaction can run."""
    return isinstance(statement.tree, ast.DoStmt | ast.CallStmt)


class Cuts:
    """How a script is cut: coarsely at first, and finer once the server has said why that cannot be."""

    def __init__(self, statements: Sequence[Statement], options: Options) -> None:
        self.statements = tuple(statements)
        self.options = options
        self.after_new_values = False

    def split(self) -> tuple[Segment, ...]:
        """Return the script's segments."""
        return split(self.statements, self.options, after_new_values=self.after_new_values)

    def refine(self, sqlstate: str | None) -> bool:
        """Cut finer after an error. Returns whether there is anything to cut for it, once for each kind."""
        before = (self.statements, self.after_new_values)
        if sqlstate == UNSAFE_NEW_ENUM_VALUE:
            self.after_new_values = any(adds_value(one) for one in self.statements)
        names = SET_APART.get(sqlstate or "", {})
        self.statements = tuple(
            replace(one, alone=names[type(one.tree)])
            if type(one.tree) in names and not (one.explicit or one.alone)
            else one
            for one in self.statements
        )
        return before != (self.statements, self.after_new_values)


class Fingerprints:
    """Digests of the first statements of a script, which grow: none is gone through twice."""

    def __init__(self, text: str, statements: Sequence[Statement]) -> None:
        self.text = text
        self.statements = statements
        self._begin()

    def _begin(self) -> None:
        self._count = 0
        self._digest = sha256()

    def take(self, count: int) -> str:
        """Return the digest of the first `count` statements as they stand in the text."""
        if count < self._count:
            self._begin()
        for one in self.statements[self._count : count]:
            self._digest.update(b"\0" if self._count else b"")
            self._digest.update(self.text[one.index : one.end].encode())
            self._count += 1
        return self._digest.copy().hexdigest()


def fingerprint(text: str, statements: Sequence[Statement]) -> str:
    """Return a digest of statements as they stand in the text of their script."""
    return Fingerprints(text, statements).take(len(statements))
