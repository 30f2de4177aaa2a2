"""The server's own settings are changed from a migration."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit


def check(unit: Unit) -> Iterable[Hit]:
    if is_a(unit.tree, ast.AlterSystemStmt):
        yield Hit(
            f"ALTER SYSTEM changes {unit.tree.setstmt.name or 'all settings'} for every database of the "
            "server, and no rollback takes it back.",
        )


RULE = Rule(
    "alter-system",
    "error",
    str(__doc__),
    "It writes postgresql.auto.conf on that one server: not on its replicas, not in a restored backup, and "
    "no hosted service allows it. It cannot run in a transaction.",
    "Set it where the server's other settings are kept; for one database, ALTER DATABASE … SET.",
    Example("ALTER SYSTEM SET work_mem = '64MB';", Claim(fails="25001")),
    check,
)
