"""Row level security is switched on, and no policy lets anybody in."""

from collections.abc import Iterable

from tollbook.migrate.errors import Place
from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import End
from tollbook.migrate.lint.words import name_after, quote, show_key


def check_end(end: End) -> Iterable[tuple[Place, Hit]]:
    for table in end.world.tables.values():
        if table.secured_at is not None and table.policies <= 0:
            name = quote(table.key[1])
            yield (
                table.secured_at,
                Hit(
                    f"{name} has row level security and no policy: all but its owner see an empty table.",
                    "-- Say here who may see what:\n"
                    f"CREATE POLICY {quote(name_after(table.key[1], 'all'))} ON "
                    f"{show_key(table.key, end.world.path)} USING (true);",
                ),
            )


EXAMPLE = "ALTER TABLE orders ENABLE ROW LEVEL SECURITY;"
RULE = Rule(
    "rls-without-policy",
    "error",
    str(__doc__),
    "Without a policy all rows are hidden and all inserts refused, for every role but the owner and "
    "superusers: the application finds an empty table, and no error says why.",
    "Create the policies before ENABLE ROW LEVEL SECURITY, in the same transaction.",
    Example(
        EXAMPLE,
        Claim(
            changes="SELECT count(*) FROM pg_class c WHERE relrowsecurity AND NOT EXISTS "
            "(SELECT FROM pg_policy p WHERE p.polrelid = c.oid)"
        ),
        first=EXAMPLE,
    ),
    check_end=check_end,
    spares_new=False,
    down=False,
)
