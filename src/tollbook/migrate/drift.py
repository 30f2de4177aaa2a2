"""Where a live database differs from what its applied migrations make, and the SQL to reconcile it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql as psql

from tollbook.migrate import catalog, formats, history, preflight, replay, whereabouts
from tollbook.migrate.catalog import Catalog, Object
from tollbook.migrate.events import Event, Listener, ignore
from tollbook.migrate.files import Folder, Migration
from tollbook.migrate.history import Applied
from tollbook.migrate.objects import KINDS_SHOWN, Count, Promise
from tollbook.migrate.preflight import Standing
from tollbook.migrate.reconcile import Side, reconcile
from tollbook.migrate.replay import NotReplayable, Stage
from tollbook.migrate.session import Connection, connected, name_target, read_url
from tollbook.migrate.whereabouts import USUAL, Histories

# To print a view PostgreSQL takes a reader's lock, and waits for it: nobody is to queue behind us long.
# For one transaction: what is set for longer would stay behind in a session that a pooler lends to others.
READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = '5s'"
# Unsound whatever the migrations make: looked for on the live side alone.
UNSOUND = {
    "index": ("(invalid)", "is invalid: an earlier build failed"),
    "constraint": ("NOT VALID", "is not validated"),
    "trigger": ("(disabled)", "is disabled"),
    "column": ("(not valid)", "has a NOT NULL that is not validated"),
}

OWNED = {
    "schema": "SCHEMA",
    "type": "TYPE",
    "table": "TABLE",
    "view": "VIEW",
    "materialized view": "MATERIALIZED VIEW",
    "function": "ROUTINE",
    "server": "SERVER",
    "publication": "PUBLICATION",
    "sequence": "SEQUENCE",
    "event trigger": "EVENT TRIGGER",
    "collation": "COLLATION",
    "conversion": "CONVERSION",
    "operator": "OPERATOR",
    "operator class": "OPERATOR CLASS",
    "operator family": "OPERATOR FAMILY",
    "foreign-data wrapper": "FOREIGN DATA WRAPPER",
    "language": "LANGUAGE",
    "text search dictionary": "TEXT SEARCH DICTIONARY",
    "text search configuration": "TEXT SEARCH CONFIGURATION",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """An object that is missing, extra or changed on the live database; expected is what the files make."""

    kind: str
    name: str
    expected: str | None
    found: str | None

    @property
    def what(self) -> str:
        """missing, extra or changed."""
        return "missing" if self.found is None else "extra" if self.expected is None else "changed"

    def __str__(self) -> str:
        mark, fault = UNSOUND.get(self.kind, ("", ""))
        if mark and (self.found or "").endswith(mark):
            return f"the {self.kind} {self.name} {fault}"
        words = {
            "missing": "is not there",
            "extra": "is not of the migrations",
            "changed": "is not as the migrations make it",
        }
        return f"the {self.kind} {self.name} {words[self.what]}"


@dataclass(frozen=True, slots=True)
class Drift:
    """What differs. replayed: how many migrations were carried out to see; sql makes the live side the same.

    notes name what was seen and left out of the comparison, and why.
    """

    database: str
    replayed: int
    counts: tuple[Count, ...]
    differences: tuple[Difference, ...]
    sql: tuple[str, ...]
    notes: tuple[str, ...] = ()


def drift(url: str, folders: Sequence[Folder], *, listen: Listener = ignore) -> Drift:
    """Compare the live catalog with that of a throw-away database which the applied migrations were run on.

    Raises MigrateError; NotReplayable where they cannot be run there.
    """
    migrations = formats.read(folders)
    with connected(url) as conn:
        standing = preflight.compare(migrations, folders, history.read(conn))
        with replay.staged(listen, conn) as stage:
            return compare(conn, url, migrations, standing, stage)


def compare(
    conn: Connection, url: str, migrations: Sequence[Migration], standing: Standing, stage: Stage
) -> Drift:
    """Do the same in an open session and on a throw-away server that is there."""
    applied = order(migrations, standing)
    made = {one.name for each in standing.applied for one in each.promised if one.kind == "schema"}
    path, there = _read_path(conn)
    tablespace, inside = _read_tablespaces(conn)
    admit(stage, applied, conn)
    target = stage.make(
        settings={"search_path": path, "default_tablespace": inside},
        schemas=[schema for schema in there if schema not in made],
        tablespace=tablespace,
    )
    replay.play(target, applied, stage.listen)
    stage.listen(Event("comparing", "Comparing the catalogs."))
    conn.execute(READING)
    live = Side(catalog.read(conn), catalog.read_needs(conn))
    conn.execute("COMMIT")
    with connected(target) as there:
        wanted = Side(catalog.read(there, like=conn.info.server_version), catalog.read_needs(there))
        live, wanted, notes = level(live, wanted, standing, there, whereabouts.list_all(applied))
    found = tuple(find(live.objects, wanted.objects))
    return Drift(
        name_target(read_url(url)),
        len(applied),
        count(live.objects, wanted.objects, found),
        found,
        reconcile(live, wanted),
        (*stage.lacks, *notes),
    )


def order(migrations: Sequence[Migration], standing: Standing) -> list[Migration]:
    """Return the applied migrations in the order they were applied. Raises NotReplayable without a file."""
    files = {(one.folder, one.version): one for one in migrations}
    if standing.missing:
        names = ", ".join(one.name for one in standing.missing)
        raise NotReplayable(f"There is no file any more of what is applied: {names}.")
    # What a squashed one stands for has no file; the squashed one has the version of the last of them.
    keys = [(one.folder, one.version) for one in standing.applied]
    return [files[key] for key in keys if key in files]


def admit(stage: Stage, migrations: Sequence[Migration], conn: Connection | None = None) -> None:
    """Make on the stage what is a server's own: what the files name of it, and what the live one has.

    These are roles, tablespaces and databases.
    """
    named, made = replay.find_roles(migrations)
    tablespaces = replay.find_tablespaces(migrations)
    if conn is not None:
        named |= {name for (name,) in conn.execute("SELECT rolname::text FROM pg_roles")}
        tablespaces |= {name for (name,) in conn.execute("SELECT spcname::text FROM pg_tablespace")}
    stage.admit(named - made, tablespaces)
    if databases := replay.find_databases(migrations):
        stage.house(databases)


def _read_path(conn: Connection) -> tuple[str, list[str]]:
    """Return the search path, with the user's own schema by name, and its schemas that are there."""
    row = conn.execute(
        """SELECT CASE WHEN to_regnamespace(quote_ident(current_user)) IS NULL THEN p.path
                ELSE replace(p.path, '"$user"', quote_ident(current_user)) END,
            current_schemas(false)::text[]
        FROM (SELECT current_setting('search_path') AS path) AS p"""
    ).fetchone()
    assert row is not None
    return str(row[0]), list(row[1])


def _read_tablespaces(conn: Connection) -> tuple[str, str]:
    """Return the database's tablespace, and the setting that may say another for what is made."""
    row = conn.execute(
        """SELECT spcname::text, current_setting('default_tablespace')
        FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace
        WHERE datname = current_database()"""
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def level(
    live: Side, wanted: Side, standing: Standing, there: Connection, histories: Histories = USUAL
) -> tuple[Side, Side, list[str]]:
    """Take out what differs honestly: generated names, new partitions, others' objects, another printing."""
    have, want = dict(live.objects), dict(wanted.objects)
    notes = _drop_others(have, want, standing.elsewhere, histories)
    notes += _drop_partitions(have, want)
    _match_names(have, want)
    _reprint(have, want, there)
    _drop_rights_of_owners(have, want)
    _drop_others_defaults(have, want)
    _match_mappings(have, want)
    _add_owners(have, want, there.info.user)
    return Side(have, live.needs), Side(want, wanted.needs), notes


def _drop_others(
    have: Catalog, want: Catalog, elsewhere: Sequence[Applied], histories: Histories
) -> list[str]:
    """Leave out the tables in which tools keep their histories, and what other folders' migrations made."""
    others = {_strip(_name(promise)) for one in elsewhere for promise in one.promised}
    names = {
        one.name
        for key, one in have.items()
        if key not in want
        and (
            _strip(one.name) in others
            or {one.name, one.name.partition(".")[2]} & histories.tables
            or one.name.partition(".")[0] in histories.schemas
        )
    }
    owned = [one for one in have.values() if one.kind == "sequence owner"]
    names |= {one.name for one in owned if one.definition.rpartition(".")[0] in names}
    _spread(names, have)
    for key, one in [*have.items()]:
        if key not in want and (one.name in names or one.parent in names):
            del have[key]
    told = [f"{len(elsewhere)} migrations of other folders are applied; what they made is left out."]
    return told if elsewhere else []


def _name(promise: Promise) -> str:
    if promise.kind == "trigger":
        return f"{promise.schema}.{promise.on}.{promise.name}"
    return str(promise)


def _strip(name: str) -> str:
    """Return a name without its quotes and arguments, which a promise writes otherwise than the catalog."""
    return name.partition("(")[0].replace('"', "")


def _drop_partitions(have: Catalog, want: Catalog) -> list[str]:
    """Leave out partitions that only one side has: they are made and dropped as time goes on."""
    notes: list[str] = []
    for side, other, where in ((have, want, "live"), (want, have, "in the files")):
        names: set[str] = set()
        while more := {
            one.name
            for key, one in side.items()
            if key not in other and one.kind == "table" and one.facts["bound"]
            if one.name not in names and (one.facts["parents"] in names or _known(one, other))
        }:
            names |= more
        found = len(names)
        _spread(names, side)
        for key, one in [*side.items()]:
            if one.name in names or one.parent in names:
                del side[key]
        if names:
            notes.append(f"Partitions only {where}: {found}. They come and go, and are left out.")
    return notes


def _spread(names: set[str], side: Catalog) -> None:
    """Add the indexes of what is left out, which may have comments of their own."""
    names |= {one.name for one in side.values() if one.kind == "index" and one.parent in names}


def _known(partition: Object, other: Catalog) -> bool:
    return ("table", partition.facts["parents"]) in other


def _match_names(have: Catalog, want: Catalog) -> None:
    """Take constraints that differ by a name which PostgreSQL chose for the same."""
    lost = [one for key, one in want.items() if key not in have and one.kind == "constraint"]
    for one in lost:
        twin = next(
            (
                other
                for key, other in have.items()
                if key not in want
                and (other.kind, other.parent, other.definition) == (one.kind, one.parent, one.definition)
                and other.facts["generated"]
                and one.facts["generated"]
            ),
            None,
        )
        if twin is not None:
            _drop_parts(have, want, twin.name, one.name)
            del have[twin.key]
            del want[one.key]


def _drop_parts(have: Catalog, want: Catalog, name: str, wanted: str) -> None:
    """Leave out comments and parameters that are the same but for the name of their constraint."""
    parts = [
        [one for one in side.values() if one.facts.get("of") == of]
        for side, of in ((have, name), (want, wanted))
    ]
    for one, other in itertools.product(*parts):
        if (one.kind, one.definition) == (other.kind, other.definition):
            del have[one.key]
            del want[other.key]


def _reprint(have: Catalog, want: Catalog, there: Connection) -> None:
    """Have the live side's views printed by the server that printed the files': versions differ in it."""
    for key, one in [*have.items()]:
        other = want.get(key)
        if one.kind in ("view", "materialized view") and other and one.definition != other.definition:
            text = _print_anew(there, one.facts["query"])
            same = text == other.facts["query"] and one.facts["options"] == other.facts["options"]
            have[key] = replace(one, definition=other.definition) if same else one


def _drop_others_defaults(have: Catalog, want: Catalog) -> None:
    """Leave out default privileges of roles the files do not speak of; one of them may have run the files."""
    for key in [key for key, one in have.items() if one.facts.get("others") and key not in want]:
        one = have.pop(key)
        same = want.get((one.kind, one.name.partition(" ")[2]))
        if same and same.key not in have and same.definition == one.definition:
            del want[same.key]


def _match_mappings(have: Catalog, want: Catalog) -> None:
    """Take the user mapping of who runs the files for the same, by whatever name he goes there."""
    ours = [
        [one for one in side.values() if one.facts.get("ours") and one.key not in other]
        for side, other in ((have, want), (want, have))
    ]
    for one, other in itertools.product(*ours):
        if one.facts["server"] == other.facts["server"]:
            del have[one.key]
            del want[other.key]


def _drop_rights_of_owners(have: Catalog, want: Catalog) -> None:
    """Leave out rights of an owner's own: who owns a thing is another there, and has them all."""
    for side, other in ((have, want), (want, have)):
        owners = {one.name: one.facts.get("owner", one.owner) for one in other.values()}
        owners = {name: {owner} for name, owner in owners.items() if owner}
        anybody = set[str]().union(*owners.values())
        names = {one.name for one in side.values()}
        for key, one in [*side.items()]:
            # The sequence of an identity column is no object of its own.
            others = anybody if one.parent not in names else set[str]()
            if one.kind == "grant" and one.facts.get("to") in owners.get(one.parent or "", others):
                del side[key]


def _add_owners(have: Catalog, want: Catalog, ours: str) -> None:
    """Compare owners that the files give. Who owns the rest is whoever ran them, which may be anybody."""
    given = [one for one in want.values() if one.owner not in (None, ours) and one.kind in OWNED]
    for one in given:
        if not (one.owner or "").startswith("pg_"):
            for side in (have, want):
                if found := side.get(one.key):
                    owner = _make_owner(found)
                    side[owner.key] = owner


def _make_owner(one: Object) -> Object:
    text = f"ALTER {OWNED[one.kind]} {one.name} OWNER TO {one.owner}"
    place = ("owner", *one.place[1:])
    return Object("owner", f"{one.kind} {one.name}", one.owner or "", text, None, one.name, place)


def _print_anew(there: Connection, query: str) -> str | None:
    with there.transaction(force_rollback=True):
        there.execute("SET LOCAL search_path = ''")
        try:
            there.execute(psql.SQL("CREATE TEMPORARY VIEW reprinted AS {}").format(psql.SQL(query)))  # pyright: ignore[reportArgumentType]
        except psycopg.Error:
            return None
        row = there.execute("SELECT rtrim(pg_get_viewdef('pg_temp.reprinted'::regclass), ';')").fetchone()
        return str(row[0]) if row else None


def find(have: Catalog, want: Catalog) -> list[Difference]:
    """Return what differs, and what is unsound on the live side though the files make it so."""
    found = [
        Difference(change.kind, change.name, change.after, change.before)
        for change in catalog.diff(_define(have), _define(want))
    ]
    known = {(one.kind, one.name) for one in found}
    found += [
        Difference(one.kind, one.name, "sound", one.definition)
        for key, one in have.items()
        if key not in known and one.kind in UNSOUND and one.definition.endswith(UNSOUND[one.kind][0])
    ]
    return found + _compare_order(have, want)


def _define(objects: Catalog) -> dict[tuple[str, str], str]:
    return {key: one.definition for key, one in objects.items()}


def _compare_order(have: Catalog, want: Catalog) -> list[Difference]:
    """Compare the order of the columns that a table has on both sides."""
    shared = {key for key in have if key in want and key[0] == "column"}
    orders = [_list_columns(side, shared) for side in (have, want)]
    return [
        Difference("column order", table, ", ".join(orders[1][table]), ", ".join(names))
        for table, names in orders[0].items()
        if names != orders[1].get(table, names)
    ]


def _list_columns(side: Catalog, shared: set[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in sorted((side[key] for key in shared), key=lambda one: one.place):
        found.setdefault(one.parent or "", []).append(one.facts["name"])
    return found


def count(have: Catalog, want: Catalog, found: Sequence[Difference]) -> tuple[Count, ...]:
    """Count by kind what is there as the migrations make it; partitions are of their table."""
    wrong = {(one.kind, one.name) for one in found}
    spoilt = {("table", have[key].parent or "") for key in wrong if key in have and key[0] in catalog.PARTS}
    spoilt |= {("table", want[key].parent or "") for key in wrong if key in want and key[0] in catalog.PARTS}
    counts: list[Count] = []
    for kind in KINDS_SHOWN:
        keys = [key for key, one in want.items() if key[0] == kind and not one.facts.get("bound")]
        if kind in ("schema", "extension"):
            keys = [key for key in keys if key[1] not in ("public", "plpgsql")]
        if keys:
            sound = sum(key in have and key not in wrong and key not in spoilt for key in keys)
            counts.append(Count(kind, sound, len(keys)))
    return tuple(counts)
