"""A schema, type or function is renamed under running code."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import ObjectType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show_names

NAMED = {
    ObjectType.OBJECT_TYPE: "type",
    ObjectType.OBJECT_DOMAIN: "domain",
    ObjectType.OBJECT_FUNCTION: "function",
    ObjectType.OBJECT_PROCEDURE: "procedure",
    ObjectType.OBJECT_ROUTINE: "routine",
}


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.RenameStmt):
        return
    if tree.renameType == ObjectType.OBJECT_SCHEMA:
        if unit.world.schemas.get(tree.subname) not in unit.world.fresh:
            yield Hit(_say("schema", quote(tree.subname)))
    elif word := NAMED.get(tree.renameType):
        name = show_names(getattr(tree.object, "objname", None) or tree.object)
        yield Hit(_say(word, name))


def _say(what: str, name: str) -> str:
    return f"The running release still says {name}: what names this {what} fails from the commit on."


RULE = Rule(
    "rename-schema",
    "error",
    str(__doc__),
    "Old code, functions' bodies and search paths that name it fail from the commit on; rolling the release "
    "back fails as well.",
    "Make the new one beside the old one (views over its tables, a function that calls the other), release "
    "code that uses it, and drop the old one later.",
    Example(
        "ALTER SCHEMA sales RENAME TO commerce;",
        Claim(changes="SELECT count(*) FROM pg_namespace WHERE nspname = 'sales'"),
        "CREATE SCHEMA sales;",
    ),
    check,
)
