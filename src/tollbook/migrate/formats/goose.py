"""goose: one file a migration, `-- +goose Up` and `-- +goose Down` in it, and fences around statements.

sql-migrate and micrate write the same, with names of their own behind the plus.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place, point
from tollbook.migrate.files import Folder, Migration, Script, list_sql, read_foreign, read_script, sort
from tollbook.migrate.formats import sections

FILE_NAME = re.compile(r"(?P<label>(?P<version>[0-9]+)[_-].*)\.sql")
PROGRAM = re.compile(r"(?P<label>(?P<version>[0-9]+)_.*(?<!_test))\.go")
NOTE = re.compile(r"(?mi)^[ \t]*--[ \t]*\+(?P<tool>goose|migrate|micrate)[ \t]+(?P<what>.*?)[ \t]*;?[ \t]*$")
NOTES = {
    "up": "up",
    "up notransaction": "up",
    "down": "down",
    "down notransaction": "down",
    "no transaction": "",
    "statementbegin": "",
    "statementend": "end",
    "envsub on": "on",
    "envsub off": "off",
}
# What goose's library for it reads: $NAME, ${NAME}, ${NAME-default}, ${NAME:-default}.
VARIABLE = re.compile(
    r"(?<!\$)\$(?:(?P<plain>[A-Za-z_]\w*)(?![\w$])|\{(?P<name>[A-Za-z_]\w*)(?:(?P<kind>:?-)(?P<default>[^}]*))?\})"
)


def recognise(path: Path) -> bool:
    """Whether a numbered file of the folder has goose's annotations."""
    return sections.begins(path, FILE_NAME, NOTE)


def read(folder: Folder) -> list[Migration]:
    """Return the folder's migrations. Raises FolderRefused."""
    found = [*_read_programs(folder)]
    for path in list_sql(folder.path):
        match = FILE_NAME.fullmatch(path.name)
        script = read_script(path)
        if match is None:
            if NOTE.search(script.text):
                raise FolderRefused(
                    "This file is not named NUMBER_name.sql, so goose would not run it. Rename or move it.",
                    Place(str(path)),
                )
            continue  # a schema, or seeds: it holds nothing of goose's
        up, down = _split(script)
        version = str(int(match["version"]))
        # sql-migrate goes by the names of files, and lets several have one number.
        if "+migrate" in script.text and version in {one.version for one in found}:
            version = match["label"]
        found.append(Migration(folder.name, version, match["label"], up, down))
    return sort(found)


def _read_programs(folder: Folder) -> Iterator[Migration]:
    for name in sorted(os.listdir(folder.path)):
        if match := PROGRAM.fullmatch(name):
            script = read_foreign(folder.path / name, "a program in Go", "goose")
            yield Migration(folder.name, str(int(match["version"])), match["label"], script)


def _split(script: Script) -> tuple[Script, Script | None]:
    notes = [(_read_note(script, note), note) for note in NOTE.finditer(script.text)]
    parts = [(what, note) for what, note in notes if what in ("up", "down")]
    if not any(what == "up" for what, _ in parts):
        raise FolderRefused("This file has no `-- +goose Up`.", Place(str(script.path)))
    ends = [note.start() for _, note in parts[1:]] + [len(script.text)]
    spans = [(what, (note.end(), end)) for (what, note), end in zip(parts, ends, strict=True)]
    switches = [(what, note) for what, note in notes if what in ("on", "off")] + [("off", None)]
    filled = [
        (note.end(), after.start() if after else len(script.text))
        for (what, note), (_, after) in pairwise(switches)
        if what == "on" and note
    ]
    # A fence ends a statement, with or without a semicolon before it.
    text = script.text
    for end in (note for what, note in notes if what == "end"):
        text = f"{text[: end.start()]};{' ' * (len(end[0]) - 1)}{text[end.end() :]}"
    alone = any("transaction" in note["what"].lower() for _, note in notes)
    options = replace(script.options, transaction=script.options.transaction and not alone)
    found = {
        part: _fill(
            sections.cut(replace(script, text=text), [one for what, one in spans if what == part], options),
            filled,
        )
        for part in dict(spans)
    }
    return found["up"], found.get("down")


def _read_note(script: Script, note: re.Match[str]) -> str:
    """Return what an annotation comes to: up, down, end, on, off, or nothing of its own."""
    what = " ".join(note["what"].lower().split())
    if what not in NOTES:
        raise FolderRefused(
            f"`+{note['tool']} {note['what']}` is no annotation that is known here. Write nothing but the "
            "annotation on its line.",
            point(str(script.path), script.text, note.start()),
        )
    return NOTES[what]


def _fill(script: Script, spans: list[tuple[int, int]]) -> Script:
    """Write the environment's values, as goose does between ENVSUB ON and OFF; but refuse what has none."""
    places = [place for span in spans for place in VARIABLE.finditer(script.text, *span)]
    return sections.fill(script, places, _find_value, lambda _: "Set it in the environment, as for goose.")


def _find_value(place: re.Match[str]) -> str | None:
    value = os.environ.get(place["plain"] or place["name"])
    if place["default"] is not None and (value is None or (place["kind"] == ":-" and not value)):
        return str(place["default"])
    before = place.string[place.string.rfind("\n", 0, place.start()) + 1 : place.start()]
    return place[0] if value is None and "--" in before else value
