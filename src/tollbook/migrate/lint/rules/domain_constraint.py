"""A domain gets a constraint that is checked in every table that uses it."""

from collections.abc import Iterable

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import name_after, quote, show_names, split, sql

ADD, NOT_NULL = "C", "O"


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.AlterDomainStmt):
        return
    name = show_names(tree.typeName or ())
    if tree.subtype == NOT_NULL:
        yield Hit(
            f"SET NOT NULL on {name} reads every table that has a column of it, locked against writers."
        )
    elif tree.subtype == ADD and not tree.def_.skip_validation:
        rule = quote(tree.def_.conname or name_after(split(tree.typeName or ())[1], "check"))
        yield Hit(
            f"The constraint on {name} is checked in every table that has a column of it, locked against "
            "writers.",
            f"ALTER DOMAIN {name} ADD CONSTRAINT {rule} CHECK ({sql(tree.def_.raw_expr)}) NOT VALID;",
        )


RULE = Rule(
    "domain-constraint",
    "error",
    str(__doc__),
    "SHARE on each table with a column of the domain, held while all of its rows are read: the tables are "
    "not even named in the file.",
    "Add it NOT VALID: it holds for new values at once, and reads nothing. VALIDATE CONSTRAINT locks and "
    "reads just as much, so leave it for a quiet hour; or put the check on the tables, where validating lets "
    "writers in.",
    Example(
        "ALTER DOMAIN positive ADD CONSTRAINT above_zero CHECK (VALUE > 0);",
        Claim("ShareLock", on="stock"),
        "CREATE DOMAIN positive AS integer;\nCREATE TABLE stock (id bigint PRIMARY KEY, number positive);\n"
        "INSERT INTO stock SELECT n, n FROM generate_series(1, 500) AS n;",
    ),
    check,
    squawk=("ban-alter-domain-with-add-constraint",),
)
