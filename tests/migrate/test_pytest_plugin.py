"""A project's own tests, run by a pytest of their own: each has a migrated database."""

import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import psycopg
import pytest

TESTS = """
import psycopg, pytest

@pytest.mark.parametrize("number", range(4))
def test_each_has_its_own(migrated_database, number):
    with psycopg.connect(migrated_database) as connection:
        connection.execute("INSERT INTO goods VALUES (1)")
        assert connection.execute("SELECT count(*) FROM goods").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM tollbook_migrate.history").fetchone() == (2,)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project" / "db" / "migrations"
    folder.mkdir(parents=True)
    (folder / "0001_goods.up.sql").write_text("CREATE TABLE goods (id int);")
    (folder / "0002_key.up.sql").write_text("ALTER TABLE goods ADD PRIMARY KEY (id);")
    root = tmp_path / "project"
    (root / "pytest.ini").write_text("[pytest]\ntollbook_migrations = shop=db/migrations\n")
    (root / "test_goods.py").write_text(TESTS)
    return root


@pytest.fixture
def run_tests(project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run_tests(*options: str) -> subprocess.CompletedProcess[str]:
        plugin = ["-p", "tollbook.migrate.pytest_plugin"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        named = any(one.name == "tollbook_migrate" for one in metadata.entry_points(group="pytest11"))
        extra = [] if named else plugin  # not installed anew since the entry point was added
        return subprocess.run([*command, *extra], cwd=project, capture_output=True, text=True, timeout=120)

    return run_tests


def test_every_test_has_a_migrated_database_of_its_own(run_tests: Any, project: Path) -> None:
    path = project / "db" / "migrations" / "0001_goods.up.sql"
    path.write_text(f"CREATE EXTENSION IF NOT EXISTS pgcrypto; {path.read_text()}")
    ran = run_tests()
    assert "4 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "stand-ins of pgcrypto" in ran.stdout


def test_workers_share_the_template_of_a_server_and_leave_nothing_else(
    run_tests: Any, migrate_server: Any, project: Path
) -> None:
    server = migrate_server.url("postgres", user="postgres")
    assert "4 passed" in run_tests("-n", "2", "--tollbook-database-url", server).stdout
    assert len(_list(server)) == 1
    kept = _list(server)
    assert "4 passed" in run_tests("--tollbook-database-url", server).stdout
    assert _list(server) == kept
    (project / "db" / "migrations" / "0002_key.up.sql").write_text("ALTER TABLE goods ADD UNIQUE (id);")
    assert "4 passed" in run_tests("--tollbook-database-url", server).stdout
    assert len(_list(server)) == 1
    assert _list(server) != kept


def _list(server: str) -> list[str]:
    with psycopg.connect(server) as connection:
        rows = connection.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE 'tollbook\\_te%' ORDER BY 1"
        )
        return [row[0] for row in rows]


def test_a_folder_that_fails_fails_the_tests_with_its_sentence(run_tests: Any, project: Path) -> None:
    (project / "db" / "migrations" / "0003_bad.up.sql").write_text("CREATE TABLE goods (id int, n int);")
    ran = run_tests()
    assert "4 errors" in ran.stdout
    assert "makes the table" in ran.stdout or "already exists" in ran.stdout


def test_without_its_setting_it_says_what_to_set(run_tests: Any, project: Path) -> None:
    (project / "pytest.ini").write_text("[pytest]\n")
    assert "tollbook_migrations" in run_tests().stdout


def test_it_loads_nothing_where_nobody_asks() -> None:
    code = (
        "import pytest, sys; before = set(sys.modules); import tollbook.migrate.pytest_plugin; "
        "print(sorted(name "
        "for name in set(sys.modules) - before if name[:8] in ('tollbook', 'psycopg', 'pglast')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(["tollbook", "tollbook.migrate", "tollbook.migrate.pytest_plugin"])
