"""What is due: the commands that the worker has to look at, by what is to be done with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from tollbook.books.settlement.transfers import PURPOSE, Transfer, name_purpose
from tollbook.core.database import ReadTx, WriteTx
from tollbook.core.lanes import Transaction, transactions

DUE_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Due:
    """A command that is on its way, as far as the worker cares."""

    command_id: str
    status: str
    round: int
    attempts: int
    reverts: int
    payee: str | None
    asset_symbol: str | None
    amount: Decimal | None
    chain_id: int
    network: str | None
    asset: str | None
    amount_minor: Decimal | None
    received_at: datetime
    expires_at: datetime | None
    cancelling: str | None
    transaction_id: int | None
    tx_hash: str | None

    @property
    def transfer(self) -> Transfer:
        """What it asks for, once it is validated."""
        assert self.network is not None
        assert self.payee is not None
        assert self.amount_minor is not None
        return Transfer(
            self.command_id, self.round, self.network, self.asset, self.payee.lower(), int(self.amount_minor)
        )

    def is_over(self, now: datetime) -> bool:
        """Whether its time is."""
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True)
class Confirmed:
    """An executed command whose transaction is deep enough in the chain."""

    due: Due
    sender: str
    hash: str
    block_hash: str


@dataclass(frozen=True, slots=True)
class TakenBack:
    """A settled command, and the transaction that had settled it, which is on the chain no more."""

    command_id: str
    tx_hash: str


async def find_received(tx: WriteTx, now: datetime, limit: int) -> list[Due]:
    """Those to be validated, in the order in which limits are taken; nobody else has them meanwhile."""
    return await tx.all(
        """
        SELECT command_id, status, round, attempts, reverts, payee, asset_symbol,
               trim_scale(amount_numeric) AS amount, chain_id, network, asset, amount_minor, received_at,
               expires_at, cancelling, transaction_id, tx_hash
        FROM settlement.settlement_commands
        WHERE status = 'received' AND next_attempt_at <= %(now)s
        ORDER BY network, next_attempt_at  -- no network yet: the index's order, or all of them are sorted
        LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        """,
        {"now": now, "limit": min(limit, DUE_MAX)},
        into=Due,
    )


async def find(tx: ReadTx, status: str, network: str, now: datetime, limit: int) -> list[Due]:
    """Those of a network to be begun (validated), or to be looked after (executed)."""
    return await tx.all(
        """
        SELECT command_id, status, round, attempts, reverts, payee, asset_symbol,
               trim_scale(amount_numeric) AS amount, chain_id, network, asset, amount_minor, received_at,
               expires_at, cancelling, transaction_id, tx_hash
        FROM settlement.settlement_commands
        WHERE status = %(status)s AND network = %(network)s AND next_attempt_at <= %(now)s
        ORDER BY next_attempt_at LIMIT %(limit)s
        """,
        {"status": status, "network": network, "now": now, "limit": min(limit, DUE_MAX)},
        into=Due,
    )


async def find_over(tx: ReadTx, now: datetime, limit: int) -> list[str]:
    """Those whose time is over before anything of them was handed to the lanes."""
    rows = await tx.dicts(
        """
        SELECT command_id FROM settlement.settlement_commands
        WHERE status IN ('received', 'validated') AND expires_at <= %(now)s
        ORDER BY expires_at LIMIT %(limit)s
        """,
        {"now": now, "limit": limit},
    )
    return [row["command_id"] for row in rows]


async def find_confirmed(tx: ReadTx, network: str, limit: int) -> list[Confirmed]:
    """Executed commands of which the lanes say that their transactions are final."""
    rows = await tx.dicts(
        """
        SELECT c.command_id, c.status, c.round, c.attempts, c.reverts, c.payee, c.asset_symbol,
               trim_scale(c.amount_numeric) AS amount, c.chain_id, c.network, c.asset, c.amount_minor,
               c.received_at, c.expires_at, c.cancelling, c.transaction_id, c.tx_hash,
               t.sender, t.hash, t.block_hash
        FROM settlement.settlement_commands c
        JOIN core.transactions t ON t.transaction_id = c.transaction_id
        WHERE c.status = 'executed' AND c.network = %(network)s AND c.next_attempt_at IS NOT NULL
          AND t.status = 'mined' AND t.confirmed_at IS NOT NULL
        ORDER BY c.next_attempt_at LIMIT %(limit)s
        """,
        {"network": network, "limit": limit},
    )
    return [
        Confirmed(sender=row.pop("sender"), hash=row.pop("hash"), block_hash=row.pop("block_hash"),
                  due=Due(**row))
        for row in rows
    ]  # fmt: skip


async def find_taken_back(tx: ReadTx, network: str, limit: int) -> list[TakenBack]:
    """Settled commands whose transactions were final, and are on the chain no more."""
    return await tx.all(
        """
        SELECT c.command_id, c.tx_hash
        FROM core.transactions t
        JOIN settlement.settlement_commands c
          ON c.command_id = regexp_replace(t.purpose, '^command:[0-9]+:', '')
         AND c.transaction_id = t.transaction_id
        WHERE t.network = %(network)s AND t.status = 'lost' AND t.confirmed_at IS NULL
          AND starts_with(t.purpose, 'command:') AND c.status = 'settled' AND c.tx_hash = t.hash
        LIMIT %(limit)s
        """,
        {"network": network, "limit": limit},
        into=TakenBack,
    )


async def find_forgone(tx: ReadTx, limit: int) -> list[TakenBack]:
    """Settled commands whose transactions were taken back, and can never come back by now."""
    return await tx.all(
        """
        SELECT c.command_id, c.tx_hash
        FROM core.transactions t
        JOIN settlement.settlement_commands c
          ON c.command_id = regexp_replace(t.purpose, '^command:[0-9]+:', '')
         AND c.transaction_id = t.transaction_id
        WHERE t.status = 'dropped' AND starts_with(t.purpose, 'command:') AND c.status = 'settled'
          AND c.tx_hash = t.hash
        LIMIT %(limit)s
        """,
        {"limit": limit},
        into=TakenBack,
    )


async def find_transactions(tx: ReadTx, dues: Sequence[Due]) -> dict[str, list[Transaction]]:
    """By command, what the lanes have of each of its rounds."""
    owners = {name_purpose(one.command_id, nth): one for one in dues for nth in range(one.round + 1)}
    found: dict[str, list[Transaction]] = {}
    for transaction in await transactions.find(tx, purposes=list(owners)) if owners else []:
        found.setdefault(owners[transaction.purpose].command_id, []).append(transaction)
    return found


async def find_forgotten(tx: ReadTx, network: str, used: Mapping[str, int]) -> datetime | None:
    """When the last transaction was made before one that these books do not know; by account, its count."""
    return await tx.value(
        """
        SELECT min(k.created_at) FROM (
            SELECT t.created_at, t.nonce,
                   lead(t.nonce, 1, u.used) OVER (PARTITION BY t.sender ORDER BY t.nonce) AS next_nonce
            FROM unnest(%(senders)s::text[], %(used)s::bigint[]) AS u (sender, used)
            JOIN core.transactions t ON t.sender = u.sender AND t.nonce < u.used
            WHERE t.network = %(network)s AND t.status NOT IN ('lost', 'dropped') AND t.nonce IS NOT NULL
        ) AS k WHERE k.next_nonce > k.nonce + 1
        """,
        {"network": network, "senders": list(used), "used": list(used.values())},
    )


async def find_bound(
    tx: ReadTx, network: str, senders: Sequence[str], besides: Sequence[str] = ()
) -> dict[tuple[str, str | None], list[int]]:
    """What is begun of each of the accounts, by asset. What has no account yet counts for each.

    First the sum of what is on its way, then the amounts that wait, the smaller ones first.
    """
    rows = await tx.dicts(
        """
        SELECT s.sender, c.asset, coalesce(sum(c.amount_minor) FILTER (WHERE t.status <> 'dropped'), 0)
               || array_agg(c.amount_minor ORDER BY c.amount_minor)
                  FILTER (WHERE t.status IS NULL OR t.status = 'dropped') AS amounts
        FROM settlement.settlement_commands c
        LEFT JOIN core.transactions t ON t.purpose = %(prefix)s::text || c.round || ':' || c.command_id
        JOIN unnest(%(senders)s::text[]) AS s (sender) ON s.sender = coalesce(t.sender, s.sender)
        WHERE c.status = 'executed' AND c.network = %(network)s AND c.next_attempt_at IS NOT NULL
          AND c.cancelling IS NULL AND (t.status IS NULL OR t.status <> 'mined')
          AND c.command_id <> ALL (%(besides)s::varchar[])
        GROUP BY s.sender, c.asset
        """,
        {"network": network, "prefix": PURPOSE, "senders": list(senders), "besides": list(besides)},
    )
    return {(row["sender"], row["asset"]): [int(one) for one in row["amounts"]] for row in rows}


async def count_open(tx: ReadTx, network: str, senders: Sequence[str]) -> int:
    """How many transactions of the accounts wait for blocks, whoever wanted them."""
    return await tx.value(
        """
        SELECT count(*) FROM core.transactions
        WHERE network = %(network)s AND sender = ANY (%(senders)s::text[])
          AND status IN ('reserved', 'signed', 'sent')
        """,
        {"network": network, "senders": list(senders)},
    )


async def has_unfinished(tx: ReadTx, network: str) -> bool:
    """Whether the lanes have anything there that is not final, whoever wanted it."""
    return await tx.value(
        """
        SELECT EXISTS (
            SELECT FROM core.transactions
            WHERE network = %(network)s AND confirmed_at IS NULL AND status <> 'dropped'
        )
        """,
        {"network": network},
    )


async def get(tx: WriteTx, command_id: str) -> Due:
    """One command; held until the transaction ends."""
    return await tx.one(
        """
        SELECT command_id, status, round, attempts, reverts, payee, asset_symbol,
               trim_scale(amount_numeric) AS amount, chain_id, network, asset, amount_minor, received_at,
               expires_at, cancelling, transaction_id, tx_hash
        FROM settlement.settlement_commands WHERE command_id = %(command_id)s FOR UPDATE
        """,
        {"command_id": command_id},
        into=Due,
    )


async def get_error(tx: ReadTx, command_id: str) -> str | None:
    """What went wrong last."""
    return await tx.value(
        "SELECT error FROM settlement.settlement_commands WHERE command_id = %(command_id)s",
        {"command_id": command_id},
    )


async def is_final(tx: ReadTx, one: Confirmed) -> bool:
    """Whether the lanes still say so: the chain may have taken it back meanwhile."""
    return await tx.value(
        """
        SELECT EXISTS (
            SELECT FROM core.transactions
            WHERE transaction_id = %(transaction_id)s AND hash = %(hash)s AND block_hash = %(block_hash)s
              AND status = 'mined' AND confirmed_at IS NOT NULL
        )
        """,
        {"transaction_id": one.due.transaction_id, "hash": one.hash, "block_hash": one.block_hash},
    )


async def lock(tx: WriteTx, dues: Sequence[Due]) -> list[Due]:
    """Those that are still in the same status and round; held until the transaction ends.

    A worker that was slow must not end a round that it knows nothing of.
    """
    rows = await tx.dicts(
        """
        SELECT command_id, status, round FROM settlement.settlement_commands
        WHERE command_id = ANY (%(ids)s::varchar[]) ORDER BY command_id FOR UPDATE
        """,
        {"ids": [due.command_id for due in dues]},
    )
    held = {(row["command_id"], row["status"], row["round"]) for row in rows}
    return [due for due in dues if (due.command_id, due.status, due.round) in held]


async def claim(tx: WriteTx, dues: Sequence[Due], *, until: datetime, now: datetime) -> list[Due]:
    """Those that nobody else has taken meanwhile; they are ours until then."""
    held = await lock(tx, dues)
    rows = await tx.dicts(
        """
        UPDATE settlement.settlement_commands SET next_attempt_at = %(until)s
        WHERE command_id = ANY (%(ids)s::varchar[]) AND status = 'executed' AND next_attempt_at <= %(now)s
        RETURNING command_id
        """,
        {"ids": [due.command_id for due in held], "until": until, "now": now},
    )
    claimed = {row["command_id"] for row in rows}
    return [due for due in held if due.command_id in claimed]
