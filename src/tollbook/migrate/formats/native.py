"""Numbered files: NNNN_name.up.sql, .down.sql, .check.sql and .backfill.sql, or NNNN_name.sql alone.

So are our own folders, and those of golang-migrate, SQLx and all who just number their files, by date too;
of those who write NNNN_name_up.sql or NNNN-name-down.sql, and of Postgrator: NNNN.do.name.sql. Where there
are none, they may lie in numbered folders: 0.19/00_name.sql is 0.19.0.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place, Problem, WrongUsage, point
from tollbook.migrate.files import Folder, Migration, Script, list_sql, read_foreign, read_script, sort
from tollbook.migrate.formats import atlas, sections, strangers

END = r"(?=[-_. ]|$)"
TIME = r"T[0-9]{2}(?:[-_:.]?[0-9]{2}){1,2}(?![0-9])|[-_][0-9]{2}(?:[-_:.][0-9]{2}){2}(?![0-9])"
CLOCK = rf"{TIME}|[-_T]?[0-9]{{4,6}}(?![0-9])|[-_][0-9]+{END}"
DATE = rf"[0-9]{{4}}(?P<dash>[-_.])[0-9]{{2}}(?P=dash)[0-9]{{2}}(?:{CLOCK})?"
DAY = rf"(?:19|20)[0-9]{{6}}[-_][0-9]{{1,9}}{END}"  # and a number or a time of the day
DOTTED = rf"[0-9]+(?:\.[0-9]+)+_[0-9]+{END}"  # a release, and a number in it
NUMBER = rf"{DAY}|{DOTTED}|[0-9]+(?:\.[0-9]+)*{END}|[0-9]+"
DIALECTS = "postgres|postgresql|cockroach|cockroachdb|mysql|mariadb|mssql|sqlserver|sqlite|sqlite3|all"
PARTS = "up|down|check|backfill|undo|rollback"
# Some write V0001.name.up.sql; without .up or .down such a name is Flyway's, or nobody's.
FILE_NAME = re.compile(
    rf"(?P<label>(?:v(?=.*\.(?:up|down)\.sql))?(?P<version>{DATE}|{NUMBER})(?P<name>.*?))"
    rf"(?:\.(?P<dialect>{DIALECTS}))?(?:\.autocommit)?(?:\.(?P<part>{PARTS}))?\.sql",  # autocommit: pop's
    re.IGNORECASE,
)
OURS = ("postgres", "postgresql")
ANY_DIALECT = (*OURS, "", "all")  # that run here, the most particular first
# What parts the way there from the way back where one file holds both.
MARK = re.compile(
    "(?mi)^[ \t]*(?:"
    + "|".join(
        (
            r"--[ \t-]*(?P<pg>up|down)[ \t]+migration",  # node-pg-migrate
            r"-+[ \t]*create above[ \t]*/[ \t]*(?P<tern>drop) below[ \t-]*",
            r"--[ \t]*//[ \t]*@(?P<mybatis>undo)",
            r"--[ \t]*rambler[ \t]+(?P<rambler>up|down)",
            r"--[ \t]*=+[ \t]*(?P<shmig>up|down)[ \t]*=+",
            r"(?:#|--)[ \t-]*!(?P<play>ups|downs)",
            r"--[ \t]*migrate:(?P<dbmate>up|down)\b.*",  # where most files of the folder have none
            r"--[ \t]*\+[a-z]+[ \t]+(?P<goose>up|down)",
            r"--[ \t]+(?P<atlas>migration|down|checks(?:/.*)?)\.sql[ \t]+--",  # its txtar
        )
    )
    + r")[ \t]*$"
)
SHELF = re.compile(r"v?(?P<version>[0-9]+(?:\.[0-9]+)*)(?:[-_].*)?", re.IGNORECASE)  # a folder of a release
UP, DOWN = "up", "down"  # folders for each way
BACK = {"down", "downs", "drop", "undo"}
POSTGRATOR = re.compile(r"([0-9]+)\.(do|undo)((?:\..*)?)\.sql", re.IGNORECASE)
JOINED = re.compile(r"(.*)([-_])(up|down)\.sql", re.IGNORECASE)
# What runs between the SQL files, and is none that we can run, by its ending.
KINDS = {
    **dict.fromkeys(("js", "mjs", "cjs", "ts"), "a program in JavaScript"),
    **dict.fromkeys(("tmpl", "gotmpl", "tpl", "j2", "erb"), "a template"),
    **dict.fromkeys(("ex", "exs"), "a program in Elixir"),
    "cs": "a program in C#",
    "edn": "written in EDN",
    **{ending: f"written in {ending.upper()}" for ending in strangers.DATA},
    "fizz": "written in fizz",
    "go": "a program in Go",
    "java": "a program in Java",
    "kt": "a program in Kotlin",
    "php": "a program in PHP",
    "pl": "a program in Perl",
    # Synapse: 05_a.sql.postgres
    **dict.fromkeys(("postgres", "pgsql", "psql", "ddl"), "a file of another ending"),
    "py": "a program in Python",
    "rb": "a program in Ruby",
    "rs": "a program in Rust",
    "sh": "a program in shell",
}
PROGRAM = re.compile(
    r"(?P<label>(?P<version>[0-9]{2,}|[0-9](?=[-_])).*(?<!_test)(?<!\.down))"
    rf"\.(?P<ending>{'|'.join(KINDS)})(?<!\.d\.ts)"
)
DATA = re.compile(r"[0-9]+[-_].*\.(?:json|ya?ml|xml|edn)")  # pgroll, Liquibase
BY_NAME = ("supabase", "migrations")  # a folder of dates of any length, in the order of their names
FORGOTTEN = re.compile(rf".*\.(?:{PARTS})\.sql", re.IGNORECASE)
SAME = {"undo": "down", "rollback": "down", "do": "up", "migration": "up"}
VERSION_DIGITS_MAX = 40  # a timestamp has 14
NEW_VERSION_DIGITS = 4


def recognise(path: Path) -> bool:
    """Whether the folder holds such files, or numbered folders with such files."""
    return _holds(path) or bool(_find_shelves(path))


def _holds(path: Path) -> bool:
    return any(FILE_NAME.fullmatch(file.name) for file in path.glob("*.sql"))


def _find_shelves(path: Path) -> dict[str, Path]:
    """Return the numbered folders in a folder that hold numbered files, by their numbers."""
    found: dict[str, Path] = {}
    for one in sorted(path.iterdir()):
        if one.is_dir() and (match := SHELF.fullmatch(one.name)) and _holds(one):
            _add(found, parse_version(match["version"]), one)
    return found


def read(folder: Folder) -> list[Migration]:
    """Return one folder's migrations by version. Raises FolderRefused on any file it cannot place.

    Files without a number (a schema, seeds) are passed over, unless there are no others.
    """
    found = _read_numbered(folder) or _read_shelves(folder)
    if not found:
        _refuse_unnumbered(folder.path)
    if folder.path.resolve().parts[-2:] == BY_NAME:
        found.sort(key=lambda one: one.up.path.name)
    return [one for one in found if one is found[0] or not one.up.text.startswith(atlas.CHECKPOINT)]


def _read_shelves(folder: Folder) -> list[Migration]:
    """Read numbered folders one after another: a file's number counts in its own folder."""
    return sort(
        [
            replace(one, version=f"{version}.{one.version}", label=f"{path.name}.{one.label}")
            for version, path in _find_shelves(folder.path).items()
            for one in _read_numbered(Folder(folder.name, path))
        ]
    )


def _read_numbered(folder: Folder) -> list[Migration]:
    """A version's files are one migration, whatever they are called: up and down may differ in name."""
    found: dict[str, dict[tuple[str, str], dict[str, Path]]] = {}
    paths = list_sql(folder.path)
    names = {path.name for path in paths}
    for path in [*paths, *_list_ways_back(folder.path)]:
        match = FILE_NAME.fullmatch(_spell(path.name, names))
        if match is None or len(match["version"]) > VERSION_DIGITS_MAX:
            if FORGOTTEN.fullmatch(path.name) or match is not None:
                raise FolderRefused(
                    "This file is not named NUMBER_name.up.sql, NUMBER_name.down.sql or "
                    "NUMBER_name.check.sql, so it would never run. Rename it, or move it out of the folder.",
                    Place(str(path)),
                )
            continue
        part = (match["part"] or ("up" if path.parent == folder.path else DOWN)).lower()
        version = parse_version(match["version"])
        if path.parent != folder.path and version not in found:
            continue
        files = found.setdefault(version, {})
        dialects = files.setdefault((match["label"], SAME.get(part, part)), {})
        _add(dialects, (match["dialect"] or "").lower(), path)
    several = any(
        len(dialects) > 1 or any(one in dialects for one in OURS)
        for files in found.values()
        for dialects in files.values()
    )
    programs = _read_programs(folder, found) if found else []
    return sort(
        [*programs, *(one for key in found for one in _pair(folder.name, key, found[key], several=several))]
    )


def _list_ways_back(path: Path) -> list[Path]:
    """Return the files of the folder `down` in this one or, where this one is `up`, beside it."""
    below = (path.parent if path.name == UP else path) / DOWN
    return list_sql(below) if below.is_dir() else []


def _spell(name: str, names: set[str]) -> str:
    """Return a file's name as we write it, where another tool puts up and down elsewhere in it."""
    if match := POSTGRATOR.fullmatch(name):
        number, part, rest = match.groups()
        return f"{number}{rest.replace('.', '_', 1)}.{SAME[part.lower()]}.sql"
    match = JOINED.fullmatch(name)
    if match is None:
        return name
    label, dash, part = match.groups()
    # Without the other half it is a word of the name, as in 0005_scale_up.sql.
    halves = {"up": (f"{label}{dash}down.sql",), "down": (f"{label}{dash}up.sql", f"{label}.sql")}
    return f"{label}.{part}.sql" if names & {*halves.get(part, ())} else name


def _read_programs(
    folder: Folder, found: dict[str, dict[tuple[str, str], dict[str, Path]]]
) -> list[Migration]:
    """Return the numbered programs that lie between the SQL files: refused by name when they are pending.

    Where the way back of one is SQL, it is taken out of what was found.
    """
    programs: list[Migration] = []
    for name in sorted(os.listdir(folder.path)):
        match = PROGRAM.fullmatch(name)
        version = parse_version(match["version"]) if match else ""
        taken = any(part == "up" for _, part in found.get(version, {}))
        data = bool(match) and match["ending"] in strangers.DATA
        if not match or (taken and not KINDS[match["ending"]].endswith("ending") and not data):
            continue
        tool = strangers.name_tool(folder.path / name)
        if data and tool is None:  # a snapshot, metadata
            continue
        files = {} if taken else found.pop(version, {})
        downs = [path for (_, part), paths in files.items() if part == "down" for path in paths.values()]
        up = read_foreign(folder.path / name, KINDS[match["ending"]], tool or strangers.ANY)
        down = read_script(downs[0]) if downs else None
        programs.append(Migration(folder.name, version, match["label"].removesuffix(".up"), up, down))
    return programs


def _add(files: dict[str, Path], key: str, path: Path) -> None:
    if key in files:
        raise FolderRefused(f"{files[key].name} is the same migration. Take one away.", Place(str(path)))
    files[key] = path


def _pair(
    folder: str, version: str, files: dict[tuple[str, str], dict[str, Path]], *, several: bool
) -> Iterator[Migration]:
    """Give the migrations of one version: one, unless several have a way up and so the same number.

    several: the folder is for several databases, and what is for others alone is passed over.
    """
    chosen: dict[str, dict[str, Path]] = {}
    for (label, part), dialects in files.items():
        path = next((dialects[one] for one in ANY_DIALECT if one in dialects), None)
        if path is None and not several:
            path = dialects.popitem()[1]
            for other in dialects.values():
                _add({"": path}, "", other)
        if path is not None:
            chosen.setdefault(label, {})[part] = path
    chosen = _leave_slips(chosen)
    ups = [label for label, parts in chosen.items() if "up" in parts]
    if len(ups) == 1:
        for label, parts in chosen.items():
            for part, path in parts.items() if label != ups[0] else ():
                _add(chosen[ups[0]], part, path)
    elif not ups and several and any(part == "up" for _, part in files):
        return
    for label in ups or chosen:
        yield _read_migration(folder, version, label, chosen[label])


def _leave_slips(chosen: dict[str, dict[str, Path]]) -> dict[str, dict[str, Path]]:
    """1_a.drown.sql beside 1_a.up.sql is none of its tool's: a slip, a sample, a note."""
    ups = (parts["up"].name for parts in chosen.values() if "up" in parts)
    said = tuple(name[: -len("up.sql")] for name in ups if name.lower().endswith(".up.sql"))
    return {label: parts for label, parts in chosen.items() if not label.startswith(said)}


def _refuse_unnumbered(path: Path) -> None:
    """Refuse a folder whose SQL would never run: better than nothing to do. An empty one may be filled."""
    first = next((one for one in sorted(path.rglob("*.[sS][qQ][lL]")) if not one.name.startswith(".")), None)
    files = [one for one in sorted(path.iterdir()) if one.is_file() and one.suffix[1:] in KINDS]
    known = ((one, strangers.name_tool(one)) for one in files)
    programs = (one for one in files if not first or one.suffix[1:] not in strangers.DATA)
    numbered = next((one for one in programs if PROGRAM.fullmatch(one.name)), None)
    other, tool = next((one for one in known if one[1]), (numbered, strangers.ANY))
    if other:
        raise FolderRefused(
            f"The migrations of this folder are no SQL: only {tool} can run them. Write them as SQL, or stay "
            f"with {tool}.",
            Place(str(other)),
        )
    if first is None:
        return
    raise FolderRefused(
        "No file of this folder itself begins with a number, so none would run. Name them NUMBER_name.sql, "
        "give the folder they lie in by --dir, or say whose format it is by --format.",
        Place(str(first)),
    )


def parse_version(text: str) -> str:
    """Return a number or date as the history keeps it: 0001 is 1, 2024-05-01 is 20240501.

    20240501_02 is 20240501.2.
    """
    if re.fullmatch(DATE, text):
        day, rest = (re.sub(r"\D", "", part) for part in (text[:10], text[10:]))
        return f"{day}{rest}" if len(rest) in (0, 4, 6) else f"{day}.{int(rest)}"
    return ".".join(str(int(part)) for part in re.split(r"[-_.]", text))


def _read_migration(folder: str, version: str, label: str, files: dict[str, Path]) -> Migration:
    if "up" not in files:
        path = next(iter(files.values()))
        raise FolderRefused(
            f"There is no {label}.up.sql beside this file. Add it, or rename this one.", Place(str(path))
        )
    scripts = {
        part: atlas.heed(sections.include(read_script(path), path.parent, read_script))
        for part, path in files.items()
    }
    if strangers.LIQUIBASE.match(scripts["up"].text):
        refusal = Problem(
            "This is a changelog of Liquibase's: its remarks say what runs where, and what again.",
            "Write each changeset that is for this database as a migration, or go on with Liquibase.",
            Place(str(files["up"]), 1),
        )
        scripts["up"] = replace(scripts["up"], refusal=refusal)
    if "down" not in scripts:
        scripts |= _split(scripts["up"])
    return Migration(
        folder,
        version,
        label,
        scripts["up"],
        scripts.get("down"),
        scripts.get("check"),
        backfill=scripts.get("backfill"),
    )


def _split(script: Script) -> dict[str, Script]:
    """Return the parts of a file that holds the way back too: it must not run with the rest."""
    marks = [
        (mark, SAME.get(word := next(filter(None, mark.groups())).lower(), word))
        for mark in MARK.finditer(script.text)
    ]
    words = [word for _, word in marks]
    if checks := next((mark for mark, word in marks if word.startswith("checks")), None):
        refusal = Problem(
            "Atlas asks these checks before it runs the migration, which is not done here.",
            "Write them as a DO block that raises, at the head of the migration.",
            point(str(script.path), script.text, checks.start()),
        )
        return {"up": replace(script, refusal=refusal)}
    if not set(words) & BACK or (words[0] == "down" and "up" not in words):
        return {}
    spans: dict[str, list[tuple[int, int]]] = {"up": [], "down": []}
    part, start = "up", 0
    head = script.text[: marks[0][0].start()]
    if words[0] not in BACK and not any(line.strip() and line[:1] != "#" for line in head.split("\n")):
        start = len(head)  # remarks of Play's, which are none of SQL's
    for mark, word in marks:
        spans[part].append((start, mark.start()))
        part, start = "down" if word in BACK else "up", mark.end()
    spans[part].append((start, len(script.text)))
    return {part: sections.cut(script, spans[part], script.options) for part in spans}


def create_pair(folder: Folder, name: str) -> tuple[Path, Path]:
    """Write the next numbered pair of files, each with one line of comment. Return up and down.

    Raises WrongUsage. Asked of formats.create_pair, which knows whether the folder is another tool's.
    """
    word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not word:
        raise WrongUsage("The name needs a letter or a digit: tollbook migrate new add_refunds")
    folder.path.mkdir(parents=True, exist_ok=True)
    last = _read_numbered(folder)[-1:]
    if not last and (shelves := _find_shelves(folder.path)):
        raise WrongUsage(f"These migrations lie in folders. Say in which: --dir {list(shelves.values())[-1]}")
    release, dot, number = (last[0].version if last else "0").rpartition(".")
    digits = len(re.split(r"\D", last[0].label)[0]) if last and not dot else 0
    label = f"{release}{dot}{int(number) + 1:0{digits if last else NEW_VERSION_DIGITS}}_{word}"
    up, down = (folder.path / f"{label}.{part}.sql" for part in ("up", "down"))
    for path, line in (
        (up, "-- What this migration makes, and why.\n"),
        (down, "-- Undo it, newest first.\n"),
    ):
        with path.open("x", encoding="utf-8") as file:
            file.write(line)
    return up, down
