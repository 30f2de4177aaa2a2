"""The roles that files name in their headers: looked at before anything runs as one of them."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tollbook.migrate.errors import Place, Problem, point
from tollbook.migrate.files import Script
from tollbook.migrate.session import Connection

if TYPE_CHECKING:
    from tollbook.migrate.execution import Prepared

NONE = "none"  # what SET ROLE takes for the session's own
HEADER = re.compile(r"(?m)^--\s*tollbook:.*?\b(?=role=)")
SET_SINCE = 160000  # a grant of a role says since then whether it may be taken


def check(conn: Connection, ready: Sequence["Prepared"]) -> list[Problem]:
    """Name each role of a header that is not there, or that this session may not take.

    One that a file before makes or grants is passed over, and so is all behind what nobody can read.
    """
    named = list(_list(ready))
    if not named:
        return []
    rows = conn.execute(
        """SELECT r.rolname::text, pg_has_role(session_user, r.oid, %(right)s), session_user::text
        FROM pg_roles r WHERE r.rolname = ANY(%(names)s)""",
        {
            "names": [name for name, _ in named],
            "right": "SET" if conn.info.server_version >= SET_SINCE else "MEMBER",
        },
    )
    known = {name: (may, user) for name, may, user in rows}
    return [
        Problem(
            f"{known[name][1]} may not act as the role {name}, which this file is to run as.",
            f'As its owner: GRANT "{name}" TO "{known[name][1]}"',
            place,
        )
        if name in known
        else Problem(
            f"There is no role {name} here, which this file is to run as.",
            "Roles are the server's: make it there first (CREATE ROLE), or correct the header.",
            place,
        )
        for name, place in named
        if not known.get(name, (False,))[0]
    ]


def _list(ready: Sequence["Prepared"]) -> Iterator[tuple[str, Place]]:
    from pglast import ast  # the grammar is loaded by then

    given: set[str] = set()
    for one in ready:
        for script in (one.migration.up, one.migration.backfill):
            role = script.options.role if script else None
            if script and role and role not in {NONE, *given}:
                yield role, _find(script)
        for tree in (statement.tree for statement in one.reading.statements):
            if isinstance(tree, ast.CreateRoleStmt):
                given.add(tree.role or "")
            elif isinstance(tree, ast.GrantRoleStmt):
                given |= {granted.priv_name or "" for granted in tree.granted_roles or ()}
        if one.promises.opaque:
            return


def _find(script: Script) -> Place:
    match = HEADER.search(script.text)
    return point(str(script.path), script.text, match.end()) if match else Place(str(script.path))
