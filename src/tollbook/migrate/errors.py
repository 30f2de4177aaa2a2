"""Why a migration command stops: each refusal says what, where and what to do next."""

import re
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

EXCERPT_CHARACTERS_MAX = 160
PROBLEMS_SHOWN_MAX = 50
TEXTS_KNOWN_MAX = 2  # of so many texts it is remembered where their lines begin


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a file: path, line and column (from 1), and the line with a caret under the column."""

    path: str
    line: int | None = None
    column: int | None = None
    excerpt: str = ""

    def __str__(self) -> str:
        numbers = [str(number) for number in (self.line, self.column) if number is not None]
        return ":".join([self.path, *numbers])


def point(path: str, text: str, index: int, *, caret: bool = True) -> Place:
    """Return the place of the character `index` (from 0) of the text."""
    index = max(0, min(index, len(text)))
    starts = find_lines(text)
    number = bisect_right(starts, index)
    start = starts[number - 1]
    end = text.find("\n", index)
    line = text[start : end if end >= 0 else len(text)].rstrip("\r")
    column = index - start
    shift = max(0, column - EXCERPT_CHARACTERS_MAX // 2)
    shown = line[shift : shift + EXCERPT_CHARACTERS_MAX]
    # Tabs stay tabs, so that the caret stands under its character however wide a terminal draws them.
    under = "".join("\t" if character == "\t" else " " for character in shown[: column - shift])
    excerpt = f"{shown}\n{under}^" if caret else shown
    return Place(path, number, column + 1, excerpt)


def find(text: str, line: int, column: int) -> int:
    """Return the character (from 0) of a line and a column (both from 1); the last where there is no such."""
    starts = find_lines(text)
    return min(starts[line - 1] + column - 1, len(text)) if line <= len(starts) else len(text)


@lru_cache(maxsize=TEXTS_KNOWN_MAX)
def find_lines(text: str) -> "array[int]":
    """Return where each line begins. Counted anew for each place, a big file took minutes."""
    return array("Q", [0, *(match.end() for match in re.finditer("\n", text))])


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that stops a run before it starts: what, where, and what to do next."""

    what: str
    next: str
    place: Place | None = None

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        return f"{where}{self.what} {self.next}"


class MigrateError(Exception):
    """A migration command refused or failed. Nothing is left half done."""

    reason: ClassVar[str] = "migrate-failed"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, sentence: str, place: Place | None = None, **details: Any) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.place = place
        self.details = details

    def __str__(self) -> str:
        if self.place is None:
            return self.sentence
        excerpt = "".join(f"\n    {line}" for line in self.place.excerpt.splitlines())
        return f"{self.place}: {self.sentence}{excerpt}"


class WrongUsage(MigrateError):
    """The command cannot be understood as given."""

    reason = "wrong-usage"
    status = 400
    exit_code = 2


class FolderRefused(MigrateError):
    """A folder or one of its files cannot be read as migrations."""

    reason = "folder-refused"
    status = 409


class DatabaseUnreachable(MigrateError):
    """The server cannot be reached or does not let us in."""

    reason = "database-unreachable"
    status = 503


class ConnectionLost(MigrateError):
    """The server went away in the middle; what was not committed is rolled back."""

    reason = "connection-lost"
    status = 503


class LockHeld(MigrateError):
    """Another run works on this database and did not end in time."""

    reason = "lock-held"
    status = 409


class InTheWay(MigrateError):
    """Our own statement held too many other sessions up; it was cancelled and rolled back."""

    reason = "in-the-way"
    status = 409


class ReplicaBehind(MigrateError):
    """A replica did not catch up in time; nothing more was begun."""

    reason = "replica-behind"
    status = 503


class SessionNotOurs(MigrateError):
    """A pooler hands our session from one server process to another, so its lock protects nothing."""

    reason = "session-not-ours"
    status = 409


class PreflightRefused(MigrateError):
    """Something stands in the way; all of it is named and nothing was changed."""

    reason = "preflight-refused"
    status = 409

    def __init__(self, problems: Sequence[Problem]) -> None:
        shown = [str(problem) for problem in problems[:PROBLEMS_SHOWN_MAX]]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more.")
        first = problems[0].place if len(problems) == 1 else None
        excerpt = "".join(f"\n    {line}" for line in first.excerpt.splitlines()) if first else ""
        super().__init__("\n".join(shown) + excerpt)
        self.problems = tuple(problems)


class StatementFailed(MigrateError):
    """PostgreSQL refused a statement of a file; that file's transaction is rolled back."""

    reason = "statement-failed"
    status = 409


class VerificationFailed(MigrateError):
    """A migration ran but did not make what it promises; it is rolled back."""

    reason = "verification-failed"
    status = 409
    exit_code = 4


class NoWayBack(MigrateError):
    """A migration to be reverted has no down statements."""

    reason = "no-way-back"
    status = 409


class BackupFailed(MigrateError):
    """No trustworthy backup could be written; nothing was changed and no partial file is left."""

    reason = "backup-failed"


class RestoreFailed(MigrateError):
    """A backup could not be loaded; the database is as it was."""

    reason = "restore-failed"


class ToolMissing(MigrateError):
    """pg_dump or pg_restore is absent, or older than the server."""

    reason = "tool-missing"
