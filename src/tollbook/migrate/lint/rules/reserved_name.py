"""A name that must be quoted wherever it is used."""

from collections.abc import Iterable
from typing import Any

from pglast import ast
from pglast.enums import ObjectType

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import PLAIN, is_reserved, name_after, quote, quote_all, split

NAMES_SHOWN_MAX = 5


def check(unit: Unit) -> Iterable[Hit]:
    capitals: list[str] = []
    for what, name in name_made(unit):
        if is_reserved(name):
            other = name_after(name, "name") if what == "column" else f"{name}s"
            yield Hit(
                f"{what} {quote(name)} is a reserved word of SQL: without quotes it is a syntax error, or "
                f"another thing. {other} would need none.",
            )
        elif not PLAIN.fullmatch(name) and name.lower() != name:
            capitals.append(name)
    if capitals:
        yield Hit(
            f"{quote_all(capitals[:NAMES_SHOWN_MAX])}{' …' if capitals[NAMES_SHOWN_MAX:] else ''}: capital "
            f"letters. Whoever forgets the quotes looks for {capitals[0].lower()}.",
            severity="notice",
        )


def name_made(unit: Unit) -> Iterable[tuple[str, str]]:
    """Give every name that a statement makes, with what it names."""
    tree: Any = unit.tree
    if is_a(tree, ast.CreateStmt):
        yield "table", tree.relation.relname
    elif is_a(tree, ast.CreateTableAsStmt):
        yield "table", tree.into.rel.relname
    elif is_a(tree, ast.ViewStmt):
        yield "view", tree.view.relname
    elif is_a(tree, ast.IndexStmt) and tree.idxname:
        yield "index", tree.idxname
    elif is_a(tree, ast.CreateFunctionStmt):
        yield "function", split(tree.funcname)[1]
    elif is_a(tree, ast.CreateEnumStmt):
        yield "type", split(tree.typeName)[1]
    elif is_a(tree, ast.CreateSchemaStmt) and tree.schemaname:
        yield "schema", tree.schemaname
    elif is_a(tree, ast.RenameStmt) and tree.newname:
        yield ("column" if tree.renameType == ObjectType.OBJECT_COLUMN else "name"), tree.newname
    for _, column in unit.declared_columns():
        yield "column", column.colname


RULE = Rule(
    "reserved-name",
    "warning",
    str(__doc__),
    "`SELECT user FROM people` answers with the session's user, `order` is a syntax error: every query, tool "
    "and dump that forgets the quotes fails, or is wrong without a word.",
    "Choose a name in small letters that is no reserved word.",
    Example('CREATE TABLE "user" (id bigint PRIMARY KEY, "order" text);'),
    check,
    spares_new=False,
    down=False,
)
