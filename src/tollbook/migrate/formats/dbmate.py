"""dbmate: one file a migration, `-- migrate:up` and `-- migrate:down` in it."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place, point
from tollbook.migrate.files import Folder, Migration, Script, list_sql, read_script, sort
from tollbook.migrate.formats import sections
from tollbook.migrate.headers import Options

FILE_NAME = re.compile(r"(?P<label>(?P<version>[0-9]+).*)\.sql")
BLOCK = re.compile(r"(?m)^--\s*migrate:(?P<part>up|down)\b(?P<options>.*)$")


def recognise(path: Path) -> bool:
    """Whether a numbered file of the folder has dbmate's blocks."""
    return sections.begins(path, FILE_NAME, BLOCK)


def read(folder: Folder) -> list[Migration]:
    """Return the folder's migrations. Raises FolderRefused."""
    found: list[Migration] = []
    for path in list_sql(folder.path):
        match = FILE_NAME.fullmatch(path.name)
        if match is None:
            continue  # dbmate itself passes over files that do not begin with a number
        up, down = _split(read_script(path))
        found.append(Migration(folder.name, match["version"], match["label"], up, down))
    sort(found)  # says which two have one number
    return sorted(found, key=lambda one: one.label)  # as dbmate does: 20240102 behind 20240101000000


def _split(script: Script) -> tuple[Script, Script | None]:
    blocks = list(BLOCK.finditer(script.text))
    if not blocks or blocks[0]["part"] != "up":
        raise FolderRefused("This file does not begin with `-- migrate:up`.", Place(str(script.path)))
    head = script.text[: blocks[0].start()]
    for index, line in zip(_starts(head), head.split("\n"), strict=True):
        if line.strip() and not line.lstrip().startswith("--"):
            raise FolderRefused(
                "What stands before `-- migrate:up` never runs. Put it behind that line.",
                point(str(script.path), script.text, index),
            )
    for before, block in itertools.pairwise(blocks):
        if before["part"] == block["part"]:
            raise FolderRefused(
                "dbmate wants a `-- migrate:down` behind each `-- migrate:up`, and nothing else.",
                point(str(script.path), script.text, block.start()),
            )
    ends = [block.start() for block in blocks[1:]] + [len(script.text)]
    spans = [(block.end(), end) for block, end in zip(blocks, ends, strict=True)]
    up = sections.cut(script, spans[::2], _read_options(script, blocks[::2]))
    down = sections.cut(script, spans[1::2], _read_options(script, blocks[1::2])) if spans[1:] else None
    if down and spans[3:]:  # what was made last goes first: then an index of its text is none of the file's
        text = "\n".join(script.text[start:end] for start, end in reversed(spans[1::2]))
        down = replace(down, text=text)
    return up, down


def _read_options(script: Script, blocks: list[re.Match[str]]) -> Options:
    said = any("transaction:false" in block["options"].split() for block in blocks)
    return replace(script.options, transaction=script.options.transaction and not said)


def _starts(text: str) -> list[int]:
    starts, index = list[int](), 0
    for line in text.split("\n"):
        starts.append(index)
        index += len(line) + 1
    return starts
