"""Databases that are made beside another for a while: their names, and how they go."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql

NAME_BYTES_MAX = 63
DROP_ATTEMPTS_MAX = 3


def name(database: str, why: str) -> str:
    """Return the name of a database that is made beside another."""
    end = f"_{why}_{datetime.now(UTC):%Y%m%d%H%M%S%f}"
    return database.encode()[: NAME_BYTES_MAX - len(end)].decode(errors="ignore") + end


def drop(conn: psycopg.Connection[Any], database: str) -> None:
    """Drop a database if it is there, and end whatever is still connected to it.

    FORCE fails as a whole if one session is not ours to end: an autovacuum worker, or a superuser who is just
    leaving. Without it, PostgreSQL itself ends autovacuum and gives all others five seconds to leave. Raises
    psycopg.errors.ObjectInUse if one stays.
    """
    gone = sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(database))
    for attempt in range(1, DROP_ATTEMPTS_MAX + 1):
        with suppress(psycopg.errors.InsufficientPrivilege):
            conn.execute(gone + sql.SQL(" WITH (FORCE)"))
            return
        try:
            conn.execute(gone)
        except psycopg.errors.ObjectInUse:
            if attempt == DROP_ATTEMPTS_MAX:
                raise
        else:
            return
