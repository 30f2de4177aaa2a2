"""The SQL that makes one catalog into another: what is lacking made, what differs altered, nothing lost."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tollbook.migrate.alterations import REPLACED, Work, change, comment
from tollbook.migrate.birth import advance, bear, holds, withdraw
from tollbook.migrate.catalog import Catalog, Key, Object, Place

# In this order objects are made where nothing else is known of what needs what.
RANKS = (
    "schema",
    "extension",
    "type",
    "domain constraint",
    "sequence",
    "function",
    "language",
    "collation",
    "operator",
    "operator family",
    "operator class",
    "cast",
    "transform",
    "conversion",
    "text search parser",
    "text search template",
    "text search dictionary",
    "text search configuration",
    "foreign-data wrapper",
    "server",
    "user mapping",
    "table",
    "column",
    "sequence owner",
    "index",
    "constraint",
    "statistics",
    "view",
    "materialized view",
    "rule",
    "trigger",
    "event trigger",
    "policy",
    "access method",
    "tablespace",
    "publication",
    "owner",
    "default privileges",
    "grant",
    "parameters",
    "comment",
)
EARLY = RANKS[: RANKS.index("sequence owner")]  # what a changed column may need
FOLLOWERS = tuple(kind for kind in REPLACED if kind not in ("index", "domain constraint", "grant"))
WHOLES = (
    "schema",
    "type",
    "sequence",
    "function",
    "table",
    "column",
    "constraint",
    "view",
    "materialized view",
)
Needs = Mapping[Place, set[Place]]


@dataclass(frozen=True, slots=True)
class Side:
    """A catalog with what needs what in it."""

    objects: Catalog
    needs: Needs


def reconcile(live: Side, wanted: Side, *, drops: bool = False) -> tuple[str, ...]:
    """Return the statements, in order, that make `live` what `wanted` is.

    What only the live side has is dropped in comments alone, unless `drops`. Of a changed index, constraint,
    view, trigger, policy or function the old one is dropped and the new one made.
    """
    work = Work()
    for key in sorted(live.objects.keys() & wanted.objects.keys()):
        have, want = live.objects[key], wanted.objects[key]
        if have.definition != want.definition:
            change(have, want, work)
    replaced = _follow(live, work)
    dropped = [_drop(live.objects[key]) for key in reversed(_order(replaced, live))]
    gone = {key[1] for key in replaced}
    made = [
        key
        for key in wanted.objects
        if key not in live.objects
        or key in replaced
        or key in work.made
        or not gone.isdisjoint(_list_wholes(wanted.objects[key]))
    ]
    remade = {key for key in replaced if key not in wanted.objects}
    remade |= {key for key, one in live.objects.items() if one.parent in gone and key not in wanted.objects}
    whole = {key[1] for key in made if key[0] == "table"}
    made = [key for key in made if not (key[0] == "column" and wanted.objects[key].parent in whole)]
    first, last = _split(_order(set(made), wanted), work)
    given = [one for one in live.objects.values() if holds(one)]
    later = given + [one for one in wanted.objects.values() if holds(one)]
    lines = [
        *dropped,
        *bear(first, wanted.objects, given),
        *work.altered,
        *(line for one in work.numbered for line in withdraw(one, wanted.objects, given)),
        *bear(last, wanted.objects, given),
        *(advance(one.facts["table"], one.facts) for one in _find_renumbered(wanted.objects, made, whole)),
        *_identify(live.objects, wanted.objects, {key[1] for key in made}),
        *bear(_order(remade, live), live.objects, later),
        *work.left,
        *_leave(live, wanted, remade, drops=drops),
    ]
    checked = any("CREATE OR REPLACE" in line for line in lines)
    return (*(("SET check_function_bodies = off;",) if checked else ()), *lines)


def _find_renumbered(wanted: Catalog, made: Iterable[Key], whole: set[str]) -> Iterable[Object]:
    """Return the owners of sequences that are made anew, where there may be rows."""
    owners = [wanted[key] for key in made if key[0] == "sequence owner" and ("sequence", key[1]) in made]
    return [one for one in owners if one.facts["table"] not in whole]


def _identify(live: Catalog, wanted: Catalog, made: set[str]) -> Iterable[str]:
    """Name the index by which replicas know a table's rows, once it is there: that goes with the index."""
    known = [one for one in wanted.values() if one.kind == "table" and one.facts["replica_by"]]
    for one in known:
        have = live.get(one.key)
        if (
            have is None
            or have.facts["replica_by"] != one.facts["replica_by"]
            or one.facts["replica_of"] in made
        ):
            yield f"ALTER TABLE {one.name} REPLICA IDENTITY USING INDEX {one.facts['replica_index']};"


def _split(order: list[Key], work: Work) -> tuple[list[Key], list[Key]]:
    """Part what a changed column may need (types, functions) from what may need the changed column."""
    if not work.altered:
        return order, []
    return [key for key in order if key[0] in EARLY], [key for key in order if key[0] not in EARLY]


def _follow(live: Side, work: Work) -> set[Key]:
    """Return what is to be made anew: what differs, and all that stands on it or on a column's old type."""
    by_place = {one.place: key for key, one in live.objects.items()}
    needed_by: dict[Place, set[Place]] = {}
    for place, needed in live.needs.items():
        for one in needed:
            needed_by.setdefault(one, set()).add(place)
            if one[0] == "column":
                needed_by.setdefault(("pg_class", one[1], 0), set()).add(place)
    # A right on a whole table takes those on its columns with it when it is revoked.
    tables = {live.objects[key].parent for key in work.replaced if key[0] == "grant"}
    found = {key for key, one in live.objects.items() if key[0] == "grant" and one.parent in tables}
    found |= work.replaced
    waiting = [*work.retyped, *(live.objects[key].place for key in found)]
    while waiting:
        place = waiting.pop()
        for other in needed_by.get(place, ()):
            key = by_place.get(other)
            # Indexes and constraints on a column that changes its type follow it by themselves.
            self_going = place in work.retyped and key is not None and key[0] in ("index", "constraint")
            if key is not None and key not in found and key[0] in FOLLOWERS and not self_going:
                found.add(key)
                waiting.append(other)
    return found


def _order(keys: set[Key], side: Side, parts: Iterable[Key] = ()) -> list[Key]:
    """Return the objects so that each comes after what it needs; what needs itself in a ring, by its rank.

    parts are not returned: what they need, their whole does.
    """
    objects = side.objects
    wholes = {key[1]: key for key in keys if key[0] in WHOLES}
    by_place = {
        objects[part].place: wholes[name]
        for part in parts
        for name in _list_wholes(objects[part])
        if name in wholes
    }
    by_place |= {objects[key].place: key for key in keys}
    before: dict[Key, set[Key]] = {key: set() for key in keys}
    for key in keys:
        before[key] |= {wholes[name] for name in _list_wholes(objects[key]) if name in wholes}
    for place, needed in side.needs.items():
        key = by_place.get(place) or _whole(place, by_place)
        for one in needed:
            other = by_place.get(one) or _whole(one, by_place)
            if key is not None and other is not None and key != other:
                before[key].add(other)
    return _sort(before)


def _list_wholes(one: Object) -> list[str]:
    """Return the names of what an object is a part of, and goes with."""
    return [name for name in (one.parent, one.facts.get("of")) if name]


def _whole(place: Place, by_place: Mapping[Place, Key]) -> Key | None:
    return by_place.get(("pg_class", place[1], 0)) if place[0] == "column" else None


def _sort(before: dict[Key, set[Key]]) -> list[Key]:
    after: dict[Key, set[Key]] = {}
    for key, needed in before.items():
        for one in needed:
            after.setdefault(one, set()).add(key)
    left = {key: len(needed) for key, needed in before.items()}
    ready = [(_rank(key), key) for key, number in left.items() if not number]
    heapq.heapify(ready)
    done: list[Key] = []
    while left:
        if not ready:  # a ring: its first by rank goes first
            ready = [min((_rank(key), key) for key in _find_ring(before, left))]
        _, key = heapq.heappop(ready)
        if left.pop(key, None) is None:
            continue
        done.append(key)
        for one in after.get(key, ()):
            if one in left:
                left[one] -= 1
                if not left[one]:
                    heapq.heappush(ready, (_rank(one), one))
    return done


def _find_ring(before: Mapping[Key, set[Key]], left: Mapping[Key, int]) -> list[Key]:
    """Return objects that need each other; each of those left needs another of them."""
    key, seen = min(left), dict[Key, None]()
    while key not in seen:
        seen[key] = None
        key = min(one for one in before[key] if one in left)
    path = list(seen)
    return path[path.index(key) :]


def _rank(key: Key) -> int:
    foreign = key[0] == "constraint"
    return RANKS.index(key[0]) if key[0] in RANKS else len(RANKS) + foreign


def _drop(one: Object) -> str:
    return f"{one.drop};"


def _leave(live: Side, wanted: Side, remade: set[Key], *, drops: bool) -> list[str]:
    """Name in comments what only the live side has, the last made first; parts go with their whole."""
    extra = {key for key in live.objects if key not in wanted.objects}
    wholes = ("table", "view", "materialized view", "function", "type", "index", "constraint")
    names = {key[1] for key in extra if key[0] in wholes}
    parts = {key for key in extra if not names.isdisjoint(_list_wholes(live.objects[key]))}
    order = list(reversed(_order(extra - parts, live, parts)))
    order = [*_find_rings(order, parts, live), *order]
    if drops:
        return [_drop(live.objects[key]) for key in order if live.objects[key].drop]
    lines = [
        line
        for key in order
        for line in comment(
            f"{live.objects[key].drop};" if live.objects[key].drop else f"drop the {key[0]} {key[1]} by hand"
        )
    ]
    return ["-- Not in the files; look before you take the dashes away:", *lines] if lines else []


def _find_rings(order: list[Key], parts: Iterable[Key], live: Side) -> Iterable[Key]:
    """Return the foreign keys whose table is dropped only after the one that it refers to."""
    rank = {live.objects[key].place: number for number, key in enumerate(order)}
    for key in parts:
        one = live.objects[key]
        if one.kind == "constraint" and one.facts["type"] == "f":
            table = live.objects.get(("table", one.parent or ""))
            places = {("pg_class", place[1], 0) for place in live.needs.get(one.place, ())}
            if table and any(rank.get(place, len(order)) < rank.get(table.place, 0) for place in places):
                yield key
