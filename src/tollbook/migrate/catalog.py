"""The catalog as one list of objects with their definitions, and the difference of two such lists."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tollbook.migrate.definitions import EDGES, OBJECTS, PLAIN
from tollbook.migrate.session import Connection

# Kinds that are parts of a table: listed only where the table itself is neither new nor gone.
PARTS = ("column", "constraint")
MAINTAIN_SINCE = 170000  # a right that GRANT ALL gives since then

Key = tuple[str, str]
Place = tuple[str, int, int]  # catalog, object, part: what pg_depend speaks of


@dataclass(frozen=True, slots=True)
class Change:
    """An object gained (before is None), lost (after is None) or changed, with its definitions."""

    kind: str
    name: str
    before: str | None
    after: str | None

    @property
    def what(self) -> str:
        """gained, lost or changed."""
        return "gained" if self.before is None else "lost" if self.after is None else "changed"


@dataclass(frozen=True, slots=True)
class Object:
    """An object of a database: its definition, the SQL that makes and drops it, and whose part it is.

    make is None where it takes more than one thing (a table and its columns), or where nobody can say.
    facts are what the definition says, taken apart.
    """

    kind: str
    name: str
    definition: str
    make: str | None
    drop: str | None
    parent: str | None
    place: Place
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    owner: str | None = None

    @property
    def key(self) -> Key:
        """What it is found by."""
        return self.kind, self.name


Snapshot = dict[Key, str]
Catalog = dict[Key, Object]


def read(conn: Connection, *, like: int | None = None) -> Catalog:
    """Return every object, less the system's, the engine's and extensions', however the session is set.

    like: a server version; rights that such a server does not know yet are left out.
    """
    with conn.transaction(force_rollback=True):
        conn.execute(PLAIN)
        if like is not None and like < MAINTAIN_SINCE:
            conn.execute("SET LOCAL tollbook.unknown_right = 'MAINTAIN'")
        rows = conn.execute(OBJECTS, prepare=False).fetchall()
    found = (
        # Other tools keep a checkout's line ends in functions; a file runs here with LF.
        Object(
            kind, name, text.replace("\r\n", "\n"), make, drop, parent, (place, oid, sub), facts or {}, owner
        )
        for kind, name, text, make, drop, parent, place, oid, sub, facts, owner in rows
    )
    return {one.key: one for one in found}


def read_needs(conn: Connection) -> dict[Place, set[Place]]:
    """Return what each object needs to be there first."""
    needs: dict[Place, set[Place]] = {}
    for *place, needed, oid, sub in conn.execute(EDGES, prepare=False):
        needs.setdefault((place[0], place[1], place[2]), set()).add((needed, oid, sub))
    return needs


def snapshot(conn: Connection) -> Snapshot:
    """Return every object's definition by (kind, name), with its owner."""
    return {
        key: f"{one.definition} owner {one.owner}".strip() if one.owner else one.definition
        for key, one in read(conn).items()
    }


def diff(before: Snapshot, after: Snapshot) -> list[Change]:
    """Return what differs, by kind and name; parts of new or gone tables are left out."""
    changes = [
        Change(*key, before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    whole = {change.name for change in changes if change.kind == "table" and change.what != "changed"}
    return [
        change
        for change in changes
        if change.kind not in PARTS or change.name.rpartition(".")[0] not in whole
    ]
