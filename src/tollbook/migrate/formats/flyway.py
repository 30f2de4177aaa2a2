"""Flyway: V1_2__name.sql, its undo U1_2__name.sql, and R__name.sql, which runs whenever it has changed."""

import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Folder, Migration, Script, read_foreign, read_script
from tollbook.migrate.formats import sections

FILE_NAME = re.compile(
    r"(?P<kind>[VUBv])(?P<version>[0-9]+(?:[._][0-9]+)*)(?:__(?P<name>.*))?"
    r"\.(?P<suffix>sql|java|kt|groovy|scala|rs|py|sh|ps1)(?<!Test.java)"
    r"|R__(?P<again>.*)\.sql"
)
# What Flyway runs around migrations and undos; those of its other commands (clean, info) have none here.
CALLBACK = re.compile(
    r"(?:(?:before|after)(?:(?:Each)?(?:Migrate|Undo)|Repeatables|Versioned|Validate|Connect|CreateSchema)"
    r"(?:Statement)?(?:Applied|Error)?|createSchema)(?:__.*)?\.sql"
)
AFTER = re.compile(r"afterMigrate(?:Applied)?(?:__.*)?\.sql")  # those that are run here
LANGUAGES = {
    ".groovy": "Groovy",
    ".java": "Java",
    ".kt": "Kotlin",
    ".ps1": "PowerShell",
    ".py": "Python",
    ".rs": "Rust",
    ".scala": "Scala",
    ".sh": "shell",
}
# Folders in which projects keep the same migrations for several databases, and Flyway is given one of them.
OURS = re.compile(r"(?i)postgres|pgsql|^pg$")
OTHERS = re.compile(
    r"(?i)(?:.*[._-])?(?:h2|hsql(?:db)?|derby|mysql|mariadb|oracle|mssql|sqlserver|sql-server|sqlite3?|db2|"
    r"cockroach(?:db)?|clickhouse|snowflake|redshift)(?:[._-].*)?"
)
PLACEHOLDER = re.compile(r"\$\{(?P<name>[^}\n]+)\}")
CALLBACKS_SHOWN_MAX = 20
VARIABLE = "FLYWAY_PLACEHOLDERS_"
SWITCH = "FLYWAY_PLACEHOLDER_REPLACEMENT"
NO_CALLBACKS = "FLYWAY_SKIP_DEFAULT_CALLBACKS"
OWN = {  # Flyway's own placeholders, by what they have where nothing says otherwise
    "flyway:defaultschema": ("FLYWAY_DEFAULT_SCHEMA", "public"),
    "flyway:user": ("FLYWAY_USER", None),
    "flyway:database": ("PGDATABASE", None),
    "flyway:table": ("FLYWAY_TABLE", "flyway_schema_history"),
    "flyway:environment": ("FLYWAY_ENVIRONMENT", "default"),
}
ALONE = re.compile(r"(?mi)^\s*executeInTransaction\s*=\s*false\s*$")
AS_IT_IS = re.compile(r"(?mi)^\s*placeholderReplacement\s*=\s*false\s*$")


def recognise(path: Path) -> bool:
    """Whether a file at any depth has one of Flyway's names."""
    return any("__" in file.name and FILE_NAME.fullmatch(file.name) for file in path.rglob("*.sql"))


def read(folder: Folder) -> list[Migration]:
    """Return the migrations of the folder and those in it: versioned ones in order, then repeatable ones.

    Behind them what Flyway calls back after all. Raises FolderRefused where there are other callbacks, unless
    Flyway is told to pass them over.
    """
    callbacks = [] if os.environ.get(NO_CALLBACKS, "").lower() == "true" else _list_callbacks(folder.path)
    scripts: dict[tuple[str, tuple[int, ...]], tuple[re.Match[str], Path]] = {}
    again: list[Migration] = []
    listed = list(_list(folder.path, FILE_NAME))
    small = all(match["kind"] != "V" for match, _ in listed)  # Flyway may be told that its prefix is v
    for match, path in listed:
        if match["kind"] == "v" and not small:
            continue
        if match["again"] is not None:
            label = path.name.removesuffix(".sql")
            if other := next((one.up.path for one in again if one.label == label), None):
                raise FolderRefused(f"{other} has the same name.", Place(str(path)))
            again.append(Migration(folder.name, label, label, _read(path), repeatable=True))
            continue
        key = (match["kind"].upper(), parse_version(match["version"]))
        if key in scripts:
            raise FolderRefused(f"{scripts[key][1].name} has the same version.", Place(str(path)))
        scripts[key] = (match, path)
    _refuse_lone_undos(scripts)
    versioned = [_pair(folder, scripts, key) for key in _choose(list(scripts))]
    found = [*versioned, *sorted(again, key=lambda one: one.label)]
    before = "".join(one.up.checksum for one in found)
    return [*found, *(sections.make_last(folder.name, one.stem, _read(one), before) for one in callbacks)]


def _refuse_lone_undos(scripts: dict[tuple[str, tuple[int, ...]], tuple[re.Match[str], Path]]) -> None:
    """An undo of nothing is none: refinery means by a U what it runs whenever it comes, as Flyway a V."""
    last = max((version for kind, version in scripts if kind == "B"), default=())
    for kind, version in scripts:
        if kind == "U" and ("V", version) not in scripts and version > last:
            raise FolderRefused(
                "There is no migration of this version that it would undo, so it would never run. Call it V… "
                "if it is to run, as with refinery, or take it away.",
                Place(str(scripts[kind, version][1])),
            )


def _list_callbacks(path: Path) -> list[Path]:
    """Return those that run after all. The others must not be left out unsaid: a role, a setting, a lock."""
    callbacks = [one for _, one in _list(path, CALLBACK)]
    after = [one for one in callbacks if AFTER.fullmatch(one.name)]
    if found := [one for one in callbacks if one not in after]:
        names = ", ".join(str(one.relative_to(path)) for one in found[:CALLBACKS_SHOWN_MAX])
        more = f" and {len(found) - CALLBACKS_SHOWN_MAX} more" if len(found) > CALLBACKS_SHOWN_MAX else ""
        raise FolderRefused(
            f"Flyway runs callbacks beside the migrations, which are not run here: {names}{more}. What they "
            "do once belongs into a migration, what they do again into a repeatable one (R__name.sql), role "
            f"and timeouts into a file's header. To go on without them, set {NO_CALLBACKS}=true, as for "
            "Flyway, and run by yourself what is needed after `apply`.",
            Place(str(found[0])),
        )
    after.sort(key=lambda one: one.name)
    if twins := next((pair for pair in pairwise(after) if pair[0].name == pair[1].name), None):
        raise FolderRefused(f"{twins[0]} has the same name.", Place(str(twins[1])))
    return after


def _list(path: Path, name: re.Pattern[str]) -> Iterator[tuple[re.Match[str], Path]]:
    """Give the files with one of Flyway's names, by path; Flyway itself passes over all others."""
    files = [one for one in sorted(path.rglob("*")) if not one.name.startswith(".")]
    ours = any(OURS.search(part) for one in files for part in one.relative_to(path).parts[:-1])
    for one in files:
        match = name.fullmatch(one.name)
        folders = one.relative_to(path).parts[:-1]
        if match and not (ours and any(OTHERS.fullmatch(part) for part in folders)):
            yield match, one


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
    return Migration(folder.name, version, path.stem, _read(path), _read(undo[1]) if undo else None)


def _read(path: Path) -> Script:
    if path.suffix in LANGUAGES:
        tool = "refinery" if path.suffix == ".rs" else "Flyway"
        return read_foreign(path, f"a program in {LANGUAGES[path.suffix]}", tool)
    script = read_script(path)
    settings = path.with_name(path.name + ".conf")
    text = settings.read_text() if settings.is_file() else ""
    if ALONE.search(text):
        script = replace(script, options=replace(script.options, transaction=False))
    kept = AS_IT_IS.search(text) or os.environ.get(SWITCH, "").lower() == "false"
    return script if kept else _fill(script)


def _fill(script: Script) -> Script:
    """Write the values of placeholders, which come from FLYWAY_PLACEHOLDERS_NAME as they do for Flyway."""

    def value(place: re.Match[str]) -> str | None:
        name = place["name"].lower()
        if name in OWN:
            variable, usual = OWN[name]
            return os.environ.get(variable, usual)
        if name == "flyway:timestamp":
            return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        return script.path.name if name == "flyway:filename" else os.environ.get(_name_variable(name))

    return sections.fill(
        script,
        PLACEHOLDER.finditer(script.text),
        value,
        lambda place: (
            f"Set {OWN.get(place['name'].lower(), (_name_variable(place['name']),))[0]}, or {SWITCH}=false "
            "where Flyway is told to leave such text as it is."
        ),
    )


def _name_variable(name: str) -> str:
    return VARIABLE + re.sub(r"\W", "_", name).upper()


def compute_checksum(path: Path) -> int:
    """Return what Flyway keeps of a file: CRC32 over its lines without their ends, as a signed number."""
    text = path.read_bytes().decode("utf-8-sig")
    sum_ = 0
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        sum_ = zlib.crc32(line.encode(), sum_)
    return sum_ - (1 << 32) if sum_ >= 1 << 31 else sum_
