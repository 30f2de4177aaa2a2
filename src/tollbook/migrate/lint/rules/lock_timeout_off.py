"""The bound on waiting for locks is taken off."""

from collections.abc import Iterable
from typing import Any

from pglast import ast
from pglast.enums import VariableSetKind

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit

OFF = (VariableSetKind.VAR_SET_DEFAULT, VariableSetKind.VAR_RESET, VariableSetKind.VAR_RESET_ALL)


def check(unit: Unit) -> Iterable[Hit]:
    if _takes_off(unit.tree):
        yield Hit(
            "From here on, statements wait for locks without a bound, and everybody else behind them.",
            "SET LOCAL lock_timeout = '5s';",
        )


def _takes_off(tree: Any) -> bool:
    if is_a(tree, ast.VariableSetStmt):
        named = tree.name == "lock_timeout" or tree.kind == VariableSetKind.VAR_RESET_ALL
        return named and (tree.kind in OFF or _is_zero(next(iter(tree.args or ()), None)))
    if is_a(tree, ast.SelectStmt):
        for target in tree.targetList or ():
            call = target.val
            if is_a(call, ast.FuncCall) and call.funcname[-1].sval == "set_config" and call.args:
                first, second = call.args[0], call.args[1]
                if is_a(first, ast.A_Const) and getattr(first.val, "sval", "") == "lock_timeout":
                    return _is_zero(second)
    return False


def _is_zero(value: Any) -> bool:
    constant = getattr(value, "val", None)
    word = str(getattr(constant, "sval", None) or getattr(constant, "ival", None) or "0")
    return word.strip().rstrip("mshind ") in ("0", "")


RULE = Rule(
    "lock-timeout-off",
    "error",
    str(__doc__),
    "The engine lets each statement wait --lock-timeout for a lock, then rolls back and tries again, so that "
    "the queue behind it drains. Without the bound, one long query in front of an ALTER TABLE stops the "
    "site: all later queries on the table wait behind the ALTER.",
    "Leave lock_timeout alone; give the run a longer one by --lock-timeout, or the file by SET LOCAL.",
    Example(
        "SET lock_timeout = 0;",
        Claim(changes="SELECT current_setting('lock_timeout')"),
        "SET lock_timeout = '5s';",
    ),
    check,
    of_rows=True,
)
