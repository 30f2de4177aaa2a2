"""A trigger is put on a table in use."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.CreateTrigStmt):
        yield Hit(
            f"CREATE TRIGGER {quote(tree.trigname)} keeps writers out of {show(tree.relation)} until this "
            "transaction ends, and runs in every transaction after.",
            on=tree.relation,
        )
    elif is_a(tree, ast.CreateEventTrigStmt):
        yield Hit(
            f"The event trigger {quote(tree.trigname)} runs at every change of the schema, this engine's own "
            "too: if it fails, nothing can be migrated.",
            severity="warning",
        )


RULE = Rule(
    "create-trigger",
    "notice",
    str(__doc__),
    "SHARE ROW EXCLUSIVE: short, but held until the commit, and it waits behind every open writer. From the "
    "commit on the trigger's cost and its errors are part of every write.",
    "Put it into a file of its own, or last in its file, with nothing slow behind it.",
    Example(
        "CREATE TRIGGER orders_audit BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION audit();",
        Claim("ShareRowExclusiveLock"),
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql SET search_path = '' "
        "AS 'BEGIN RETURN NEW; END';",
    ),
    check,
)
