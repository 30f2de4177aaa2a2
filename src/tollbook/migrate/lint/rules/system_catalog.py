"""PostgreSQL's own tables are written to by hand."""

from collections.abc import Iterable
from typing import Any

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show

SCHEMAS = ("pg_catalog", "pg_toast", "information_schema")


def check(unit: Unit) -> Iterable[Hit]:
    tree: Any = unit.tree
    if is_a(tree, ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt):
        name, schema = tree.relation.relname, tree.relation.schemaname
        if schema in SCHEMAS or (
            schema is None and name.startswith("pg_") and unit.table(tree.relation) is None
        ):
            yield Hit(
                f"{show(tree.relation)} is PostgreSQL's own: a change by hand passes by its locks, its "
                "caches and its checks.",
            )


RULE = Rule(
    "system-catalog",
    "error",
    str(__doc__),
    "One wrong row can make a table, or the whole database, unreadable. A value deleted from pg_enum is "
    "still in the rows and in indexes, which then cannot be read. No hosted service allows it.",
    "Use the statement that there is (ALTER TYPE, ALTER TABLE, COMMENT ON); where there is none, make a new "
    "type or table and move over.",
    Example(
        "DELETE FROM pg_enum WHERE enumlabel = 'sad';",
        Claim(changes="SELECT count(*) FROM pg_enum WHERE enumlabel = 'sad'"),
        "CREATE TYPE mood AS ENUM ('glad', 'sad');",
    ),
    check,
    spares_new=False,
    of_rows=True,
)
