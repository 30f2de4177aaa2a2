"""A foreign key whose columns no index begins with."""

from collections.abc import Iterable

from tollbook.migrate.errors import Place
from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.unit import End
from tollbook.migrate.lint.words import name_after, quote, quote_all, show_key


def check_end(end: End) -> Iterable[tuple[Place, Hit]]:
    for table, one in end.world.all_constraints():
        if one.kind != "foreign" or not one.columns or one.place is None or table.has_index_on(one.columns):
            continue
        name = show_key(table.key, end.world.path)
        index = quote(name_after(table.key[1], *one.columns, "idx"))
        yield (
            one.place,
            Hit(
                f"No index begins with {name} ({quote_all(one.columns)}): each delete or change of a key it "
                "refers to reads the whole table.",
                f"CREATE INDEX CONCURRENTLY {index} ON {name} ({quote_all(one.columns)});",
            ),
        )


EXAMPLE = "CREATE TABLE refunds (id bigint PRIMARY KEY, order_id bigint NOT NULL REFERENCES orders);"
RULE = Rule(
    "foreign-key-without-index",
    "notice",
    str(__doc__),
    "PostgreSQL makes no index for the referring side. Each DELETE (or UPDATE of the key) there looks for "
    "rows here, by reading all of them, for every single row deleted, with its locks held.",
    "An index that begins with the foreign key's columns, built CONCURRENTLY on a table in use.",
    Example(
        EXAMPLE,
        first=EXAMPLE,
    ),
    check_end=check_end,
    spares_new=False,
    down=False,
)
