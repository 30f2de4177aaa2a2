"""graphile-migrate: numbered files in `committed`, each with the hash of itself and of the one before."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Folder, Migration, Script, list_sql, read_script, sort
from tollbook.migrate.formats import gmrc, sections

FILE_NAME = re.compile(r"(?P<label>(?P<version>[0-9]{6,})(?:-.*)?)\.sql")
NUMBERED = re.compile(r"[0-9].*\.sql")
PLACEHOLDER = re.compile(r"(?<![:\w]):(?P<name>[A-Z][A-Z0-9_]*)\b")
HEADER = re.compile(r"(?:--! [A-Z]\w*(?::.*)?\n)+")
LINE = re.compile(r"(?m)^--! (?P<name>\w+)(?::[ \t]*(?P<value>.*?)[ \t]*)?$")
HASH = re.compile(r"sha1:\w+")


@dataclass(frozen=True, slots=True)
class Header:
    """What stands above a committed migration, in any order. end: the index of what stands below."""

    previous: str | None
    hash: str
    checked: bool
    end: int


def read_header(text: str) -> Header | None:
    """Return the header of a committed migration; None where there is none."""
    header = HEADER.match(text)
    said = {line["name"]: line["value"] for line in LINE.finditer(header[0])} if header else {}
    previous, hash_ = said.get("Previous"), said.get("Hash")
    if header is None or not previous or not hash_ or not HASH.fullmatch(hash_):
        return None
    return Header(None if previous == "-" else previous, hash_, "AllowInvalidHash" not in said, header.end())


def recognise(path: Path) -> bool:
    """Whether the folder, or `committed` in it or in its `migrations`, has committed migrations."""
    first = sections.find_first(_find(path), NUMBERED)
    return first is not None and read_header(sections.read_text(first)) is not None


def _find(path: Path) -> Path:
    below = (path / "committed", path / "migrations" / "committed")
    return next((one for one in below if one.is_dir()), path)


def read(folder: Folder) -> list[Migration]:
    """Return the folder's committed migrations. Raises FolderRefused where the chain of hashes is broken."""
    found: list[Migration] = []
    before: str | None = None
    settings = gmrc.read(_find(folder.path))
    for path in list_sql(_find(folder.path)):
        match = FILE_NAME.fullmatch(path.name)
        if match is None:
            continue  # as graphile-migrate does
        script = read_script(path)
        header = read_header(script.text)
        if header is None:
            raise FolderRefused("This is no committed migration of graphile-migrate.", Place(str(path)))
        body = script.text[header.end :]
        if header.previous != before:
            raise FolderRefused(
                f"This migration follows {header.previous or 'none'}, but the one before it is "
                f"{before or 'none'}.",
                Place(str(path), 1),
            )
        kind = header.hash.partition(":")[0]
        if header.checked and compute_hash(body, before, kind) != header.hash:
            raise FolderRefused(
                "This file was edited after it was committed. Put it back.", Place(str(path), 2)
            )
        before = header.hash
        transaction = re.match(r"\s*--!\s*no-transaction\b", body) is None
        options = replace(script.options, transaction=script.options.transaction and transaction)
        up = sections.cut(script, [(header.end, len(script.text))], options)
        found.append(Migration(folder.name, match["version"], match["label"], _fill(up, settings)))
    files = _list_actions(folder.path, settings) if found else []
    return [*sort(found), *(_make_action(folder, file, settings, before or "") for file in files)]


def _list_actions(path: Path, settings: Mapping[str, Any]) -> list[Path]:
    """Return the SQL files that are run after all migrations; commands are for a shell, and are not run.

    Raises FolderRefused where something is to run before them.
    """
    if first := next(_find_actions(path, settings.get("beforeAllMigrations")), None):
        raise FolderRefused(
            "graphile-migrate runs this before all migrations (beforeAllMigrations), which is not done here. "
            "Write what it does in a migration, and take it out of the settings.",
            Place(str(first)),
        )
    return list(_find_actions(path, settings.get("afterAllMigrations")))


def _find_actions(path: Path, said: Any) -> Iterator[Path]:
    for one in cast("list[Any]", said) if isinstance(said, list) else [said]:
        action: dict[str, Any] | None = {"_": "sql", "file": one} if isinstance(one, str) else one
        # What is for its other database, the shadow, has nowhere to run.
        if action and action.get("_") == "sql" and not action.get("shadow"):
            yield _find(path).parent / str(action.get("file")).removeprefix("!")


def _make_action(folder: Folder, path: Path, settings: Mapping[str, Any], last: str) -> Migration:
    """Return what runs again whenever a migration has been committed since, by the hash of the last."""
    script = _fill(read_script(path), settings)
    return sections.make_last(folder.name, f"afterAllMigrations-{path.stem}", script, last)


def _fill(script: Script, settings: Mapping[str, Any]) -> Script:
    """Write the values of placeholders, as they are, and what the settings set in every session."""
    placeholders: dict[str, Any] = settings.get("placeholders") or {}

    def value(place: re.Match[str]) -> str | None:
        name = place["name"]
        if f":{name}" not in placeholders and not name.startswith("DATABASE_"):
            return place[0]
        said = placeholders.get(f":{name}")
        return said if isinstance(said, str) and said != "!ENV" else _look_up(name)

    filled = sections.fill(
        script,
        PLACEHOLDER.finditer(script.text),
        value,
        lambda place: f"Set {place['name']} in the environment, as for graphile-migrate.",
    )
    pairs: dict[str, Any] = settings.get("pgSettings") or {}
    lists = (
        f"SET {name} TO {value if name == 'search_path' else repr(str(value))}; "
        for name, value in pairs.items()
        if value is not None
    )
    return replace(filled, text="".join(lists) + filled.text)


def _look_up(name: str) -> str | None:
    found = os.environ.get(name)
    if found is None and name == "DATABASE_NAME":
        return urlsplit(os.environ.get("DATABASE_URL", "")).path.lstrip("/") or None
    # Who connects is whom graphile-migrate means by the owner.
    return "CURRENT_USER" if found is None and name == "DATABASE_OWNER" else found


def compute_hash(body: str, previous: str | None, kind: str) -> str:
    """Return the hash that graphile-migrate gives a migration (its hash.ts)."""
    text = f"{previous or ''}\n{body.strip()}".strip() + "\n"
    return f"{kind}:{hashlib.new(kind, text.encode(), usedforsecurity=False).hexdigest()}"
