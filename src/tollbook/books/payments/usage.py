"""Usage: each request takes from its payment's quota before it runs, and is on disk before it is answered.

Requests share commits. They queue in memory; one loop takes quota for all that wait in one statement, and
another writes the rows of all that were handled, each on a connection of its own. Neither waits to gather
more: it flushes what came while it was busy (a linger of 1, 2 or 4 ms was slower).

The taking is committed without waiting for the disk: nothing has been answered yet, and a crash only gives
quota back. It is seen by every process at once, so a quota of N admits N. The row that follows is committed
with the disk, and because the log is sequential that makes the taking before it durable as well: on the same
run of the server, that is. So a row is written on the connection that was open at its taking, or not at all.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self

import psycopg

from tollbook.books.payments.errors import (
    NotRecorded,
    TokenExpired,
    TokenForeign,
    TokenRevoked,
    TokenSpent,
    TokenUnknown,
    TooManyWaiting,
)
from tollbook.books.payments.usage_line import BigInts, Integers, Line, SmallInts, TakenElsewhere, pack
from tollbook.core import labels
from tollbook.core.database import Database
from tollbook.core.errors import DatabaseUnreachable, Refusal

WAITING_MAX = 10_000  # requests waiting for their quota or their row; so also the largest batch
STATUS_CODE_MAX = 999
RESPONSE_TIME_MS_MAX = 2**31 - 1
ENDPOINT = "payments.endpoint"
SERVER_ERROR = 500

REFUSALS: Mapping[str, Callable[[], Refusal]] = {
    "granted": TokenSpent,  # of a group that was granted some, those for whom nothing was left
    "unknown": TokenUnknown,
    "revoked": TokenRevoked,
    "foreign": TokenForeign,
    "expired": TokenExpired,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Admission:
    """Leave to answer one request. `requests_remaining` is what the payment buys after it.

    `taken_at` is the recorder's connection at the taking; None where it was taken for good before.
    """

    payment_id: int
    requests_remaining: int
    expires_at: datetime
    taken_at: int | None = None


class Meter:
    """Admits requests and records them. One a process: `async with Meter(url) as meter`.

    Any number of processes may meter the same payments.
    """

    def __init__(self, url: str) -> None:
        self._names = Database(url, application="tollbook-labels", connections_max=1)
        self._naming = asyncio.Lock()
        self._endpoint_ids: dict[str, int] = {}
        self._takes: dict[_Group, list[asyncio.Future[Admission]]] = {}
        self._takes_waiting = 0
        self._gives: dict[int, list[asyncio.Future[bool]]] = {}
        self._records: list[_Record] = []
        self._taker = Line(url, "off", self._flush_takes)
        self._recorder = Line(url, "on", self._flush_records)
        self._taker.other, self._recorder.other = self._recorder, self._taker

    async def open(self) -> None:
        """Connect. Raises DatabaseUnreachable."""
        await self._names.__aenter__()
        self._taker.open()
        self._recorder.open()

    async def close(self) -> None:
        """Answer and write what waits, then let go of the database. Admit nothing after it."""
        await self._taker.close()
        await self._recorder.close()
        await self._names.__aexit__()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def admit(self, secret_hash: bytes, endpoint: str) -> Admission:
        """Take one request from the quota of the token with this hash, for the route `endpoint`.

        Raises TokenUnknown, TokenRevoked, TokenForeign, TokenExpired, TokenSpent; TooManyWaiting;
        DatabaseUnreachable (the request may then have been taken).
        """
        return await self._take(_Group(secret_hash, None, endpoint))

    async def admit_first(self, payment_id: int) -> Admission:
        """Take the request that came with the payment itself. Raises as admit() does."""
        return await self._take(_Group(None, payment_id, None))

    async def record(
        self, admission: Admission, *, endpoint: str, status_code: int, response_time_ms: int
    ) -> None:
        """Write the handled request down; returns when its row is on disk.

        A status of 500 or more gives the request back to the quota first, if it was taken for this admission.
        Raises NotRecorded: the request must then not be answered as a success.
        """
        if not 0 < status_code <= STATUS_CODE_MAX:
            raise ValueError(f"{status_code} is no HTTP status")
        self._recorder.check_open()
        is_given_back = status_code >= SERVER_ERROR and admission.taken_at is not None
        given = self._give(admission.payment_id) if is_given_back else None
        endpoint_id = self._endpoint_ids.get(endpoint) or await self._name(endpoint)
        if given is not None and not await given:
            log.warning("a failed request of payment %s was not given back", admission.payment_id)
        milliseconds = min(max(response_time_ms, 0), RESPONSE_TIME_MS_MAX)
        if admission.taken_at is None:
            await _write_missing(self._names, admission.payment_id, milliseconds, endpoint_id, status_code)
            return
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        record = _Record(
            admission.payment_id, milliseconds, endpoint_id, status_code, written, admission.taken_at
        )
        self._records.append(record)
        self._recorder.wake()
        await written

    async def _name(self, endpoint: str) -> int:
        async with self._naming:  # one asks, the others that came with it find the answer
            if endpoint not in self._endpoint_ids:
                try:
                    endpoint_id = await labels.intern(self._names, ENDPOINT, endpoint)
                except (psycopg.Error, DatabaseUnreachable) as error:
                    raise NotRecorded from error
                if endpoint_id == labels.OTHER:  # what overflows has no bound, so it is not kept
                    return endpoint_id
                self._endpoint_ids[endpoint] = endpoint_id
            return self._endpoint_ids[endpoint]

    async def _take(self, group: "_Group") -> Admission:
        self._taker.check_open()
        if self._takes_waiting + len(self._records) >= WAITING_MAX:
            raise TooManyWaiting
        future: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        self._takes.setdefault(group, []).append(future)
        self._takes_waiting += 1
        self._taker.wake()
        try:
            return await future
        except asyncio.CancelledError:
            # The admission came in the same moment as the cancellation: nobody will use it.
            if future.done() and not future.cancelled() and future.exception() is None:
                self._give(future.result().payment_id)
            raise

    def _give(self, payment_id: int) -> "asyncio.Future[bool]":
        """Give one request back; whether that is done, once it is."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._gives.setdefault(payment_id, []).append(future)
        self._taker.wake()
        return future

    async def _flush_takes(self, line: "Line") -> None:
        takes = [
            (group, live)
            for group, waiting in self._takes.items()
            if (live := [future for future in waiting if not future.done()])
        ]
        gives = self._gives
        self._takes, self._gives, self._takes_waiting = {}, {}, 0
        if not takes and not gives:
            return
        try:
            taken_at = await self._recorder.dial()
            answers = await _take(line, [(group, len(live)) for group, live in takes], gives)
        except Exception as error:  # whatever it was: nobody may wait for ever
            for _, live in takes:
                _refuse(live, _unreachable, error)
            _resolve((future for waiting in gives.values() for future in waiting), value=False)
            raise
        for (_, live), answer in zip(takes, answers, strict=True):
            self._answer(live, answer, taken_at)
        _resolve((future for waiting in gives.values() for future in waiting), value=True)

    def _answer(self, waiting: "list[asyncio.Future[Admission]]", answer: "_Answer", taken_at: int) -> None:
        remaining = answer.free
        for nth, future in enumerate(waiting):
            if nth >= answer.granted:
                if not future.done():
                    future.set_exception(REFUSALS[answer.verdict]())
                continue
            remaining -= 1
            if future.done():  # its caller went away meanwhile
                self._give(answer.payment_id)
            else:
                future.set_result(Admission(answer.payment_id, remaining, answer.expires_at, taken_at))

    async def _flush_records(self, line: "Line") -> None:
        records, self._records = self._records, []
        if not records:
            return
        written = [record.written for record in records]
        try:
            here = await line.dial()
            kept = [record for record in records if record.taken_at == here]
            lost = [record.written for record in records if record.taken_at != here]
            _refuse(lost, NotRecorded, TakenElsewhere())
            if kept:
                await _write(line, kept, here)
        except Exception as error:  # whatever it was: nobody may wait for ever
            _refuse(written, NotRecorded, error)
            raise
        _resolve(written, value=None)


class _Group(NamedTuple):
    """Requests that are judged together: those of one token for one route, or of one payment."""

    token_hash: bytes | None
    payment_id: int | None
    endpoint: str | None


class _Answer(NamedTuple):
    """What a group got: of `free` requests, `granted`."""

    verdict: str
    payment_id: int
    expires_at: datetime
    granted: int
    free: int


class _Record(NamedTuple):
    payment_id: int
    response_time_ms: int
    endpoint_id: int
    status_code: int
    written: "asyncio.Future[None]"
    taken_at: int


async def _take(
    line: Line, groups: list[tuple[_Group, int]], gives: Mapping[int, list[Any]]
) -> list[_Answer]:
    """Judge the groups and move the quotas, in one statement; the answers in the groups' order.

    Rows are locked in the order of their ids, so that no two processes wait for each other in a circle.
    What is given back counts before anything is taken.
    """
    rows = await line.execute(
        """
        WITH asked AS MATERIALIZED (
            SELECT a.nth, a.wanted, a.endpoint, coalesce(a.payment_id, t.payment_id) AS payment_id,
                   t.revoked_at IS NOT NULL AS is_revoked, coalesce(t.expires_at <= now(), false) AS is_over
            FROM unnest(%(token_hashes)b::bytea[], %(payment_ids)b::bigint[], %(endpoints)b::text[],
                        %(wanted)b::integer[])
                 WITH ORDINALITY AS a (token_hash, payment_id, endpoint, wanted, nth)
            LEFT JOIN payments.x402_tokens AS t ON t.token_hash = a.token_hash
        ), judged AS MATERIALIZED (
            SELECT asked.nth, asked.wanted, locked.payment_id, locked.expires_at, locked.requests_allocated,
                   locked.requests_used,
                   CASE
                       WHEN asked.wanted < 0 THEN 'given'
                       WHEN asked.is_revoked THEN 'revoked'
                       WHEN asked.endpoint <> locked.endpoint THEN 'foreign'
                       WHEN asked.is_over OR locked.status = 'expired' OR locked.expires_at <= now()
                            OR locked.goes_back THEN 'expired'
                       WHEN locked.status IN ('verified', 'used') THEN 'granted'
                       ELSE 'unknown'
                   END AS verdict
            FROM (
                SELECT nth, wanted, endpoint, payment_id, is_revoked, is_over FROM asked ORDER BY payment_id
            ) AS asked
            LEFT JOIN LATERAL (
                SELECT p.payment_id, p.endpoint, p.status, p.expires_at, p.requests_allocated,
                       p.requests_used, p.goes_back
                FROM payments.x402_payments AS p WHERE p.payment_id = asked.payment_id
                FOR NO KEY UPDATE
            ) AS locked ON true
        ), shared AS (
            SELECT nth, wanted, payment_id, expires_at, requests_allocated, requests_used, verdict,
                   requests_allocated - greatest(0, requests_used
                       + coalesce(sum(wanted) FILTER (WHERE verdict = 'given') OVER payment, 0)) AS free,
                   coalesce(sum(wanted) FILTER (WHERE verdict = 'granted') OVER earlier, 0) AS promised
            FROM judged
            WINDOW payment AS (PARTITION BY payment_id),
                   earlier AS (PARTITION BY payment_id ORDER BY nth
                               ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
        ), taken AS MATERIALIZED (
            SELECT nth, payment_id, expires_at, requests_allocated, requests_used, verdict, free, promised,
                   CASE verdict WHEN 'granted' THEN greatest(0, least(wanted, free - promised)) ELSE 0 END
                       AS granted
            FROM shared
        ), counted AS (
            UPDATE payments.x402_payments AS p
            SET requests_used = c.requests_used,
                status = CASE
                    WHEN p.status = 'expired' THEN 'expired'
                    WHEN c.requests_used = p.requests_allocated THEN 'used'
                    ELSE 'verified'
                END,
                updated_at = now()
            FROM (
                SELECT payment_id, min(requests_used) AS requests_used_before,
                       (min(requests_allocated) - min(free) + sum(granted))::integer AS requests_used
                FROM taken GROUP BY payment_id
            ) AS c
            -- Compared with the locked row: p's own figure is the snapshot's, from before the wait.
            WHERE p.payment_id = c.payment_id AND c.requests_used_before <> c.requests_used
              AND p.status IN ('verified', 'used', 'expired')
        )
        SELECT verdict, payment_id, expires_at, granted::integer, (free - promised)::integer
        FROM taken ORDER BY nth
        """,
        {
            "token_hashes": [group.token_hash for group, _ in groups] + [None] * len(gives),
            "payment_ids": [group.payment_id for group, _ in groups] + list(gives),
            "endpoints": [group.endpoint for group, _ in groups] + [None] * len(gives),
            "wanted": [wanted for _, wanted in groups] + [-len(waiting) for waiting in gives.values()],
        },
    )
    return [_Answer(*row) for row in rows[: len(groups)]]


async def _write(line: Line, records: list[_Record], number: int) -> None:
    payment_ids, times, endpoint_ids, status_codes, _, _ = zip(*records, strict=True)
    await line.execute(
        """
        INSERT INTO payments.x402_usage (payment_id, response_time_ms, endpoint_id, status_code)
        SELECT * FROM unnest(%(payment_ids)b::bigint[], %(times)b::integer[], %(endpoint_ids)b::smallint[],
                             %(status_codes)b::smallint[])
        """,
        {
            "payment_ids": BigInts(pack("q", payment_ids)),
            "times": Integers(pack("i", times)),
            "endpoint_ids": SmallInts(pack("h", endpoint_ids)),
            "status_codes": SmallInts(pack("h", status_codes)),
        },
        number,
    )


async def _write_missing(
    database: Database, payment_id: int, response_time_ms: int, endpoint_id: int, status_code: int
) -> None:
    """Write down an answer that was made again, unless every request that was taken has its row.

    Apart from the others: it reads all rows of the payment, and has the payment's lock, so that of two who
    made it again at the same time the second one sees the first one's. Raises NotRecorded.
    """
    try:
        async with database.write() as tx:
            await tx.value(
                "SELECT 1 FROM payments.x402_payments WHERE payment_id = %(payment_id)s FOR NO KEY UPDATE",
                {"payment_id": payment_id},
            )
            await tx.execute(
                """
                INSERT INTO payments.x402_usage (payment_id, response_time_ms, endpoint_id, status_code)
                SELECT %(payment_id)s, %(response_time_ms)s, %(endpoint_id)s, %(status_code)s
                FROM payments.x402_payments p
                WHERE p.payment_id = %(payment_id)s AND greatest(p.requests_used, 1) > (
                    SELECT count(*) FROM payments.x402_usage u
                    WHERE u.payment_id = p.payment_id AND u.status_code < 500)  -- the others are given back
                """,
                {
                    "payment_id": payment_id,
                    "response_time_ms": response_time_ms,
                    "endpoint_id": endpoint_id,
                    "status_code": status_code,
                },
            )
    except (psycopg.Error, DatabaseUnreachable) as error:
        raise NotRecorded from error


def _unreachable() -> Refusal:
    return DatabaseUnreachable("The database did not answer in time. Try again in a second.")


def _refuse(
    waiting: "Iterable[asyncio.Future[Any]]", refusal: Callable[[], Refusal], cause: BaseException
) -> None:
    for future in waiting:
        if not future.done():
            raised = refusal()
            raised.__cause__ = cause
            future.set_exception(raised)


def _resolve(waiting: "Iterable[asyncio.Future[Any]]", *, value: bool | None) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(value)
