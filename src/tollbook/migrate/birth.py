"""The SQL that makes one object anew, with the rights and the numbers that it is to have."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tollbook.migrate.catalog import Catalog, Key, Object

BY_HAND = "-- By hand: "
IDENTITIES = {"a": "ALWAYS", "d": "BY DEFAULT"}


def holds(one: Object) -> bool:
    """Whether it is a default privilege of the role that makes things here."""
    return one.kind == "default privileges" and not one.facts["others"]


def bear(keys: Iterable[Key], objects: Catalog, given: Sequence[Object]) -> Iterable[str]:
    """Return what makes objects, each less what default privileges give it; its own rights follow."""
    for key in keys:
        yield make(objects[key], objects)
        yield from withdraw(objects[key], objects, given)


def withdraw(one: Object, objects: Catalog, given: Sequence[Object]) -> Iterable[str]:
    """Return what takes from a new object the rights that the default privileges `given` gave too many."""
    for word, name in _list_born(one, objects) if given else ():
        owner = one.name if word != "SEQUENCE" else name
        rights = {
            other.facts.get("to"): other.definition
            for other in objects.values()
            if other.kind == "grant" and other.parent == owner and not other.place[2]
        }
        for facts in (default.facts for default in given if default.facts["word"] == f"{word}S"):
            to, listed = facts.get("to"), facts["listed"]
            if facts["schema"] and not name.startswith(f"{facts['schema']}."):
                continue
            if to is None and None not in rights:
                yield f"GRANT {listed} ON {word} {name} TO PUBLIC;"
            elif to is not None and rights.get(to) != facts["privileges"]:
                yield f"REVOKE {listed} ON {word} {name} FROM {to};"


BORN = {
    "table": "TABLE",
    "view": "TABLE",
    "materialized view": "TABLE",
    "sequence": "SEQUENCE",
    "function": "ROUTINE",
    "type": "TYPE",
    "schema": "SCHEMA",
}


def _list_born(one: Object, objects: Catalog) -> Iterable[tuple[str, str]]:
    """Return what gets rights of its own as an object is made: it, and the sequences of its columns."""
    if one.kind in BORN:
        yield BORN[one.kind], one.facts.get("called") or one.name
    columns = [
        other
        for other in objects.values()
        if other.kind == "column" and one.kind == "table" and other.parent == one.name
    ]
    for column in [*columns, *([one] if one.kind == "column" else [])]:
        if column.facts["sequence"]:
            yield "SEQUENCE", column.facts["sequence"]


def make(one: Object, objects: Catalog) -> str:
    """Return the SQL that makes an object; of a table, with its columns."""
    if one.kind == "table":
        return _make_table(one, objects)
    if one.kind == "column":
        return f"ALTER TABLE {one.parent} ADD COLUMN {describe_column(one)};"
    if one.make is None:
        return f"{BY_HAND}make the {one.kind} {one.name}"
    return f"{one.make};"


def _make_table(one: Object, objects: Catalog) -> str:
    facts = one.facts
    columns = [other for other in objects.values() if other.kind == "column" and other.parent == one.name]
    columns.sort(key=lambda column: column.place[2])
    word = {"u": "UNLOGGED ", "f": "FOREIGN "}.get(facts["kind" if facts["server"] else "persistence"], "")
    word = f"CREATE {word}TABLE"
    if facts["bound"]:
        text = f"{word} {one.name} PARTITION OF {facts['parents']} {facts['bound']}"
    else:
        inner = ",\n".join(f"    {describe_column(column)}" for column in columns)
        text = f"{word} {one.name} (\n{inner}\n)" if inner else f"{word} {one.name} ()"
        text += f" INHERITS ({facts['parents']})" if facts["parents"] else ""
    text += f" PARTITION BY {facts['key']}" if facts["key"] else ""
    text += f" WITH ({', '.join(facts['options'])})" if facts["options"] else ""
    text += f" SERVER {facts['server']}{facts['given'] or ''}" if facts["server"] else ""
    lines = [f"{text};"]
    if facts["of_type"]:
        lines.append(f"ALTER TABLE {one.name} OF {facts['of_type']};")
    if facts["rows"]:
        lines.append(f"ALTER TABLE {one.name} ENABLE ROW LEVEL SECURITY;")
    if facts["forced"]:
        lines.append(f"ALTER TABLE {one.name} FORCE ROW LEVEL SECURITY;")
    if facts["replica"] in ("f", "n") and not facts["server"]:
        word = {"f": "FULL", "n": "NOTHING"}[facts["replica"]]
        lines.append(f"ALTER TABLE {one.name} REPLICA IDENTITY {word};")
    return "\n".join(lines)


def describe_column(column: Object) -> str:
    """Return a column as CREATE TABLE has it."""
    facts = column.facts
    text = f"{facts['name']} {facts['type']}"
    if facts["generated"]:
        kind = "VIRTUAL" if facts["generated"] == "v" else "STORED"
        text += f" GENERATED ALWAYS AS ({facts['expression']}) {kind}"
    elif facts["expression"]:
        text += f" DEFAULT {facts['expression']}"
    if facts["identity"]:
        text += f" {describe_identity(facts)}"
    return text + (" NOT NULL" if facts["required"] else "")


def advance(table: str, facts: Mapping[str, Any]) -> str:
    """Return what takes a column's new sequence beyond the rows that are there: it would repeat them."""
    column, (start, step) = facts["name"], facts["numbered"]
    last = f"max({column})" if step > 0 else f"min({column})"
    raw = column[1:-1].replace('""', '"') if column.startswith('"') else column
    return (
        f"SELECT setval(pg_get_serial_sequence({literal(table)}, {literal(raw)}), {last}) FROM {table} "  # noqa: S608
        f"HAVING {last} {'>=' if step > 0 else '<='} {start};"
    )


def describe_identity(facts: Mapping[str, Any]) -> str:
    """Return an identity as CREATE TABLE has it; its sequence's name where it is not the usual one."""
    named = f"SEQUENCE NAME {facts['sequence']}" if facts["named"] else ""
    options = " ".join(filter(None, (named, facts["options"])))
    return f"GENERATED {IDENTITIES[facts['identity']]} AS IDENTITY{f' ({options})' if options else ''}"


def literal(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
