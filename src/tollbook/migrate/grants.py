"""The grants inside a backup: those whose roles are on the server are kept, the others are named."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any

# A line of pg_restore's list.
ENTRY = re.compile(rb"^\d+; \d+ \d+ (?:DEFAULT )?ACL ")
# What the server warns of where we are neither owner nor may pass a right on.
NOTHING = "no privileges "
LOST = "tollbook: not granted: "  # begins the warning for each grant that the server refused


@dataclass(frozen=True, slots=True)
class Grants:
    """What to run, and the roles that are not there."""

    statements: tuple[str, ...]
    missing: tuple[str, ...]

    def write(self) -> bytes:
        """Return a script that grants what the server lets us, and warns of the rest."""
        return "".join(map(_guard, self.statements)).encode()


def choose(script: str, roles: Set[str]) -> Grants:
    """Sort the GRANTs and REVOKEs of pg_restore's script by whether their roles are on the server."""
    kept: list[str] = []
    missing: set[str] = set()
    for text in _split(script):
        named = _find_roles(text)
        if named is None:
            continue  # SET SESSION AUTHORIZATION and the like: all is granted by the restoring role
        absent = named - roles
        missing |= absent
        if not absent:
            kept.append(text)
    return Grants(tuple(kept), tuple(sorted(missing)))


def _split(script: str) -> Iterator[str]:
    from pglast import split

    # \restrict and \unrestrict are for psql alone.
    lines = (line for line in script.splitlines(keepends=True) if not line.startswith("\\"))
    text = "".join(lines)
    return iter(split(text)) if text.strip() else iter(())


def _find_roles(text: str) -> set[str] | None:
    """Return the roles that a grant names; None where the statement is none."""
    from pglast import ast, parse_sql

    statement: Any = parse_sql(text)[0].stmt
    if isinstance(statement, ast.GrantStmt):
        return _name(statement.grantees)
    if isinstance(statement, ast.AlterDefaultPrivilegesStmt):
        lists: Iterable[Any] = statement.options or ()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        found = set[str]().union(*(_name(one.arg) for one in lists if one.defname == "roles"))
        return found | _name(statement.action.grantees)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType, reportOptionalMemberAccess]
    return None


def _name(roles: Iterable[Any] | None) -> set[str]:
    return {one.rolename for one in roles or () if one.rolename is not None}


def _guard(statement: str) -> str:
    """Return a statement that does not end the script when the server refuses it."""
    tag = f"$t{secrets.token_hex(8)}$"
    inner = f"$i{secrets.token_hex(8)}$"
    return (
        f"DO {tag} BEGIN EXECUTE {inner}{statement}{inner};\n"
        f"EXCEPTION WHEN OTHERS THEN RAISE WARNING '{LOST}%', "
        f"json_build_array({inner}{statement}{inner}, SQLERRM); END {tag};\n"
    )


def find_lost(said: Iterable[str]) -> tuple[str, ...]:
    """Return the grants that the server refused, each with its reason, from what psql said."""
    lost: list[str] = []
    for line in said:
        _, mark, rest = line.partition(LOST)
        if mark:
            statement, reason = json.loads(rest)
            lost.append(f"{' '.join(statement.split())} ({reason})")
        elif (found := line.find(NOTHING)) >= 0:
            lost.append(line[found:])
    return tuple(lost)


def pick(listing: Iterable[bytes]) -> bytes:
    """Return the entries of a list that are grants, for `pg_restore --use-list`."""
    return b"".join(line for line in listing if ENTRY.match(line))
