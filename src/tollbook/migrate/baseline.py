"""Taking over a database that another tool, or a hand, has brought to where it is; and giving it back."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from tollbook.migrate import foreign, formats, history, preflight, presence
from tollbook.migrate.errors import Place, PreflightRefused, Problem, WrongUsage
from tollbook.migrate.events import Listener, ignore
from tollbook.migrate.execution import Prepared
from tollbook.migrate.files import Folder, Migration
from tollbook.migrate.objects import Promise
from tollbook.migrate.promises import Promises
from tollbook.migrate.session import (
    LOCK_WAIT_SECONDS_MAX,
    Connection,
    connected,
    locked,
    name_target,
    read_url,
)

MISSING_SHOWN_MAX = 50


@dataclass(frozen=True, slots=True)
class Baseline:
    """What was taken over. tool: whose history said so; missing: what the files make and is not there."""

    database: str
    tool: str | None
    taken: tuple[str, ...]
    missing: tuple[str, ...]


def baseline(
    url: str,
    folder: Folder,
    *,
    to: tuple[str, str] | None = None,
    lock_wait_seconds_max: float = LOCK_WAIT_SECONDS_MAX,
    listen: Listener = ignore,
) -> Baseline:
    """Record migrations as applied without running them: those of another tool's history, or all up to `to`.

    Where no history says so, all that the files make must be there. Raises MigrateError; nothing is recorded
    then. What a tool's history says is believed, and objects that are not there are named in the result.
    """
    migrations = formats.read([folder])
    with connected(url) as conn, locked(conn, url, listen, lock_wait_seconds_max):
        standing = preflight.compare(migrations, [folder], history.read(conn))
        keeper = foreign.find(conn, migrations) if to is None else None
        if keeper is None and to is None:
            raise WrongUsage(
                "No history of a known tool lies in this database. Say up to where it is: --to VERSION."
            )
        chosen = _ask(conn, keeper, migrations) if keeper else _cut(migrations, to)
        known = {(one.folder, one.version) for one in standing.applied}
        taken = [one for one in chosen if (one.folder, one.version) not in known]
        kept, missing = _look(conn, taken)
        if missing and keeper is None:
            shown = "; ".join(missing[:MISSING_SHOWN_MAX])
            raise PreflightRefused(
                [
                    Problem(
                        f"Not all of it is there: {shown}.",
                        "Choose an earlier --to, or make what is missing.",
                    )
                ]
            )
        if taken:
            _record(conn, taken, kept)
        tool = keeper.tool if keeper else None
        return Baseline(name_target(read_url(url)), tool, tuple(one.id for one in taken), tuple(missing))


def _cut(migrations: Sequence[Migration], to: tuple[str, str] | None) -> list[Migration]:
    place = next(place for place, one in enumerate(migrations) if (one.folder, one.version) == to)
    return list(migrations[: place + 1])


def _ask(conn: Connection, keeper: foreign.Keeper, migrations: Sequence[Migration]) -> list[Migration]:
    """Return what the tool's history says is applied. Raises PreflightRefused where files differ."""
    applied, edited, unknown = foreign.match(keeper, keeper.read(conn), migrations)
    preflight.refuse(
        [
            *(
                Problem(
                    f"{one.id} was edited after {keeper.tool} applied it.",
                    "Put the applied text back (from version control).",
                    Place(str(one.up.path)),
                )
                for one in edited
            ),
            *(
                Problem(
                    f"{keeper.tool} has applied {key}, of which there is no file here.",
                    "Put the file back (from version control).",
                )
                for key in unknown
            ),
        ]
    )
    return applied


def _look(conn: Connection, taken: Sequence[Migration]) -> tuple[list[list[Promise]], list[str]]:
    """Return, for each migration, what it made that is there and no later one drops, and what is missing."""
    ready, _ = preflight.prepare(taken)  # what could not be run here was run elsewhere
    standing: list[list[Promise]] = [
        _find_lasting(one, ready[place + 1 :]) for place, one in enumerate(ready)
    ]
    everything = [promise for promises in standing for promise in promises]
    row = conn.execute("SELECT current_schemas(false)::text[]").fetchone()
    verdict = presence.judge(everything, presence.look_up(conn, everything), row[0] if row else [])
    found = iter(verdict.found)
    there = {promise for promise in everything if promise not in verdict.missing}
    kept = [[next(found) for promise in promises if promise in there] for promises in standing]
    return kept, list(verdict.wrong)


def _find_lasting(one: Prepared, later: Sequence[Prepared]) -> list[Promise]:
    lasting = Promises(made=list(one.promises.made))
    for gone in (promise for after in later for promise in after.promises.dropped):
        lasting.drop(gone)
    return lasting.made


def _record(conn: Connection, taken: Sequence[Migration], kept: Sequence[Sequence[Promise]]) -> None:
    """Write all of it in one transaction."""
    history.create(conn)
    with conn.transaction():
        run = history.start(conn, "baseline", [one.id for one in taken])
        for migration, promises in zip(taken, kept, strict=True):
            history.add(conn, run, migration, timedelta(0), promises, ())
        history.end(conn, [run], "done")


def give_back(url: str, folder: Folder, *, listen: Listener = ignore) -> Baseline:
    """Write what is applied here into the history of the tool that was here before, so that it can go on.

    Raises MigrateError; nothing is written then.
    """
    migrations = formats.read([folder])
    with connected(url) as conn, locked(conn, url, listen, LOCK_WAIT_SECONDS_MAX):
        standing = preflight.compare(migrations, [folder], history.read(conn))
        keeper = foreign.find(conn, migrations)
        if keeper is None:
            raise WrongUsage(
                "No history of a tool that is known lies in this database; there is nobody to tell."
            )
        applied, _, _ = foreign.match(keeper, keeper.read(conn), migrations)
        known = {(one.folder, one.version) for one in standing.applied}
        kept = (one for one in migrations if one.kept and (one.folder, one.version) in known)
        told = [one for one in kept if one not in applied]
        with conn.transaction():
            keeper.write(conn, told)
        return Baseline(name_target(read_url(url)), keeper.tool, tuple(one.id for one in told), ())
