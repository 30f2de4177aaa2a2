"""Flyway: V1_2__name.sql, its undo U1_2__name.sql, and R__name.sql, which runs whenever it has changed."""

import os
import re
import zlib
from dataclasses import replace
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place, point
from tollbook.migrate.files import Folder, Migration, Script, read_script

FILE_NAME = re.compile(
    r"(?P<kind>[VUB])(?P<version>[0-9]+(?:[._][0-9]+)*)__(?P<name>.*)\.sql|R__(?P<again>.*)\.sql"
)
PLACEHOLDER = re.compile(r"\$\{(?P<name>[^}\n]+)\}")
VARIABLE = "FLYWAY_PLACEHOLDERS_"
ALONE = re.compile(r"(?mi)^\s*executeInTransaction\s*=\s*false\s*$")
AS_IT_IS = re.compile(r"(?mi)^\s*placeholderReplacement\s*=\s*false\s*$")


def recognise(path: Path) -> bool:
    """Whether a file at any depth has one of Flyway's names."""
    return any(FILE_NAME.fullmatch(file.name) for file in path.rglob("*.sql"))


def read(folder: Folder) -> list[Migration]:
    """Return the migrations of the folder and those in it: versioned ones in order, then repeatable ones."""
    scripts: dict[tuple[str, tuple[int, ...]], tuple[re.Match[str], Path]] = {}
    again: list[Migration] = []
    for path in sorted(one for one in folder.path.rglob("*.sql") if not one.name.startswith(".")):
        match = FILE_NAME.fullmatch(path.name)
        if match is None:
            continue  # Flyway itself passes over files with other names
        if match["again"] is not None:
            label = path.name.removesuffix(".sql")
            again.append(Migration(folder.name, label, label, _read(path), repeatable=True))
            continue
        key = (match["kind"], parse_version(match["version"]))
        if key in scripts:
            raise FolderRefused(f"{scripts[key][1].name} has the same version.", Place(str(path)))
        scripts[key] = (match, path)
    versioned = [_pair(folder, scripts, key) for key in _choose(list(scripts))]
    return [*versioned, *sorted(again, key=lambda one: one.label)]


def parse_version(text: str) -> tuple[int, ...]:
    """Return a version's numbers, less zeros at its end: 1.0 is 1."""
    numbers = [int(part) for part in re.split(r"[._]", text)]
    while len(numbers) > 1 and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _choose(keys: list[tuple[str, tuple[int, ...]]]) -> list[tuple[str, tuple[int, ...]]]:
    """Return what a new database runs: all versions, or the last baseline and those after it."""
    versions = sorted(key for key in keys if key[0] == "V")
    baselines = sorted(key for key in keys if key[0] == "B")
    if not baselines or any(key[1] <= baselines[-1][1] for key in versions):
        return versions
    return [baselines[-1], *(key for key in versions if key[1] > baselines[-1][1])]


def _pair(
    folder: Folder,
    scripts: dict[tuple[str, tuple[int, ...]], tuple[re.Match[str], Path]],
    key: tuple[str, tuple[int, ...]],
) -> Migration:
    match, path = scripts[key]
    undo = scripts.get(("U", key[1]))
    version = match["version"].replace("_", ".")
    return Migration(
        folder.name, version, path.name.removesuffix(".sql"), _read(path), _read(undo[1]) if undo else None
    )


def _read(path: Path) -> Script:
    script = read_script(path)
    settings = path.with_name(path.name + ".conf")
    text = settings.read_text() if settings.is_file() else ""
    if ALONE.search(text):
        script = replace(script, options=replace(script.options, transaction=False))
    return script if AS_IT_IS.search(text) else _fill(script)


def _fill(script: Script) -> Script:
    """Write the values of placeholders, which come from FLYWAY_PLACEHOLDERS_NAME as they do for Flyway."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(VARIABLE + match["name"].upper())
        if found is None:
            raise FolderRefused(
                f"The placeholder {match[0]} has no value. Set {VARIABLE}{match['name'].upper()}.",
                point(str(script.path), script.text, match.start()),
            )
        return found

    return replace(script, text=PLACEHOLDER.sub(value, script.text))


def compute_checksum(path: Path) -> int:
    """Return what Flyway keeps of a file: CRC32 over its lines without their ends, as a signed number."""
    text = path.read_bytes().decode("utf-8-sig")
    sum_ = 0
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        sum_ = zlib.crc32(line.encode(), sum_)
    return sum_ - (1 << 32) if sum_ >= 1 << 31 else sum_
