"""A long text parsed piece by piece: the same statements, at the same places."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pglast import parse_sql
from pglast.parser import ParseError

from tollbook.migrate import pieces
from tollbook.migrate.lint.trees import descend

PIECES = (
    "SELECT 'é;'",
    "INSERT INTO t VALUES (1, 'ä''b;', NULL)",
    "CREATE TABLE \"é;\" (ä int CHECK (ä > 0), b text DEFAULT E'\\';é')",
    "-- é;'\n",
    "/* é ; ' */",
    "/* a /* b; */ c; */ SELECT 1",
    "SELECT $é$ ; ' $é$, d$e FROM é WHERE a - b / c IN (1, 2)",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END",
    "CREATE RULE r AS ON INSERT TO t DO (DELETE FROM u; DELETE FROM v)",
    "ALTER TABLE é ADD COLUMN x int, ADD CONSTRAINT k FOREIGN KEY (x) REFERENCES u (i)",
    "SELECT 'unclosed",
    "SELECT FROM WHERE",
    "",
)


def say(parse: Any, text: str) -> Any:
    """Return what a text parses to, with all places, or the error."""
    try:
        found = parse(text)
    except ParseError as error:
        return error.args
    nodes = [(type(one).__name__, getattr(one, "location", None)) for tree in found for one in descend(tree)]
    return found, nodes, [(one.stmt_location, one.stmt_len) for one in found]


@given(st.lists(st.sampled_from(PIECES), max_size=5), st.sampled_from([";", " ;\n", ";\n-- ü\n"]))
def test_a_text_in_pieces_is_what_it_is_as_a_whole(parts: list[str], between: str) -> None:
    text = between.join([*parts, "SELECT 'é'" + " " * pieces.CHARACTERS_MIN])
    assert say(pieces.parse, text) == say(parse_sql, text)


@given(st.lists(st.sampled_from(PIECES), max_size=9))
def test_so_is_one_of_plain_letters_in_larger_pieces(parts: list[str]) -> None:
    text = ";".join(parts).translate({ord(letter): "e" for letter in "éäü"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "ASCII_CHARACTERS_MIN", 0)
        patch.setattr(pieces, "ASCII_PIECE", 50)
        assert say(pieces.parse, text) == say(parse_sql, text)


def test_a_long_text_is_cut_at_the_ends_of_its_statements() -> None:
    statements = [
        "INSERT INTO t VALUES (E'\\';', 'é;')",
        "\n-- it's;\nSELECT $a$;$$;$a$",
        ' SELECT ";" / 1 - 2',
    ]
    assert [piece for _, piece in pieces.split(";".join(statements))] == [
        *(f"{one};" for one in statements[:-1]),
        statements[-1],
    ]
