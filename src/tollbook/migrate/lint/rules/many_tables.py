"""Several tables in use are locked in one transaction."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import File, Unit
from tollbook.migrate.lint.words import show

TABLES_MAX = 1
# They take SHARE UPDATE EXCLUSIVE, which lets everybody read and write.
HARMLESS = (
    AlterTableType.AT_ValidateConstraint,
    AlterTableType.AT_SetRelOptions,
    AlterTableType.AT_ResetRelOptions,
    AlterTableType.AT_SetStatistics,
    AlterTableType.AT_ClusterOn,
    AlterTableType.AT_DropCluster,
)


def check_file(file: File) -> Iterable[Hit]:
    by_transaction: dict[int, dict[str, list[Unit]]] = {}
    for unit in file.units:
        for name in find_locked(unit):
            tables = by_transaction.setdefault(unit.transaction, {})
            units = tables.setdefault(name, [])
            if not units or units[-1] is not unit:
                units.append(unit)
    for tables in by_transaction.values():
        if len(tables) > TABLES_MAX:
            names = sorted(tables)
            second = min(units[0].index for units in list(tables.values())[1:])
            yield Hit(
                f"One transaction locks {', '.join(names)}: the first stays locked while the next is waited "
                "for, and whoever takes them in another order deadlocks with it.",
                _split(tables),
                at=second,
            )


def find_locked(unit: Unit) -> Iterable[str]:
    """Give the tables in use that a statement locks against writers."""
    tree = unit.tree
    if unit.alone:
        return
    relations: list[object] = []
    if is_a(tree, ast.AlterTableStmt):
        relations += [one.relation for one in unit.alterations() if one.command.subtype not in HARMLESS]
    elif is_a(tree, ast.CreateTrigStmt, ast.RenameStmt, ast.IndexStmt):
        relations.append(tree.relation)
    elif is_a(tree, ast.TruncateStmt):
        relations += list(tree.relations or ())
    for relation in relations:
        if is_a(relation, ast.RangeVar) and not unit.world.is_new(relation):
            yield show(relation)


def _split(tables: dict[str, list[Unit]]) -> str:
    parts: list[str] = []
    for number, (name, units) in enumerate(tables.items(), 1):
        lines = "".join(f"{unit.text};\n" for unit in units)
        parts.append(f"-- Migration {number}, {name}:\n{lines}")
    return "".join(parts).rstrip()


RULE = Rule(
    "many-tables",
    "notice",
    str(__doc__),
    "Locks are held until the commit. While the second is waited for, everybody waits for the first; and a "
    "transaction of the application that takes the two in the other order is a deadlock, for which "
    "PostgreSQL ends one of both.",
    "One table for each migration (or a COMMIT between them).",
    Example(
        "ALTER TABLE orders ADD COLUMN region text;\nALTER TABLE customers ADD COLUMN region text;",
    ),
    check_file=check_file,
)
