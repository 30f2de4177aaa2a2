"""An allowance for something that is not found."""

from collections.abc import Iterable

from tollbook.migrate.errors import Place
from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.unit import End
from tollbook.migrate.lint.walk import locate


def check_end(end: End) -> Iterable[tuple[Place, Hit]]:
    for file in end.files if end.complete else ():
        for one in file.allowances:
            idle = [name for name in one.rules if name not in one.used]
            if one.foreign or not one.reason or not idle:
                continue
            unknown = [name for name in idle if name not in end.known and not name.startswith("squawk:")]
            yield (
                locate(file.script, one.index),
                Hit(
                    f"There is no rule {unknown[0]}."
                    if unknown
                    else f"{', '.join(idle)} finds nothing here: this would hide the next hazard unseen.",
                ),
            )


RULE = Rule(
    "unused-allowance",
    "warning",
    str(__doc__),
    "The statement was changed or moved, or the rule misspelt. What it allowed is gone; what it will hide is "
    "not.",
    "Take the comment out, or put it before the statement it is for.",
    Example("-- tollbook: allow drop-table because nobody uses it\nSELECT 1;"),
    check_end=check_end,
    spares_new=False,
)
