"""A value added to an enum is used in the same file."""

from collections.abc import Iterable
from typing import Any

from pglast import ast

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import descend, is_a
from tollbook.migrate.lint.unit import File
from tollbook.migrate.lint.words import show_names


def check_file(file: File) -> Iterable[Hit]:
    added: dict[str, tuple[int, str]] = {}
    for unit in file.units:
        tree = unit.tree
        if is_a(tree, ast.AlterEnumStmt) and tree.newVal and tree.oldVal is None:
            key = unit.world.key(*_split(tree))
            made_here = (enum := unit.world.enums.get(key)) is not None and enum.made_in == unit.made_in
            if not made_here and not unit.alone:
                added[tree.newVal] = (unit.transaction, show_names(tree.typeName or ()))
            continue
        for word in (one.val.sval for one in descend(tree) if _is_word(one)) if added else ():
            if word in added and added[word][0] == unit.transaction:
                yield Hit(
                    f"'{word}' was added to {added[word][1]} in this file, and cannot be used before that is "
                    "committed: so the file is committed in two parts.",
                    f"-- In a file of its own, before this one:\n"
                    f"ALTER TYPE {added[word][1]} ADD VALUE IF NOT EXISTS '{word}';",
                    at=unit.index,
                )
                break


def _split(tree: ast.AlterEnumStmt) -> tuple[str | None, str]:
    words = [word.sval or "" for word in tree.typeName or () if is_a(word, ast.String)]
    return (words[-2] if len(words) > 1 else None), words[-1]


def _is_word(node: Any) -> bool:
    return is_a(node, ast.A_Const) and is_a(node.val, ast.String)


RULE = Rule(
    "enum-value-used",
    "warning",
    str(__doc__),
    "PostgreSQL refuses a value whose ALTER TYPE … ADD VALUE is not committed yet (unsafe use of new value), "
    "unless the type itself is made in the same transaction. Other tools fail here; this engine commits "
    "behind ADD VALUE, so that the file can stop half way, and a value cannot be taken out again.",
    "Add the value in a file of its own; use it from the next one on.",
    Example(
        "ALTER TYPE mood ADD VALUE 'calm';\nUPDATE moods SET mood = 'calm' WHERE id = 1;",
        Claim(fails="55P04"),
        "CREATE TYPE mood AS ENUM ('glad', 'sad');\n"
        "CREATE TABLE moods (id bigint PRIMARY KEY, mood mood);\nINSERT INTO moods VALUES (1, 'sad');",
    ),
    check_file=check_file,
)
