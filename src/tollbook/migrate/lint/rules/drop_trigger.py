"""A trigger is dropped: what it kept in order is kept no longer."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import ObjectType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, relation_of, show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.DropStmt) and tree.removeType == ObjectType.OBJECT_TRIGGER:
        for name in tree.objects or ():
            table = relation_of(name[:-1])
            if unit.world.triggers.get((table.relname, name[-1].sval)) in unit.world.fresh:
                continue
            yield Hit(
                f"Without the trigger {quote(name[-1].sval)}, what it did for each change of {show(table)} "
                "is not done; dropping it locks the table ACCESS EXCLUSIVE.",
                on=table,
            )


RULE = Rule(
    "drop-trigger",
    "notice",
    str(__doc__),
    "Counters, audit rows and copies that the trigger kept drift from the commit on, and no error says so. "
    "The lock is short, but waits behind every open transaction on the table, and all others behind it.",
    "Drop it together with the code that needed it, in a file of its own. To change it, use CREATE OR "
    "REPLACE TRIGGER, which takes a weaker lock.",
    Example(
        "DROP TRIGGER orders_audit ON orders;",
        Claim("AccessExclusiveLock"),
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql SET search_path = '' "
        "AS 'BEGIN RETURN NEW; END';\n"
        "CREATE TRIGGER orders_audit BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION audit();",
    ),
    check,
)
