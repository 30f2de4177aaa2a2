"""Many databases, many schemas: the same folders on each, several at once, one's failure none of the others'.

A schema's session finds unqualified names in that schema alone, and the history knows its folders as
FOLDER@SCHEMA. Runs in several schemas of one database go side by side; a run on the database keeps all out.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import repeat
from urllib.parse import quote, urlencode

from tollbook.migrate.errors import MigrateError, WrongUsage
from tollbook.migrate.files import Folder
from tollbook.migrate.session import connected, name_target, read_url

DATABASES_MAX = 10_000
SCHEMAS_MAX = 100_000
JOBS_MAX = 64
JOBS = 4
COMMENT = "#"


@dataclass(frozen=True, slots=True)
class Target:
    """A database, or one schema of it. name is safe to show."""

    url: str
    name: str
    schema: str | None = None
    obstacle: MigrateError | None = None  # why it cannot be worked on

    def place(self, folders: Sequence[Folder]) -> list[Folder]:
        """Return the folders under the names by which the history knows them here."""
        if self.schema is None:
            return list(folders)
        return [replace(one, name=f"{one.name}@{self.schema}") for one in folders]

    def find(self, to: tuple[str, str] | None) -> tuple[str, str] | None:
        """Return a (folder, version) under the folder's name here."""
        return (f"{to[0]}@{self.schema}", to[1]) if to and self.schema is not None else to


@dataclass(frozen=True, slots=True)
class Done:
    """What work on one target came to. state: one word; sound is false for what a check found wrong."""

    state: str
    migrations: int
    sound: bool = True


@dataclass(frozen=True, slots=True)
class FleetLine:
    """One target's result. state is failed where message says why, and skipped where it was not begun."""

    database: str
    schema: str | None
    state: str
    migrations: int
    duration_seconds: float
    sound: bool = True
    message: str = ""
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether it failed, or was not begun since another had."""
        return self.state in ("failed", "skipped")


@dataclass(frozen=True, slots=True)
class Fleet:
    """All results, in the order the targets were given."""

    lines: tuple[FleetLine, ...]

    @property
    def failed(self) -> int:
        """How many failed or were skipped."""
        return sum(line.failed for line in self.lines)

    @property
    def sound(self) -> bool:
        """Whether nothing failed, and no check found anything."""
        return all(line.sound and not line.failed for line in self.lines)


Work = Callable[[Target], Done]
Told = Callable[[FleetLine], None]


def read_databases(text: str) -> list[str]:
    """Return the addresses of a list, one a line; blank lines and those that begin with # are passed over.

    Raises WrongUsage with the number of the line, and nothing of the line itself: it may hold a password.
    """
    found: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        address = line.strip()
        if not address or address.startswith(COMMENT):
            continue
        try:
            read_url(address)
        except WrongUsage as error:
            raise WrongUsage(f"Line {number} of the databases: {error.sentence}") from None
        found.append(address)
    if not 1 <= len(found) <= DATABASES_MAX:
        raise WrongUsage(f"The list holds {len(found)} databases; it takes 1 to {DATABASES_MAX}.")
    return found


def find_schemas(url: str, pattern: str) -> list[str]:
    """Return, by name, the schemas that match a pattern such as tenant_*. Raises MigrateError."""
    with connected(url) as conn:
        rows = conn.execute(
            r"""SELECT nspname::text FROM pg_namespace
            WHERE nspname NOT LIKE 'pg\_%%' AND nspname NOT IN ('information_schema', 'tollbook_migrate')
            ORDER BY nspname LIMIT %(most)s""",
            {"most": SCHEMAS_MAX},
        )
        found = [
            name for (name,) in rows if any(fnmatchcase(name, one.strip()) for one in pattern.split(","))
        ]
    if not found:
        raise MigrateError(f"No schema of {name_target(read_url(url))} matches {pattern}.")
    return found


def aim(url: str, schema: str) -> str:
    """Return the address with the schema as the whole search path of its sessions."""
    parameters = read_url(url)
    quoted = '"' + schema.replace('"', '""') + '"'
    escaped = quoted.replace("\\", "\\\\").replace(" ", "\\ ")
    given = parameters.get("options", "")
    parameters["options"] = f"{given} -c search_path={escaped}".strip()
    return f"postgresql:///?{urlencode(parameters, quote_via=quote)}"


def run(
    urls: Sequence[str],
    work: Work,
    *,
    schemas: str | None = None,
    jobs: int = JOBS,
    stop_on_failure: bool = False,
    told: Told = lambda line: None,
) -> Fleet:
    """Do the work on every database, or on every schema that matches, `jobs` of them at a time.

    What goes wrong with one becomes its line. Run again to resume: what is done is found done.
    """
    stopped = threading.Event()

    def visit(target: Target) -> FleetLine:
        line = _do(target, work, stopped)
        if line.failed and stop_on_failure:
            stopped.set()
        told(line)
        return line

    with ThreadPoolExecutor(min(jobs, JOBS_MAX), thread_name_prefix="fleet") as pool:
        try:
            found = [one for ones in pool.map(_aim_all, urls, repeat(schemas)) for one in ones]
            futures = [pool.submit(visit, one) for one in found]
            for future in as_completed(futures):
                future.result()
        except BaseException:  # interrupted: what is under way ends, nothing more is begun
            stopped.set()
            raise
    return Fleet(tuple(future.result() for future in futures))


def _aim_all(url: str, schemas: str | None) -> list[Target]:
    """Return a database's targets. One whose schemas cannot be listed is a target that will say why."""
    name = name_target(read_url(url))
    if schemas is None:
        return [Target(url, name)]
    try:
        return [Target(aim(url, schema), name, schema) for schema in find_schemas(url, schemas)]
    except MigrateError as error:
        return [Target(url, name, obstacle=error)]


def _do(target: Target, work: Work, stopped: threading.Event) -> FleetLine:
    if stopped.is_set():
        return FleetLine(target.name, target.schema, "skipped", 0, 0.0)
    started = time.monotonic()
    try:
        if target.obstacle:
            raise target.obstacle
        done = work(target)
    except MigrateError as error:
        return _fail(target, error, time.monotonic() - started)
    except Exception as error:  # a fault of ours: its text may hold anything, also a secret
        wrong = MigrateError(
            f"{type(error).__name__}, which is a fault of this tool. Run it on this one alone."
        )
        return _fail(target, wrong, time.monotonic() - started)
    seconds = time.monotonic() - started
    return FleetLine(target.name, target.schema, done.state, done.migrations, seconds, done.sound)


def _fail(target: Target, error: MigrateError, seconds: float) -> FleetLine:
    return FleetLine(
        target.name, target.schema, "failed", 0, seconds, message=str(error), reason=error.reason
    )
