"""Commands: somebody is to be paid, and how far that has come.

What may follow what; a trigger in the database holds it too, and writes each step's history and its fact:

    (new)                -> received     ingest
    received             -> validated    validate: network, asset and minor units are known, limits hold
    received, validated  -> refused      refuse
    received, validated  -> expired      expire
    received, validated  -> cancelled    cancel
    validated            -> executed     begin: the lanes may have it from now on, nothing can be taken back
    executed             -> settled      settle: the chain shows it, deep enough
    executed             -> failed       fail: surely not paid, and never will be by this round
    executed             -> cancelled    take_back: likewise, and somebody wished so (endings.py)
    failed               -> validated    retry: a new round
    settled              -> executed     reopen: a deep reorganisation took it back

In the journal a command's subject is its id, and `settled` is told as `confirmed`.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import PlainSerializer

from tollbook.books.settlement.errors import CommandNotInState, CommandUnknown
from tollbook.core.database import ReadTx, WriteTx

Status = Literal["received", "validated", "executed", "settled", "refused", "failed", "expired", "cancelled"]

PAGE_MAX = 500
MOVES_MAX = 1_000
REASON_LETTERS_MAX = 500

# JSON's numbers end at 2**53 in many readers, and its floats are no money.
MinorUnits = Annotated[int, PlainSerializer(str, return_type=str, when_used="json")]
TransactionId = Annotated[int, PlainSerializer(str, return_type=str, when_used="json")]
Amount = Annotated[Decimal, PlainSerializer(lambda amount: f"{amount:f}", return_type=str, when_used="json")]


@dataclass(frozen=True, slots=True)
class Command:
    """A command. `amount` is in whole coins, `amount_minor` in minor units, known once it is validated.

    `asset` is the token's address, None for the network's own coin (and before it is validated). `round`
    counts how often it was tried again after a failure, `attempts` the tries of this round.
    """

    command_id: str
    workflow_id: str
    account_ref: str
    payer: str | None
    payee: str | None
    asset_symbol: str | None
    amount: Amount | None
    status: Status
    last_updated: datetime
    received_at: datetime
    validated_at: datetime | None
    executed_at: datetime | None
    settled_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None
    next_attempt_at: datetime | None
    chain_id: int
    transaction_id: TransactionId | None
    round: int
    attempts: int
    decimals: int | None
    amount_minor: MinorUnits | None
    network: str | None
    asset: str | None
    tx_hash: str | None
    error: str | None

    def __post_init__(self) -> None:
        # PostgreSQL's 78-digit integers arrive as Decimal.
        if self.amount_minor is not None:
            object.__setattr__(self, "amount_minor", int(self.amount_minor))


@dataclass(frozen=True, slots=True)
class Move:
    """A step of a command's history. The first one is from nothing to `received`."""

    at: datetime
    from_status: Status | None
    to_status: Status
    reason: str | None
    tx_hash: str | None


async def validate(
    tx: WriteTx,
    command_id: str,
    *,
    network: str,
    asset: str | None,
    decimals: int,
    amount_minor: int,
    counted: bool = False,
    now: datetime,
) -> bool:
    """Enter that it can be paid, and in which minor units of what; whether it was received and in time.

    `counted` where it took something of its day's limits: that is given back where it ends without paying.
    """
    changed = await tx.execute(
        """
        UPDATE settlement.settlement_commands
        SET status = 'validated', validated_at = %(now)s, last_updated = %(now)s, next_attempt_at = %(now)s,
            network = %(network)s, asset = %(asset)s, decimals = %(decimals)s,
            amount_minor = %(amount_minor)s, counted = %(counted)s, error = NULL, attempts = 0
        WHERE command_id = %(command_id)s AND status = 'received'
          AND (expires_at IS NULL OR expires_at > %(now)s)
        """,
        {
            "command_id": command_id,
            "network": network,
            "asset": asset,
            "decimals": decimals,
            "amount_minor": Decimal(amount_minor),
            "counted": counted,
            "now": now,
        },
    )
    return changed == 1


async def refuse(tx: WriteTx, command_id: str, reason: str, *, now: datetime) -> bool:
    """Enter that it will not be paid, and why; whether nothing of it had been handed to the lanes yet."""
    changed = await tx.execute(
        """
        UPDATE settlement.settlement_commands
        SET status = 'refused', error = %(reason)s, ended_at = %(now)s, last_updated = %(now)s,
            next_attempt_at = NULL
        WHERE command_id = %(command_id)s AND status IN ('received', 'validated')
        """,
        {"command_id": command_id, "reason": reason[:REASON_LETTERS_MAX], "now": now},
    )
    return changed == 1


async def expire(tx: WriteTx, command_id: str, *, now: datetime) -> bool:
    """Enter that its time is over; whether it was, and nothing had been handed to the lanes yet."""
    changed = await tx.execute(
        """
        UPDATE settlement.settlement_commands
        SET status = 'expired', error = NULL, ended_at = %(now)s, last_updated = %(now)s,
            next_attempt_at = NULL
        WHERE command_id = %(command_id)s AND status IN ('received', 'validated') AND expires_at <= %(now)s
        """,
        {"command_id": command_id, "now": now},
    )
    return changed == 1


async def begin(tx: WriteTx, command_id: str, *, next_attempt_at: datetime, now: datetime) -> bool:
    """Enter that the lanes may have it from now on; whether it was validated and in time.

    To be committed before they are asked: whoever would cancel it comes before this, or too late. Until
    `next_attempt_at` it is in the hands of who began it.
    """
    changed = await tx.execute(
        """
        UPDATE settlement.settlement_commands
        SET status = 'executed', executed_at = %(now)s, last_updated = %(now)s,
            next_attempt_at = %(next_attempt_at)s, error = NULL, attempts = 0
        WHERE command_id = %(command_id)s AND status = 'validated'
          AND (expires_at IS NULL OR expires_at > %(now)s)
        """,
        {"command_id": command_id, "next_attempt_at": next_attempt_at, "now": now},
    )
    return changed == 1


async def note_sent(
    tx: WriteTx,
    command_id: str,
    *,
    tx_hash: str,
    transaction_id: int,
    next_attempt_at: datetime,
    now: datetime,
) -> bool:
    """Name the transaction that pays it, by the hash it has now; whether it is executed and not settled."""
    changed = await tx.execute(
        """
        UPDATE settlement.settlement_commands
        SET tx_hash = %(tx_hash)s, transaction_id = %(transaction_id)s, error = NULL,
            next_attempt_at = %(next_attempt_at)s, last_updated = %(now)s
        WHERE command_id = %(command_id)s AND status = 'executed'
        """,
        {
            "command_id": command_id,
            "tx_hash": tx_hash,
            "transaction_id": transaction_id,
            "next_attempt_at": next_attempt_at,
            "now": now,
        },
    )
    return changed == 1


async def postpone(
    tx: WriteTx,
    command_id: str,
    error: str | None,
    *,
    next_attempt_at: datetime,
    counted: bool = True,
    reverted: bool = False,
    now: datetime,
) -> bool:
    """Leave it as it is and look at it again then; whether it was still on its way.

    One attempt older where that is `counted`: not while it waits for money. `reverted` where the transfer's
    simulation reverts: that is counted apart from what it waits for.
    """
    changed = await tx.execute(
        """
        UPDATE settlement.settlement_commands
        SET attempts = attempts + %(counted)s::integer, reverts = reverts + %(reverted)s::integer,
            error = %(error)s, next_attempt_at = %(next_attempt_at)s, last_updated = %(now)s
        WHERE command_id = %(command_id)s AND status IN ('received', 'validated', 'executed')
        """,
        {
            "command_id": command_id,
            "error": None if error is None else error[:REASON_LETTERS_MAX],
            "next_attempt_at": next_attempt_at,
            "counted": counted,
            "reverted": reverted,
            "now": now,
        },
    )
    return changed == 1


async def settle(
    tx: WriteTx, command_id: str, *, tx_hash: str, transaction_id: int | None = None, now: datetime
) -> bool:
    """Enter that the chain shows it, deep enough, in this transaction; whether it was executed.

    `transaction_id` where the lanes say so too: should they lose it, it is opened again.
    """
    changed = await tx.execute(
        """
        UPDATE settlement.settlement_commands
        SET status = 'settled', tx_hash = %(tx_hash)s, transaction_id = %(transaction_id)s, error = NULL,
            settled_at = %(now)s, ended_at = %(now)s, last_updated = %(now)s, next_attempt_at = NULL
        WHERE command_id = %(command_id)s AND status = 'executed'
        """,
        {"command_id": command_id, "tx_hash": tx_hash, "transaction_id": transaction_id, "now": now},
    )
    return changed == 1


async def fail(tx: WriteTx, command_id: str, error: str, *, now: datetime) -> bool:
    """Enter that nothing was paid and nothing will be by this round; whether it was executed.

    Only where that is sure: what is merely unknown stays executed.
    """
    changed = await tx.execute(
        """
        UPDATE settlement.settlement_commands
        SET status = 'failed', error = %(error)s, ended_at = %(now)s, last_updated = %(now)s,
            next_attempt_at = NULL
        WHERE command_id = %(command_id)s AND status = 'executed'
        """,
        {"command_id": command_id, "error": error[:REASON_LETTERS_MAX], "now": now},
    )
    return changed == 1


async def reopen(tx: WriteTx, command_id: str, reason: str, *, tx_hash: str, now: datetime) -> bool:
    """Enter that the chain took back what had settled it; whether it was settled by that."""
    changed = await tx.execute(
        """
        UPDATE settlement.settlement_commands
        SET status = 'executed', error = %(reason)s, settled_at = NULL, ended_at = NULL,
            last_updated = %(now)s, next_attempt_at = %(now)s
        WHERE command_id = %(command_id)s AND status = 'settled' AND tx_hash = %(tx_hash)s
        """,
        {"command_id": command_id, "reason": reason[:REASON_LETTERS_MAX], "tx_hash": tx_hash, "now": now},
    )
    return changed == 1


async def cancel(tx: WriteTx, command_id: str, reason: str | None, *, now: datetime) -> bool:
    """Take it back before the lanes have it; whether that was so. What was begun: see endings.py."""
    changed = await tx.execute(
        """
        UPDATE settlement.settlement_commands
        SET status = 'cancelled', error = %(reason)s, ended_at = %(now)s, last_updated = %(now)s,
            next_attempt_at = NULL
        WHERE command_id = %(command_id)s AND status IN ('received', 'validated')
        """,
        {
            "command_id": command_id,
            "reason": None if reason is None else reason[:REASON_LETTERS_MAX],
            "now": now,
        },
    )
    return changed == 1


async def ask_back(tx: WriteTx, command_id: str, reason: str, *, now: datetime) -> bool:
    """Enter that it is to be cancelled as soon as nothing of it can come; whether it was executed."""
    changed = await tx.execute(
        """
        UPDATE settlement.settlement_commands
        SET cancelling = coalesce(nullif(%(reason)s, ''), cancelling, ''), last_updated = %(now)s
        WHERE command_id = %(command_id)s AND status = 'executed'
        """,
        {"command_id": command_id, "reason": reason[:REASON_LETTERS_MAX], "now": now},
    )
    return changed == 1


async def take_back(tx: WriteTx, command_id: str, *, now: datetime) -> bool:
    """Cancel one that was begun, as it was asked; whether it was executed.

    Only where nothing of it was sent, or can come any more: what is merely unknown stays executed.
    """
    changed = await tx.execute(
        """
        UPDATE settlement.settlement_commands
        SET status = 'cancelled', error = nullif(cancelling, ''), executed_at = NULL, transaction_id = NULL,
            tx_hash = NULL, ended_at = %(now)s, last_updated = %(now)s, next_attempt_at = NULL
        WHERE command_id = %(command_id)s AND status = 'executed' AND cancelling IS NOT NULL
        """,
        {"command_id": command_id, "now": now},
    )
    return changed == 1


async def retry(tx: WriteTx, command_id: str, *, now: datetime) -> Command:
    """Try it again after a failure, in a new round. Raises CommandNotInState, CommandUnknown.

    One whose time is over stays failed. Its limits are to be taken again: see limits.retry.
    """
    changed = await tx.execute(
        """
        UPDATE settlement.settlement_commands
        SET status = 'validated', validated_at = %(now)s, round = round + 1, attempts = 0, reverts = 0,
            error = NULL, executed_at = NULL, tx_hash = NULL, transaction_id = NULL, ended_at = NULL,
            cancelling = NULL, counted = false, last_updated = %(now)s, next_attempt_at = %(now)s
        WHERE command_id = %(command_id)s AND status = 'failed'
          AND (expires_at IS NULL OR expires_at > %(now)s)
        """,
        {"command_id": command_id, "now": now},
    )
    command = await get(tx, command_id)
    if changed != 1:
        raise CommandNotInState(command_id, command.status, "tried again")
    return command


async def note_counted(tx: WriteTx, command_id: str) -> None:
    """Enter that one that is tried again took something of its day's limits."""
    await tx.execute(
        """
        UPDATE settlement.settlement_commands SET counted = true
        WHERE command_id = %(command_id)s AND status = 'validated'
        """,
        {"command_id": command_id},
    )


async def get(tx: ReadTx, command_id: str) -> Command:
    """One command. Raises CommandUnknown."""
    command = await find(tx, command_id)
    if command is None:
        raise CommandUnknown(command_id)
    return command


async def find(tx: ReadTx, command_id: str) -> Command | None:
    """One command, None where there is none of this id."""
    return await tx.maybe(
        """
        SELECT command_id, workflow_id, account_ref, payer, payee, asset_symbol,
               trim_scale(amount_numeric) AS amount, status, last_updated, received_at, validated_at,
               executed_at, settled_at, ended_at, expires_at, next_attempt_at, chain_id, transaction_id,
               round, attempts, decimals, amount_minor, network, asset, tx_hash, error
        FROM settlement.settlement_commands WHERE command_id = %(command_id)s
        """,
        {"command_id": command_id},
        into=Command,
    )


async def page(
    tx: ReadTx,
    *,
    after: tuple[datetime, str] | None = None,
    limit: int = PAGE_MAX,
    status: Status | None = None,
    workflow_id: str | None = None,
    account_ref: str | None = None,
    payee: str | None = None,
    asset_symbol: str | None = None,
) -> list[Command]:
    """Commands, newest first, that follow (received_at, command_id); at most `limit`, never over PAGE_MAX."""
    return await tx.all(
        """
        SELECT command_id, workflow_id, account_ref, payer, payee, asset_symbol,
               trim_scale(amount_numeric) AS amount, status, last_updated, received_at, validated_at,
               executed_at, settled_at, ended_at, expires_at, next_attempt_at, chain_id, transaction_id,
               round, attempts, decimals, amount_minor, network, asset, tx_hash, error
        FROM settlement.settlement_commands
        WHERE (%(after_at)s::timestamptz IS NULL
               OR (received_at, command_id) < (%(after_at)s::timestamptz, %(after_id)s::varchar))
          AND (%(status)s::varchar IS NULL OR status = %(status)s)
          AND (%(workflow_id)s::varchar IS NULL OR workflow_id = %(workflow_id)s)
          AND (%(account_ref)s::varchar IS NULL OR account_ref = %(account_ref)s)
          AND (%(payee)s::varchar IS NULL OR payee = %(payee)s)
          AND (%(asset_symbol)s::varchar IS NULL OR asset_symbol = %(asset_symbol)s)
        ORDER BY received_at DESC, command_id DESC LIMIT %(limit)s
        """,
        {
            "after_at": None if after is None else after[0],
            "after_id": None if after is None else after[1],
            "limit": min(limit, PAGE_MAX),
            "status": status,
            "workflow_id": workflow_id,
            "account_ref": account_ref,
            "payee": payee,
            "asset_symbol": asset_symbol,
        },
        into=Command,
    )


async def list_moves(tx: ReadTx, command_id: str) -> list[Move]:
    """A command's history, oldest first, at most MOVES_MAX; empty where there is none of this id."""
    return await tx.all(
        """
        SELECT at, from_status, to_status, reason, tx_hash
        FROM (
            SELECT 0 AS move_id, received_at AS at, NULL AS from_status, 'received' AS to_status,
                   NULL AS reason, NULL AS tx_hash
            FROM settlement.settlement_commands WHERE command_id = %(command_id)s
            UNION ALL
            SELECT move_id, at, from_status, to_status, reason, tx_hash
            FROM settlement.command_moves WHERE command_id = %(command_id)s) AS history
        ORDER BY move_id LIMIT %(limit)s
        """,
        {"command_id": command_id, "limit": MOVES_MAX},
        into=Move,
    )
