"""Every SQL literal of the source is one that the migrated schema accepts: a misspelt column fails here."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tollbook.embedded import Server

SOURCE = Path(__file__).parents[2] / "src" / "tollbook"
ROOMS = ("core", "books", "entrypoints")
STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|COPY|CALL)\b")
PREPARED = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
PLACEHOLDER = re.compile(r"%\((\w+)\)[sbt]")


def find_statements() -> Iterator[tuple[str, str]]:
    for room in ROOMS:
        for path in sorted((SOURCE / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    text = node.value
                    if STATEMENT.match(text) and len(text.split()) > 2:
                        yield f"{path.relative_to(SOURCE)}:{node.lineno}", text


def number_placeholders(sql: str) -> str:
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return PLACEHOLDER.sub(number, sql).replace("%%", "%")


STATEMENTS = list(find_statements())


@pytest.fixture(scope="module")
def schema(postgres: Server, template: str) -> Iterator[psycopg.Connection]:
    """A session on the migrated schema, in which nothing is run, only prepared."""
    with psycopg.connect(postgres.url(template)) as connection:
        yield connection


def test_there_are_statements_to_check() -> None:
    assert len(STATEMENTS) > 20


@pytest.mark.parametrize("sql", [sql for _, sql in STATEMENTS], ids=[where for where, _ in STATEMENTS])
def test_a_statement_fits_the_schema(schema: psycopg.Connection, sql: str) -> None:
    if not PREPARED.match(sql):
        pytest.skip("PostgreSQL prepares no such statement; its own test runs it")
    with schema.transaction(force_rollback=True):
        schema.execute(f"PREPARE checked AS {number_placeholders(sql)}".encode())
        schema.execute("DEALLOCATE checked")
