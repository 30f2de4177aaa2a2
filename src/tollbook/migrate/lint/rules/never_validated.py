"""A constraint is added NOT VALID, and no file validates it."""

from collections.abc import Iterable

from tollbook.migrate.errors import Place
from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import End
from tollbook.migrate.lint.words import quote, show_key


def check_end(end: End) -> Iterable[tuple[Place, Hit]]:
    for table, one in end.world.all_constraints():
        if not one.validated and one.place is not None and one.enforced:
            name = quote(one.name or "")
            yield (
                one.place,
                Hit(
                    f"{name} on {quote(table.key[1])} is NOT VALID and stays so: the rows from before it may "
                    "break it.",
                    f"-- In the next migration:\n"
                    f"ALTER TABLE {show_key(table.key, end.world.path)} VALIDATE CONSTRAINT {name};",
                ),
            )


EXAMPLE = "ALTER TABLE orders ADD CONSTRAINT total_positive CHECK (total > 0) NOT VALID;"
RULE = Rule(
    "never-validated",
    "notice",
    str(__doc__),
    "Old rows that break it stay, the planner does not trust it, and a dump is restored as if it held: there "
    "it fails, on the day it is needed.",
    "VALIDATE CONSTRAINT in the next migration.",
    Example(
        EXAMPLE,
        Claim(changes="SELECT count(*) FROM pg_constraint WHERE NOT convalidated"),
        first=EXAMPLE,
    ),
    check_end=check_end,
    spares_new=False,
    down=False,
)
