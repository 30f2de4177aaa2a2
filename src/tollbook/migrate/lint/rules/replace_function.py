"""CREATE OR REPLACE FUNCTION that changes the result or the names of arguments, or makes a second one."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.changes import read_routine
from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show_names
from tollbook.migrate.lint.world import Routine


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.CreateFunctionStmt) or not tree.replace:
        return
    name = show_names(tree.funcname)
    known = unit.world.routines.get(unit.world.key(*_split(tree)), [])
    new = read_routine(tree, unit.made_in)
    same = next((one for one in known if one.inputs == new.inputs), None)
    if same and (what := _differ(same, new)):
        yield Hit(f"{name} exists with other {what}: OR REPLACE cannot change that, so this fails.")
    elif known and not same and any(_may_confuse(one, new) for one in known):
        yield Hit(
            f"{name} has other arguments than the {len(known)} of that name: this makes one more beside it, "
            "and the old one stays, with its old body.",
            severity="warning",
        )


def _split(tree: ast.CreateFunctionStmt) -> tuple[str | None, str]:
    words = [word.sval for word in tree.funcname or ()]
    return (words[-2] if len(words) > 1 else None), words[-1]


def _differ(old: Routine, new: Routine) -> str:
    if old.returns != new.returns:
        return "results"
    renamed = any(before and before != after for before, after in zip(old.names, new.names, strict=True))
    return "names of arguments" if renamed else ""


def _may_confuse(old: Routine, new: Routine) -> bool:
    return old.made_in != new.made_in


RULE = Rule(
    "replace-function",
    "error",
    str(__doc__),
    "PostgreSQL keeps a function by name and argument types. With the same types, another result or other "
    "names of arguments are refused. With other types it is another function: the old one stays, old callers "
    "get its old body, and calls that fit both fail as ambiguous.",
    "Make a function of a new name, release code that calls it, then drop the old one. Or, where nothing "
    "running calls it, DROP FUNCTION with its argument types first.",
    Example(
        "CREATE OR REPLACE FUNCTION net(amount numeric) RETURNS text LANGUAGE sql SET search_path = '' "
        "AS 'SELECT amount::text';",
        Claim(fails="42P13"),
        "CREATE FUNCTION net(amount numeric) RETURNS numeric LANGUAGE sql SET search_path = '' AS 'SELECT "
        "amount';",
    ),
    check,
    spares_new=False,
)
