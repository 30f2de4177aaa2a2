"""Migrations carried out on a throw-away server, to see what they really make."""

import itertools
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pglast import ast, visitors
from pglast.enums import AlterTableType, ObjectType, RoleSpecType
from psycopg import sql

from tollbook.embedded.errors import EmbeddedServerFailed
from tollbook.migrate import backfill, history, preflight, statements
from tollbook.migrate import shadow as shadows
from tollbook.migrate.course import Course, carry_out, carry_out_and_keep
from tollbook.migrate.errors import MigrateError, Problem
from tollbook.migrate.events import Event, Listener, ignore
from tollbook.migrate.execution import ROLLED_BACK, Outcome, Prepared
from tollbook.migrate.files import Migration
from tollbook.migrate.session import Connection, connected, read_pid
from tollbook.migrate.traffic import Guard, Traffic

LOCK_TIMEOUT_SECONDS = 60.0
DEFAULT_TABLESPACE = "pg_default"


class NotReplayable(MigrateError):
    """The migrations cannot be carried out on a throw-away server; the reason is the sentence."""

    reason = "not-replayable"


@dataclass(frozen=True, slots=True)
class Stage:
    """A throw-away server on which any number of databases can be made."""

    admin_url: str
    listen: Listener
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    lacks: tuple[str, ...] = ()  # a sentence for each extension that is not the real one

    def make(
        self,
        *,
        settings: Mapping[str, str] | None = None,
        schemas: Sequence[str] = (),
        tablespace: str = DEFAULT_TABLESPACE,
        template: str | None = None,
    ) -> str:
        """Return the address of a new database with these schemas; `template` is that of one to copy."""
        name = f"stage_{next(self._numbers)}"
        like = _name(template) if template else "template0"
        with connected(self.admin_url) as conn:
            conn.execute(_compose("CREATE DATABASE {} TEMPLATE {} TABLESPACE {}", name, like, tablespace))
        url = self.admin_url.replace(f"/{_name(self.admin_url)}?", f"/{name}?", 1)
        if settings:
            _settle(url, name, settings, schemas)
        return url

    def admit(self, roles: Iterable[str] = (), tablespaces: Iterable[str] = ()) -> None:
        """Make the roles and tablespaces that are not there yet; none of the roles can log in."""
        with connected(self.admin_url) as conn:
            there = {name for (name,) in conn.execute("SELECT rolname::text FROM pg_roles")}
            for role in sorted({*roles} - there):
                if not role.startswith("pg_"):
                    conn.execute(_compose("CREATE ROLE {}", role))
            shadows.make_tablespaces(conn, tablespaces)

    def house(self, databases: Iterable[str]) -> None:
        """Make the databases that are not there yet, empty: a file may grant or set something on its own."""
        with connected(self.admin_url) as conn:
            there = {name for (name,) in conn.execute("SELECT datname::text FROM pg_database")}
            for name in sorted({*databases} - there):
                conn.execute(_compose("CREATE DATABASE {} TEMPLATE template0", name))


def _compose(text: str, *names: str) -> sql.Composed:
    return sql.SQL(text).format(*(sql.Identifier(name) for name in names))  # pyright: ignore[reportArgumentType]


def _name(url: str) -> str:
    return url.split("?")[0].rpartition("/")[2]


def _settle(url: str, name: str, settings: Mapping[str, str], schemas: Sequence[str]) -> None:
    with connected(url) as conn:
        for setting, value in settings.items():
            asked = {"setting": setting, "value": value}
            conn.execute("SELECT set_config(%(setting)s, %(value)s, false)", asked)
            conn.execute(_compose("ALTER DATABASE {} SET {} FROM CURRENT", name, setting))
        for schema in schemas:
            conn.execute(_compose("CREATE SCHEMA IF NOT EXISTS {}", schema))


@contextmanager
def staged(listen: Listener = ignore, like: Connection | None = None) -> Generator[Stage]:
    """Start a throw-away server that offers what `like` does. Raises NotReplayable where none can be had."""
    try:
        with shadows.empty(listen, like) as shadow:
            yield Stage(shadow.admin_url, listen, lacks=shadow.lacks)
    except (shadows.ShadowUnavailable, EmbeddedServerFailed) as error:
        raise NotReplayable(f"No throw-away server can be started here: {error}") from error


def find_roles(migrations: Sequence[Migration]) -> tuple[set[str], set[str]]:
    """Return the roles that the files name, and those that they make themselves."""
    named: set[str] = set()
    made: set[str] = set()

    class Finder(visitors.Visitor):
        def visit_RoleSpec(self, ancestors: object, node: ast.RoleSpec) -> None:  # noqa: N802
            if node.roletype == RoleSpecType.ROLESPEC_CSTRING and node.rolename:
                named.add(node.rolename)

        def visit_CreateRoleStmt(self, ancestors: object, node: ast.CreateRoleStmt) -> None:  # noqa: N802
            made.add(node.role or "")

    finder = Finder()
    for script in (part for one in migrations for part in (one.up, one.down) if part):
        named.update({script.options.role} if script.options.role else ())
        for statement in statements.read(script).statements:
            finder(statement.tree)
    return named, made


def find_databases(migrations: Sequence[Migration]) -> set[str]:
    """Return the databases whose rights, settings or remarks the files change by name."""
    trees = [
        one.tree
        for migration in migrations
        for part in (migration.up, migration.down)
        if part
        for one in statements.read(part).statements
    ]
    named = {name for tree in trees for name in _name_databases(tree)}
    return named - {tree.dbname for tree in trees if isinstance(tree, ast.CreatedbStmt)}


def _name_databases(tree: Any) -> Iterable[str]:
    kind = statements.kind_of(tree)
    if kind is ast.GrantStmt and tree.objtype == ObjectType.OBJECT_DATABASE:
        return [one.sval for one in tree.objects]
    if kind in (ast.AlterDatabaseSetStmt, ast.AlterDatabaseStmt):
        return [tree.dbname]
    if kind is ast.CommentStmt and tree.objtype == ObjectType.OBJECT_DATABASE:
        return [tree.object.sval]
    if kind is ast.AlterOwnerStmt and tree.objectType == ObjectType.OBJECT_DATABASE:
        return [tree.object.sval]
    return []


def find_tablespaces(migrations: Sequence[Migration]) -> set[str]:
    """Return the tablespaces that the files put something into."""
    found: set[str] = set()

    class Finder(visitors.Visitor):
        def note(self, ancestors: object, node: Any) -> None:
            words = ("tablespacename", "tableSpace", "tableSpaceName", "indexspace", "new_tablespacename")
            for word in words:
                found.add(getattr(node, word, None) or "")

        visit_CreateStmt = visit_IntoClause = visit_IndexStmt = visit_Constraint = note  # noqa: N815
        visit_AlterTableMoveAllStmt = note  # noqa: N815

        def visit_AlterTableCmd(self, ancestors: object, node: Any) -> None:  # noqa: N802
            found.add((node.subtype == AlterTableType.AT_SetTableSpace and node.name) or "")

        def visit_VariableSetStmt(self, ancestors: object, node: Any) -> None:  # noqa: N802
            values = node.args or () if node.name == "default_tablespace" else ()
            found.update(value.val.sval for value in values)

    for script in (part for one in migrations for part in (one.up, one.down) if part):
        for statement in statements.read(script).statements:
            Finder()(statement.tree)
    return found - {""}


def play(url: str, migrations: Sequence[Migration], listen: Listener = ignore) -> None:
    """Carry migrations out in this order, with their history. Raises NotReplayable, naming what fails."""
    ready, problems = preflight.prepare(migrations)
    _refuse([*problems, *_find_reaching(ready)])
    with connected(url) as conn:
        course = _begin(conn, url, [one.id for one in migrations], listen)
        for one in ready:
            listen(Event("replaying", one.migration.id))
            _carry(course, one, "up")


def _find_reaching(ready: Sequence[Prepared]) -> Iterable[Problem]:
    """Name what would write outside of the throw-away server, on the machine that it runs on."""
    for one in ready:
        for each in one.reading.statements:
            if isinstance(each.tree, ast.CopyStmt) and (
                each.tree.is_program or (each.tree.filename and not each.tree.is_from)
            ):
                yield Problem(
                    f"{one.migration.id} reaches out of the throw-away server: COPY with a program or into a "
                    "file.",
                    "It is not run there.",
                    one.migration.up.point(each.index, caret=False),
                )


def _refuse(problems: Sequence[Problem]) -> None:
    """What is applied already, by another tool, may hold what cannot be run here at all."""
    if problems:
        first = problems[0]
        raise NotReplayable(f"{first.what} {first.next}", first.place)


def take_back(url: str, migration: Migration, listen: Listener = ignore) -> None:
    """Carry out a migration's down statements. Raises NotReplayable."""
    assert migration.down is not None
    down = Migration(migration.folder, migration.version, migration.label, migration.down)
    ready, problems = preflight.prepare([down])
    _refuse([*problems, *_find_reaching(ready)])
    with connected(url) as conn:
        _carry(_begin(conn, url, [down.id], listen), ready[0], "down")


def _begin(conn: Connection, url: str, names: Sequence[str], listen: Listener) -> Course:
    history.create(conn)
    pid = read_pid(conn)
    run = history.start(conn, "apply", names)
    return Course(conn, pid, run, LOCK_TIMEOUT_SECONDS, listen, Guard(url, pid, Traffic(), listen))


def _carry(course: Course, one: Prepared, direction: str) -> None:
    migration, conn = one.migration, course.conn

    def finish(outcome: Outcome, done: int) -> None:
        if one.backfill:
            history.end_backfill(conn, migration)
        if done:
            history.forget_progress(conn, migration.folder, migration.version)
        if direction == "up" and not migration.repeatable:
            _forget(conn, migration)
            history.add(conn, course.run, migration, timedelta(0), (), ())
        else:
            _forget(conn, migration)
        conn.execute("COMMIT")

    progress = None
    try:
        if one.backfill:
            progress = carry_out_and_keep(course, one, None)
            backfill.run(course, migration, one.backfill)
        carry_out(course, one, progress, direction, finish)
    except MigrateError as error:
        said = error.sentence.removesuffix(ROLLED_BACK)  # nothing that the user ran was
        raise NotReplayable(
            f"{migration.id} cannot be carried out on a throw-away server ({direction}): {said}",
            error.place,
        ) from error


def _forget(conn: Connection, migration: Migration) -> None:
    conn.execute(
        "DELETE FROM tollbook_migrate.history WHERE folder = %(folder)s AND version = %(version)s",
        {"folder": migration.folder, "version": migration.version},
    )
