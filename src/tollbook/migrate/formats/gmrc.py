"""graphile-migrate's settings: JSON5, or a program in JavaScript, of which what is written out is read."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from tollbook.migrate.formats import sections

NAMES = (".gmrc", ".gmrc.js", ".gmrc.cjs")
ABOVE_MAX = 3  # committed, migrations, and the project
DEPTH_MAX = 20
# What is a remark, a text, a sign of structure, or anything else.
TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<sign>[{}\[\]():,])"""
    r"""|(?P<word>`(?:[^`\\]|\\.)*`|[^\s{}\[\]():,"'`/]+|/)""",
    re.DOTALL,
)
OPENING, CLOSING = "{[(", "}])"
EXPORTS = re.compile(r"\bmodule\.exports\s*=\s*|\bexport\s+default\s+")
WORDS = {"true": True, "false": False, "null": None}


def read(path: Path) -> dict[str, Any]:
    """Return the settings that lie in a folder or above it; what is computed in them is None."""
    above = (path.resolve() / "x").parents[:ABOVE_MAX]
    files = (one / name for one in above for name in NAMES)
    text = next((sections.read_text(one) for one in files if one.is_file()), "")
    exported = EXPORTS.search(text)
    tokens = TOKEN.finditer(text, exported.end() if exported else 0)
    said = _Reader(one for one in tokens if one.lastgroup).read_value(0, alone=True)
    return cast("dict[str, Any]", said) if isinstance(said, dict) else {}


class _Reader:
    """Goes through the tokens once, one ahead."""

    def __init__(self, tokens: Iterator[re.Match[str]]) -> None:
        self.tokens = tokens
        self.step()

    def step(self) -> None:
        token = next(self.tokens, None)
        self.kind, self.mark = (token.lastgroup, token[0]) if token else (None, "")

    def read_value(self, depth: int, *, alone: bool = False) -> Any:
        """Return the value that begins here, and go behind it; None where more than that stands here."""
        kind, mark = self.kind, self.mark
        self.step()
        if depth < DEPTH_MAX and kind == "sign" and mark in "{[":
            value = self._read_object(depth) if mark == "{" else self._read_list(depth)
        elif kind == "text":
            value = re.sub(r"\\(.)", r"\1", mark[1:-1], flags=re.DOTALL)
        else:
            value = WORDS.get(mark)
        return None if not alone and self._pass_rest() else value

    def _read_list(self, depth: int) -> list[Any]:
        found: list[Any] = []
        while self.kind and self.mark != "]":
            found.append(self.read_value(depth + 1))
            self._pass_comma()
        self.step()
        return found

    def _read_object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.kind and self.mark != "}":
            name = self.mark.strip("\"'")
            self.step()
            if self.mark == ":":
                self.step()
                found[name] = self.read_value(depth + 1)
            else:  # ...others, and what has the name of its value
                self._pass_rest()
            self._pass_comma()
        self.step()
        return found

    def _pass_comma(self) -> None:
        if self.mark == ",":
            self.step()

    def _pass_rest(self) -> bool:
        """Go to the end of what is computed. Returns whether there was anything to go over."""
        depth, passed = 0, False
        while self.kind and (depth or self.kind != "sign" or self.mark not in ",}])"):
            depth += (self.mark in OPENING) - (self.mark in CLOSING) if self.kind == "sign" else 0
            passed = True
            self.step()
        return passed
