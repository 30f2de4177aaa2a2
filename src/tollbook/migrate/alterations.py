"""The SQL that makes an object which differs into what it is to be: altered, made anew, or left to hands."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tollbook.migrate.birth import BY_HAND, IDENTITIES, advance, describe_identity, literal, make
from tollbook.migrate.catalog import Key, Object, Place

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
    "operator",
    "cast",
    "conversion",
    "transform",
)


@dataclass(slots=True)
class Work:
    """What is to be done, gathered before it is put in order."""

    altered: list[str] = field(default_factory=list[str])
    replaced: set[Key] = field(default_factory=set[Key])
    made: set[Key] = field(default_factory=set[Key])  # what is said anew, without being dropped
    numbered: list[Object] = field(default_factory=list[Object])  # columns that get a sequence of their own
    retyped: set[Place] = field(default_factory=set[Place])
    left: list[str] = field(default_factory=list[str])  # comments: what nobody but a person should do


def change(have: Object, want: Object, work: Work) -> None:
    """Note what is to be done with an object that differs."""
    if alter := CHANGES.get(want.kind):
        alter(have, want, work)
    elif want.kind in REPLACED and want.make and have.drop:
        work.replaced.add(want.key)
    elif want.make:
        work.altered.append(f"{want.make};")
    else:
        _leave_to_hands(have, want, work)


def _leave_to_hands(have: Object, want: Object, work: Work) -> None:
    said = [_flat(one.definition) or "plain" for one in (have, want)]
    work.left.append(f"{BY_HAND}{want.kind} {want.name}: {' → '.join(said)}")


def comment(text: str) -> list[str]:
    """Return a text as SQL comments."""
    return [f"-- {line}" for line in text.splitlines()]


def _flat(text: str) -> str:
    return " ".join(text.split())


def _change_column(have: Object, want: Object, work: Work) -> None:
    old, new, table = have.facts, want.facts, want.parent
    if old["inherited"] and new["inherited"]:
        return  # changes with the column it is inherited from
    alter = f"ALTER TABLE {table} ALTER COLUMN {new['name']}"
    if old["generated"] != new["generated"] or (new["generated"] and old["expression"] != new["expression"]):
        work.left += [
            f"{BY_HAND}{want.name} is generated otherwise; made anew it is computed for every row:",
            *comment(f"{have.drop};"),
            *comment(make(want, {want.key: want})),
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


def _change_table(have: Object, want: Object, work: Work) -> None:
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
    if old["of_type"] != new["of_type"]:
        work.altered.append(f"{table} OF {new['of_type']};" if new["of_type"] else f"{table} NOT OF;")
    _change_options(old["options"], new["options"], table, work)
    if any(old[word] != new[word] for word in ("kind", "key", "bound", "parents", "server")):
        _leave_to_hands(have, want, work)
    elif new["server"] and old["outside"] != new["outside"]:
        work.altered.append(f"ALTER FOREIGN TABLE {want.name} {_give(old['outside'], new['outside'])};")


def _give(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return what makes one set of a server's options into another."""
    words = [f"DROP {name}" for name in old if name not in new]
    words += [
        f"{'SET' if name in old else 'ADD'} {name} {literal(value)}"
        for name, value in new.items()
        if old.get(name) != value
    ]
    return f"OPTIONS ({', '.join(words)})"


def _change_server(have: Object, want: Object, work: Work) -> None:
    if have.facts["fixed"] != want.facts["fixed"]:
        _leave_to_hands(have, want, work)
    else:
        alter = f"ALTER {want.kind.upper().replace('-', ' ')} {want.name}"
        work.altered.append(f"{alter} {_give(have.facts['options'], want.facts['options'])};")


def _change_dictionary(have: Object, want: Object, work: Work) -> None:
    old, new = have.facts, want.facts
    if old["fixed"] != new["fixed"]:
        _leave_to_hands(have, want, work)
    else:
        words = [name for name in old["names"] if name not in new["names"]]
        words += [new["options"]] if new["options"] else []
        work.altered.append(f"ALTER TEXT SEARCH DICTIONARY {want.name} ({', '.join(words)});")


def _change_search(have: Object, want: Object, work: Work) -> None:
    old, new, alter = have.facts, want.facts, f"ALTER TEXT SEARCH CONFIGURATION {want.name}"
    if old["fixed"] != new["fixed"]:
        _leave_to_hands(have, want, work)
        return
    if gone := [token for token in old["tokens"] if token not in new["tokens"]]:
        work.altered.append(f"{alter} DROP MAPPING FOR {', '.join(gone)};")
    for token, added in zip(new["tokens"], new["added"], strict=True):
        if added not in old["added"]:
            word = added.replace("ADD", "ALTER", 1) if token in old["tokens"] else added
            work.altered.append(f"{alter} {word};")


def _change_publication(have: Object, want: Object, work: Work) -> None:
    old, new, alter = have.facts, want.facts, f"ALTER PUBLICATION {want.name}"
    if old["all"] != new["all"] or not new["objects"]:
        _leave_to_hands(have, want, work)
        return
    if old["objects"] != new["objects"]:
        work.altered.append(f"{alter} SET {new['objects']};")
    if old["options"] != new["options"]:
        generated = "generated" in old["options"] and "generated" not in new["options"]
        none = ", publish_generated_columns = none" if generated else ""
        work.altered.append(f"{alter} SET ({new['options']}{none});")


def _change_options(old: list[str], new: list[str], table: str, work: Work) -> None:
    if reset := [one.partition("=")[0] for one in old if one.partition("=")[0] not in _names(new)]:
        work.altered.append(f"{table} RESET ({', '.join(reset)});")
    if changed := [one for one in new if one not in old]:
        work.altered.append(f"{table} SET ({', '.join(changed)});")


def _names(options: Iterable[str]) -> set[str]:
    return {one.partition("=")[0] for one in options}


def _change_constraint(have: Object, want: Object, work: Work) -> None:
    if have.definition == f"{want.definition} (disabled)":
        work.altered.append(f"{have.facts['enable']};")
    elif have.definition == f"{want.definition} NOT VALID":
        work.altered.append(f"ALTER TABLE {want.parent} VALIDATE CONSTRAINT {want.facts['name']};")
    else:
        work.replaced.add(want.key)


def _change_trigger(have: Object, want: Object, work: Work) -> None:
    if have.facts["text"] == want.facts["text"]:
        work.altered.append(f"{want.facts['enable']};")
    else:
        work.replaced.add(want.key)


def _change_function(have: Object, want: Object, work: Work) -> None:
    if have.facts["shape"] == want.facts["shape"] and have.facts["kind"] == want.facts["kind"] != "a":
        work.altered.append(f"{want.make};")
    else:
        work.replaced.add(want.key)


def _change_sequence(have: Object, want: Object, work: Work) -> None:
    work.altered.append(f"{want.facts['change']};")
    if have.facts["unlogged"] != want.facts["unlogged"]:
        work.altered.append(f"ALTER SEQUENCE {want.name} SET {want.facts['unlogged'] or 'LOGGED'};")


def _change_place(have: Object, want: Object, work: Work) -> None:
    if want.parent:
        work.made.add(want.key)
    else:  # an access method itself
        _leave_to_hands(have, want, work)


def _change_type(have: Object, want: Object, work: Work) -> None:
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
    _leave_to_hands(have, want, work)


def _change_enum(name: str, old: list[str], new: list[str], work: Work) -> bool:
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


CHANGES: Mapping[str, Callable[[Object, Object, Work], None]] = {
    "column": _change_column,
    "table": _change_table,
    "constraint": _change_constraint,
    "trigger": _change_trigger,
    "function": _change_function,
    "sequence": _change_sequence,
    "type": _change_type,
    "publication": _change_publication,
    "server": _change_server,
    "foreign-data wrapper": _change_server,
    "text search dictionary": _change_dictionary,
    "text search configuration": _change_search,
    # What stands on them cannot be without them for a moment.
    "collation": _leave_to_hands,
    "operator class": _leave_to_hands,
    "language": _leave_to_hands,
    "text search parser": _leave_to_hands,
    "text search template": _leave_to_hands,
    "access method": _change_place,
    "tablespace": _change_place,
}
