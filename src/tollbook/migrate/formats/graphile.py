"""graphile-migrate: numbered files in `committed`, each with the hash of itself and of the one before."""

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Folder, Migration, Script, list_sql, read_script, sort
from tollbook.migrate.formats import sections

FILE_NAME = re.compile(r"(?P<label>(?P<version>[0-9]{6,})(?:-.*)?)\.sql")
PLACEHOLDER = re.compile(r"(?<![:\w]):(?P<name>[A-Z][A-Z0-9_]*)\b")
SETTINGS = ".gmrc"
PLACEHOLDER_SETTING = re.compile(r"""["']:(?P<name>[A-Z0-9_]+)["']\s*:\s*["'](?P<value>[^"'\n]*)["']""")
SESSION = re.compile(r"""(?m)^\s*["']?pgSettings["']?\s*:\s*\{(?P<pairs>[^}]*)\}""")
SESSION_SETTING = re.compile(
    r"""(?m)^\s*["']?(?P<name>[a-z_][\w.]*)["']?\s*:\s*["'](?P<value>[^"'\n]*)["']"""
)
SETTINGS_ABOVE_MAX = 3  # committed, migrations, and the project
HEADER = re.compile(
    r"--! Previous: (?P<previous>.*)\n--! Hash: (?P<hash>(?P<kind>sha1):\w+)\n(?P<more>(?:--! .*\n)*)\n"
)


def recognise(path: Path) -> bool:
    """Whether the folder, or `committed` in it, has committed migrations."""
    first = min(_find(path).glob("[0-9]*.sql"), default=None)
    return first is not None and HEADER.match(sections.read_text(first)) is not None


def _find(path: Path) -> Path:
    return path / "committed" if (path / "committed").is_dir() else path


def read(folder: Folder) -> list[Migration]:
    """Return the folder's committed migrations. Raises FolderRefused where the chain of hashes is broken."""
    found: list[Migration] = []
    before: str | None = None
    settings = _read_settings(folder.path)
    for path in list_sql(_find(folder.path)):
        match = FILE_NAME.fullmatch(path.name)
        script = read_script(path)
        header = HEADER.match(script.text)
        if match is None or header is None:
            raise FolderRefused("This is no committed migration of graphile-migrate.", Place(str(path)))
        previous = None if header["previous"] == "-" else header["previous"]
        body = script.text[header.end() :]
        if previous != before:
            raise FolderRefused(
                f"This migration follows {previous or 'none'}, but the one before it is {before or 'none'}.",
                Place(str(path), 1),
            )
        allowed = "--! AllowInvalidHash" in header["more"]
        if not allowed and compute_hash(body, previous, header["kind"]) != header["hash"]:
            raise FolderRefused(
                "This file was edited after it was committed. Put it back.", Place(str(path), 2)
            )
        before = header["hash"]
        transaction = re.match(r"--!\s*no-transaction\b", body) is None
        options = replace(script.options, transaction=script.options.transaction and transaction)
        up = sections.cut(script, [(header.end(), len(script.text))], options)
        found.append(Migration(folder.name, match["version"], match["label"], _fill(up, settings)))
    return sort(found)


def _read_settings(path: Path) -> str:
    """Return what graphile-migrate's settings say, which lie above the folder; JSON5, as people write it."""
    above = list((_find(path).resolve() / SETTINGS).parents)[:SETTINGS_ABOVE_MAX]
    return next((sections.read_text(one / SETTINGS) for one in above if (one / SETTINGS).is_file()), "")


def _fill(script: Script, settings: str) -> Script:
    """Write the values of placeholders, as they are, and what the settings set in every session."""
    placeholders = {one["name"]: one["value"] for one in PLACEHOLDER_SETTING.finditer(settings)}

    def value(place: re.Match[str]) -> str | None:
        name = place["name"]
        if name not in placeholders and not name.startswith("DATABASE_"):
            return place[0]
        set_ = placeholders.get(name, "!ENV")
        return _look_up(name) if set_ == "!ENV" else set_

    filled = sections.fill(
        script,
        PLACEHOLDER.finditer(script.text),
        value,
        lambda place: f"Set {place['name']} in the environment, as for graphile-migrate.",
    )
    block = SESSION.search(settings)
    pairs = SESSION_SETTING.finditer(block["pairs"]) if block else ()
    lists = (
        f"SET {one['name']} TO {one['value'] if one['name'] == 'search_path' else repr(one['value'])}; "
        for one in pairs
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
    text = f"{previous or ''}\n{body}".strip() + "\n"
    return f"{kind}:{hashlib.new(kind, text.encode(), usedforsecurity=False).hexdigest()}"
