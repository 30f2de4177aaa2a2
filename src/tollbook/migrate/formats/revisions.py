"""What a revision of Alembic does: rendered to SQL where that is the same, else run as the program it is.

A revision that asks the database, or that SQL alone does not say in full (parameters, defaults made in
Python, another way when it is rendered), is a program: it runs on the engine's session, in its transaction.
Neither happens before a revision's text is asked for: most are applied long since.
"""

import ast
import contextlib
import inspect
import io
import itertools
import logging
import logging.config
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeGuard

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Script, read_script

COMMIT = re.compile(r"\s*(?:COMMIT|END)\b", re.IGNORECASE)
STAYS = "What it committed itself before stays: undo that by hand, or have it begin with IF NOT EXISTS."
ENV = "env.py"
DATABASE = "TOLLBOOK_ALEMBIC_DATABASE"  # of a folder for several: whose operations are run
GIVEN = ("target_metadata", "version_table_schema")  # the latter is asked for by revisions as their own
SINGLE_PERCENT = re.compile(r"(?<!%)(?:%%)*%(?!%)")
# What a revision says of its place, by the names that Alembic asks its module for.
SAID = ("revision", "down_revision", "branch_labels", "depends_on")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
ALONE = threading.RLock()

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import Script as Revision
    from alembic.script import ScriptDirectory


@dataclass(frozen=True, slots=True)
class Direction(Script):
    """One direction of a revision, rendered when its text or its program is first asked for.

    types are those that it then makes with its tables.
    """

    render: Callable[["Direction"], None] = field(kw_only=True, compare=False)
    types: set[tuple[str | None, str]] = field(
        default_factory=set[tuple[str | None, str]], compare=False, kw_only=True
    )

    def __getattr__(self, name: str) -> Any:
        if name not in ("text", "program"):
            raise AttributeError(name)
        self.render(self)
        return getattr(self, name)

    def forget(self) -> "Direction":
        """Have it rendered when it is asked for."""
        object.__delattr__(self, "text")
        object.__delattr__(self, "program")
        return self

    def settle(self, text: str, program: Callable[[Any, bool], None] | None) -> None:
        """Take what it was rendered to."""
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "program", program)


@dataclass(slots=True)
class Environment:
    """What revisions run in: their folder, and what the application's env.py gives to context.configure."""

    path: Path
    config: "Config"
    directory: "ScriptDirectory"
    said: Mapping[str, Any] | None = None  # until env.py was asked
    upgrades: list[Direction] = field(default_factory=list[Direction])  # in their order


class _Told(BaseException):
    """env.py has said all that is asked of it; it goes no further, so that it migrates nothing itself."""


@contextlib.contextmanager
def glancing() -> Generator[None]:
    """Let Alembic see of each revision what its file says of its place, without running it."""
    import alembic.util

    load = alembic.util.load_python_file

    def glance(folder: Path, name: str) -> Any:
        try:
            said = _read_literals(ast.parse(Path(folder, name).read_bytes()))
        except (ValueError, TypeError, SyntaxError):  # only running it tells
            return load(folder, name)
        return SimpleNamespace(**said, load=partial(load, folder, name))

    alembic.util.load_python_file = glance
    try:
        yield
    finally:
        alembic.util.load_python_file = load


def _read_literals(module: ast.Module) -> dict[str, Any]:
    """Return the values of the names in SAID. Raises ValueError where they are not written out."""
    said: dict[str, Any] = {}
    for one in module.body:
        target = one.targets[0] if isinstance(one, ast.Assign) else getattr(one, "target", None)
        if isinstance(one, ast.Assign | ast.AnnAssign) and one.value and _is_said(target):
            said[target.id] = ast.literal_eval(one.value)
        elif not isinstance(one, DEFINITIONS) and any(map(_is_said, ast.walk(one))):
            raise ValueError(one)
    if not {"revision", "down_revision"} <= said.keys():
        raise ValueError
    return said


def _is_said(node: ast.AST | None) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in SAID


def _ask(environment: Environment) -> Mapping[str, Any]:
    """Ask env.py, once, for what names objects and where they go. One that cannot be run here is named."""
    from alembic.runtime.environment import EnvironmentContext

    given: dict[str, Any] = {}

    def listen(*args: object, **said: Any) -> None:
        given.update(said)
        raise _Told

    if environment.said is None:
        environment.said = {}
        asking = EnvironmentContext(environment.config, environment.directory, as_sql=True)
        asking.configure = listen
        try:
            with quiet(), asking, contextlib.redirect_stderr(io.StringIO()):
                environment.directory.run_env()
        except (_Told, Exception, SystemExit) as error:  # it is a program, which may lack anything here
            env = Path(environment.directory.dir) / ENV
            written = {name: found for name, found in _read_given(env, error) if given.get(name) is None}
            environment.said = {name: (given | written).get(name) for name in GIVEN}
            if not isinstance(error, _Told) and not written:
                why = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
                sys.stderr.write(f"{env}: {why}. Constraints without a name get PostgreSQL's.\n")
    return environment.said


def _read_given(env: Path, error: BaseException) -> Generator[tuple[str, Any]]:
    """Give what env.py would say otherwise: many say it only where they connect, or refuse to go on."""
    frames = (one for one, _ in traceback.walk_tb(error.__traceback__) if one.f_code.co_filename == str(env))
    names = next((one.f_globals for one in frames), dict[str, Any]())
    with contextlib.suppress(OSError, SyntaxError):
        for call in ast.walk(ast.parse(env.read_bytes())):
            for one in call.keywords if isinstance(call, ast.Call) else ():
                if one.arg in GIVEN and (found := _look_up(one.value, names)) is not None:
                    yield one.arg, found


def _look_up(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return what a name of the program's stands for, or a constant; None for all else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Attribute):
        return getattr(_look_up(node.value, names), node.attr, None)
    return names.get(node.id) if isinstance(node, ast.Name) else None


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep what the application's programs print and log out of our own output, and our logging as it is.

    Alembic gives its operations to all of the process (`alembic.op`): one thread at a time may use them.
    """
    with ALONE:
        known = logging.config.fileConfig
        logging.config.fileConfig = _ignore
        logging.getLogger("alembic").setLevel(logging.WARNING)
        try:
            with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.config.fileConfig = known


def defer(environment: Environment, revision: "Revision") -> tuple[Script, Script]:
    """Return the two directions of a revision, with the checksum of its program.

    Their text is SQL, or empty where that would not be the same: then there is a program. Asking for either
    raises FolderRefused where the revision cannot be loaded.
    """
    source = read_script(Path(revision.path))
    up, down = (
        Direction(
            source.path,
            "",
            source.checksum,
            source.options,
            render=partial(_render, environment, revision, name, source.text),
        ).forget()
        for name in ("upgrade", "downgrade")
    )
    environment.upgrades.append(up)
    return up, down


def _render(environment: Environment, revision: "Revision", name: str, source: str, one: Direction) -> None:
    function = _choose(_load(environment, revision), name)
    text = None if "as_sql" in source else _write(environment, function, one)
    if text is not None and name == "upgrade" and _may_be_there(environment, one):
        text = None
    if text is None:
        one.settle("", lambda conn, committing: _run(environment, conn, function, committing=committing))
    else:
        one.settle(text, None)


def _choose(module: ModuleType, name: str) -> Callable[[], None]:
    """Return a direction's function; of one that is told a database's name, for the database that is meant.

    Raises FolderRefused where nothing says which that is.
    """
    function: Callable[..., None] = getattr(module, name, _nothing)
    given = inspect.signature(function).parameters.values()
    if not any(one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD for one in given):
        return function
    names = [one.removeprefix(f"{name}_") for one in vars(module) if one.startswith(f"{name}_")]
    said = os.environ.get(DATABASE)
    if said not in names:
        raise FolderRefused(
            f"This revision is for each of several databases ({', '.join(names)}). Say which this is: "
            f"{DATABASE}={names[0] if names else 'NAME'}.",
            Place(str(module.__file__)),
        )
    return partial(function, said)


def _load(environment: Environment, revision: "Revision") -> ModuleType:
    if isinstance(revision.module, SimpleNamespace):
        try:
            with quiet():
                revision.module = revision.module.load()
        except Exception as error:  # it is a program: anything may be raised
            raise explain(environment.path, error) from error
    return revision.module


def explain(path: Path, error: Exception) -> FolderRefused:
    """Say why a program of the folder cannot be loaded."""
    frames = [one.filename for one in traceback.extract_tb(error.__traceback__)]
    inside = [name for name in frames if name.startswith(str(path.resolve()))]
    place = Place(inside[-1] if inside else str(path))
    if isinstance(error, ModuleNotFoundError):
        text = (
            f"This needs the module {error.name}, which is not there. Install the application that the "
            "folder belongs to beside tollbook, or run this where it lies (PYTHONPATH)."
        )
        return FolderRefused(text, place)
    return FolderRefused(f"Alembic cannot read this folder: {error}", place)


def _nothing() -> None:
    return None


def _ignore(*args: object, **given: object) -> None:
    return None


def _write(environment: Environment, function: Callable[[], None], one: Direction) -> str | None:
    """Return the SQL that a direction sends; None where it asks for more than it is given here."""
    from alembic.migration import MigrationContext

    buffer = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},  # with any other, each % is doubled
        opts={**_ask(environment), "as_sql": True, "literal_binds": True, "output_buffer": buffer},
    )
    pen = _Pen(context.dialect, buffer)
    impl: Any = context.impl
    impl._exec = pen.write
    context.connection = pen.blind  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with _entered(environment, context, offline=pen.ask) as operations:
            operations.get_bind = lambda: pen.blind
            function()
    except Exception:  # a program of the user's that text cannot say: it is run instead, and says it then
        return None
    one.types.update(*impl.memo.values())
    return None if pen.asked else buffer.getvalue()


def _may_be_there(environment: Environment, one: Direction) -> bool:
    """Whether a type that a revision makes with its tables may have been made by an earlier one.

    Alembic makes each but once in a run, so that a later revision may name it again: that one asks the
    database, as all do behind a program.
    """
    earlier = itertools.takewhile(lambda other: other is not one, environment.upgrades)
    return bool(one.types) and any(other.program or one.types & other.types for other in earlier)


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


def _refuse_to_be_inspected(blind: "_Blind") -> None:
    """A revision may swallow that there is nothing to see, and go on as if there were no tables."""
    blind.ask()
    raise _Asked


class _Blind:
    """Stands where the connection would: it knows its dialect, and all else is noted as asked."""

    def __init__(self, pen: _Pen) -> None:
        from sqlalchemy import inspection

        self._pen = pen
        self.dialect = pen.dialect
        self.name = pen.dialect.name
        self.engine = self

        if _Blind not in inspection._registrars:  # pyright: ignore[reportPrivateUsage]
            inspection._inspects(_Blind)(_refuse_to_be_inspected)  # pyright: ignore[reportPrivateUsage]

    def ask(self) -> None:
        """Note that something was asked."""
        self._pen.ask()

    def in_transaction(self) -> bool:
        """Answer Alembic's autocommit_block, which is written out as COMMIT and BEGIN."""
        return False

    def __getattr__(self, name: str) -> Any:
        self.ask()
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
    with quiet(), given, Operations.context(context) as operations:
        yield operations


def _run(environment: Environment, conn: Any, function: Callable[[], None], *, committing: bool) -> None:
    """Run a direction on the engine's own session, inside its open transaction.

    committing: what it does outside a transaction is done so, and what it did before is committed.
    """
    import sqlalchemy
    from alembic.migration import MigrationContext
    from sqlalchemy.pool import StaticPool

    lent = _Lent(conn)
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: lent, poolclass=StaticPool, use_native_hstore=False
    )
    with engine.connect() as connection, _telling(lent):
        context = MigrationContext.configure(connection, opts=dict(_ask(environment)))
        context.impl.memo = _find_types(conn)
        block = (lambda: _outside(lent)) if committing else contextlib.nullcontext
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
def _outside(lent: "_Lent") -> Generator[None]:
    lent.cursor().execute("COMMIT")
    try:
        yield
    finally:
        lent.execute("BEGIN")


@contextlib.contextmanager
def _telling(lent: "_Lent") -> Generator[None]:
    """Say of what fails whether a part of it was committed, and stays."""
    try:
        yield
    except Exception as error:
        if lent.committed:
            error.add_note(STAYS)
        raise


class _Lent:
    """The engine's session as SQLAlchemy sees it: it may run statements, and neither commit nor end it."""

    def __init__(self, conn: Any) -> None:
        self.__dict__["_conn"] = conn
        self.__dict__["committed"] = False  # by the revision itself

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)

    def cursor(self, *named: Any, **given: Any) -> Any:
        """Return a cursor that writes values into statements, as what revisions are made for does."""
        import psycopg

        if named or given:  # one on the server, for many rows
            return self._conn.cursor(*named, **given)

        lent = self

        class Cursor(psycopg.ClientCursor[Any]):
            def execute(self, query: Any, params: Any = None, **given: Any) -> Any:
                """Without values a sign of percent is one, unless all are doubled."""
                lent.__dict__["committed"] |= bool(COMMIT.match(str(query)))
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
