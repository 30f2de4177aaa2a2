"""Flyway: V1_2__name.sql, its undo U1_2__name.sql, and R__name.sql, which runs whenever it has changed."""

import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place, Problem
from tollbook.migrate.files import Folder, Migration, Script, read_foreign, read_script
from tollbook.migrate.formats import flyway_settings, sections
from tollbook.migrate.formats.flyway_settings import Settings

VERSION = r"(?P<version>[0-9]+(?:[._][0-9]+)*)"
KINDS = {"sqlMigrationPrefix": "V", "undoSqlMigrationPrefix": "U", "baselineMigrationPrefix": "B"}
# What Flyway runs around migrations and undos; those of its other commands (clean, info) have none here.
EVENT = (
    r"(?P<event>(?:before|after)(?:(?:Each)?(?:Migrate|Undo)|Repeatables|Versioned|Validate|Connect|"
    r"CreateSchema)(?:Statement)?(?:Applied|Error)?|createSchema)"
)
BEFORE_ALL, AFTER_ALL = ("beforeMigrate",), ("afterMigrateApplied", "afterMigrate")
BEFORE_EACH, AFTER_EACH = ("beforeEachMigrate",), ("afterEachMigrate",)
AFTER_VERSIONED, BEFORE_REPEATABLES = ("afterVersioned",), ("beforeRepeatables",)
RUN = (*BEFORE_ALL, *BEFORE_EACH, *AFTER_EACH, *AFTER_VERSIONED, *BEFORE_REPEATABLES, *AFTER_ALL)
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
    r"(?i)(?:.*[._-])?(?:h2|hsql(?:db)?|derby|mysql|mariadb|oracle|ms-?sql|sql[-_]?server|sqlite3?|db2|"
    r"cockroach(?:db)?|clickhouse|snowflake|redshift)(?:[._-].*)?"
)
CALLBACKS_SHOWN_MAX = 20
SWITCH = "FLYWAY_PLACEHOLDER_REPLACEMENT"
NO_CALLBACKS = "FLYWAY_SKIP_DEFAULT_CALLBACKS"
OWN = {  # Flyway's own placeholders: the setting that has them, and what they are otherwise
    "flyway:defaultschema": ("defaultSchema", "public"),
    "flyway:user": ("user", None),
    "flyway:database": ("database", None),
    "flyway:table": ("table", "flyway_schema_history"),
    "flyway:environment": ("environment", "default"),
}
DATABASE = "PGDATABASE"
VENDOR = "{vendor}"  # Spring's name for the database in a location
SET = re.compile(r"(?i)\bset\b")
NOT_KEPT = ("role", "session_authorization", "search_path", "TRANSACTION")  # set anew for each migration

Key = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Names:
    """What files are called, as the settings say; kinds: V, U or B, by the prefix in use."""

    file: re.Pattern[str]
    callback: re.Pattern[str]
    endings: tuple[str, ...]
    parting: str
    kinds: dict[str, str]


def _name_files(settings: Settings) -> _Names:
    kinds = {settings.get(name, usual): usual for name, usual in KINDS.items()}
    if "V" in kinds:
        kinds["v"] = "v"  # Flyway may be told so elsewhere
    parting = _find_parting(settings)
    again = re.escape(settings.get("repeatableSqlMigrationPrefix", "R") + parting)
    endings = _list_endings(settings)
    sql = "|".join(map(re.escape, endings))
    name = rf"(?:{re.escape(parting)}(?P<name>.*))?"
    return _Names(
        re.compile(
            rf"(?P<kind>{'|'.join(map(re.escape, kinds))}){VERSION}{name}"
            rf"(?:{sql}|{'|'.join(map(re.escape, LANGUAGES))})(?<!Test.java)|{again}(?P<again>.*)(?:{sql})"
        ),
        re.compile(rf"{EVENT}{name}(?:{sql})"),
        endings,
        parting,
        kinds,
    )


def _find_parting(settings: Settings) -> str:
    return settings.get("sqlMigrationSeparator", "__")


def _list_endings(settings: Settings) -> tuple[str, ...]:
    said = (f".{one.removeprefix('.')}" for one in settings.list("sqlMigrationSuffixes"))
    return tuple(said) or (".sql",)


def recognise(path: Path) -> bool:
    """Whether a file at any depth has one of Flyway's names."""
    settings = flyway_settings.read(path)
    parting, endings = _find_parting(settings), _list_endings(settings)
    found = (one for *_, files in os.walk(path) for one in files if parting in one and one.endswith(endings))
    # Few folders have such names at all, and the pattern is slow to make.
    return (first := next(found, None)) is not None and any(
        map(_name_files(settings).file.fullmatch, (first, *found))
    )


def read(folder: Folder) -> list[Migration]:
    """Return the migrations of the folder and those in it: versioned ones in order, then repeatable ones.

    Before, between and behind them stands what Flyway calls back there. Raises FolderRefused where there are
    other callbacks, unless Flyway is told to pass them over.
    """
    return _Reader(folder, flyway_settings.read(folder.path)).read()


class _Reader:
    """Reads one folder by its settings."""

    def __init__(self, folder: Folder, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.names = _name_files(settings)
        self.files = list(self._list())
        skipped = settings.is_set("skipDefaultCallbacks", "true")
        self.callbacks: dict[str, list[Path]] = {} if skipped else self._list_callbacks()

    def read(self) -> list[Migration]:
        """Return all that is run, in the order in which Flyway runs it."""
        scripts: dict[Key, tuple[re.Match[str], Path]] = {}
        again: list[Migration] = []
        listed = [(match, one) for one in self.files if (match := self.names.file.fullmatch(one.name))]
        small = all(match["kind"] != "V" for match, _ in listed)
        for match, path in listed:
            if _read_own(path).get("shouldexecute") == "false" or (match["kind"] == "v" and not small):
                continue
            if match["again"] is not None:
                label = path.stem
                if other := next((one.up.path for one in again if one.label == label), None):
                    raise FolderRefused(f"{other} has the same name.", Place(str(path)))
                script = self._read(path)
                # Another value in it makes it another: by ${flyway:timestamp} it runs every time.
                script = replace(script, checksum=hashlib.sha256(script.text.encode()).hexdigest())
                again.append(Migration(self.folder.name, label, label, script, repeatable=True))
                continue
            key = (self.names.kinds[match["kind"]].upper(), parse_version(match["version"]))
            if key in scripts:
                raise FolderRefused(f"{scripts[key][1].name} has the same version.", Place(str(path)))
            scripts[key] = (match, path)
        _refuse_lone_undos(scripts)
        versioned = [self._pair(scripts, key) for key in _choose(list(scripts))]
        return self._call_back(versioned, sorted(again, key=lambda one: one.label))

    def _call_back(self, versioned: list[Migration], again: list[Migration]) -> list[Migration]:
        """Put what Flyway calls back before, around, between and behind the migrations."""
        opening = self._make_opening()
        kept = [
            *opening,
            *(one for path in self._find(BEFORE_ALL) for one in _find_settings(self._read(path))),
        ]
        before = [*kept, *map(self._read, self._find(BEFORE_EACH))]
        after = [self._read(path) for path in self._find(AFTER_EACH)]
        versioned, again = (
            [replace(one, up=sections.surround(one.up, before, after)) for one in some]
            for some in (versioned, again)
        )
        done = "".join(one.up.checksum for one in versioned)
        all_done = "".join((done, *(one.up.checksum for one in again)))
        found = [
            *versioned,
            *self._run_last(AFTER_VERSIONED, done, kept),
            *self._run_first(BEFORE_REPEATABLES, again, kept),
            *again,
            *self._run_last(AFTER_ALL, all_done, kept),
        ]
        found = [*self._run_first(BEFORE_ALL, found, opening), *found]
        made = self._make_schemas()
        return [replace(one, up=sections.surround(one.up, made)) for one in found[:1]] + found[1:]

    def _find(self, events: Iterable[str]) -> list[Path]:
        return [path for event in events for path in self.callbacks.get(event, ())]

    def _run_last(self, events: Iterable[str], before: str, kept: Sequence[Script]) -> list[Migration]:
        """Return what runs whenever something before it was applied since."""
        some = ((path.stem, sections.surround(self._read(path), kept)) for path in self._find(events))
        return [sections.make_last(self.folder.name, label, script, before) for label, script in some]

    def _run_first(
        self, events: Iterable[str], others: Sequence[Migration], kept: Sequence[Script]
    ) -> list[Migration]:
        """Return what runs whenever one of the others is about to."""
        versions = tuple(one.version for one in others)
        some = ((path.stem, sections.surround(self._read(path), kept)) for path in self._find(events))
        name = self.folder.name
        return [
            Migration(name, label, label, script, repeatable=True, kept=False, ahead_of=versions)
            for label, script in some
        ]

    def _make_opening(self) -> list[Script]:
        """Return what Flyway does in its session before anything runs there."""
        found: list[Script] = []
        if sql := self.settings.find("initSql"):
            found.append(Script(self.folder.path, sql, ""))
        if not self.elsewhere and (schema := find_schema(self.settings)):
            found.append(
                Script(self.folder.path, f'SET search_path TO {_quote(schema)}, "$user", public', "")
            )
        return found

    def _make_schemas(self) -> list[Script]:
        """Return what makes the schemas of the settings, as Flyway does before anything else."""
        named = [*self.settings.list("schemas"), self.settings.get("defaultSchema", "public")]
        schemas = [one for one in dict.fromkeys(named) if one != "public"]
        if self.elsewhere or not schemas or self.settings.is_set("createSchemas", "false"):
            return []
        text = "; ".join(f"CREATE SCHEMA IF NOT EXISTS {_quote(one)}" for one in schemas)
        return [Script(self.folder.path, text, "")]

    def _list_callbacks(self) -> dict[str, list[Path]]:
        """Return those that are run here by their events. The others must not be left out unsaid."""
        named = ((self.names.callback.fullmatch(one.name), one) for one in self.files)
        callbacks = sorted(((match, one) for match, one in named if match), key=lambda pair: pair[1].name)
        if found := [one for match, one in callbacks if match["event"] not in RUN]:
            names = ", ".join(str(one.relative_to(self.folder.path)) for one in found[:CALLBACKS_SHOWN_MAX])
            left = len(found) - CALLBACKS_SHOWN_MAX
            more = f" and {left} more" if left > 0 else ""
            raise FolderRefused(
                f"Flyway runs callbacks beside the migrations, which are not run here: {names}{more}. What "
                "they do once belongs into a migration, what they do again into a repeatable one "
                f"(R__name.sql). To go on without any callback, set {NO_CALLBACKS}=true, as for Flyway, and "
                "run by yourself what is needed around `apply`.",
                Place(str(found[0])),
            )
        if twins := next((pair for pair in pairwise(callbacks) if pair[0][1].name == pair[1][1].name), None):
            raise FolderRefused(f"{twins[0][1]} has the same name.", Place(str(twins[1][1])))
        events: dict[str, list[Path]] = {}
        for match, one in callbacks:
            events.setdefault(match["event"], []).append(one)
        return events

    def _list(self) -> Iterator[Path]:
        """Give the files that may be Flyway's, by path: those for other databases beside ours are none."""
        top = self.folder.path
        found = {
            one for root in self._find_roots() for one in root.rglob("*") if not one.name.startswith(".")
        }
        ours = any(OURS.search(part) for one in found for part in one.relative_to(top).parts[:-1])
        for one in sorted(found):
            if not (ours and any(OTHERS.fullmatch(part) for part in one.relative_to(top).parts[:-1])):
                yield one

    def _find_roots(self) -> list[Path]:
        """Return the locations of the settings that lie in the folder; the folder itself where none does."""
        return [*(self._place("locations") or [self.folder.path]), *self._place("callbackLocations")]

    def _place(self, setting: str) -> list[Path]:
        found: list[Path] = []
        for said in self.settings.list(setting):
            kind, _, rest = said.rpartition(":")
            text = (rest.lstrip("/") if kind == "classpath" else rest).replace(VENDOR, "postgresql")
            parts = (text, f"{flyway_settings.RESOURCES}/{text}")
            places = (place / part for place in self.settings.places for part in parts)
            found += [one for one in places if one.is_dir() and one.resolve().is_relative_to(self.top)]
        relative = (one.resolve().relative_to(self.top) for one in found)
        return [self.folder.path / one for one in relative]

    @property
    def elsewhere(self) -> bool:
        """Whether it is applied to a schema that is named by who applies it, out of FOLDER@SCHEMA."""
        return "@" in self.folder.name

    @property
    def top(self) -> Path:
        """The folder, without links in its path."""
        return self.folder.path.resolve()

    def _pair(self, scripts: dict[Key, tuple[re.Match[str], Path]], key: Key) -> Migration:
        match, path = scripts[key]
        undo = scripts.get(("U", key[1]))
        version = match["version"].replace("_", ".")
        down = sections.surround(self._read(undo[1]), self._make_opening()) if undo else None
        late = self.settings.is_set("outOfOrder", "true")
        return Migration(self.folder.name, version, path.stem, self._read(path), down, late=late)

    def _read(self, path: Path) -> Script:
        if path.suffix in LANGUAGES:
            tool = "refinery" if path.suffix == ".rs" else "Flyway"
            return read_foreign(path, f"a program in {LANGUAGES[path.suffix]}", tool)
        script, own = read_script(path), _read_own(path)
        if own.get("executeintransaction") == "false":
            script = replace(script, options=replace(script.options, transaction=False))
        if own.get("shouldexecute", "true") != "true":
            what = "Whether this is run is computed by Flyway (shouldExecute in its .conf)."
            then = "Write true or false there."
            return replace(script, refusal=Problem(what, then, Place(str(path))))
        usual = "false" if self.settings.is_set("placeholderReplacement", "false") else "true"
        return script if own.get("placeholderreplacement", usual) == "false" else fill(script, self.settings)


def _read_own(path: Path) -> dict[str, str]:
    """Return the settings of one file, which stand beside it."""
    own = path.with_name(path.name + ".conf")
    pairs = flyway_settings.read_properties(sections.read_text(own)) if own.is_file() else ()
    return {name.lower(): value.lower() for name, value in pairs}


def _find_settings(script: Script) -> list[Script]:
    """Return what a script sets for its session, which the migrations after it have from it."""
    from tollbook.migrate import statements

    if not SET.search(script.text):  # the grammar is slow to load
        return []
    return [
        replace(script, text=script.text[one.index : one.end])
        for one in statements.read(script).statements
        if type(one.tree).__name__ == "VariableSetStmt"
        and not one.tree.is_local
        and one.tree.name not in NOT_KEPT
    ]


def find_schema(settings: Settings) -> str | None:
    """Return the schema in which objects and Flyway's table are made; None for that of the session."""
    named = settings.find("defaultSchema") or next(iter(settings.list("schemas")), None)
    return named if named != "public" else None


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _refuse_lone_undos(scripts: dict[Key, tuple[re.Match[str], Path]]) -> None:
    """An undo of nothing is none: refinery means by a U what it runs whenever it comes, as Flyway a V."""
    last = max((version for kind, version in scripts if kind == "B"), default=())
    for kind, version in scripts:
        if kind == "U" and ("V", version) not in scripts and version > last:
            raise FolderRefused(
                "There is no migration of this version that it would undo, so it would never run. Call it V… "
                "if it is to run, as with refinery, or take it away.",
                Place(str(scripts[kind, version][1])),
            )


def parse_version(text: str) -> tuple[int, ...]:
    """Return a version's numbers, less zeros at its end: 1.0 is 1."""
    numbers = [int(part) for part in re.split(r"[._]", text)]
    while len(numbers) > 1 and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _choose(keys: list[Key]) -> list[Key]:
    """Return what a new database runs: all versions, or the last baseline and those after it."""
    versions = sorted(key for key in keys if key[0] == "V")
    baselines = sorted(key for key in keys if key[0] == "B")
    if not baselines or any(key[1] <= baselines[-1][1] for key in versions):
        return versions
    return [baselines[-1], *(key for key in versions if key[1] > baselines[-1][1])]


def fill(script: Script, settings: Settings) -> Script:
    """Write the values of placeholders, which come from the settings as they do for Flyway."""
    begin, end = settings.get("placeholderPrefix", "${"), settings.get("placeholderSuffix", "}")
    if begin not in script.text:
        return script
    places = re.compile(rf"{re.escape(begin)}(?P<name>[^\n]+?){re.escape(end)}")

    def value(place: re.Match[str]) -> str | None:
        name = place["name"].lower()
        if name in OWN:
            return _find_own(name, settings)
        if name == "flyway:timestamp":
            return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        return script.path.name if name == "flyway:filename" else settings.find_placeholder(name)

    return sections.fill(script, places.finditer(script.text), value, _advise)


def _find_own(name: str, settings: Settings) -> str | None:
    if name == "flyway:defaultschema":
        return find_schema(settings) or "public"
    setting, usual = OWN[name]
    return os.environ.get(DATABASE) if setting == "database" else settings.find(setting) or usual


def _advise(place: re.Match[str]) -> str:
    setting = OWN.get(place["name"].lower(), ("", None))[0]
    name = flyway_settings.name_variable(setting or place["name"], placeholder=not setting)
    name = DATABASE if setting == "database" else name
    return f"Set {name}, or {SWITCH}=false where Flyway is told to leave such text as it is."


def list_checksums(migration: Migration) -> list[int]:
    """Return what Flyway may keep of a file, the likeliest first: what repeats it sums with its values."""
    path = migration.up.path
    found = [compute_checksum(path)]
    if migration.repeatable:
        filled = fill(read_script(path), flyway_settings.read(path.parent)).text
        found.insert(0, _sum(filled))
    return found


def compute_checksum(path: Path) -> int:
    """Return what Flyway keeps of a file: CRC32 over its lines without their ends, as a signed number."""
    return _sum(path.read_bytes().decode("utf-8-sig"))


def _sum(text: str) -> int:
    sum_ = 0
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        sum_ = zlib.crc32(line.encode(), sum_)
    return sum_ - (1 << 32) if sum_ >= 1 << 31 else sum_
