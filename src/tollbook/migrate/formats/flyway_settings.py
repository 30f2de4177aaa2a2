"""Flyway's settings: those of the environment, then of the files that lie by the migrations or above them.

Read are flyway.toml and flyway.conf, and what a Spring or Quarkus application's own settings say of Flyway.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.formats import sections

ABOVE_MAX = 8  # src/main/resources/db/migration/postgresql, and some
ROOT = ".git"  # settings above a project's root are another's
RESOURCES = "src/main/resources"
# In each place, what stands in an earlier one goes before what stands in a later one.
NAMES = ("flyway.user.toml", "flyway.toml", "conf/flyway.toml", "flyway.conf", "conf/flyway.conf")
APPLICATION = ("application.properties", "application.yml", "application.yaml")
OF_APPLICATION = re.compile(r"(?:spring|quarkus)\.flyway\.(.*)")
PLACEHOLDERS = "placeholders."
# What the environment says of a setting: FLYWAY_DEFAULT_SCHEMA of defaultSchema.
WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")
LINE = re.compile(r"\s*([^#!=:\s][^=:\s]*)\s*[=:]?\s*(.*?)\s*")
YAML = re.compile(r"""( *)(?:"([^"]+)"|'([^']+)'|([^\s#:'"-][^\s:]*)):(?:\s+(.*))?""")
VALUE = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|(.*?))\s*(?:\s#.*)?""")
FROM_ENVIRONMENT = re.compile(r"\$\{(?:env\.)?(\w+)(?::([^}]*))?\}")


@dataclass(frozen=True, slots=True)
class Settings:
    """What is said, by names in lower case without dashes; places: where files of the settings lie."""

    said: Mapping[str, str]
    places: tuple[Path, ...]

    def find(self, name: str) -> str | None:
        """Return the value of a setting such as defaultSchema; None where nothing says it."""
        said = os.environ.get(name_variable(name))
        return self.said.get(_spell(name)) if said is None else said

    def get(self, name: str, usual: str) -> str:
        """Return the value of a setting, or what it is where nothing says it."""
        said = self.find(name)
        return usual if said is None else said

    def is_set(self, name: str, word: str) -> bool:
        """Whether a setting is the word: true, or false."""
        return (self.find(name) or "").lower() == word

    def find_placeholder(self, name: str) -> str | None:
        """Return the value of one of the project's own placeholders."""
        said = os.environ.get(name_variable(name, placeholder=True))
        return self.said.get(PLACEHOLDERS + name.lower()) if said is None else said

    def list(self, name: str) -> list[str]:
        """Return the values of a setting that has several."""
        return [one.strip() for one in (self.find(name) or "").split(",") if one.strip()]


def name_variable(name: str, *, placeholder: bool = False) -> str:
    """Return the variable of the environment by which Flyway is told a setting, or a placeholder's value."""
    if placeholder:
        return "FLYWAY_PLACEHOLDERS_" + re.sub(r"\W", "_", name).upper()
    return "FLYWAY_" + WORD.sub("_", name).upper()


def read(path: Path) -> Settings:
    """Return the settings for a folder: its own, or those of the next folder above that has some."""
    said: dict[str, str] = {}
    places: list[Path] = []
    for place in _climb(path.resolve()):
        own = [place / name for name in NAMES if (place / name).is_file()]
        others = [place / part / name for part in ("", RESOURCES) for name in APPLICATION]
        for file in [*own, *(one for one in others if one.is_file())]:
            found = dict(_read_file(file))
            said = found | said
            places += [place] if found else []
        if own:
            break
    return Settings(
        {key: filled for key, text in said.items() if (filled := _fill(text)) is not None}, (*places,)
    )


def _climb(path: Path) -> Iterator[Path]:
    for place in (path, *path.parents[:ABOVE_MAX]):
        yield place
        if (place / ROOT).exists():
            return


def _read_file(path: Path) -> Iterator[tuple[str, str]]:
    """Give what a file says of Flyway, the settings by their plain names."""
    if path.suffix == ".toml":
        yield from _read_toml(path)
        return
    text = sections.read_text(path)
    pairs = _read_yaml(text) if path.suffix in (".yml", ".yaml") else read_properties(text)
    for name, value in pairs:
        ours = name.removeprefix("flyway.") if path.suffix == ".conf" else ""
        if ours or ((match := OF_APPLICATION.fullmatch(name)) and (ours := match[1])):
            yield _spell(ours), value


def _spell(name: str) -> str:
    """Return a setting's name as all write it: sqlMigrationPrefix is sql-migration-prefix for Spring."""
    kept = name.lower()
    return kept if kept.startswith(PLACEHOLDERS) else kept.replace("-", "").replace("_", "")


def read_properties(text: str) -> Iterator[tuple[str, str]]:
    """Give what a file of Java's settings says; a line that ends with a backslash goes on in the next."""
    for line in re.sub(r"\\\r?\n\s*", "", text).splitlines():
        if match := LINE.fullmatch(line):
            yield match[1], match[2]


def _read_yaml(text: str) -> Iterator[tuple[str, str]]:
    """Give the plain values of the first document; a list's are one, with commas between them."""
    above: list[tuple[int, str]] = []
    listed: dict[str, list[str]] = {}
    for line in text.partition("\n---")[0].removeprefix("---").splitlines():
        match = YAML.fullmatch(line.rstrip())
        if match is None:
            if above and line.lstrip().startswith("- "):
                listed.setdefault(".".join(name for _, name in above), []).append(_unquote(line.lstrip()[2:]))
            continue
        depth, name = len(match[1]), match[2] or match[3] or match[4]
        above = [*((at, one) for at, one in above if at < depth), (depth, name)]
        if value := _unquote(match[5] or ""):
            yield ".".join(name for _, name in above), value.strip("[]")
    for name, values in listed.items():
        yield name, ",".join(values)


def _unquote(text: str) -> str:
    match = VALUE.fullmatch(text)
    return next((one for one in match.groups() if one is not None), "") if match else ""


def _read_toml(path: Path) -> Iterator[tuple[str, str]]:
    import tomllib

    try:
        said = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FolderRefused(f"This file cannot be read ({error}).", Place(str(path))) from None
    flyway: dict[str, Any] = said.get("flyway", {})
    environment = said.get("environments", {}).get(flyway.get("environment", "default"), {})
    for one in (environment, flyway, environment.get("flyway", {})):  # the last of two is in force
        yield from _flatten(one, "")


def _flatten(said: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for name, value in said.items():
        if isinstance(value, dict):
            yield from _flatten(cast("dict[str, Any]", value), f"{above}{name}.")
        elif isinstance(value, list):
            yield _spell(above + name), ",".join(map(str, cast("list[Any]", value)))
        else:
            yield _spell(above + name), str(value).lower() if isinstance(value, bool) else str(value)


def _fill(text: str) -> str | None:
    """Write the values of the environment's variables; None where one that has none is asked for."""
    missing = False

    def value(place: re.Match[str]) -> str:
        nonlocal missing
        found = os.environ.get(place[1], cast("str | None", place[2]))
        missing = missing or found is None
        return found or ""

    filled = FROM_ENVIRONMENT.sub(value, text)
    return None if missing else filled
