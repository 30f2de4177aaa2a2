"""pytest's part of the engine: a fresh migrated database for every test that asks for one.

    [tool.pytest.ini_options]
    tollbook_migrations = ["db/migrations"]

    def test_an_order(migrated_database: str) -> None:
        with psycopg.connect(migrated_database) as connection: ...

The migrations are applied once, to a template; each test gets a copy of that. The server is one of our own
that ends with the session, or that of --tollbook-database-url. This module is loaded by every run of pytest,
so it imports nothing but pytest until a test asks.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tollbook.migrate.templates import Templates

INI = "tollbook_migrations"
OPTION = "--tollbook-database-url"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting and the option."""
    parser.addini(
        INI,
        "Folders of migrations, [NAME=]PATH from the root folder, for the fixture migrated_database.",
        type="args",
        default=[],
    )
    parser.getgroup("tollbook").addoption(
        OPTION,
        metavar="URL",
        help="The server for migrated_database, as a role that may create databases (else one of our own).",
    )


@pytest.fixture(scope="session")
def migrated_databases(pytestconfig: pytest.Config) -> Generator[Templates]:
    """The template of this session; `lent()` gives a copy for as long as a block lasts."""
    from tollbook.migrate import templates

    given: list[str] = pytestconfig.getini(INI)
    if not given:
        pytest.fail(
            f'No folder of migrations is named. Set {INI} = ["db/migrations"] in pytest\'s settings.',
            pytrace=False,
        )
    folders = [templates.place(text, pytestconfig.rootpath) for text in given]
    with templates.opened(folders, pytestconfig.getoption(OPTION), str(pytestconfig.rootpath)) as made:
        yield made


@pytest.fixture
def migrated_database(migrated_databases: Templates) -> Generator[str]:
    """The address of a database of this test's own, with all migrations applied; dropped after the test."""
    with migrated_databases.lent() as url:
        yield url
