"""goose: one file a migration, `-- +goose Up` and `-- +goose Down` in it, and fences around statements."""

import os
import re
from dataclasses import replace
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Folder, Migration, Script, list_sql, read_script, sort
from tollbook.migrate.formats import sections

FILE_NAME = re.compile(r"(?P<label>(?P<version>[0-9]+)_.*)\.sql")
PROGRAM = re.compile(r"[0-9]+_.*(?<!_test)\.go")
NOTE = re.compile(r"(?mi)^[ \t]*--[ \t]*\+goose[ \t]+(?P<what>[a-z ]+?)[ \t]*$")


def recognise(path: Path) -> bool:
    """Whether a numbered file of the folder has goose's annotations."""
    named = (file for file in sorted(path.glob("*.sql")) if FILE_NAME.fullmatch(file.name))
    first = next(named, None)
    return first is not None and NOTE.search(first.read_text(errors="replace")) is not None


def read(folder: Folder) -> list[Migration]:
    """Return the folder's migrations. Raises FolderRefused."""
    program = next((name for name in sorted(os.listdir(folder.path)) if PROGRAM.fullmatch(name)), None)
    if program:
        raise FolderRefused(
            "This migration is a program in Go, which only goose can run. Write what it does as SQL under "
            "the same number, or run it by goose and `baseline` the folder.",
            Place(str(folder.path / program)),
        )
    found: list[Migration] = []
    for path in list_sql(folder.path):
        match = FILE_NAME.fullmatch(path.name)
        if match is None:
            raise FolderRefused(
                "This file is not named NUMBER_name.sql, so goose would not run it. Rename or move it.",
                Place(str(path)),
            )
        up, down = _split(read_script(path))
        found.append(Migration(folder.name, str(int(match["version"])), match["label"], up, down))
    return sort(found)


def _split(script: Script) -> tuple[Script, Script | None]:
    spans: dict[str, list[tuple[int, int]]] = {"up": [], "down": []}
    ends: list[re.Match[str]] = []
    part, start, transaction = "", 0, True
    for note in NOTE.finditer(script.text):
        what = " ".join(note["what"].lower().split())
        if what == "no transaction":
            transaction = False
            continue
        if what in ("up", "down"):
            if part:
                spans[part].append((start, note.start()))
            part, start = what, note.end()
        elif what == "statementend":
            ends.append(note)
        elif what != "statementbegin":
            line = script.text.count("\n", 0, note.start()) + 1
            raise FolderRefused(
                f"`+goose {note['what']}` is not known here. Write the values into the file.",
                Place(str(script.path), line),
            )
    if not part or not (spans["up"] or part == "up"):
        raise FolderRefused("This file has no `-- +goose Up`.", Place(str(script.path)))
    spans[part].append((start, len(script.text)))
    # A fence ends a statement, with or without a semicolon before it.
    text = script.text
    for end in ends:
        text = f"{text[: end.start()]};{' ' * (len(end[0]) - 1)}{text[end.end() :]}"
    options = replace(script.options, transaction=script.options.transaction and transaction)
    ended = replace(script, text=text)
    down = sections.cut(ended, spans["down"], options) if spans["down"] else None
    return sections.cut(ended, spans["up"], options), down
