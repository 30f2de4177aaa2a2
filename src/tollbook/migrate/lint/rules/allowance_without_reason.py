"""An allowance without a reason, or for a rule that there is not."""

from collections.abc import Iterable

from tollbook.migrate.errors import Place
from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.unit import End
from tollbook.migrate.lint.walk import locate


def check_end(end: End) -> Iterable[tuple[Place, Hit]]:
    for file in end.files:
        for one in file.allowances:
            names = ", ".join(one.rules) or "RULE"
            if not one.foreign and (not one.rules or not one.reason):
                yield (
                    locate(file.script, one.index),
                    Hit(
                        "This allowance says no "
                        + ("reason" if one.rules else "rule")
                        + ", so it allows nothing.",
                        f"-- tollbook: allow {names} because …",
                    ),
                )


RULE = Rule(
    "allowance-without-reason",
    "warning",
    str(__doc__),
    "Who reads it next year cannot tell whether the reason still holds.",
    "`-- tollbook: allow RULE because REASON`, before the statement, or at the file's head with an empty "
    "line after.",
    Example("-- tollbook: allow drop-table\nDROP TABLE orders;"),
    check_end=check_end,
    spares_new=False,
)
