"""A column is renamed under running code."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import ObjectType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import name_after, quote, show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.RenameStmt) or tree.renameType not in (
        ObjectType.OBJECT_COLUMN,
        ObjectType.OBJECT_ATTRIBUTE,
    ):
        return
    if tree.relation is None or unit.world.is_new_column(tree.relation, tree.subname):
        return
    yield Hit(
        f"The running release still says {show(tree.relation)}.{quote(tree.subname)}: every query of it "
        "fails from the commit on.",
        _add_beside(unit) if tree.renameType == ObjectType.OBJECT_COLUMN else "",
        tree.relation,
    )


def _add_beside(unit: Unit) -> str:
    """Return the steps by a second column, where the old one's type is known."""
    tree = unit.tree
    column = unit.world.column(tree.relation, tree.subname)
    if column is None or column.type is None:
        return ""
    table, old, new = show(tree.relation), quote(tree.subname), quote(tree.newname)
    keep = quote(name_after(tree.relation.relname, tree.newname, "copy"))
    return (
        f"ALTER TABLE {table} ADD COLUMN {new} {column.type};\n"
        f"CREATE FUNCTION {keep}() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$\n"
        f"BEGIN\n    IF TG_OP = 'INSERT' OR NEW.{new} IS NOT DISTINCT FROM OLD.{new} THEN\n"
        f"        NEW.{new} := coalesce(NEW.{old}, NEW.{new});\n    END IF;\n"
        f"    NEW.{old} := NEW.{new};\n    RETURN NEW;\nEND $$;\n"
        f"CREATE TRIGGER {keep} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {keep}();\n"
        "-- In batches, each committed, until it updates none:\n"
        f"UPDATE {table} SET {new} = {old} WHERE ctid = ANY (ARRAY(\n"
        f"    SELECT ctid FROM {table} WHERE {new} IS NULL AND {old} IS NOT NULL LIMIT 1000\n"
        "    FOR UPDATE SKIP LOCKED));\n"
        f"-- Then release code that says {new}, and drop the trigger and the old column later."
    )


RULE = Rule(
    "rename-column",
    "error",
    str(__doc__),
    "Between the commit and the last old process, the old code fails; rolling the release back fails as "
    "well. Functions that name the column in their body fail when they next run.",
    "Add the new column, keep both equal by a trigger, fill it in batches, release code that uses it, and "
    "drop the old one in a later release.",
    Example(
        "ALTER TABLE orders RENAME COLUMN code TO reference;",
        Claim(
            changes="SELECT count(*) FROM pg_attribute "
            "WHERE attrelid = 'orders'::regclass AND attname = 'code'"
        ),
    ),
    check,
    squawk=("renaming-column",),
)
