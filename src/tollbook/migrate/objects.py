"""Database objects by kind and name: promised by a file, found in the catalog, counted side by side."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

KINDS_SHOWN = {
    "table": "Tables",
    "view": "Views",
    "materialized view": "Materialized views",
    "function": "Functions",
    "index": "Indexes",
    "trigger": "Triggers",
    "type": "Types",
    "sequence": "Sequences",
    "schema": "Schemas",
    "extension": "Extensions",
}
# Others may share these, so a migration that makes them only where they are missing need not take them away.
SHARED_KINDS = ("schema", "extension")
RELATION_KINDS = ("table", "view", "materialized view", "sequence", "index")


@dataclass(frozen=True, slots=True)
class Promise:
    """An object that is to be there.

    schema is None where the file does not say it, name where PostgreSQL chooses it (an unnamed index), `on`
    is the table of an index or trigger, args are a function's input types (None: any), conditional is
    true for IF NOT EXISTS and OR REPLACE, made is false where the object was there before the run. loose is
    true where a later statement of the file may have taken it away, which nothing but the catalog tells.
    """

    kind: str
    schema: str | None
    name: str | None
    on: str | None = None
    args: tuple[str, ...] | None = None
    conditional: bool = False
    made: bool = True
    loose: bool = False

    def __str__(self) -> str:
        name = self.name or f"(unnamed on {self.on})"
        full = f"{self.schema}.{name}" if self.schema else name
        if self.kind == "function" and self.args is not None:
            return f"{full}({', '.join(_shorten(arg) for arg in self.args)})"
        return f"{full} on {self.on}" if self.kind == "trigger" else full

    def pack(self) -> dict[str, Any]:
        """Return it as the history keeps it, where none is loose any more."""
        packed = {
            "kind": self.kind,
            "schema": self.schema,
            "name": self.name,
            "on": self.on,
            "args": self.args,
        }
        flags = {"conditional": self.conditional, "made": self.made}
        flags |= {"loose": True} if self.loose else {}
        return {key: value for key, value in packed.items() if value is not None} | flags


def _shorten(type_name: str) -> str:
    word = type_name.replace('"', "").removeprefix("pg_catalog.")
    return f"{word[1:]}[]" if word.startswith("_") else word


def unpack(packed: Mapping[str, Any]) -> Promise:
    """Read a promise as the history keeps it."""
    args = packed.get("args")
    return Promise(
        packed["kind"],
        packed.get("schema"),
        packed.get("name"),
        packed.get("on"),
        tuple(args) if args is not None else None,
        packed.get("conditional", False),
        packed.get("made", True),
    )


@dataclass(frozen=True, slots=True)
class Count:
    """How many objects of a kind were found of those promised."""

    kind: str
    found: int
    promised: int


def count(promised: Iterable[Promise], missing: Iterable[Promise]) -> tuple[Count, ...]:
    """Count by kind, in the order in which they are shown."""
    promised, missing = list(promised), list(missing)
    counts: list[Count] = []
    for kind in KINDS_SHOWN:
        total = sum(promise.kind == kind for promise in promised)
        lost = sum(promise.kind == kind for promise in missing)
        if total:
            counts.append(Count(kind, total - lost, total))
    return tuple(counts)


def show_counts(counts: Iterable[Count]) -> str:
    """Return counts as `Tables 4/4 · Views 4/4`."""
    return " · ".join(f"{KINDS_SHOWN[one.kind]} {one.found}/{one.promised}" for one in counts)
