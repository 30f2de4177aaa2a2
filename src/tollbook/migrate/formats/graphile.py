"""graphile-migrate: numbered files in `committed`, each with the hash of itself and of the one before."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Folder, Migration, list_sql, read_script, sort
from tollbook.migrate.formats import sections

FILE_NAME = re.compile(r"(?P<label>(?P<version>[0-9]{6,})(?:-.*)?)\.sql")
HEADER = re.compile(
    r"--! Previous: (?P<previous>.*)\n--! Hash: (?P<hash>(?P<kind>sha1):\w+)\n(?:--! .*\n)*\n"
)


def recognise(path: Path) -> bool:
    """Whether the folder, or `committed` in it, has committed migrations."""
    first = next(iter(sorted(_find(path).glob("[0-9]*.sql"))), None)
    return first is not None and HEADER.match(first.read_text(errors="replace")) is not None


def _find(path: Path) -> Path:
    return path / "committed" if (path / "committed").is_dir() else path


def read(folder: Folder) -> list[Migration]:
    """Return the folder's committed migrations. Raises FolderRefused where the chain of hashes is broken."""
    found: list[Migration] = []
    before: str | None = None
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
        if compute_hash(body, previous, header["kind"]) != header["hash"]:
            raise FolderRefused(
                "This file was edited after it was committed. Put it back.", Place(str(path), 2)
            )
        before = header["hash"]
        transaction = re.match(r"--!\s*no-transaction\b", body) is None
        options = replace(script.options, transaction=script.options.transaction and transaction)
        up = sections.cut(script, [(header.end(), len(script.text))], options)
        found.append(Migration(folder.name, match["version"], match["label"], up))
    return sort(found)


def compute_hash(body: str, previous: str | None, kind: str) -> str:
    """Return the hash that graphile-migrate gives a migration (its hash.ts)."""
    text = f"{previous or ''}\n{body}".strip() + "\n"
    return f"{kind}:{hashlib.new(kind, text.encode(), usedforsecurity=False).hexdigest()}"
