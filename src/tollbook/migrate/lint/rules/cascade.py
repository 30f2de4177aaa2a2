"""CASCADE takes along what the file does not name."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import DropBehavior, ObjectType
from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import cut, quote, show_key


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.DropStmt, ast.TruncateStmt, ast.DropOwnedStmt, ast.AlterDomainStmt):
        cascades = tree.behavior == DropBehavior.DROP_CASCADE
    else:
        drops = unit.alterations(AlterTableType.AT_DropColumn, AlterTableType.AT_DropConstraint)
        cascades = any(one.command.behavior == DropBehavior.DROP_CASCADE for one in drops)
    if cascades and not _is_new(unit):
        yield Hit(
            "CASCADE takes along whatever depends on it in this database, also what the file does not name.",
            f"{_name_dependents(unit)}{cut(unit.text, 'CASCADE', 'CASCADE')};",
        )


def _is_new(unit: Unit) -> bool:
    """Whether all that is named was made by what is not applied yet: then what hangs on it is as new."""
    tree = unit.tree
    if is_a(tree, ast.TruncateStmt):
        return all(unit.world.is_new(table) for table in tree.relations or ())
    if is_a(tree, ast.AlterTableStmt):
        return unit.world.is_new(tree.relation)
    if not is_a(tree, ast.DropStmt):
        return False
    named = list(unit.drops(tree.removeType)) if not _is_plain(tree) else []
    return bool(named) and all(unit.world.is_new(table) for table in named)


def _is_plain(tree: ast.DropStmt) -> bool:
    """Whether what is dropped has a plain name, as schemas and extensions have."""
    return any(is_a(name, ast.String) for name in tree.objects or ())


def _name_dependents(unit: Unit) -> str:
    """Return the statements that drop the foreign keys of other tables which the files say depend on it."""
    tree = unit.tree
    dropped = unit.drops(ObjectType.OBJECT_TABLE)
    keys = {
        table.key
        for one in ([tree.relation] if is_a(tree, ast.AlterTableStmt) else dropped)
        if (table := unit.table(one))
    }
    lines = [
        f"ALTER TABLE {show_key(table.key, unit.world.path)} DROP CONSTRAINT {quote(one.name or '')};\n"
        for table, one in unit.world.all_constraints()
        if one.refers in keys and table.key not in keys
    ]
    return "".join(lines)


RULE = Rule(
    "cascade",
    "error",
    str(__doc__),
    "Views, foreign keys, columns and whole tables that depend on it go without a word (TRUNCATE empties "
    "every table that refers to it), and which they are differs from database to database.",
    "Leave CASCADE out: PostgreSQL then names what depends on it. Drop that by name, before.",
    Example(
        "ALTER TABLE orders DROP CONSTRAINT orders_pkey CASCADE;",
        Claim(changes="SELECT count(*) FROM pg_constraint WHERE conname = 'refunds_order_id_fkey'"),
        "CREATE TABLE refunds (id bigint PRIMARY KEY, order_id bigint REFERENCES orders);",
    ),
    check,
    squawk=("ban-truncate-cascade",),
)
