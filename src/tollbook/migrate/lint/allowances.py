"""Allowances: `-- tollbook: allow RULE because REASON`, and squawk's own `-- squawk-ignore RULE`."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pglast.parser import ParseError, scan

from tollbook.migrate import pieces

COMMENTS = ("SQL_COMMENT", "C_COMMENT")
OURS = re.compile(
    r"tollbook:\s*allow\b[ \t]*(?P<rules>[a-z0-9:-]+(?:\s*,\s*[a-z0-9:-]+)*)?(?P<rest>.*)", re.S
)
BECAUSE = re.compile(r"\s+because\s+(?P<reason>\S.*)", re.S)
SQUAWK = re.compile(r"squawk-ignore(?P<file>-file)?(?:[ \t]+(?P<rules>[a-z0-9-]+(?:\s*,\s*[a-z0-9-]+)*))?\s*")


@dataclass(slots=True)
class Allowance:
    """What a comment allows: for the statement it stands at (its number from 0), or the whole file (None).

    foreign: it is squawk's, and names rules as squawk does; none named means all.
    """

    rules: tuple[str, ...]
    reason: str
    index: int
    statement: int | None
    foreign: bool = False
    used: set[str] = field(default_factory=set[str])

    def covers(self, statement: int | None) -> bool:
        """Whether it is for a statement."""
        return self.statement is None or self.statement == statement


def read(text: str, spans: Sequence[tuple[int, int]]) -> list[Allowance]:
    """Return the allowances of a file whose statements begin and end at these characters."""
    found: list[Allowance] = []
    try:
        comments = list(_find_comments(text)) if _may_hold(text) else []
    except ParseError:
        return []
    for start, end in comments:
        words = _strip(text[start : end + 1])
        if match := OURS.fullmatch(words):
            because = BECAUSE.fullmatch(match["rest"])
            found.append(
                Allowance(
                    _split(match["rules"]),
                    because["reason"].strip() if because else "",
                    start,
                    _place(text, start, end, spans),
                )
            )
        elif match := SQUAWK.fullmatch(words):
            statement = None if match["file"] else _place(text, start, end, spans)
            found.append(Allowance(_split(match["rules"]), "", start, statement, foreign=True))
    return found


def _find_comments(text: str) -> Iterator[tuple[int, int]]:
    """Give where the comments that may say something begin and end. Raises ParseError."""
    for begin, piece in pieces.split(text):
        for token in scan(piece) if _may_hold(piece) else ():
            if token.name in COMMENTS:
                yield begin + token.start, begin + token.end


def _may_hold(text: str) -> bool:
    return "tollbook:" in text or "squawk-ignore" in text


def _strip(comment: str) -> str:
    if comment.startswith("--"):
        return comment[2:].strip()
    return comment.removeprefix("/*").removesuffix("*/").strip()


def _split(rules: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in rules.split(",")) if rules else ()


def _place(text: str, start: int, end: int, spans: Sequence[tuple[int, int]]) -> int | None:
    """Return which statement a comment is for, or None for the file.

    That in which it stands, or on whose last line it stands, or else the next one. Above the first
    statement, with an empty line between, it is the file's.
    """
    number = bisect_right(spans, start, key=lambda span: span[1])
    if number == len(spans):
        return number - 1 if spans else None
    begin = spans[number][0]
    if start >= begin:
        return number
    if number and "\n" not in text[spans[number - 1][1] : start]:
        return number - 1
    # Comments directly under it belong to the same heading.
    return None if number == 0 and "\n\n" in text[end:begin].replace(" ", "") else number
