"""The grammar's quick way gives the same trees as pglast's own, and leaves pglast as it was."""

from pathlib import Path
from typing import Any, cast

import pytest
from pglast import ast, parse_sql
from pglast.parser import ParseError

from tollbook.migrate import grammar, pieces

FILES = sorted(Path(grammar.__file__).parents[1].rglob("*.up.sql"))
CHECKED = ast.Node.__setattr__
MORE = """SELECT true AND NOT false, 'x'::text[], 1.5, NULL, b'1', $1;
ALTER TABLE t ADD c int GENERATED ALWAYS AS IDENTITY, ALTER d SET NOT NULL, DROP CONSTRAINT e CASCADE;
INSERT INTO t VALUES (DEFAULT, true) ON CONFLICT (a) DO UPDATE SET b = false RETURNING *;
SET x TO on; EXPLAIN (ANALYZE true) SELECT 1; CREATE TYPE e AS ENUM ('a', 'b');
GRANT SELECT (a) ON t TO PUBLIC; COPY t FROM STDIN (FORMAT csv, HEADER true);
MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (1);"""


def describe(tree: Any) -> object:
    """Return a tree as plain values, with the exact kind of each: True is not 1."""
    if isinstance(tree, tuple):
        return tuple(describe(one) for one in cast("tuple[Any, ...]", tree))
    if isinstance(tree, ast.Node):
        return type(tree).__name__, [(name, describe(getattr(tree, name))) for name in tree]
    return type(tree).__name__, tree


@pytest.mark.parametrize("text", [MORE, *(path.read_text() for path in FILES)], ids=lambda text: text[:20])
def test_the_trees_are_the_same(text: str) -> None:
    """Every attribute, down to its type."""
    assert describe(grammar.parse(text)) == describe(parse_sql(text))


ALIKE = ("t VALUES (1)", "s.t VALUES (1)", "t (a) VALUES (1)", "t VALUES (1, DEFAULT)")
MORE_THAN_CONSTANTS = (
    "t VALUES (setval('s', 1))",
    "t VALUES (1) ON CONFLICT DO NOTHING",
    "t VALUES (1) RETURNING a",
    "t OVERRIDING USER VALUE VALUES (1)",
    "t VALUES (1) ORDER BY f()",
    "t (a[1]) VALUES (1)",
    "t WITH a AS (SELECT f()) VALUES (1)",
    "t SELECT 1",
    "t DEFAULT VALUES",
)


def test_of_inserts_that_differ_in_their_constants_alone_one_tree_is_kept() -> None:
    """A file may have a million of them, and their trees took thirty times its size."""
    inserts = [f"INSERT INTO {one}" for one in (*ALIKE, "t VALUES (-2), (NULL)", *MORE_THAN_CONSTANTS)] * 2
    text = ";\n".join([*inserts, " " * pieces.ASCII_CHARACTERS_MIN])
    found = grammar.parse(text)
    assert [text[one.stmt_location :][: one.stmt_len].strip() for one in found] == inserts
    assert len({id(one.stmt) for one in found}) == len(ALIKE) + 2 * len(MORE_THAN_CONSTANTS)


def test_pglast_checks_again_afterwards() -> None:
    """Also after what does not parse, and after the outer of two."""
    with pytest.raises(ParseError), grammar.unchecked():
        grammar.parse("SELEC")
    assert ast.Node.__setattr__ is CHECKED
    with pytest.raises(ValueError, match="Bad value"):
        grammar.parse("SELECT 1")[0].stmt.all = "no"
