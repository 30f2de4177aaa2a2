"""The SQL that makes one catalog into another: what is lacking made, what differs altered, nothing lost."""

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tollbook.migrate.birth import (
    BY_HAND,
    IDENTITIES,
    advance,
    bear,
    describe_identity,
    holds,
    literal,
    make,
    withdraw,
)
from tollbook.migrate.catalog import Catalog, Key, Object, Place

# In this order objects are made where nothing else is known of what needs what.
RANKS = (
    "schema",
    "extension",
    "type",
    "domain constraint",
    "sequence",
    "function",
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
    "owner",
    "default privileges",
    "grant",
    "parameters",
    "comment",
)
REPLACED = (  # dropped and made again where they differ: no data is in them
    "index",
    "constraint",
    "domain constraint",
    "statistics",
    "view",
    "materialized view",
    "rule",
    "trigger",
    "event trigger",
    "policy",
    "grant",
    "default privileges",
    "parameters",
    "function",
)
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


@dataclass(slots=True)
class _Work:
    """What is to be done, gathered before it is put in order."""

    altered: list[str] = field(default_factory=list[str])
    replaced: set[Key] = field(default_factory=set[Key])
    made: set[Key] = field(default_factory=set[Key])  # what is said anew, without being dropped
    numbered: list[Object] = field(default_factory=list[Object])  # columns that get a sequence of their own
    retyped: set[Place] = field(default_factory=set[Place])
    left: list[str] = field(default_factory=list[str])  # comments: what nobody but a person should do


def reconcile(live: Side, wanted: Side, *, drops: bool = False) -> tuple[str, ...]:
    """Return the statements, in order, that make `live` what `wanted` is.

    What only the live side has is dropped in comments alone, unless `drops`. Of a changed index, constraint,
    view, trigger, policy or function the old one is dropped and the new one made.
    """
    work = _Work()
    for key in sorted(live.objects.keys() & wanted.objects.keys()):
        have, want = live.objects[key], wanted.objects[key]
        if have.definition != want.definition:
            _change(have, want, work)
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


def _split(order: list[Key], work: _Work) -> tuple[list[Key], list[Key]]:
    """Part what a changed column may need (types, functions) from what may need the changed column."""
    early = ("schema", "extension", "type", "domain constraint", "sequence", "function", "table", "column")
    if not work.altered:
        return order, []
    return [key for key in order if key[0] in early], [key for key in order if key[0] not in early]


def _change(have: Object, want: Object, work: _Work) -> None:
    if change := CHANGES.get(want.kind):
        change(have, want, work)
    elif want.kind in REPLACED and want.make and have.drop:
        work.replaced.add(want.key)
    elif want.make:
        work.altered.append(f"{want.make};")
    else:
        work.left.append(
            f"{BY_HAND}{want.kind} {want.name}: {_flat(have.definition)} → {_flat(want.definition)}"
        )


def _flat(text: str) -> str:
    return " ".join(text.split())


def _change_column(have: Object, want: Object, work: _Work) -> None:
    old, new, table = have.facts, want.facts, want.parent
    if old["inherited"] and new["inherited"]:
        return  # changes with the column it is inherited from
    alter = f"ALTER TABLE {table} ALTER COLUMN {new['name']}"
    if old["generated"] != new["generated"] or (new["generated"] and old["expression"] != new["expression"]):
        work.left += [
            f"{BY_HAND}{want.name} is generated otherwise; made anew it is computed for every row:",
            *_comment(f"{have.drop};"),
            *_comment(make(want, {want.key: want})),
        ]
        return
    default = old["expression"], new["expression"]
    retyped = old["type"] != new["type"]
    if default[0] and (retyped or default[1] is None):
        work.altered.append(f"{alter} DROP DEFAULT;")
    if old["identity"] and not new["identity"]:
        work.altered.append(f"{alter} DROP IDENTITY;")
    if retyped:
        bare = new["type"].partition(" COLLATE ")[0]
        work.retyped.add(have.place)
        work.altered.append(f"{alter} TYPE {new['type']} USING {new['name']}::{bare};")
    if old["required"] != new["required"]:
        work.altered.append(f"{alter} {'SET' if new['required'] else 'DROP'} NOT NULL;")
    elif "(not valid)" in have.definition and "(not valid)" not in want.definition:
        work.altered += [f"{alter} DROP NOT NULL;", f"{alter} SET NOT NULL;"]
    if default[1] and (retyped or default[0] != default[1]):
        work.altered.append(f"{alter} SET DEFAULT {default[1]};")
    work.altered += _change_identity(alter, table or "", old, new)
    if new["identity"] and not old["identity"]:
        work.numbered.append(want)


def _change_identity(alter: str, table: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterable[str]:
    if not new["identity"]:
        return
    if not old["identity"]:
        yield f"{alter} ADD {describe_identity(new)};"
        yield advance(table, new)
        return
    if old["identity"] != new["identity"]:
        yield f"{alter} SET GENERATED {IDENTITIES[new['identity']]};"
    if old["options"] != new["options"]:
        yield f"{alter} {new['change']};"


def _change_table(have: Object, want: Object, work: _Work) -> None:
    old, new, table = have.facts, want.facts, f"ALTER TABLE {want.name}"
    if old["rows"] != new["rows"]:
        work.altered.append(f"{table} {'ENABLE' if new['rows'] else 'DISABLE'} ROW LEVEL SECURITY;")
    if old["forced"] != new["forced"]:
        work.altered.append(f"{table} {'' if new['forced'] else 'NO '}FORCE ROW LEVEL SECURITY;")
    if old["persistence"] != new["persistence"]:
        work.altered.append(f"{table} SET {'UNLOGGED' if new['persistence'] == 'u' else 'LOGGED'};")
    if old["replica"] != new["replica"] and new["replica"] != "i":
        words = {"d": "DEFAULT", "f": "FULL", "n": "NOTHING"}
        work.altered.append(f"{table} REPLICA IDENTITY {words[new['replica']]};")
    _change_options(old["options"], new["options"], table, work)
    if any(old[word] != new[word] for word in ("kind", "key", "bound", "parents")):
        work.left.append(
            f"{BY_HAND}table {want.name}: {have.definition or 'plain'} → {want.definition or 'plain'}"
        )


def _change_options(old: list[str], new: list[str], table: str, work: _Work) -> None:
    if reset := [one.partition("=")[0] for one in old if one.partition("=")[0] not in _names(new)]:
        work.altered.append(f"{table} RESET ({', '.join(reset)});")
    if changed := [one for one in new if one not in old]:
        work.altered.append(f"{table} SET ({', '.join(changed)});")


def _names(options: Iterable[str]) -> set[str]:
    return {one.partition("=")[0] for one in options}


def _change_constraint(have: Object, want: Object, work: _Work) -> None:
    if have.definition == f"{want.definition} (disabled)":
        work.altered.append(f"{have.facts['enable']};")
    elif have.definition == f"{want.definition} NOT VALID":
        work.altered.append(f"ALTER TABLE {want.parent} VALIDATE CONSTRAINT {want.facts['name']};")
    else:
        work.replaced.add(want.key)


def _change_trigger(have: Object, want: Object, work: _Work) -> None:
    if have.facts["text"] == want.facts["text"]:
        work.altered.append(f"{want.facts['enable']};")
    else:
        work.replaced.add(want.key)


def _change_function(have: Object, want: Object, work: _Work) -> None:
    if have.facts["shape"] == want.facts["shape"] and have.facts["kind"] == want.facts["kind"] != "a":
        work.altered.append(f"{want.make};")
    else:
        work.replaced.add(want.key)


def _change_publication(have: Object, want: Object, work: _Work) -> None:
    work.left.append(f"{BY_HAND}publication {want.name}: {have.definition} → {want.definition}")


def _change_sequence(have: Object, want: Object, work: _Work) -> None:
    work.altered.append(f"{want.facts['change']};")
    if have.facts["unlogged"] != want.facts["unlogged"]:
        work.altered.append(f"ALTER SEQUENCE {want.name} SET {want.facts['unlogged'] or 'LOGGED'};")


def _change_place(have: Object, want: Object, work: _Work) -> None:
    work.made.add(want.key)


def _change_type(have: Object, want: Object, work: _Work) -> None:
    old, new = have.facts, want.facts
    if old["kind"] == new["kind"] == "e" and _change_enum(want.name, old["labels"], new["labels"], work):
        return
    if old["kind"] == new["kind"] == "d" and old["base"] == new["base"]:
        alter = f"ALTER DOMAIN {want.name}"
        if old["default"] != new["default"]:
            text = f"SET DEFAULT {new['default']}" if new["default"] else "DROP DEFAULT"
            work.altered.append(f"{alter} {text};")
        if old["required"] != new["required"]:
            work.altered.append(f"{alter} {'SET' if new['required'] else 'DROP'} NOT NULL;")
        return
    work.left.append(f"{BY_HAND}type {want.name}: {have.definition} → {want.definition}")


def _change_enum(name: str, old: list[str], new: list[str], work: _Work) -> bool:
    """Add what values are lacking. False where there are others, or in another order: those stay for ever."""
    if [label for label in new if label in old] != old:
        return False
    known = list(old)
    for place, label in enumerate(new):
        if label not in known:
            where = f" BEFORE {literal(known[place])}" if place < len(known) else ""
            work.altered.append(f"ALTER TYPE {name} ADD VALUE {literal(label)}{where};")
            known.insert(place, label)
    return True


CHANGES: Mapping[str, Callable[[Object, Object, _Work], None]] = {
    "column": _change_column,
    "table": _change_table,
    "constraint": _change_constraint,
    "trigger": _change_trigger,
    "function": _change_function,
    "sequence": _change_sequence,
    "type": _change_type,
    "publication": _change_publication,
    "access method": _change_place,
    "tablespace": _change_place,
}


def _follow(live: Side, work: _Work) -> set[Key]:
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


def _order(keys: set[Key], side: Side) -> list[Key]:
    """Return the objects so that each comes after what it needs; what needs itself in a ring, by its rank."""
    objects = side.objects
    by_place = {objects[key].place: key for key in keys}
    wholes = {key[1]: key for key in keys if key[0] in WHOLES}
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
            ready = [min((_rank(key), key) for key in left)]
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


def _rank(key: Key) -> int:
    foreign = key[0] == "constraint"
    return RANKS.index(key[0]) if key[0] in RANKS else len(RANKS) + foreign


def _drop(one: Object) -> str:
    return f"{one.drop};"


def _comment(text: str) -> list[str]:
    return [f"-- {line}" for line in text.splitlines()]


def _leave(live: Side, wanted: Side, remade: set[Key], *, drops: bool) -> list[str]:
    """Name in comments what only the live side has, the last made first; parts go with their whole."""
    extra = {key for key in live.objects if key not in wanted.objects}
    wholes = ("table", "view", "materialized view", "function", "type", "index", "constraint")
    names = {key[1] for key in extra if key[0] in wholes}
    extra = {key for key in extra if names.isdisjoint(_list_wholes(live.objects[key]))}
    order = list(reversed(_order(extra, live)))
    if drops:
        return [_drop(live.objects[key]) for key in order if live.objects[key].drop]
    lines = [
        line
        for key in order
        for line in _comment(
            f"{live.objects[key].drop};" if live.objects[key].drop else f"drop the {key[0]} {key[1]} by hand"
        )
    ]
    return ["-- Not in the files; look before you take the dashes away:", *lines] if lines else []
