"""What every command shares: its options, the database it acts on, and how it answers and refuses."""

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from tollbook.core import ids
from tollbook.core.errors import DatabaseUnreachable, Refusal

# What is slow to import is imported where it is used, so that `tollbook --help` answers at once.
if TYPE_CHECKING:
    from tollbook.core.database import Database
    from tollbook.core.settings import Settings

CONNECT_SECONDS_MAX = 5
CONNECTIONS_MAX = 2
PIPE_WIDTH_MAX = 2000
LIST_DEFAULT, LIST_MAX = 20, 200

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Result = TypeVar("_Result")


class NothingToRead(Refusal):
    """A database in memory is known to the process that made it alone."""

    reason = "nothing-to-read"


def refuse_memory(settings: "Settings") -> None:
    """Raise NothingToRead where the database is in the memory of another process."""
    if settings.database_url is None and settings.storage == "memory":
        raise NothingToRead(
            "TOLLBOOK_STORAGE=memory keeps nothing for another command. Unset it, or give the running "
            "Tollbook's database with --database-url (`tollbook up` prints it)."
        )


@contextmanager
def open_database(settings: "Settings") -> Generator[str]:
    """Yield the database's URL while it runs; an embedded server that was started for it then stops.

    Raises EmbeddedServerFailed, DatabaseUnreachable.
    """
    from tollbook.core.storage import open_storage

    if settings.database_url is not None:
        check_connection(settings.database_url)
    storage = open_storage(settings)
    try:
        yield storage.url
    finally:
        storage.close()


def check_connection(url: str) -> None:
    """Raise DatabaseUnreachable, with what the server or the network said, unless it lets us in."""
    import psycopg

    from tollbook.core.database import check_address
    from tollbook.migrate.url import redact

    check_address(url)
    try:
        psycopg.connect(url, connect_timeout=CONNECT_SECONDS_MAX).close()
    except psycopg.Error as error:
        said = (str(error).strip().splitlines() or ["no answer"])[0].strip()
        raise DatabaseUnreachable(
            f"The database at {redact(url)} does not let us in: {said}. Check that it runs and that "
            "--database-url or DATABASE_URL names it; without either, the embedded PostgreSQL is used."
        ) from None


def storage_options(command: _Command) -> _Command:
    """Give a command --data-dir and --database-url, handed to it together as `settings`."""

    @functools.wraps(command)
    def with_settings(data_dir: Path | None, database_url: str | None, *args: Any, **options: Any) -> Any:
        return command(*args, settings=read_settings(data_dir, database_url), **options)

    url = click.option(
        "--database-url",
        metavar="URL",
        help="A PostgreSQL, 15 or newer; also DATABASE_URL. Default: the embedded one.",
    )
    folder = click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where the embedded database lives; also TOLLBOOK_DATA_DIR. Default: ~/.local/share/tollbook.",
    )
    return cast(_Command, folder(url(with_settings)))


def read_settings(data_dir: Path | None, database_url: str | None) -> "Settings":
    """Return the settings: options win over the environment. Raises click.UsageError."""
    from pydantic import ValidationError

    from tollbook.core.settings import Settings

    try:
        found = Settings()
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise click.UsageError(f"The environment has a setting that cannot be used: {faults}.") from None
    changes: dict[str, object] = {"data_dir": (data_dir or found.data_dir).expanduser().absolute()}
    if data_dir is not None:  # a folder that is asked for wins over an address that is merely around
        changes |= {"database_url": None, "storage": "disk"}
    if database_url is not None:
        changes["database_url"] = database_url
    return found.model_copy(update=changes)


class Id(click.ParamType):  # pyright: ignore[reportMissingTypeArgument] - not generic in click 8.1
    """An id as people see it: a prefix such as pay_, and 13 letters."""

    def __init__(self, prefix: str) -> None:
        self.name = f"{prefix}_id"
        self._prefix = prefix

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number behind the id, or fail as wrong usage."""
        number = value if isinstance(value, int) else ids.read(self._prefix, str(value))
        if number is None:
            self.fail(f"{str(value)[:40]!r} is no id like {ids.show(self._prefix, 0)}.", param, ctx)
        return number


def json_option(command: _Command) -> _Command:
    """Give a command --json, handed to it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for programs.")(command)


def limit_option(command: _Command) -> _Command:
    """Give a list --limit. It asks for one more than that, and hands all to `answer_page`."""
    kind = click.IntRange(1, LIST_MAX)
    return click.option("--limit", default=LIST_DEFAULT, show_default=True, type=kind)(command)


def ask(settings: "Settings", question: "Callable[[Database], Awaitable[_Result]]") -> _Result:
    """Return what the question answers about the database, which is opened and closed around it."""
    from tollbook.core.database import Database

    async def run(url: str) -> _Result:
        async with Database(url, application="tollbook cli", connections_max=CONNECTIONS_MAX) as database:
            return await question(database)

    refuse_memory(settings)
    with open_database(settings) as url:
        return asyncio.run(run(url))


def answer(value: object, *, as_json: bool, title: str = "", empty: str = "Nothing yet.") -> None:
    """Print a row, or a list of rows, as JSON or as a table. Rows are dataclasses or mappings."""
    if as_json:
        click.echo(json.dumps(to_plain(value), indent=2, ensure_ascii=False))
    elif isinstance(value, (list, tuple)):
        rows = [_to_row(row) for row in cast(Sequence[object], value)]
        if rows:
            _print_table(title, list(rows[0]), [[_show(cell) for cell in row.values()] for row in rows])
        else:
            click.echo(empty)
    else:
        _print_table(title, ["", ""], [[name, _show(cell)] for name, cell in _to_row(value).items()])


def answer_page(
    found: "Sequence[_Result]",
    limit: int,
    *,
    last: "Callable[[_Result], str]",
    shorten: "Callable[[_Result], object] | None" = None,
    as_json: bool,
    title: str,
    empty: str,
) -> None:
    """Print the first `limit` of a list, people's ones shortened; on stderr how to see the rest of it.

    `last` is what --after takes of a row.
    """
    shown = found[:limit]
    rows = list(shown) if as_json or shorten is None else [shorten(one) for one in shown]
    answer(rows, as_json=as_json, title=title, empty=empty)
    if len(found) > limit:
        click.echo(f"There are more: --after {last(shown[-1])} shows what follows.", err=True)


def to_plain(value: object) -> Any:
    """Return what JSON can carry: times in ISO 8601, decimals as texts, dataclasses as the API has them."""
    if is_dataclass(value) and not isinstance(value, type):
        from pydantic import TypeAdapter

        return TypeAdapter(type(value)).dump_python(value, mode="json")
    if isinstance(value, Mapping):
        return {str(name): to_plain(cell) for name, cell in cast(Mapping[object, object], value).items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(cell) for cell in cast(Sequence[object], value)]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


def _to_row(value: object) -> dict[str, object]:
    """Return a row's cells by name, in the order in which its maker wrote them."""
    plain = to_plain(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain[field.name] for field in fields(value) if field.name in plain}
    return cast(dict[str, object], plain)


def _show(cell: object) -> str:
    if cell is None:
        return "–"  # noqa: RUF001 - what a table shows for nothing
    if isinstance(cell, (dict, list)):
        return json.dumps(cell, ensure_ascii=False)
    return format(cell, "f") if isinstance(cell, Decimal) else str(cell)


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(click.unstyle(cell) for cell in row))
    console = Console()
    if not console.is_terminal:  # a pipe has no width: nothing is folded for it
        console = Console(width=PIPE_WIDTH_MAX)
        console.width = max(console.measure(table).maximum, 1)
    console.print(table, markup=False)
