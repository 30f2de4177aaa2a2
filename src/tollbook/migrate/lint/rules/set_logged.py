"""SET LOGGED, SET UNLOGGED, SET ACCESS METHOD: the whole table is written anew."""

from collections.abc import Iterable

from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show

WORDS = {
    AlterTableType.AT_SetLogged: "SET LOGGED",
    AlterTableType.AT_SetUnLogged: "SET UNLOGGED",
    AlterTableType.AT_SetAccessMethod: "SET ACCESS METHOD",
}


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.alterations(*WORDS):
        yield Hit(
            f"{WORDS[one.command.subtype]} writes {show(one.relation)} and its indexes anew under an ACCESS "
            "EXCLUSIVE lock.",
            on=one.relation,
            at=unit.locate_part(one.def_),
        )


RULE = Rule(
    "set-logged",
    "error",
    str(__doc__),
    "ACCESS EXCLUSIVE is held while every row and index is written. And while UNLOGGED, a crash empties the "
    "table.",
    "Decide when the table is made. Later: a new table beside it, filled in batches behind a trigger, and a "
    "swap.",
    Example("ALTER TABLE orders SET UNLOGGED;", Claim("AccessExclusiveLock", rewrite=True)),
    check,
)
