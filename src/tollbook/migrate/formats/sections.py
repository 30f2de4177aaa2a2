"""Files that hold several parts, each as long as the file with the rest of it blank; and values in them."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tollbook.migrate.errors import Problem
from tollbook.migrate.files import Migration, Piece, Script
from tollbook.migrate.headers import Options

INCLUDES = re.compile(r"\\i(?:r|nclude|nclude_relative)?\s")
INCLUSIONS_DEEP_MAX = 8
LOOK_CHARACTERS_MAX = 2**20


def begins(path: Path, name: re.Pattern[str], mark: re.Pattern[str]) -> bool:
    """Whether the first file of such a name in the folder holds the mark."""
    first = find_first(path, name)
    return first is not None and mark.search(read_text(first)) is not None


def find_first(path: Path, name: re.Pattern[str]) -> Path | None:
    """Return the first file of such a name in the folder."""
    first = min(filter(name.fullmatch, os.listdir(path)), default=None)
    return path / first if first else None


def read_text(path: Path) -> str:
    """Return how a file begins, for a first look: without a byte order mark, whatever its encoding."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.read(LOOK_CHARACTERS_MAX)


def cut(script: Script, spans: Iterable[tuple[int, int]], options: Options) -> Script:
    """Return the script with everything blank but what lies in the spans (start, end), in order.

    Its checksum is that of the part, so that a changed way back is no change of the way there.
    """
    kept: list[str] = []
    done = 0
    for start, end in spans:
        kept += [blank(script.text[done:start]), script.text[start:end]]
        done = end
    text = "".join([*kept, blank(script.text[done:])])
    return replace(
        script, text=text, checksum=hashlib.sha256(text.strip().encode()).hexdigest(), options=options
    )


def blank(text: str) -> str:
    """Return spaces and line ends in the text's place."""
    return "\n".join(" " * len(line) for line in text.split("\n"))


def fill(
    script: Script,
    places: Iterable[re.Match[str]],
    value: Callable[[re.Match[str]], str | None],
    advice: Callable[[re.Match[str]], str],
) -> Script:
    """Return the script with a value in each place; its checksum stays that of the file.

    Where there is none the script is refused, with advice, when it is to be run.
    """
    pieces: list[str] = []
    done = 0
    refusal = script.refusal
    for place in places:
        found = value(place)
        if found is None:
            where = script.point(place.start())
            refusal = refusal or Problem(f"{place[0]} has no value.", advice(place), where)
            continue
        pieces += [script.text[done : place.start()], found]
        done = place.end()
    return replace(script, text="".join([*pieces, script.text[done:]]), refusal=refusal)


def surround(script: Script, before: Sequence[Script], after: Sequence[Script] = ()) -> Script:
    """Return a script that runs others before and after its own text, together with it.

    Its checksum stays that of its own file, and each of its characters has the place that it comes from.
    """
    if script.refusal or not (before or after):
        return script
    text = ""
    pieces: list[Piece] = []
    for one in (*before, script, *after):
        own = one.pieces or (Piece(0, one.path, one.text),)
        pieces += [replace(piece, start=piece.start + len(text)) for piece in own]
        text += f"{one.text}\n;\n"
    refusal = next((one.refusal for one in (*before, *after) if one.refusal), None)
    return replace(script, text=text, pieces=tuple(pieces), refusal=refusal)


def include(script: Script, base: Path, load: Callable[[Path], Script], depth: int = 0) -> Script:
    r"""Return a script with the files in it that psql would include there, by \i from `base`, and by \ir.

    They count in its checksum. What is not there stays as it is, to be refused where it stands.
    """
    if depth == INCLUSIONS_DEEP_MAX or not INCLUDES.search(script.text):
        return script
    from tollbook.migrate import psql  # with the grammar, which is slow to load

    text, done, refusal = "", 0, script.refusal
    pieces: list[Piece] = []
    checksums = [script.checksum]
    for one in psql.strip(script).inclusions:
        path = (script.path.parent if one.relative else base) / one.file
        if not path.is_file():
            continue
        inner = include(load(path), base, load, depth + 1)
        pieces.append(Piece(len(text), script.path, script.text, done))
        text += script.text[done : one.start]
        own = inner.pieces or (Piece(0, path, inner.text),)
        pieces += [replace(piece, start=piece.start + len(text)) for piece in own]
        text += f"{inner.text}\n;"
        checksums.append(inner.checksum)
        refusal = refusal or inner.refusal
        done = one.end
    if not done:
        return script
    pieces.append(Piece(len(text), script.path, script.text, done))
    checksum = hashlib.sha256("\n".join(checksums).encode()).hexdigest()
    text += script.text[done:]
    return replace(script, text=text, checksum=checksum, pieces=tuple(pieces), refusal=refusal)


def make_last(folder: str, label: str, script: Script, before: str) -> Migration:
    """Return what runs behind all others, again whenever `before`, which stands for them, is another."""
    checksum = hashlib.sha256(f"{before}\n{script.checksum}".encode()).hexdigest()
    return Migration(folder, label, label, replace(script, checksum=checksum), repeatable=True, kept=False)
