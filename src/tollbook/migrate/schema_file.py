"""The schema file: what all migrations make, as SQL that loads, in an order that stays, without noise."""

import difflib
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pglast import ast

from tollbook.migrate import drift, formats, grammar, replay
from tollbook.migrate.errors import MigrateError
from tollbook.migrate.events import Listener, ignore
from tollbook.migrate.files import Folder
from tollbook.migrate.pg_tools import find_tool
from tollbook.migrate.session import read_url

DUMP_SECONDS_MAX = 600
DIFF_LINES_MAX = 200
TOLD = "-- Written by `tollbook migrate schema` from the migrations; change those, not this.\n"
# A function's body may speak of a table that comes after it.
BODIES = "SET check_function_bodies = false;\n"
# What pg_dump sets before what lies there; kept where anything lies elsewhere than usual.
PLACES = ("default_tablespace", "default_table_access_method")
USUAL_PLACES = (None, "", "heap")


@dataclass(frozen=True, slots=True)
class SchemaFile:
    """The schema as text, and how a file that is there differs from it (empty: not at all)."""

    text: str
    path: str | None = None
    difference: tuple[str, ...] = ()


def write(folders: Sequence[Folder], *, listen: Listener = ignore) -> SchemaFile:
    """Return what all migrations of the folders make on a throw-away server. Raises MigrateError."""
    migrations = formats.read(folders)
    with replay.staged(listen) as stage:
        url = stage.make()
        drift.admit(stage, migrations)
        replay.play(url, migrations, listen)
        return SchemaFile(dump(url))


def save(path: Path, schema: SchemaFile) -> SchemaFile:
    """Write the file; a reader finds the old text or the new one, never half of it."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(schema.text, encoding="utf-8")
    beside.replace(path)
    return SchemaFile(schema.text, str(path))


def compare(path: Path, schema: SchemaFile) -> SchemaFile:
    """Return the schema with how the file differs from it. Raises MigrateError where there is no file."""
    try:
        there = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MigrateError(
            f"{path} cannot be read ({error.strerror}). Write it: tollbook migrate schema --out {path}"
        ) from None
    lines = difflib.unified_diff(
        there.splitlines(), schema.text.splitlines(), str(path), "the migrations", lineterm="", n=2
    )
    return SchemaFile(schema.text, str(path), tuple(lines)[:DIFF_LINES_MAX])


def dump(url: str) -> str:
    """Return a database's schema by pg_dump, less the engine's own and less all that only pg_dump needs."""
    return TOLD + run_dump(url, "--schema-only")


def run_dump(url: str, *what: str) -> str:
    """Return what pg_dump says of a database, less the engine's own, as statements alone."""
    command = [
        find_tool("pg_dump"),
        *what,
        "--no-owner",
        "--exclude-schema=tollbook_migrate",
        f"--dbname={url}",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=DUMP_SECONDS_MAX)
    if ran.returncode:
        raise MigrateError(f"pg_dump failed: {ran.stderr.strip()}")
    return clean(ran.stdout, read_url(url)["user"])


def clean(text: str, user: str) -> str:
    """Return a dump's statements alone, each as it stands, with an empty line between them.

    user: who made all of it; what it gives by default, whoever loads the file is to give.
    """
    # Only psql reads these two; the key in them is another each time.
    text = re.sub(r"^\\(un)?restrict .*$", "", text, flags=re.MULTILINE)
    kept: list[str] = []
    functions = False
    parsed = grammar.parse(text)
    placed = any(_find_place(one.stmt) not in USUAL_PLACES for one in parsed)
    for one in parsed:
        tree = one.stmt
        kept_setting = placed and _find_place(tree) is not None
        if (isinstance(tree, ast.VariableSetStmt) and not kept_setting) or _sets_config(tree):
            continue
        functions = functions or isinstance(tree, ast.CreateFunctionStmt)
        start = one.stmt_location or 0
        end = start + one.stmt_len if one.stmt_len else len(text)
        statement = _strip(text[start:end])
        if isinstance(tree, ast.AlterDefaultPrivilegesStmt):
            statement = statement.replace(f" FOR ROLE {user}", "", 1)
        kept.append(statement)
    return (BODIES if functions else "") + "".join(f"\n{statement};\n" for statement in kept)


def _find_place(tree: Any) -> str | None:
    """Return the tablespace or access method that is said for the tables that follow."""
    if not isinstance(tree, ast.VariableSetStmt) or tree.name not in PLACES or not tree.args:
        return None
    return tree.args[0].val.sval  # pyright: ignore


def _sets_config(tree: Any) -> bool:
    if not isinstance(tree, ast.SelectStmt) or not tree.targetList:
        return False
    call = tree.targetList[0].val
    return isinstance(call, ast.FuncCall) and call.funcname[-1].sval == "set_config"  # pyright: ignore


def _strip(statement: str) -> str:
    """Take away the comments that pg_dump puts before a statement."""
    lines = statement.strip().splitlines()
    while lines and (not lines[0].strip() or lines[0].startswith("--")):
        lines.pop(0)
    return "\n".join(lines)
