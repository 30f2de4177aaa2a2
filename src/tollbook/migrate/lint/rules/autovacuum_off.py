"""Autovacuum is switched off for a table."""

from collections.abc import Iterable
from typing import Any

from pglast import ast
from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show

NAMES = ("autovacuum_enabled",)
NO = ("false", "off", "0", "no")


def check(unit: Unit) -> Iterable[Hit]:
    found = [(one.relation, one.def_) for one in unit.alterations(AlterTableType.AT_SetRelOptions)]
    if is_a(unit.tree, ast.CreateStmt):
        found.append((unit.tree.relation, unit.tree.options))
    for relation, options in found:
        for option in options or ():
            if option.defname in NAMES and _word(option.arg) in NO:
                yield Hit(
                    f"Without autovacuum, {show(relation)} grows with every update, its statistics grow "
                    "stale, and in the end it is vacuumed against wrap-around, at the worst moment.",
                    f"ALTER TABLE {show(relation)} SET (autovacuum_vacuum_scale_factor = 0.01);",
                )


def _word(value: Any) -> str:
    """Return an option's value as written: a number, a string, or a bare word (which is read as a type)."""
    if is_a(value, ast.TypeName):
        return str(value.names[-1].sval)
    return str(getattr(value, "sval", getattr(value, "ival", ""))).lower()


RULE = Rule(
    "autovacuum-off",
    "warning",
    str(__doc__),
    "Dead rows are never reclaimed and statistics never refreshed. Nobody remembers to switch it on again.",
    "Let it run more often with a small scale factor; for a load, switch it off and on in the same file.",
    Example(
        "ALTER TABLE orders SET (autovacuum_enabled = false);",
        Claim(
            changes="SELECT 'autovacuum_enabled=false' = ANY (reloptions) FROM pg_class "
            "WHERE relname = 'orders'"
        ),
    ),
    check,
    spares_new=False,
)
