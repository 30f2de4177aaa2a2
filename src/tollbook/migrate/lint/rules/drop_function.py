"""A function that running code may call is dropped."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import ObjectType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show, split

KINDS = (
    ObjectType.OBJECT_FUNCTION,
    ObjectType.OBJECT_PROCEDURE,
    ObjectType.OBJECT_ROUTINE,
    ObjectType.OBJECT_AGGREGATE,
)


def check(unit: Unit) -> Iterable[Hit]:
    for name in unit.drops(*KINDS):
        known = unit.world.routines.get(unit.world.key(name.schemaname, name.relname), ())
        if known and all(one.made_in in unit.world.fresh for one in known):
            continue
        again = unit.made_again(ast.CreateFunctionStmt, name.relname, lambda tree: split(tree.funcname)[1])
        yield Hit(
            f"{show(name)} is made again here, but without the grants, and what depends on it has to go "
            "first."
            if again
            else f"Code and triggers that still call {show(name)} fail from the commit on.",
            severity="notice" if again else None,
        )


RULE = Rule(
    "drop-function",
    "warning",
    str(__doc__),
    "Bodies of other functions are not checked for what they call: it fails only when one of them runs.",
    "Release code that no longer calls it, then drop it. To change it, use CREATE OR REPLACE FUNCTION with "
    "the same arguments and result.",
    Example(
        "DROP FUNCTION net(numeric);",
        Claim(changes="SELECT count(*) FROM pg_proc WHERE proname = 'net'"),
        "CREATE FUNCTION net(numeric) RETURNS numeric LANGUAGE sql SET search_path = '' AS 'SELECT $1 * "
        "0.8';",
    ),
    check,
)
