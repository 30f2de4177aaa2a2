"""Where tools keep their histories: where the settings beside their folders say, or where they usually do."""

import ast
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from tollbook.migrate.files import Folder, Migration, find_schema
from tollbook.migrate.formats import flyway, flyway_settings, sqitch
from tollbook.migrate.keepers import KEEPERS, Keeper, Kept
from tollbook.migrate.session import Connection

PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
ABOVE_MAX = 3  # env.py lies so many folders above a revision, at most
Name = tuple[str | None, str | None]  # schema and table, where they are not the usual ones


def locate(keeper: Keeper, migrations: Sequence[Migration]) -> Keeper:
    """Return the keeper of the table that the settings beside a folder name, by its first migration."""
    named = NAMED.get(keeper.tool)
    schema, table = named(migrations[0].up.path) if named and migrations else (None, None)
    if find_schema([Folder(one.folder, one.up.path) for one in migrations[:1]]):
        schema = None  # each schema that it is applied to has its own
    usual_schema, _, usual = keeper.table.rpartition(".")
    parts = [schema or usual_schema, table or usual]
    if parts == [usual_schema, usual]:
        return keeper
    there = ".".join(_quote(one) for one in parts if one)

    def lend(conn: Connection) -> Connection:
        return cast(Connection, _Elsewhere(conn, keeper.table, there))

    def read(conn: Connection) -> list[Kept]:
        return keeper.read(lend(conn))

    def write(conn: Connection, some: Sequence[Migration]) -> None:
        keeper.write(lend(conn), some)

    return replace(keeper, table=there, read=read, write=write)


@dataclass(frozen=True, slots=True)
class Histories:
    """The tables in which tools may keep their histories, and the schemas that are theirs as a whole."""

    tables: frozenset[str]
    schemas: frozenset[str]


def list_all(migrations: Sequence[Migration]) -> Histories:
    """Return where histories may lie beside what a folder's migrations make."""
    located = [(one, locate(one, migrations)) for one in KEEPERS]
    own = (there.table for usual, there in located if "." in usual.table)
    return Histories(
        frozenset(there.table for _, there in located), frozenset(table.partition(".")[0] for table in own)
    )


def _quote(name: str) -> str:
    return name if PLAIN.fullmatch(name) else '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """A session in which what is said of one table is meant of another."""

    conn: Connection
    usual: str
    there: str

    def execute(self, query: str, given: Mapping[str, Any] | None = None) -> Any:
        return self.conn.execute(query.replace(self.usual, self.there).encode(), given)


def _ask_environment(variable: str) -> Callable[[Path], Name]:
    def find(path: Path) -> Name:
        schema, _, table = os.environ.get(variable, "").rpartition(".")
        return schema or None, table or None

    return find


def _ask_flyway(path: Path) -> Name:
    settings = flyway_settings.read(path.parent)
    return flyway.find_schema(settings), settings.find("table")


def _ask_sqitch(path: Path) -> Name:
    return sqitch.find_registry(path), None


def _ask_alembic(path: Path) -> Name:
    """Read what env.py gives to context.configure, where it is written out there."""
    env = next((one for above in path.parents[:ABOVE_MAX] if (one := above / "env.py").is_file()), None)
    try:
        program = ast.parse(env.read_bytes()) if env else ast.Module([], [])
    except (SyntaxError, ValueError):
        return None, None
    values: dict[str, str] = {}
    said: dict[str, ast.expr] = {}
    for node in ast.walk(program):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            values[name] = next(_read_text(node.value, {}), "")
        for one in node.keywords if isinstance(node, ast.Call) else ():
            said |= {one.arg: one.value} if one.arg else {}
    schema, table = (
        next(_read_text(said[name], values), None) if name in said else None
        for name in ("version_table_schema", "version_table")
    )
    return schema, table


def _read_text(node: ast.expr, values: Mapping[str, str]) -> Iterator[str]:
    """Give what a text of the program's is, where it is written out or is the name of one that is."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name) and values.get(node.id):
        yield values[node.id]


NAMED: Mapping[str, Callable[[Path], Name]] = {
    "Alembic": _ask_alembic,
    "Flyway": _ask_flyway,
    "Sqitch": _ask_sqitch,
    "dbmate": _ask_environment("DBMATE_MIGRATIONS_TABLE"),
    "goose": _ask_environment("GOOSE_TABLE"),
}
USUAL = list_all(())
