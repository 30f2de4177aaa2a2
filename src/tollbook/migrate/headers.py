"""What a file's first comment says of how it is to be run: `-- tollbook: lock_timeout=2s role=owner`."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tollbook.migrate.errors import FolderRefused, Place

LINE = re.compile(r"--\s*tollbook:(?!\s*allow\b)\s*(?P<words>.*)")
LENGTH = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|min|h|)")
UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "min": 60.0, "h": 3600.0}
BATCH_ROWS_MAX = 1_000_000
SWITCH = {"on": True, "true": True, "off": False, "false": False}
KNOWN = (
    "transaction=on|off, lock_timeout=5s, statement_timeout=10min, role=NAME, rerunnable=on, "
    "replaces=FIRST..LAST"
)
KNOWN_OF_BACKFILLS = (
    "table=NAME, key=COLUMN[,COLUMN], batch=1000, pause=50ms, lock_timeout, statement_timeout, role"
)


@dataclass(frozen=True, slots=True)
class Options:
    """How a script is to be run. transaction False: each statement by itself.

    truths: of a check, a SELECT that returns false fails it too, not an error alone. Of a back-fill: its
    table and key, the rows of a batch, and the pause after each.
    """

    transaction: bool = True
    lock_timeout_seconds: float | None = None
    statement_timeout_seconds: float | None = None
    role: str | None = None
    truths: bool = True
    rerunnable: bool = False  # claims that it may be run twice
    replaces: tuple[str, str] | None = None  # of a squashed one: the first and last version it stands for
    digest: str | None = None  # of a squashed one: the SHA-256 of what follows its first line
    table: str | None = None
    key: tuple[str, ...] = ()
    batch: int | None = None
    pause_seconds: float | None = None


def read(path: Path, text: str) -> Options:
    """Return the options in the comment lines before the first statement. Raises FolderRefused."""
    fills = ".backfill." in path.name.lower()
    readers, known = (READERS_OF_BACKFILLS, KNOWN_OF_BACKFILLS) if fills else (READERS, KNOWN)
    found: dict[str, str] = {}
    for number, line in enumerate(_read_lines(text), 1):
        if line.strip() and not line.startswith("--"):
            break
        match = LINE.match(line)
        for word in match["words"].split() if match else ():
            if path.name.lower().endswith(".check.sql"):
                raise FolderRefused(
                    f"{word} is no option of a check, which has none: it runs in its migration's "
                    "transaction, as who applies it.",
                    Place(str(path), number),
                )
            name, equals, value = word.partition("=")
            if not equals or name not in readers or readers[name](value) is None:
                raise FolderRefused(
                    f"{word} is no option of a file. There are: {known}.", Place(str(path), number)
                )
            found[name] = value
    values = {FIELDS.get(name, name): readers[name](value) for name, value in found.items()}
    return Options(**values)  # pyright: ignore[reportArgumentType]


def _read_lines(text: str) -> Iterator[str]:
    """Give the lines one by one: mostly only the first few are looked at, of whatever file."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def read_seconds(text: str) -> float | None:
    """Return the seconds of a length such as 500ms, 5s or 2min; None where it is none, or zero."""
    match = LENGTH.fullmatch(text.strip())
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    # PostgreSQL takes 0 for "wait for ever", which is what these are there to prevent.
    return seconds if seconds >= UNITS["ms"] else None


def _read_range(text: str) -> tuple[str, str] | None:
    first, dots, last = text.partition("..")
    return (first, last) if dots and first and last else None


def _read_role(text: str) -> str | None:
    return text.strip('"') or None


def _read_name(text: str) -> str | None:
    return text or None


def _read_key(text: str) -> tuple[str, ...] | None:
    names = tuple(text.split(","))
    return names if all(names) else None


def _read_batch(text: str) -> int | None:
    return int(text) if text.isdecimal() and 1 <= int(text) <= BATCH_ROWS_MAX else None


READERS: dict[str, Callable[[str], Any]] = {
    "transaction": SWITCH.get,
    "lock_timeout": read_seconds,
    "statement_timeout": read_seconds,
    "role": _read_role,
    "rerunnable": SWITCH.get,
    "replaces": _read_range,
    "digest": _read_name,
}
READERS_OF_BACKFILLS: dict[str, Callable[[str], Any]] = {
    "table": _read_name,
    "key": _read_key,
    "batch": _read_batch,
    "pause": read_seconds,
} | {name: READERS[name] for name in ("lock_timeout", "statement_timeout", "role")}
FIELDS = {
    "lock_timeout": "lock_timeout_seconds",
    "statement_timeout": "statement_timeout_seconds",
    "pause": "pause_seconds",
}
