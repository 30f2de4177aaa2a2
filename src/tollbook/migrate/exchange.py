"""Statements sent together and their results: one round trip, however many they are."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, LiteralString, cast
from uuid import UUID

import psycopg
from psycopg import generators, pq
from psycopg.adapt import Transformer
from psycopg.pq.abc import PGresult
from psycopg.waiting import Wait

from tollbook.migrate.session import Connection

COPY_BYTES = 64 * 1024
CANCEL_AGAIN_SECONDS = 0.5
GOOD = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.EMPTY_QUERY)

Exchange = Generator[Any, Any, list[PGresult]]
Query = tuple[LiteralString, Mapping[str, Any]]


def send(
    conn: Connection, sql: str, rows: Iterable[str] = (), meanwhile: Callable[[], object] | None = None
) -> list[PGresult]:
    """Send statements as one simple query, and rows to those that COPY FROM STDIN, in their order.

    `meanwhile` is called once, while the server is at work. Returns a result for each that ran; the last
    may be an error.
    """
    conn.pgconn.send_query(sql.encode())
    results = _exchange(conn, iter(rows))
    if meanwhile:
        conn.pgconn.flush()
        try:
            meanwhile()
        except BaseException:  # Ctrl-C: the session is not left in the middle of an answer
            conn.wait(_cancel(conn, results), interval=CANCEL_AGAIN_SECONDS)
            raise
    return conn.wait(results)


def _cancel(conn: Connection, results: Exchange) -> Exchange:
    """Cancel until there are results: a server that has not begun yet takes no notice."""
    conn.cancel_safe()
    try:
        wanted = next(results)
        while True:
            if not (ready := (yield wanted)):
                conn.cancel_safe()
            wanted = results.send(ready)
    except StopIteration as end:
        return cast("list[PGresult]", end.value)


def _exchange(conn: Connection, rows: Iterator[str]) -> Exchange:
    results: list[PGresult] = yield from generators.execute(conn.pgconn)
    while results and results[-1].status == pq.ExecStatus.COPY_IN:
        data = next(rows).encode()
        for start in range(0, len(data), COPY_BYTES):
            yield from generators.copy_to(conn.pgconn, data[start : start + COPY_BYTES])
        while conn.pgconn.put_copy_end() == 0:
            yield Wait.W
        yield from generators.send(conn.pgconn)
        results = [*results[:-1], *(yield from generators.fetch_many(conn.pgconn))]
    return results


def write(conn: Connection, queries: Iterable[Query]) -> str:
    """Return queries as text, their parameters written in: %(name)s, of the kinds that `quote` knows."""
    return " ".join(
        f"{sql % {name: quote(conn, value) for name, value in values.items()}};" for sql, values in queries
    )


class Expression(str):
    """SQL that stands where a value would."""

    __slots__ = ()


def quote(conn: Connection, value: str | int | UUID | Sequence[str] | None) -> str:
    """Return a value as a literal. psycopg's own way there, by adapters, took a tenth of a whole run."""
    match value:
        case None:
            return "NULL"
        case int():
            return f"({value})"
        case Expression():
            return value
        case str() | UUID():
            return bytes(pq.Escaping(conn.pgconn).escape_literal(str(value).encode())).decode()
        case _:
            return f"ARRAY[{', '.join(quote(conn, one) for one in value)}]::text[]"


def command(conn: Connection, sql: str) -> list[PGresult]:
    """Send statements of the engine's own. Raises psycopg.Error where one fails."""
    results = send(conn, sql)
    if results[-1].status not in GOOD:
        raise psycopg.errors.error_from_result(results[-1])
    return results


def load(conn: Connection, results: Sequence[PGresult]) -> list[tuple[Any, ...]]:
    """Return the rows of results, as Python values."""
    found: list[tuple[Any, ...]] = []
    for result in results:
        transformer = Transformer(conn)
        transformer.set_pgresult(result)
        found += transformer.load_rows(0, result.ntuples, tuple)
    return found
