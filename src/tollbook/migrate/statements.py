"""A script taken apart by PostgreSQL's own grammar: its statements, and those this engine must not run."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pglast import ast, parse_sql
from pglast.enums import ObjectType, ReindexObjectType, TransactionStmtKind
from pglast.enums.parsenodes import AlterTableType
from pglast.parser import ParseError, scan

from tollbook.migrate.errors import Problem, point
from tollbook.migrate.files import Script

PSQL_COMMAND = re.compile(r"\\[A-Za-z!.?;]+")
OUTSIDE_TRANSACTION = "cannot run inside a transaction, and every migration runs in one"
NESTED_KINDS = {
    TransactionStmtKind.TRANS_STMT_SAVEPOINT,
    TransactionStmtKind.TRANS_STMT_RELEASE,
    TransactionStmtKind.TRANS_STMT_ROLLBACK_TO,
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: pglast's tree, and where its text begins (index from 0)."""

    tree: Any
    index: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What the grammar says of a script. With problems it must not be run."""

    statements: tuple[Statement, ...]
    problems: tuple[Problem, ...]


def read(script: Script) -> Reading:
    """Parse a script; every statement that may not stand in a migration is a problem with its line."""
    try:
        raw: tuple[Any, ...] = parse_sql(script.text)
    except ParseError as error:
        return Reading((), (_explain(script, error),))
    statements = tuple(Statement(node.stmt, node.stmt_location) for node in raw)
    problems = [
        Problem(what, then, point(str(script.path), script.text, statement.index, caret=False))
        for statement in statements
        if (found := _find_forbidden(statement.tree))
        for what, then in (found,)
    ]
    return Reading(statements, tuple(problems))


def _explain(script: Script, error: ParseError) -> Problem:
    """Say why a script does not parse; what psql would read but the server would not is named as such."""
    message, index = str(error.args[0]), int(error.args[1])
    if (copy := _find_copy(script.text, index)) is not None:
        return _refuse_copy(script, copy)
    if (command := _find_psql_command(script.text, index)) is not None:
        word = PSQL_COMMAND.match(script.text, command)
        return Problem(
            f"{word[0] if word else chr(92)} is a command of psql, which PostgreSQL itself does not know.",
            "Write it as SQL, or run this file by psql.",
            point(str(script.path), script.text, command),
        )
    return Problem(
        f"{message[:1].lower()}{message[1:]}.",
        "Correct the SQL; nothing was run.",
        point(str(script.path), script.text, index),
    )


def _find_psql_command(text: str, until: int) -> int | None:
    """Return where a backslash begins a line's last part, outside quotes and comments, up to an index."""
    line_end = text.find("\n", until)
    part = text[: line_end if line_end >= 0 else len(text)]
    try:
        tokens = scan(part)
    except ParseError:
        # psql's own arguments may hold a lone quote, which the server's scanner cannot end.
        start = part.rfind("\n", 0, until) + 1
        found = PSQL_COMMAND.match(part[start:].lstrip())
        return start + part[start:].index("\\") if found else None
    return next((token.start for token in tokens if token.name == "ASCII_92"), None)


def _find_copy(text: str, until: int) -> int | None:
    """Return where the last COPY … FROM STDIN before an index begins: what follows it is data, not SQL."""
    head = text[:until]
    for match in reversed(list(re.finditer(r"(?im)^\s*copy\b[^;]*;", head))):
        try:
            raw: tuple[Any, ...] = parse_sql(head[: match.end()])
        except ParseError:
            continue
        if raw and _is_copy_by_client(raw[-1].stmt):
            return raw[-1].stmt_location
    return None


def _refuse_copy(script: Script, index: int) -> Problem:
    return Problem(
        "COPY through the client (FROM STDIN, TO STDOUT) needs psql to carry the data.",
        "Write the rows as INSERT … VALUES, or load them by a program after the migration.",
        point(str(script.path), script.text, index, caret=False),
    )


def _is_copy_by_client(tree: Any) -> bool:
    return isinstance(tree, ast.CopyStmt) and not tree.filename and not tree.is_program


def kind_of(tree: object) -> type:
    """Return a statement's kind: its class in pglast."""
    return type(tree)


def _find_forbidden(tree: Any) -> tuple[str, str] | None:
    """Return what is wrong with a statement and what to do, or None."""
    check = OUTSIDE.get(kind_of(tree))
    if _is_copy_by_client(tree):
        return (
            "COPY through the client (FROM STDIN, TO STDOUT) needs psql to carry the data.",
            "Write the rows as INSERT … VALUES, or load them by a program after the migration.",
        )
    if isinstance(tree, ast.TransactionStmt) and tree.kind not in NESTED_KINDS:
        word = TransactionStmtKind(tree.kind).name.removeprefix("TRANS_STMT_").replace("_", " ")
        return (
            f"{word} steers the transaction, which is the engine's: each file is one transaction already.",
            "Take it out, or split the file where it stands.",
        )
    if check and (name := check(tree)):
        return (f"{name} {OUTSIDE_TRANSACTION}.", _advise(name))
    return None


def _advise(name: str) -> str:
    if name.endswith("CONCURRENTLY"):
        return f"Leave out CONCURRENTLY, or run {name} by hand beside the migrations."
    return "Take it out of the migrations and run it by hand."


def _always(name: str) -> Callable[[Any], str | None]:
    return lambda tree: name


def _name_alter_table(tree: Any) -> str | None:
    for command in tree.cmds or ():
        if command.subtype == AlterTableType.AT_DetachPartition and command.def_.concurrent:
            return "DETACH PARTITION CONCURRENTLY"
    return None


def _name_alter_database(tree: Any) -> str | None:
    return (
        "ALTER DATABASE SET TABLESPACE"
        if any(o.defname == "tablespace" for o in tree.options or ())
        else None
    )


def _name_reindex(tree: Any) -> str | None:
    if any(option.defname == "concurrently" for option in tree.params or ()):
        return "REINDEX CONCURRENTLY"
    if tree.kind in (
        ReindexObjectType.REINDEX_OBJECT_DATABASE,
        ReindexObjectType.REINDEX_OBJECT_SYSTEM,
        ReindexObjectType.REINDEX_OBJECT_SCHEMA,
    ):
        return "REINDEX of a whole schema or database"
    return None


def _name_drop(tree: Any) -> str | None:
    return (
        "DROP INDEX CONCURRENTLY" if tree.concurrent and tree.removeType == ObjectType.OBJECT_INDEX else None
    )


# By kind of statement: what in it cannot run in a transaction block, named as its writer knows it.
OUTSIDE: dict[type, Callable[[Any], str | None]] = {
    ast.IndexStmt: lambda tree: "CREATE INDEX CONCURRENTLY" if tree.concurrent else None,
    ast.DropStmt: _name_drop,
    ast.ReindexStmt: _name_reindex,
    ast.AlterTableStmt: _name_alter_table,
    ast.VacuumStmt: lambda tree: "VACUUM" if tree.is_vacuumcmd else None,
    ast.CreatedbStmt: _always("CREATE DATABASE"),
    ast.DropdbStmt: _always("DROP DATABASE"),
    ast.AlterDatabaseStmt: _name_alter_database,
    ast.CreateTableSpaceStmt: _always("CREATE TABLESPACE"),
    ast.DropTableSpaceStmt: _always("DROP TABLESPACE"),
    ast.AlterSystemStmt: _always("ALTER SYSTEM"),
    ast.ClusterStmt: lambda tree: None if tree.relation else "CLUSTER of a whole database",
    ast.CreateSubscriptionStmt: _always("CREATE SUBSCRIPTION"),
    ast.DropSubscriptionStmt: _always("DROP SUBSCRIPTION"),
    ast.DiscardStmt: _always("DISCARD"),
    # The engine's own prepared statements would go with it.
    ast.DeallocateStmt: lambda tree: None if tree.name else "DEALLOCATE ALL",
}
