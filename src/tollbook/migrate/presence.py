"""Whether promised objects are there: looked up in the catalog by name, of the right kind, and valid."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tollbook.migrate.exchange import Query, command, load, write
from tollbook.migrate.objects import RELATION_KINDS, Promise
from tollbook.migrate.session import Connection

Name = tuple[str, ...]
Row = tuple[Any, ...]


@dataclass(slots=True)
class Presence:
    """What the catalog holds under the names asked for."""

    relations: dict[Name, tuple[str, bool]] = field(default_factory=dict[Name, tuple[str, bool]])
    indexes: dict[Name, list[str]] = field(default_factory=lambda: defaultdict[Name, list[str]](list))
    functions: dict[Name, list[list[str]]] = field(
        default_factory=lambda: defaultdict[Name, list[list[str]]](list)
    )
    others: set[Name] = field(default_factory=set[Name])  # kind, schema, table of a trigger, name
    type_names: dict[str, str | None] = field(default_factory=dict[str, str | None])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of promises: those found, with schemas and names, and what is wrong with the rest."""

    found: tuple[Promise, ...]
    missing: tuple[Promise, ...]
    wrong: tuple[str, ...]  # a sentence for each missing one that is not loose


def look_up(conn: Connection, promises: Iterable[Promise]) -> Presence:
    """Fetch what the catalog holds under the promised names, in one round trip."""
    questions = ask(list(promises))
    return gather(load(conn, command(conn, write(conn, questions)))) if questions else Presence()


def gather(rows: Iterable[Row]) -> Presence:
    """Sort the answers to what was asked."""
    presence = Presence()
    for what, *row in rows:
        match what:
            case "relation":
                presence.relations[row[0], row[1]] = (row[2], row[3])
            case "its index":
                presence.indexes[row[0], row[1]].append(row[2])
            case "function":
                presence.functions[row[0], row[1]].append(row[2])
            case "type name":
                presence.type_names[row[0]] = row[1]
            case _:
                presence.others.add((what, *row))
    return presence


def ask(promises: Sequence[Promise]) -> list[Query]:
    """Return the questions to the catalog that the promised names need."""
    names = {
        kind: sorted({p.name for p in promises if p.kind == kind and p.name})
        for kind in {p.kind for p in promises}
    }
    relations = sorted({name for kind in RELATION_KINDS for name in names.get(kind, [])})
    unnamed = sorted({p.on for p in promises if p.kind == "index" and p.name is None and p.on})
    queries: list[Query] = []
    if relations:
        queries.append((RELATIONS, {"names": relations}))
    if unnamed:
        queries.append((INDEXES, {"tables": unnamed}))
    if "function" in names:
        queries.append((FUNCTIONS, {"names": names["function"]}))
        texts = sorted({arg for p in promises for arg in p.args or ()})
        queries.append((TYPE_NAMES, {"names": texts}))
    if "trigger" in names:
        queries.append((TRIGGERS, {"names": names["trigger"]}))
    if "type" in names:
        queries.append((TYPES, {"names": names["type"]}))
    if "schema" in names or "extension" in names:
        queries.append(
            (NAMES, {"schemas": names.get("schema", []), "extensions": names.get("extension", [])})
        )
    return queries


# An index ON ONLY a partitioned table is invalid until those of all partitions are attached: it is as made.
# A subquery for the schema's name: to join and plan that took longer than all the rest.
RELATIONS = """
SELECT 'relation', (SELECT n.nspname FROM pg_namespace n WHERE n.oid = c.relnamespace)::text, c.relname::text,
    CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'f' THEN 'table'
        WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence'
        WHEN 'c' THEN 'type' ELSE 'index' END,
    c.relkind <> 'i' OR (SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = c.oid)
FROM pg_class c WHERE c.relname = ANY(%(names)s) AND c.relpersistence <> 't'"""
# The indexes of a table that are no constraint's, newest first.
INDEXES = """
SELECT 'its index', n.nspname::text, t.relname::text, c.relname::text
FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace
JOIN pg_index i ON i.indrelid = t.oid JOIN pg_class c ON c.oid = i.indexrelid
WHERE t.relname = ANY(%(tables)s) AND t.relpersistence <> 't' AND (i.indisvalid OR c.relkind = 'I')
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
    AND d.refclassid = 'pg_constraint'::regclass AND d.deptype = 'i')
ORDER BY c.oid DESC"""
# Types by schema and name: PostgreSQL's own notation of a type depends on the search_path of the moment.
FUNCTIONS = """
SELECT 'function', n.nspname::text, p.proname::text,
    ARRAY(SELECT quote_ident(tn.nspname) || '.' || quote_ident(t.typname)
        FROM unnest(p.proargtypes) WITH ORDINALITY AS a (oid, place)
        JOIN pg_type t ON t.oid = a.oid JOIN pg_namespace tn ON tn.oid = t.typnamespace ORDER BY a.place)
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.proname = ANY(%(names)s)"""
TYPE_NAMES = """
SELECT 'type name', w.word, quote_ident(tn.nspname) || '.' || quote_ident(t.typname)
FROM unnest(%(names)s::text[]) AS w (word)
LEFT JOIN pg_type t ON t.oid = to_regtype(w.word)::oid LEFT JOIN pg_namespace tn ON tn.oid = t.typnamespace"""
TRIGGERS = """
SELECT 'trigger', n.nspname::text, c.relname::text, g.tgname::text
FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE g.tgname = ANY(%(names)s) AND NOT g.tgisinternal"""
TYPES = """
SELECT 'type', n.nspname::text, t.typname::text FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE t.typname = ANY(%(names)s) AND t.typtype IN ('b', 'c', 'd', 'e', 'r')
  AND (c.oid IS NULL OR c.relkind = 'c')"""
NAMES = """
SELECT 'schema', nspname::text FROM pg_namespace WHERE nspname = ANY(%(schemas)s)
UNION ALL SELECT 'extension', extname::text FROM pg_extension WHERE extname = ANY(%(extensions)s)"""


def judge(promises: Iterable[Promise], presence: Presence, path: Sequence[str]) -> Verdict:
    """Match promises with the catalog; a name without a schema is looked for along the path."""
    promises = list(promises)
    found: list[Promise] = []
    missing: list[Promise] = []
    wrong: list[str] = []
    claimed = {p.name for p in promises if p.kind == "index" and p.name}
    for promise in promises:
        match, complaint = _match(promise, presence, path, claimed)
        if match is not None:
            found.append(replace(match, loose=False))
        else:
            missing.append(promise)
            wrong += [] if promise.loose else [complaint]
    return Verdict(tuple(found), tuple(missing), tuple(wrong))


def _match(
    promise: Promise, presence: Presence, path: Sequence[str], claimed: set[str]
) -> tuple[Promise | None, str]:
    missing = f"the {promise.kind} {promise} is missing"
    if promise.kind in ("schema", "extension"):
        there = (promise.kind, promise.name or "") in presence.others
        return (promise if there else None), missing
    # What was made along another path, before the file set that of its end, mostly went to public.
    along = [*path, "public"] if promise.loose else path
    for schema in [promise.schema] if promise.schema else along:
        match, complaint = MATCHERS.get(promise.kind, _match_relation)(promise, schema, presence, claimed)
        if match or complaint:
            return (replace(match, schema=schema) if match else None), complaint
    return None, missing


def _match_relation(
    promise: Promise, schema: str, presence: Presence, claimed: set[str]
) -> tuple[Promise | None, str]:
    if promise.name is None:
        return _match_unnamed(promise, schema, presence, claimed)
    found = presence.relations.get((schema, promise.name))
    if found is None:
        return None, ""
    kind, valid = found
    if kind != promise.kind:
        return None, f"{promise} should be a {promise.kind}, but a {kind} of that name is there"
    if not valid:
        return None, f"the index {promise} is invalid: an earlier build failed; drop it and build it again"
    return promise, ""


def _match_unnamed(
    promise: Promise, schema: str, presence: Presence, claimed: set[str]
) -> tuple[Promise | None, str]:
    """Take the newest index of the table that is nobody else's."""
    names = presence.indexes.get((schema, promise.on or ""), [])
    name = next((name for name in names if name not in claimed), None)
    if name is None:
        return None, ""
    claimed.add(name)
    return replace(promise, name=name), ""


def _match_function(
    promise: Promise, schema: str, presence: Presence, claimed: set[str]
) -> tuple[Promise | None, str]:
    wanted = [presence.type_names.get(arg, arg) for arg in promise.args or ()]
    for args in presence.functions.get((schema, promise.name or ""), []):
        # A type that we cannot name, such as t.column%TYPE, may be any.
        same_types = None in wanted and len(wanted) == len(args)
        if promise.args is None or args == wanted or same_types:
            return replace(promise, args=tuple(args)), ""
    return None, ""


def _match_trigger(
    promise: Promise, schema: str, presence: Presence, claimed: set[str]
) -> tuple[Promise | None, str]:
    there = ("trigger", schema, promise.on or "", promise.name or "") in presence.others
    return (promise if there else None), ""


def _match_type(
    promise: Promise, schema: str, presence: Presence, claimed: set[str]
) -> tuple[Promise | None, str]:
    return (promise if ("type", schema, promise.name or "") in presence.others else None), ""


MATCHERS = {"function": _match_function, "trigger": _match_trigger, "type": _match_type}


def find_missing(
    conn: Connection, promises: Sequence[Promise], path: Sequence[str] = ()
) -> tuple[Promise, ...]:
    """Return those of the promises that are not in the database now."""
    return judge(promises, look_up(conn, promises), path).missing
