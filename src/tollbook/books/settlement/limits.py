"""Limits: how much may go by one command, to one payee in a day, and in a day at all.

What a command takes is counted in settlement.spending by a conditional upsert, in the transaction that
validates it: however many validate at once, no day has more than its limit. A trigger gives back what was
counted where the command ends without paying. A day is one of UTC: the one of validated_at.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import ClassVar

from psycopg import Rollback
from psycopg.types.json import Jsonb

from tollbook.books.settlement import commands
from tollbook.books.settlement.commands import Command
from tollbook.books.settlement.rules import Tables, Terms
from tollbook.books.settlement.settings import SettlementSettings
from tollbook.core.chains import find_network
from tollbook.core.database import ReadTx, WriteTx
from tollbook.core.errors import Refusal

ALL_PAYEES = ""
COIN = ""  # the network's own, where tokens have their addresses


class LimitReached(Refusal):
    """The command would go over a limit. Nothing of it was taken."""

    reason: ClassVar[str] = "limit-reached"
    status: ClassVar[int] = 422


class LimitsUntold(Refusal):
    """No worker has said which limits it has on the network. Nothing was changed."""

    reason: ClassVar[str] = "limits-untold"
    status: ClassVar[int] = 503


class LimitMeaningless(Refusal):
    """A limit names an asset, or a network, that is not known here: it would hold nothing."""

    reason: ClassVar[str] = "limit-meaningless"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, slots=True)
class Limit:
    """The most minor units of an asset that may go; None is no limit."""

    command: int | None
    payee_day: int | None
    day: int | None


LimitTable = Mapping[tuple[str, str | None], Limit]  # by network and asset


def make_table(settings: SettlementSettings, tables: Tables) -> LimitTable:
    """The settings' limits in minor units. Raises LimitMeaningless, UnknownNetwork."""
    found: dict[tuple[str, str | None], Limit] = {}
    for name, by_symbol in settings.settlement_limits.items():
        network = find_network(name).id
        if network not in tables.assets:
            continue  # nothing is paid there from here
        for symbol, limits in by_symbol.items():
            asset = tables.assets[network].get(symbol)
            if asset is None:
                raise LimitMeaningless(
                    f"TOLLBOOK_SETTLEMENT_LIMITS names {symbol} on {name}, which is not known there. "
                    f"Known: {', '.join(tables.assets[network])}."
                )
            in_minor = [_scale(one, asset.decimals) for one in (limits.command, limits.payee_day, limits.day)]
            found[network, asset.address] = Limit(*in_minor)
    return found


def order(terms: Terms) -> tuple[str, str, str]:
    """The order in which everybody takes limits: two that take the same ones never wait for each other."""
    return terms.network, terms.asset or COIN, terms.payee


def check_command(limit: Limit | None, terms: Terms) -> None:
    """Return if one command may ask for so much. Raises LimitReached."""
    if limit is not None and limit.command is not None and terms.amount_minor > limit.command:
        raise LimitReached(
            f"{terms.amount_minor} minor units are above the limit of one command, {limit.command}."
        )


async def take(tx: WriteTx, limit: Limit | None, terms: Terms, *, now: datetime) -> bool:
    """Count what a command takes, all of it or nothing; False where no day is limited. Raises LimitReached.

    It locks the sums of all payees before those of one: whoever takes several in a transaction takes them in
    the order of network, asset and payee.
    """
    check_command(limit, terms)
    if limit is None or (limit.day is None and limit.payee_day is None):
        return False
    most = {ALL_PAYEES: limit.day, terms.payee: limit.payee_day}
    full: list[str] = []
    async with tx.connection.transaction():
        for payee, limit_of_day in most.items():
            if not await _add(tx, payee, limit_of_day, terms, now):
                full.append(payee)
                raise Rollback
    if full:
        whom = f"to {terms.payee}" if full[0] else "to all payees"
        raise LimitReached(
            f"{terms.amount_minor} minor units more {whom} would be above the day's limit, {most[full[0]]}."
        )
    return True


async def tell(tx: WriteTx, networks: Iterable[str], table: LimitTable, *, now: datetime) -> None:
    """Write down which limits hold on the networks that are served here: what is tried again keeps them."""
    for network in sorted(networks):
        limits = {asset or COIN: asdict(limit) for (where, asset), limit in table.items() if where == network}
        await tx.execute(
            """
            INSERT INTO settlement.network_limits (network, told_at, limits)
            VALUES (%(network)s, %(now)s, %(limits)s)
            ON CONFLICT (network) DO UPDATE SET told_at = excluded.told_at, limits = excluded.limits
            """,
            {"network": network, "now": now, "limits": Jsonb(limits)},
        )


async def read_told(tx: ReadTx, network: str, asset: str | None) -> Limit | None:
    """The limit that the worker has on an asset, None where it has none. Raises LimitsUntold."""
    told = await tx.value(
        "SELECT limits FROM settlement.network_limits WHERE network = %(network)s", {"network": network}
    )
    if told is None:
        raise LimitsUntold(
            f"No worker that serves {network} has said which limits hold there. Nothing was changed: start "
            "tollbook worker, then try again."
        )
    limit = told.get(asset or COIN)
    return None if limit is None else Limit(**limit)


async def retry(tx: WriteTx, command_id: str, *, now: datetime) -> Command:
    """Try a failed command again, within the limits that the worker has.

    Raises LimitReached, LimitsUntold, and what commands.retry raises.
    """
    command = await commands.retry(tx, command_id, now=now)
    assert command.network is not None
    assert command.amount_minor is not None
    assert command.payee is not None
    terms = Terms(
        command.network, command.asset, command.decimals or 0, command.amount_minor, command.payee.lower()
    )
    if await take(tx, await read_told(tx, command.network, command.asset), terms, now=now):
        await commands.note_counted(tx, command_id)
    return command


async def forget(tx: WriteTx, *, now: datetime, limit: int) -> int:
    """Delete the sums of days that are over, at most so many; how many. Nothing is counted for them any more.

    Yesterday's stay: another machine's clock may not be there yet.
    """
    return await tx.execute(
        """
        DELETE FROM settlement.spending s WHERE s.ctid = ANY(ARRAY(
            SELECT o.ctid FROM settlement.spending o WHERE o.day < %(yesterday)s
            LIMIT %(limit)s FOR UPDATE SKIP LOCKED))  -- what is being given back goes the next time
        """,
        {"yesterday": now.date() - timedelta(days=1), "limit": limit},
    )


async def _add(tx: WriteTx, payee: str, most: int | None, terms: Terms, now: datetime) -> bool:
    """Whether there was room."""
    if most is not None and terms.amount_minor > most:
        return False
    added = await tx.execute(
        """
        INSERT INTO settlement.spending AS s (network, asset, payee, day, amount_minor)
        VALUES (%(network)s, %(asset)s, %(payee)s, %(day)s, %(amount_minor)s)
        ON CONFLICT (network, asset, payee, day) DO UPDATE
            SET amount_minor = s.amount_minor + excluded.amount_minor
            WHERE %(most)s::numeric IS NULL OR s.amount_minor + excluded.amount_minor <= %(most)s::numeric
        """,
        {
            "network": terms.network,
            "asset": terms.asset or COIN,
            "payee": payee,
            "day": now.date(),
            "amount_minor": Decimal(terms.amount_minor),
            "most": None if most is None else Decimal(most),
        },
    )
    return added == 1


def _scale(amount: Decimal | None, decimals: int) -> int | None:
    return None if amount is None else int(amount.scaleb(decimals))
