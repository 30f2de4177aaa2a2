"""A sequence is dropped: the last number it gave is forgotten."""

from collections.abc import Iterable

from pglast.enums import ObjectType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show


def check(unit: Unit) -> Iterable[Hit]:
    for sequence in unit.drops(ObjectType.OBJECT_SEQUENCE):
        yield Hit(
            f"DROP SEQUENCE {show(sequence)} forgets its last number; made again, it gives the old ones "
            "twice.",
            on=sequence,
        )


RULE = Rule(
    "drop-sequence",
    "warning",
    str(__doc__),
    "A sequence's state is data that no table holds. Inserts that call nextval on it fail from the commit "
    "on.",
    "Let a release run that no longer uses it. If it is made anew, begin it behind the largest number used.",
    Example(
        "DROP SEQUENCE receipt_numbers;",
        Claim(changes="SELECT count(*) FROM pg_class WHERE relname = 'receipt_numbers'"),
        "CREATE SEQUENCE receipt_numbers;",
    ),
    check,
)
