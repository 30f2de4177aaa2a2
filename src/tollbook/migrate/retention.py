"""Which backups lie in a place, which are good, and which may go."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tollbook.migrate import manifest, places
from tollbook.migrate.manifest import MANIFEST, Manifest
from tollbook.migrate.places import Place

# Of a manifest: what has more is none. A table has some sixty bytes in it.
MANIFEST_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Listed:
    """A backup in a place; `wrong` says why it is not good, as far as its size shows."""

    location: str
    manifest: Manifest
    wrong: str | None


def backups(backup_dir: str | Path | None = None) -> list[Listed]:
    """Return the backups in a folder or bucket that have a manifest, newest first. Raises OSError."""
    place = places.find(backup_dir)
    return read_all(place)


def read_all(place: Place) -> list[Listed]:
    """Return the backups in a place, newest first."""
    found: list[Listed] = []
    for name in place.names():
        if name.endswith(MANIFEST):
            with suppress(ValueError, OSError):  # another's file, or just removed
                one = read(place, name.removesuffix(MANIFEST))
                found.append(Listed(place.locate(one.file), one, _find_fault(place, one)))
    return sorted(found, key=lambda one: one.manifest.made_at, reverse=True)


def read(place: Place, file: str) -> Manifest:
    """Read the manifest beside a backup. Raises FileNotFoundError, ValueError."""
    text = bytearray()
    for chunk in place.read(file + MANIFEST):
        text += chunk
        if len(text) > MANIFEST_BYTES_MAX:
            raise ValueError("it is too large for a manifest")
    found = manifest.read(bytes(text))
    if found.file != file:
        raise ValueError(f"it is the manifest of {found.file}")
    return found


def _find_fault(place: Place, one: Manifest) -> str | None:
    size = place.size(one.file)
    if size is None:
        return "its file is not there"
    return None if size == one.size_bytes else f"it has {size:,} bytes instead of {one.size_bytes:,}"


def prune(place: Place, newest: Manifest, keep: int) -> tuple[str, ...]:
    """Keep so many good backups of the database of `newest`, which is one of them; return what was removed.

    Ours are those whose manifest names this database of this cluster: nothing else is looked at. The file
    goes before its manifest, so that what a kill leaves is taken for ours the next time.
    """
    ours = [
        one
        for one in read_all(place)
        if (one.manifest.database, one.manifest.system) == (newest.database, newest.system)
        and one.manifest.made_at <= newest.made_at
    ]
    good = [one for one in ours if one.wrong is None][:keep]
    oldest = min((one.manifest.made_at for one in good), default=newest.made_at)
    removed: list[str] = []
    for one in ours:
        if one not in good and one.manifest.made_at < oldest:
            place.remove(one.manifest.file)
            place.remove(one.manifest.name)
            removed.append(one.location)
    return tuple(removed)


def estimate(place: Place, made: Manifest, bytes_per_second: float, seconds_min: float) -> Manifest:
    """Say how long a restore will take: as long as the last measured one of this database, by its size."""
    for one in read_all(place):
        known = one.manifest
        if known.trial and (known.database, known.system) == (made.database, made.system):
            bytes_per_second = max(known.database_bytes, 1) / max(known.trial.seconds, 0.001)
            break
    return replace(made, restore_seconds=max(seconds_min, made.database_bytes / bytes_per_second))
