"""What a rule of the lint is made of, and what it finds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tollbook.migrate.errors import Place

if TYPE_CHECKING:
    from tollbook.migrate.lint.unit import End, File, Unit

Severity = Literal["error", "warning", "notice"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "notice")  # gravest first


@dataclass(frozen=True, slots=True)
class Finding:
    """A hazard in a file: which rule, how grave, where, what, and the SQL that does it safely (or none)."""

    rule: str
    severity: Severity
    place: Place
    sentence: str
    safe_sql: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """What a rule says of one statement.

    on is the relation it is about: where that is new, a rule that spares the new is not heard. at is the
    place, in characters from the file's start, where it is not the statement itself.
    """

    sentence: str
    safe_sql: str = ""
    on: Any = None
    severity: Severity | None = None
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a rule says PostgreSQL does with its example; a test runs the example and looks.

    Either a lock held on a relation (while its rows are read, or the table is written anew), or a query
    whose answer changes, or the SQLSTATE with which it fails.
    """

    lock: str = ""
    on: str = "orders"
    scan: bool = False
    rewrite: bool = False
    changes: str = ""
    fails: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """A file that the rule finds something in, over the tables of `examples.GIVEN` and what `given` adds.

    first is what is committed before its safe SQL, where that is not all that comes in the example's place.
    """

    sql: str
    claim: Claim | None = None
    given: str = ""
    first: str = ""


def _find_nothing(unit: "Unit") -> Iterable[Hit]:
    return ()


def _find_nothing_in_file(file: "File") -> Iterable[Hit]:
    return ()


def _find_nothing_at_end(end: "End") -> Iterable[tuple[Place, Hit]]:
    return ()


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: what it looks for, why that hurts, and what to do instead.

    check is asked for each statement, with the schema as it is before it; check_file for each file, with
    the schema after it; check_end once, after the last file. spares_new: says nothing of what the same
    file, or an earlier pending one, has made. down: looks into down files too. of_rows: check looks at
    statements on rows too (INSERT, SELECT, …), of which a file can have 100,000s. squawk names the rules
    of squawk that say the same.
    """

    id: str
    severity: Severity
    what: str
    why: str
    safe: str
    example: Example
    check: Callable[["Unit"], Iterable[Hit]] = _find_nothing
    check_file: Callable[["File"], Iterable[Hit]] = _find_nothing_in_file
    check_end: Callable[["End"], Iterable[tuple[Place, Hit]]] = _find_nothing_at_end
    spares_new: bool = True
    down: bool = True
    of_rows: bool = False
    squawk: tuple[str, ...] = ()
