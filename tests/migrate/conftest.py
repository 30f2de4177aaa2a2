"""What the engine's tests stand on: one throw-away server, an empty database a test, a folder to fill."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql

from fixtures.haste import HASTE
from tollbook.embedded import Server, throwaway
from tollbook.migrate import beside

_numbers = itertools.count(1)

Write = Callable[..., Path]
Run = Callable[..., Result]
Ask = Callable[..., Any]


@pytest.fixture(scope="session")
def migrate_server() -> Iterator[Server]:
    with throwaway(settings={**HASTE, "max_connections": "100", "autovacuum": "off"}) as server:
        yield server


@pytest.fixture
def url(migrate_server: Server) -> Iterator[str]:
    """The address of an empty database of this test's own."""
    name = f"migrate_{next(_numbers)}"
    with psycopg.connect(migrate_server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} STRATEGY file_copy").format(sql.Identifier(name)))
        yield migrate_server.url(name)
        beside.drop(connection, name)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs and backups of a test go with the test."""
    monkeypatch.setenv("TOLLBOOK_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("TOLLBOOK_BACKUP_DIR", str(tmp_path / "backups"))
    monkeypatch.delenv("DATABASE_URL", raising=False)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two attempts, whose order is held by tests and not by their pauses."""
    monkeypatch.setattr("tollbook.migrate.retrying.PAUSE_SECONDS", (0.02, 0.1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "shop"
    path.mkdir()
    return path


@pytest.fixture
def write(folder: Path) -> Write:
    """Write a migration's files: write("0001_a", up="…", down="…", check="…")."""

    def write(label: str, *, at: Path = folder, **parts: str) -> Path:
        at.mkdir(exist_ok=True)
        for part, text in parts.items():
            (at / f"{label}.{part}.sql").write_text(text, encoding="utf-8")
        return at / f"{label}.up.sql"

    return write


@pytest.fixture
def run(url: str, folder: Path) -> Run:
    """Run `migrate COMMAND` on the test's database and folder, as a user would without a terminal."""
    from tollbook.migrate.cli import group

    def run(command: str, *options: str, folders: tuple[str, ...] = (), to: str = url) -> Result:
        dirs = [part for name in folders or (str(folder),) for part in ("--dir", name)]
        arguments = [command, *dirs, "--database-url", to, *options]
        return CliRunner().invoke(group(list, lambda: ""), arguments, catch_exceptions=False)

    return run


@pytest.fixture
def apply(run: Run) -> Callable[..., Result]:
    """Apply without questions and without a backup."""
    return lambda *options, **more: run("apply", "--auto", "--skip-backup", *options, **more)


@pytest.fixture
def ask(url: str) -> Ask:
    """Return the first column of the last statement's first row, on the test's database."""

    def ask(query: str) -> Any:
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            while cursor.nextset():
                pass
            row = cursor.fetchone()
            return row and row[0]

    return ask
