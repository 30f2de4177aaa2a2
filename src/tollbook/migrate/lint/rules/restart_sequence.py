"""A sequence is set back."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums import ObjectType
from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import quote, show


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if is_a(tree, ast.AlterSeqStmt) and any(one.defname == "restart" for one in tree.options or ()):
        yield Hit(
            f"{show(tree.sequence)} begins again: numbers that it gave before may come a second time.",
            on=tree.sequence,
        )
    for one in unit.alterations(AlterTableType.AT_SetIdentity):
        if tree.objtype == ObjectType.OBJECT_TABLE and any(
            item.defname == "restart" for item in one.def_ or ()
        ):
            yield Hit(
                f"{show(one.relation)}.{quote(one.name or '')} is numbered from the beginning again: numbers "
                "that it gave before may come a second time.",
                on=one.relation,
                at=unit.locate_part(one.def_),
            )


RULE = Rule(
    "restart-sequence",
    "warning",
    str(__doc__),
    "Inserts fail on the primary key for as long as the numbers are taken; without one, two rows have one "
    "number. It is not undone by a rollback of the application, and other sessions go on with numbers they "
    "have cached.",
    "SELECT setval('…', (SELECT max(id) FROM …)), computed from the rows, or leave the gap.",
    Example(
        "ALTER SEQUENCE receipt_numbers RESTART;",
        Claim(changes="SELECT last_value FROM receipt_numbers"),
        "CREATE SEQUENCE receipt_numbers;\nSELECT setval('receipt_numbers', 41);",
    ),
    check,
)
