"""What a backup holds, written beside it: from what, when, how many rows and objects, which checksum."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib import metadata
from typing import Any

MANIFEST = ".json"  # follows the backup's own name
FORM = 1  # of the manifest; a later one that older versions cannot read gets another number


@dataclass(frozen=True, slots=True)
class Contents:
    """What a database holds: rows by table (its SQL name), objects by kind, migrations in force."""

    tables: dict[str, int]
    objects: dict[str, int]
    history: tuple[str, ...]

    @property
    def table_count(self) -> int:
        """The tables, partitioned ones too, which have no rows of their own."""
        return self.objects.get("table", 0)

    @property
    def rows(self) -> int:
        """The rows of all tables."""
        return sum(self.tables.values())


@dataclass(frozen=True, slots=True)
class Trial:
    """A restore that was verified against the manifest: when, how long it took, and where."""

    at: datetime
    seconds: float
    where: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a backup without opening it. `system` is the cluster's own number."""

    file: str
    size_bytes: int
    sha256: str
    encryption: str | None  # None, "passphrase" or "key"
    database: str
    system: str
    server: str
    made_at: datetime
    seconds: float
    database_bytes: int
    contents: Contents
    restore_seconds: float  # estimated
    trial: Trial | None = None
    tollbook: str = field(default_factory=lambda: _read_version())

    @property
    def name(self) -> str:
        """The name of the file that it is written to."""
        return self.file + MANIFEST

    def write(self) -> bytes:
        """Return it as JSON."""
        return (
            json.dumps({"form": FORM, **asdict(self)}, indent=2, default=datetime.isoformat).encode() + b"\n"
        )

    def tried(self, trial: Trial) -> Manifest:
        """Return it with the outcome of a verified restore."""
        return replace(self, trial=trial)


def read(text: bytes) -> Manifest:
    """Read a manifest. Raises ValueError where it is none, or one of a later form."""
    try:
        given: dict[str, Any] = json.loads(text)
        if given.pop("form") != FORM:
            raise ValueError("it was written by a newer Tollbook")
        contents, trial = given.pop("contents"), given.pop("trial")
        given["made_at"] = datetime.fromisoformat(given["made_at"])
        if trial:
            trial["at"] = datetime.fromisoformat(trial["at"])
        contents["history"] = tuple(contents["history"])
        return Manifest(**given, contents=Contents(**contents), trial=Trial(**trial) if trial else None)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no manifest of a backup ({error})") from None


def _read_version() -> str:
    try:
        return metadata.version("tollbook")
    except metadata.PackageNotFoundError:
        return "unknown"
