"""Scripts cut into statements and segments, and what psql alone would read in them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pglast.parser import split

from tollbook.migrate import segments, statements
from tollbook.migrate.files import Script
from tollbook.migrate.headers import Options


def read(text: str) -> statements.Reading:
    reading = statements.read(Script(Path("0001_a.up.sql"), text, ""))
    assert not reading.problems, reading.problems
    return reading


def cut(text: str, *, transaction: bool = True) -> list[list[str]]:
    reading = read(text)
    found = segments.split(reading.statements, Options(transaction=transaction))
    return [[reading.text[one.index : one.end] for one in segment.statements] for segment in found]


def test_a_file_is_one_transaction_also_where_it_says_begin_and_commit() -> None:
    assert cut("BEGIN; SELECT 1; SELECT 2; COMMIT;") == [["SELECT 1", "SELECT 2"]]
    assert cut("SELECT 1; SELECT 2") == [["SELECT 1", "SELECT 2"]]
    assert cut("") == [[]]


@pytest.mark.parametrize(
    "alone",
    [
        "CREATE INDEX CONCURRENTLY i ON t (a)",
        "DROP INDEX CONCURRENTLY i",
        "REINDEX TABLE CONCURRENTLY t",
        "VACUUM t",
        "CREATE DATABASE d",
        "ALTER SYSTEM SET work_mem = '1MB'",
        "ALTER TABLE t DETACH PARTITION p CONCURRENTLY",
    ],
)
def test_what_cannot_run_in_a_transaction_stands_alone(alone: str) -> None:
    assert cut(f"SELECT 1; SELECT 2; {alone}; SELECT 3") == [["SELECT 1", "SELECT 2"], [alone], ["SELECT 3"]]


def test_a_file_is_cut_at_its_own_commits() -> None:
    text = "BEGIN; SELECT 1; COMMIT; SELECT 2; SELECT 3; BEGIN; SELECT 4; END; SELECT 5"
    assert cut(text) == [["SELECT 1"], ["SELECT 2", "SELECT 3"], ["SELECT 4"], ["SELECT 5"]]


def test_without_a_transaction_each_statement_stands_alone_save_in_the_files_own_blocks() -> None:
    text = "SELECT 1; SELECT 2; BEGIN; SELECT 3; SELECT 4; COMMIT; SELECT 5"
    assert cut(text, transaction=False) == [
        ["SELECT 1"],
        ["SELECT 2"],
        ["SELECT 3", "SELECT 4"],
        ["SELECT 5"],
    ]


def test_the_modes_of_a_begin_are_kept() -> None:
    (segment,) = segments.split(
        read("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT 1; COMMIT").statements, Options()
    )
    assert segment.modes == "BEGIN ISOLATION LEVEL SERIALIZABLE"


def test_rows_of_a_copy_are_kept_for_it_and_are_not_taken_for_sql() -> None:
    text = (
        "\\restrict x\nSELECT 1;\nCOPY t (a, b) FROM stdin;\n1\t'x;\n2\t\\N\n\\.\n\n"
        "SELECT 2; -- é\nCOPY u FROM stdin;\n\\.\n"
    )
    reading = read(text)
    assert [one.rows for one in reading.statements] == [None, "1\t'x;\n2\t\\N\n", None, ""]
    assert len(reading.text) == len(text)
    assert reading.text.count("\n") == text.count("\n")


def test_quotes_and_comments_hide_backslashes() -> None:
    text = (
        "SELECT E'\\';\\i', 'a\\', \"\\d\", $x$ \\c $$ ' $x$ -- \\i\n /* \\i /* ' */ \\. */;\n"
        "\\echo 'half\nSELECT 2"
    )
    assert len(read(text).statements) == 2


PIECES = st.sampled_from(
    [
        "SELECT 1",
        "SELECT ';'",
        "SELECT $$;$$",
        'SELECT 1 AS "a;b"',
        "-- ; \\x\n",
        "/* ; /* \\ */ */",
        ";",
        "\n",
        "SELECT E'\\';'",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END",
        "SELECT $a$'$a$",
    ]
)
LINES = st.lists(st.text("ab\t'\"$;\\-", max_size=8), max_size=3)


@given(st.lists(PIECES, max_size=12).map(" ; ".join))
def test_statements_are_those_of_postgresqls_own_grammar(text: str) -> None:
    reading = read(text)
    assert [reading.text[one.index : one.end].strip() for one in reading.statements] == [
        one.strip() for one in split(text) if one.strip()
    ]


@given(
    st.lists(PIECES, max_size=8).map(" ; ".join), st.lists(st.text("ab\t'\"$;\\-", max_size=8), max_size=3)
)
def test_taking_psql_out_moves_nothing(before: str, lines: list[str]) -> None:
    rows = "".join(f"{line}x\n" for line in lines)
    text = f"{before};\nCOPY t FROM STDIN;\n{rows}\\.\nSELECT 'after';\n"
    reading = read(text)
    assert len(reading.text) == len(text)
    last, copy = reading.statements[-1], reading.statements[-2]
    assert copy.rows == rows
    assert text[last.index : last.end] == "SELECT 'after'"
