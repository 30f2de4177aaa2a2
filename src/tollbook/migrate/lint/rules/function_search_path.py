"""A function that runs with whatever search path its caller has."""

from collections.abc import Iterable
from typing import Any

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show_names, sql


def check(unit: Unit) -> Iterable[Hit]:
    tree = unit.tree
    if not is_a(tree, ast.CreateFunctionStmt):
        return
    options: dict[str, list[Any]] = {}
    for option in tree.options or ():
        options.setdefault(option.defname, []).append(option.arg)
    if any(one.name == "search_path" for one in options.get("set", [])) or _is_bound(tree, options):
        return
    definer = bool(options.get("security")) and bool(getattr(options["security"][-1], "boolval", False))
    name = show_names(tree.funcname or ())
    arguments = ", ".join(sql(one.argType) for one in tree.parameters or ())
    kind = "PROCEDURE" if tree.is_procedure else "FUNCTION"
    whose = "its owner's rights" if definer else "its caller's rights"
    yield Hit(
        f"{name} runs with {whose} and its caller's search_path: what its names mean is decided by who calls "
        "it.",
        f"ALTER {kind} {name}({arguments}) SET search_path = pg_catalog, {unit.world.path}, pg_temp;",
        None,
        "error" if definer else None,
    )


def _is_bound(tree: Any, options: dict[str, list[Any]]) -> bool:
    """Whether its names are looked up when it is made (a SQL body), or it has none (C)."""
    language = getattr(options.get("language", [None])[-1], "sval", "sql")
    return tree.sql_body is not None or language in ("c", "internal")


EXAMPLE = (
    "CREATE FUNCTION total_of(order_id bigint) RETURNS numeric LANGUAGE sql SECURITY DEFINER\n"
    "AS 'SELECT total FROM orders WHERE id = order_id';"
)
RULE = Rule(
    "function-search-path",
    "notice",
    str(__doc__),
    "A SECURITY DEFINER function can be made to run a stranger's code with its owner's rights, by a "
    "temporary table or a schema put first. Any other breaks where the path differs: in indexes, generated "
    "columns and checks while a dump is restored (pg_restore empties the path), in triggers on other roles' "
    "writes.",
    "SET search_path in the function (pg_temp last), or a SQL-standard body (BEGIN ATOMIC), whose names are "
    "looked up once.",
    Example(
        EXAMPLE,
        Claim(changes="SELECT count(*) FROM pg_proc WHERE proname = 'total_of' AND proconfig IS NULL"),
        first=EXAMPLE,
    ),
    check,
    spares_new=False,
    down=False,
)
