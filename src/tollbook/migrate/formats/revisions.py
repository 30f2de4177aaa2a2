"""What a revision of Alembic does: rendered to SQL where that is the same, else run as the program it is.

A revision that asks the database, or that SQL alone does not say in full (parameters, defaults made in
Python, another way when it is rendered), is a program: it runs on the engine's session, in its transaction.
"""

import contextlib
import hashlib
import io
import logging
import logging.config
import re
import sys
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tollbook.migrate.files import Script, read_script

SINGLE_PERCENT = re.compile(r"(?<!%)(?:%%)*%(?!%)")

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import Script as Revision
    from alembic.script import ScriptDirectory


@dataclass(slots=True)
class Environment:
    """What revisions run in: their folder, and what the application's env.py gives to context.configure.

    types are those that the revisions rendered so far make with their tables. Alembic makes each but once
    in a run, so that a later revision may name it again: that one asks the database, as all do behind a
    program.
    """

    config: "Config"
    directory: "ScriptDirectory"
    said: Mapping[str, Any]
    types: set[tuple[str | None, str]] = field(default_factory=set)
    opaque: bool = False  # whether one was a program


class _Told(BaseException):
    """env.py has said all that is asked of it; it goes no further, so that it migrates nothing itself."""


def read_environment(config: "Config", directory: "ScriptDirectory") -> Environment:
    """Ask env.py for what names objects. One that cannot be run here has nothing to say."""
    from alembic.runtime.environment import EnvironmentContext

    def listen(*args: object, **given: Any) -> None:
        said["target_metadata"] = given.get("target_metadata")
        raise _Told

    said: dict[str, Any] = {}
    asking = EnvironmentContext(config, directory, as_sql=True)
    asking.configure = listen
    try:
        with asking, quiet(), contextlib.redirect_stderr(io.StringIO()):
            directory.run_env()
    except _Told:
        return Environment(config, directory, said)
    except (Exception, SystemExit):  # a program of the application's, which may lack anything here
        return Environment(config, directory, {})
    return Environment(config, directory, {})


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep what the application's programs print and log out of our own output, and our logging as it is."""
    known = logging.config.fileConfig
    logging.config.fileConfig = _ignore
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.config.fileConfig = known


def render(environment: Environment, revision: "Revision", direction: str) -> Script:
    """Return a direction as SQL; where that would not be the same, as a program."""
    source = read_script(Path(revision.path))
    function: Callable[[], None] = getattr(revision.module, direction, _nothing)
    # The checksum is of the program: what is rendered may change with the library.
    checksum = hashlib.sha256(source.text.encode()).hexdigest()
    text = None if "as_sql" in source.text else _write(environment, function, direction)
    environment.opaque = environment.opaque or text is None
    if text is None:
        return Script(
            source.path,
            "",
            checksum,
            source.options,
            program=lambda conn, committing: _run(environment, conn, function, committing=committing),
        )
    return Script(source.path, text, checksum, source.options)


def _nothing() -> None:
    return None


def _ignore(*args: object, **given: object) -> None:
    return None


def _write(environment: Environment, function: Callable[[], None], direction: str) -> str | None:
    """Return the SQL that a direction sends; None where it asks for more than it is given here."""
    from alembic.migration import MigrationContext

    buffer = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},  # with any other, each % is doubled
        opts={**environment.said, "as_sql": True, "literal_binds": True, "output_buffer": buffer},
    )
    pen = _Pen(context.dialect, buffer)
    context.impl._exec = pen.write  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    context.connection = pen.blind  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with _entered(environment, context, offline=pen.ask) as operations:
            operations.get_bind = lambda: pen.blind
            function()
    except Exception:  # a program of the user's that text cannot say: it is run instead, and says it then
        return None
    if pen.asked or (direction == "upgrade" and not _note_types(environment, context)):
        return None
    return buffer.getvalue()


def _note_types(environment: Environment, context: Any) -> bool:
    """Whether all types that a revision makes with its tables are surely not there yet."""
    made: set[tuple[str | None, str]] = {one for kind in context.impl.memo.values() for one in kind}
    if made & environment.types or (made and environment.opaque):
        return False
    environment.types |= made
    return True


class _Asked(Exception):
    """A revision wants what only a database can give."""


class _Pen:
    """Writes what is sent as it would be sent, and knows of what was asked that cannot be answered here."""

    def __init__(self, dialect: Any, buffer: io.StringIO) -> None:
        self.dialect = dialect
        self.buffer = buffer
        self.asked = False
        self.blind = _Blind(self)

    def ask(self) -> bool:
        self.asked = True
        return True

    def write(self, construct: Any, options: object = None, *parameters: Any, **given: Any) -> None:
        """Write a statement out. Raises _Asked where its text alone would not do the same."""
        from sqlalchemy.schema import DDLElement
        from sqlalchemy.sql import text

        if any(parameters) or any(given.values()):
            raise _Asked
        clause = text(construct) if isinstance(construct, str) else construct
        literal: dict[str, Any] = {}
        if not isinstance(clause, DDLElement):
            plain = clause.compile(dialect=self.dialect)
            made = (getattr(plain, name, ()) for name in ("insert_prefetch", "update_prefetch"))
            if None in plain.params.values() or any(made):
                raise _Asked
            literal = {"compile_kwargs": {"literal_binds": True}}
        sql = str(clause.compile(dialect=self.dialect, **literal)).strip()
        commented = "--" in sql.rpartition("\n")[2]
        self.buffer.write(sql + ("\n;\n\n" if commented else ";\n\n"))


class _Blind:
    """Stands where the connection would: it knows its dialect, and all else is noted as asked."""

    def __init__(self, pen: _Pen) -> None:
        self._pen = pen
        self.dialect = pen.dialect
        self.name = pen.dialect.name
        self.engine = self

    def __getattr__(self, name: str) -> Any:
        self._pen.ask()
        raise AttributeError(name)


@contextlib.contextmanager
def _entered(environment: Environment, context: Any, offline: Callable[[], bool]) -> Generator[Any]:
    """Give `alembic.op` and `alembic.context` to a revision as it expects them."""
    from alembic.operations import Operations
    from alembic.runtime.environment import EnvironmentContext

    given = EnvironmentContext(environment.config, environment.directory)
    given.is_offline_mode = offline
    given._migration_context = context  # pyright: ignore[reportPrivateUsage]
    context.environment_context = given
    with given, Operations.context(context) as operations, quiet():
        yield operations


def _run(environment: Environment, conn: Any, function: Callable[[], None], *, committing: bool) -> None:
    """Run a direction on the engine's own session, inside its open transaction.

    committing: what it does outside a transaction is done so, and what it did before is committed.
    """
    import sqlalchemy
    from alembic.migration import MigrationContext
    from sqlalchemy.pool import StaticPool

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: _Lent(conn), poolclass=StaticPool, use_native_hstore=False
    )
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=dict(environment.said))
        context.impl.memo = _find_types(conn)
        block = (lambda: _outside(conn)) if committing else contextlib.nullcontext
        context.autocommit_block = block  # pyright: ignore[reportAttributeAccessIssue]
        with _entered(environment, context, offline=lambda: False):
            function()


def _find_types(conn: Any) -> dict[str, set[tuple[str | None, str]]]:
    """Return the types that are there, as SQLAlchemy notes those that it need not make."""
    found: dict[str, set[tuple[str | None, str]]] = {"pg_enum": set(), "pg_DOMAIN": set()}
    rows = conn.execute(
        """SELECT typtype::text, nspname::text, typname::text, pg_type_is_visible(t.oid)
        FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace WHERE typtype IN ('e', 'd')"""
    )
    for kind, schema, name, visible in rows:
        names = found["pg_enum" if kind == "e" else "pg_DOMAIN"]
        names |= {(schema, name), *([(None, name)] if visible else [])}
    return found


@contextlib.contextmanager
def _outside(conn: Any) -> Generator[None]:
    conn.execute("COMMIT")
    try:
        yield
    finally:
        conn.execute("BEGIN")


class _Lent:
    """The engine's session as SQLAlchemy sees it: it may run statements, and neither commit nor end it."""

    def __init__(self, conn: Any) -> None:
        self.__dict__["_conn"] = conn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)

    def cursor(self, *named: Any, **given: Any) -> Any:
        """Return a cursor that writes values into statements, as what revisions are made for does."""
        import psycopg

        if named or given:  # one on the server, for many rows
            return self._conn.cursor(*named, **given)

        class Cursor(psycopg.ClientCursor[Any]):
            def execute(self, query: Any, params: Any = None, **given: Any) -> Any:
                """Without values a sign of percent is one, unless all are doubled."""
                plain = not params and SINGLE_PERCENT.search(str(query))
                return super().execute(query, None if plain else params, **given)

        return Cursor(self._conn)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "autocommit":
            setattr(self._conn, name, value)

    def commit(self) -> None:
        """Leave that to the engine."""

    def rollback(self) -> None:
        """Leave that to the engine."""

    def close(self) -> None:
        """Leave that to the engine."""
