"""Triggers are switched off."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import File
from tollbook.migrate.lint.words import quote, show

OFF = (AlterTableType.AT_DisableTrig, AlterTableType.AT_DisableTrigAll, AlterTableType.AT_DisableTrigUser)
ON = (AlterTableType.AT_EnableTrig, AlterTableType.AT_EnableTrigAll, AlterTableType.AT_EnableTrigUser)


def check_file(file: File) -> Iterable[Hit]:
    for number, unit in enumerate(file.units):
        for one in unit.alterations(*OFF):
            back = any(
                other.relation.relname == one.relation.relname
                for later in file.units[number + 1 :]
                for other in later.alterations(*ON)
            )
            word = quote(one.name) if one.name else "ALL" if one.command.subtype == OFF[1] else "USER"
            yield Hit(
                f"DISABLE TRIGGER {word} on {show(one.relation)} "
                + ("keeps writers out until the commit." if back else "is not taken back in this file.")
                + (" ALL are foreign keys too: rows may refer to nothing." if word == "ALL" else ""),
                "",
                one.relation,
                "warning" if back and word != "ALL" else None,
                unit.index,
            )
        tree = unit.tree
        if is_a(tree, ast.VariableSetStmt) and tree.name == "session_replication_role" and not tree.is_local:
            yield Hit(
                "session_replication_role switches off every trigger and foreign key of the session.",
                "SET LOCAL session_replication_role = replica;",
                severity="warning",
                at=unit.index,
            )


RULE = Rule(
    "disable-trigger",
    "error",
    str(__doc__),
    "What they kept (counters, audit rows, foreign keys) is not kept meanwhile, for nobody: the switch is "
    "the table's, not the session's. It takes SHARE ROW EXCLUSIVE, held until the commit.",
    "Write so that the trigger does no harm. Where the role may (superusers, or GRANT SET ON PARAMETER): SET "
    "LOCAL session_replication_role = replica, which is of this transaction alone and locks nothing.",
    Example(
        "ALTER TABLE orders DISABLE TRIGGER USER;",
        Claim("ShareRowExclusiveLock"),
    ),
    check_file=check_file,
)
