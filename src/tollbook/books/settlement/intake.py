"""Taking commands in: each id once, whoever sends it and how often.

Few are one statement. Many are one COPY, all of it or nothing; only where one of them is here already is the
same chunk inserted row by row, past what is here. Both wait a moment for a twin that another session is
inserting, and then know what it was. The database's triggers tell the journal.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter

from psycopg.errors import CheckViolation, DataError, DeadlockDetected, LockNotAvailable, UniqueViolation

from tollbook.books.settlement.errors import CommandBusy, CommandMalformed, CommandReused
from tollbook.books.settlement.requests import Order
from tollbook.core.database import Database, ReadTx, WriteTx
from tollbook.core.errors import Refusal

ORDERS_MAX = 10_000  # at once
COPIED_MIN = 50  # fewer are cheaper as one statement
TWIN_WAIT_MS_MAX = 1_000
TWIN_WAIT_MS_SHARED = 100  # where others wait for the same statement
TWIN_WAIT_MS_EACH = 10  # where a whole chunk waited in vain and its commands are tried one by one
# What one command may do to all that are stored with it: each is tried alone then.
ALONE = (LockNotAvailable, DeadlockDetected, DataError, CheckViolation)


@dataclass(frozen=True, slots=True)
class Received:
    """A command that is in the books; `replayed` where it was before."""

    command_id: str
    replayed: bool


@dataclass(frozen=True, slots=True)
class _Kept:
    command_id: str
    fingerprint: bytes | None


async def take(database: Database, order: Order, *, wait_ms_max: int = TWIN_WAIT_MS_MAX) -> Received:
    """Receive one command. Raises CommandReused, CommandBusy."""
    try:
        new, kept = await _insert_new(database, [order], wait_ms_max)
    except LockNotAvailable:
        raise CommandBusy(order.command_id) from None
    if new:
        return Received(order.command_id, replayed=False)
    judged = _judge(order, kept.get(order.command_id))
    if isinstance(judged, Refusal):
        raise judged
    return judged


async def take_all(
    database: Database, orders: Sequence[Order], *, wait_ms_max: int = TWIN_WAIT_MS_MAX
) -> list[Received | Refusal]:
    """Receive at most ORDERS_MAX commands; for each, in this order, that it is here or why it is not."""
    if len(orders) > ORDERS_MAX:
        raise ValueError(f"{len(orders)} commands at once, {ORDERS_MAX} at most")
    first: dict[str, Order] = {}
    for order in orders:
        first.setdefault(order.command_id, order)
    # In one order everywhere: two chunks that share ids wait for each other, never both ways.
    distinct = sorted(first.values(), key=itemgetter(0))
    try:
        new, kept = await _store(database, distinct, wait_ms_max)
    except ALONE:
        return [await _try_one(database, order) for order in orders]
    return [
        Received(order.command_id, replayed=False)
        if order.command_id in new and first[order.command_id] is order
        else _judge(order, kept.get(order.command_id, first[order.command_id].fingerprint))
        for order in orders
    ]


class Gate:
    """For commands that come one by one: all that wait at a moment are one statement, and share its commit.

    Nobody waits for others to come; who is alone is stored alone.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[Order, asyncio.Future[Received | Refusal]]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def take(self, order: Order) -> Received:
        """Receive one command. Raises CommandReused, CommandBusy."""
        told: asyncio.Future[Received | Refusal] = asyncio.get_running_loop().create_future()
        self._waiting.append((order, told))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        outcome = await told
        if isinstance(outcome, Refusal):
            raise outcome
        return outcome

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:ORDERS_MAX], self._waiting[ORDERS_MAX:]
            try:
                outcomes = await take_all(
                    self._database, [order for order, _ in batch], wait_ms_max=TWIN_WAIT_MS_SHARED
                )
            except Exception as error:  # each of them is told, and the next ones are tried
                for _, told in batch:
                    if not told.done():
                        told.set_exception(error)
            else:
                for (_, told), outcome in zip(batch, outcomes, strict=True):
                    if not told.done():
                        told.set_result(outcome)
        self._flushing = None


async def _store(
    database: Database, orders: Sequence[Order], wait_ms_max: int
) -> tuple[Collection[str], Mapping[str, bytes | None]]:
    """Store those that are not here yet: the ids of those, and what is known of the others."""
    if len(orders) >= COPIED_MIN:
        with suppress(UniqueViolation, LockNotAvailable, DeadlockDetected):
            async with database.write() as tx:
                await _copy(tx, orders, wait_ms_max)
            return {order.command_id for order in orders}, {}
    return await _insert_new(database, orders, wait_ms_max)


async def _insert_new(
    database: Database, orders: Sequence[Order], wait_ms_max: int
) -> tuple[set[str], dict[str, bytes | None]]:
    """As _store, row by row past what is here already. Raises LockNotAvailable."""
    async with database.statement() as tx:
        new = await _insert(tx, orders, wait_ms_max)
    others = [order.command_id for order in orders if order.command_id not in new]
    if not others:
        return new, {}
    async with database.statement() as tx:
        return new, await _read_kept(tx, others)


async def _try_one(database: Database, order: Order) -> Received | Refusal:
    try:
        return await take(database, order, wait_ms_max=TWIN_WAIT_MS_EACH)
    except (CommandReused, CommandBusy) as refusal:
        return refusal
    except (DataError, CheckViolation):
        return CommandMalformed("It has something that the database cannot keep.")


async def _copy(tx: WriteTx, orders: Sequence[Order], wait_ms_max: int) -> None:
    await tx.execute("SELECT set_config('lock_timeout', %(wait)s, true)", {"wait": str(wait_ms_max)})
    text = "".join([write_row(order) for order in orders])
    async with tx.connection.cursor() as cursor, cursor.copy(
        """
        COPY settlement.settlement_commands (
            command_id, workflow_id, account_ref, payer, payee, asset_symbol, amount_numeric, chain_id, asset,
            expires_at, fingerprint
        ) FROM STDIN
        """
    ) as copy:  # fmt: skip
        await copy.write(text)


def write_row(order: Order) -> str:
    """A line for COPY. The texts have nothing in them that it would take for its own: see requests.py."""
    *texts, expires_at, fingerprint = order
    columns = [r"\N" if text is None else str(text) for text in texts]
    until = r"\N" if expires_at is None else expires_at.isoformat()
    return "\t".join([*columns, until, rf"\\x{fingerprint.hex()}"]) + "\n"


async def _insert(tx: WriteTx, orders: Sequence[Order], wait_ms_max: int) -> set[str]:
    """Insert those whose ids are not here yet; their ids. Raises LockNotAvailable."""
    columns = list(zip(*orders, strict=True))
    rows = await tx.dicts(
        """
        INSERT INTO settlement.settlement_commands (
            command_id, workflow_id, account_ref, payer, payee, asset_symbol, amount_numeric, chain_id, asset,
            expires_at, fingerprint)
        SELECT o.command_id, o.workflow_id, o.account_ref, o.payer, o.payee, o.asset_symbol, o.amount,
               o.chain_id, o.asset, o.expires_at, o.fingerprint
        FROM set_config('lock_timeout', %(wait)s, true),
             unnest(%(command_ids)s::text[], %(workflow_ids)s::text[], %(account_refs)s::text[],
                    %(payers)s::text[], %(payees)s::text[], %(symbols)s::text[], %(amounts)s::numeric[],
                    %(chain_ids)s::bigint[], %(assets)s::text[], %(expiries)s::timestamptz[],
                    %(fingerprints)s::bytea[])
             AS o (command_id, workflow_id, account_ref, payer, payee, asset_symbol, amount, chain_id, asset,
                   expires_at, fingerprint)
        ON CONFLICT (command_id) DO NOTHING
        RETURNING command_id
        """,
        {
            "wait": str(wait_ms_max),
            "command_ids": list(columns[0]),
            "workflow_ids": list(columns[1]),
            "account_refs": list(columns[2]),
            "payers": list(columns[3]),
            "payees": list(columns[4]),
            "symbols": list(columns[5]),
            "amounts": list(columns[6]),
            "chain_ids": list(columns[7]),
            "assets": list(columns[8]),
            "expiries": list(columns[9]),
            "fingerprints": list(columns[10]),
        },
    )
    return {row["command_id"] for row in rows}


async def _read_kept(tx: ReadTx, command_ids: Sequence[str]) -> dict[str, bytes | None]:
    """What each of these commands asked for; None for a plain INSERT's, of which nobody knows."""
    rows = await tx.all(
        """
        SELECT command_id, fingerprint FROM settlement.settlement_commands
        WHERE command_id = ANY (%(command_ids)s)
        """,
        {"command_ids": command_ids},
        into=_Kept,
    )
    return {row.command_id: row.fingerprint for row in rows}


def _judge(order: Order, kept: bytes | None) -> Received | CommandReused:
    if kept != order.fingerprint:
        return CommandReused(order.command_id)
    return Received(order.command_id, replayed=True)
