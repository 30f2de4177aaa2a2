"""Sqitch: a plan of changes in their order, with a deploy, a revert and a verify script for each."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Folder, Migration, Script, read_script
from tollbook.migrate.formats import sections

PLAN = "sqitch.plan"
SETTINGS = "sqitch.conf"
ENGINES = ("pg", "cockroach", "yugabyte")
SECTION = re.compile(r'\[\s*([\w.-]+)(?:\s+"([^"\n]*)")?\s*\]')
SETTING = re.compile(r"([A-Za-z][\w-]*)\s*(?:=\s*(.*))?")
VALUE = re.compile(r'"((?:[^"\\]|\\.)*)"|([^"#;]+)|[#;].*')
PROJECT = re.compile(r"(?m)^[ \t]*%[ \t]*project[ \t]*=[ \t]*(\S+)")
# name, [dependencies], time, person: all that is read here is the name, and for a tag its own
CHANGE = re.compile(r"(?:(?P<tag>@)|\+[ \t]*)?(?P<name>[^\s\[+-][^\s\[]*)(?:\s|\[|$)")
ENDING = re.compile(r"(?mi)^\s*(?:BEGIN|ROLLBACK|START\s+TRANSACTION)\s*;[ \t]*$")
# A variable of psql, and what hides one from it.
VARIABLE = re.compile(
    r"--[^\n]*|/\*.*?\*/|\$(?P<tag>[A-Za-z_]\w*)?\$.*?\$(?P=tag)?\$|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|::"
    r"|:(?P<quote>['\"]?)(?P<name>\w+)(?P=quote)",
    re.DOTALL,
)
FOLDERS_ABOVE_MAX = 8  # of a script, below the folder of its plan


@dataclass(frozen=True, slots=True)
class _Project:
    """Where the parts of a project lie, and what its scripts are given."""

    path: Path
    settings: Mapping[str, str]  # section.key, in lower case but for a name between them

    def find(self, key: str) -> str | None:
        """Return a setting of the target that is deployed to by default, of the engine's, or of all."""
        target = self.settings.get("engine.pg.target") or self.settings.get("core.target")
        sections_ = (f"target.{target}", "engine.pg", "core")
        return next((said for one in sections_ if (said := self.settings.get(f"{one}.{key}"))), None)

    @property
    def top(self) -> Path:
        """The folder of the plan and the scripts, where nothing else is said."""
        return self.path / (self.find("top_dir") or "")

    @property
    def plan(self) -> Path | None:
        """The plan: as the settings say, or any file that is one."""
        said = self.find("plan_file")
        named = self.path / said if said else self.top / PLAN
        plans = (
            one for one in sorted(self.top.glob("*.plan")) if "%syntax-version" in sections.read_text(one)
        )
        return named if named.is_file() else next(plans, None)

    def place(self, part: str, name: str) -> Path:
        """Return where a script of a part (deploy, revert, verify) lies; a reworked one has a tag in it."""
        extension = self.find("extension") or "sql"
        said = self.find(f"{part}_dir")
        folder = self.path / said if said else self.top / part
        if "@" in name:
            whole, own = self.find("reworked_dir"), self.find(f"reworked_{part}_dir")
            folder = self.path / (own or f"{whole}/{part}") if own or whole else folder
        return folder / f"{name}.{extension}"

    def list_variables(self, part: str) -> dict[str, str]:
        """Return what a script may ask for as :name."""
        found: dict[str, str] = {}
        # In this order, as Sqitch has it; a revert script is given what the deploy script was.
        sections_ = ("core.variables", "deploy.variables", f"{part}.variables", "engine.pg.variables")
        for section in sections_:
            for key, value in self.settings.items():
                if key.rpartition(".")[0] == section:
                    found[key.rpartition(".")[2]] = value
        return found


def recognise(path: Path) -> bool:
    """Whether a plan of Sqitch lies here, or where the configuration here says."""
    return _open(path).plan is not None


def _open(path: Path) -> _Project:
    settings = path / SETTINGS
    return _Project(path, dict(_read_settings(settings)) if settings.is_file() else {})


def _read_settings(path: Path) -> Iterator[tuple[str, str]]:
    """Give the settings of a file in git's form, the later of two last."""
    section = ""
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        text = line.strip()
        if head := SECTION.match(text):
            section = head[1].lower() + (f".{head[2]}" if head[2] else "")
            text = text[head.end() :].strip()
        if found := SETTING.match(text):
            said = "true" if found[2] is None else _read_value(found[2])
            # The names of variables are what is asked for; all others are the same in any case.
            yield f"{section}.{found[1] if section.endswith('variables') else found[1].lower()}", said


def _read_value(text: str) -> str:
    pieces = (one[1] if one[1] is not None else one[2] or "" for one in VALUE.finditer(text))
    return re.sub(r"\\(.)", r"\1", "".join(pieces).strip())


def read(folder: Folder) -> list[Migration]:
    """Return the plan's changes in its order. Raises FolderRefused."""
    project = _open(folder.path)
    if project.plan is None:
        raise FolderRefused(f"There is no {PLAN} here.", Place(str(folder.path)))
    engine = project.settings.get("core.engine")
    if engine and engine not in ENGINES:
        place = Place(str(folder.path / SETTINGS))
        raise FolderRefused(f"This plan is for {engine}, not for PostgreSQL.", place)
    return [_pair(folder, project, names) for names in _list_names(_read_plan(project.plan))]


def _read_plan(path: Path) -> list[str]:
    """Return the names of the plan's changes and, with @, of its tags."""
    found: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text or text.startswith("%"):
            continue
        match = CHANGE.match(text)
        if match is None:
            raise FolderRefused("This line of the plan cannot be read.", Place(str(path), number))
        found.append((match["tag"] or "") + match["name"])
    return found


def _list_names(plan: list[str]) -> list[list[str]]:
    """Return for each change what it may be called: one that was reworked later has a tag in its name.

    The tags between the two are all its, and any of them may be the one that its scripts are called by.
    """
    found: list[list[str]] = []
    for place, name in enumerate(plan):
        if name[0] == "@":
            continue
        after = plan[place + 1 :]
        tags = [one for one in after[: after.index(name)] if one[0] == "@"] if name in after else []
        found.append([name + tag for tag in tags] or [name])
    return found


def find_registry(script: Path) -> str | None:
    """Return the schema of Sqitch's own tables, as the settings above a script say; None for the usual."""
    above = (one for one in list(script.parents)[:FOLDERS_ABOVE_MAX] if (one / SETTINGS).is_file())
    project = next(map(_open, above), None)
    return project.find("registry") if project else None


def find_project(script: Path) -> str:
    """Return the name of the project that a script belongs to, as the plan above it says."""
    for above in list(script.parents)[:FOLDERS_ABOVE_MAX]:
        for plan in sorted(above.glob("*.plan")):
            if found := PROJECT.search(sections.read_text(plan)):
                return found[1]
    return ""


def _pair(folder: Folder, project: _Project, names: list[str]) -> Migration:
    label = next((one for one in names if project.place("deploy", one).is_file()), names[0])
    deploy, revert, check = (project.place(part, label) for part in ("deploy", "revert", "verify"))
    if not deploy.is_file():
        raise FolderRefused("The plan names this script, which is not there.", Place(str(deploy)))
    # Sqitch runs its verify scripts at a deployment only where it is told to: many need what comes later.
    verify = project.settings.get("deploy.verify", "").lower() in ("true", "yes", "on", "1")
    return Migration(
        folder.name,
        label,
        label,
        _read(deploy, project, "deploy"),
        _read(revert, project, "revert") if revert.is_file() else None,
        _read_check(check, project) if verify and check.is_file() else None,
    )


def _fill(script: Script, variables: Mapping[str, str]) -> Script:
    """Write the values of variables as psql does; what it would leave as it is stays."""
    places = [one for one in VARIABLE.finditer(script.text) if one["name"] in variables or one["quote"]]

    def value(place: re.Match[str]) -> str | None:
        found = variables.get(place["name"])
        return None if found is None else _quote(place["quote"], found)

    return sections.fill(script, places, value, _advise) if places else script


def _quote(quote: str, value: str) -> str:
    return quote + (value.replace(quote, quote * 2) if quote else value) + quote


def _advise(place: re.Match[str]) -> str:
    return f'Set {place["name"]} in {SETTINGS}, under [deploy "variables"].'


def _read(path: Path, project: _Project, part: str) -> Script:
    variables = project.list_variables(part)

    def load(path: Path) -> Script:
        return _fill(read_script(path), variables)

    return sections.include(load(path), project.path, load)


def _read_check(path: Path, project: _Project) -> Script:
    """Read a verify script: it begins and rolls back itself, and fails by an error only."""
    script = _read(path, project, "verify")
    spans, done = list[tuple[int, int]](), 0
    for match in ENDING.finditer(script.text):
        spans.append((done, match.start()))
        done = match.end()
    spans.append((done, len(script.text)))
    return sections.cut(script, spans, replace(script.options, truths=False))
