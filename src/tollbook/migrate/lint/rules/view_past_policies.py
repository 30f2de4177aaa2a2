"""A view over a table with row level security, which its readers need not obey."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import descend, is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show

OPTION = "security_invoker"


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.ViewStmt) or any(one.defname == OPTION for one in tree.options or ()):
        return
    for one in descend(tree.query):
        table = unit.table(one) if is_a(one, ast.RangeVar) else None
        if table is not None and table.secured_at is not None:
            yield Hit(
                f"Who may read {show(tree.view)} sees the rows of {show(one)} that its owner may: the "
                "policies there are not the reader's.",
                f"ALTER VIEW {show(tree.view)} SET ({OPTION} = true);",
            )
            return


EXAMPLE = "CREATE VIEW open_orders AS SELECT id, total FROM orders WHERE status = 'open';"
RULE = Rule(
    "view-past-policies",
    "warning",
    str(__doc__),
    "A view reads with the rights of its owner, who as the tables' owner passes by their policies: one "
    "tenant sees the rows of all.",
    "WITH (security_invoker = true), or a WHERE in the view that does what the policy does.",
    Example(
        EXAMPLE,
        Claim(changes="SELECT count(*) FROM pg_class WHERE relname = 'open_orders' AND reloptions IS NULL"),
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY;\nCREATE POLICY own ON orders USING (true);",
        EXAMPLE,
    ),
    check,
    spares_new=False,
    down=False,
)
