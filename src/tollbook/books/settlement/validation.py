"""Validation: what was received is checked against what is known and allowed, without asking anybody."""

from dataclasses import dataclass
from datetime import datetime

from tollbook.books.settlement import commands, due, limits
from tollbook.books.settlement.due import Due
from tollbook.books.settlement.limits import LimitReached, LimitTable
from tollbook.books.settlement.rules import CommandUnpayable, Tables, Terms, make_tables, resolve
from tollbook.books.settlement.settings import SettlementSettings
from tollbook.core.database import Database, WriteTx

VALIDATED_AT_ONCE_MAX = 200
EXPIRED_AT_ONCE_MAX = 500


@dataclass(frozen=True, slots=True)
class Standards:
    """The assets that are known, and how much of them may go."""

    tables: Tables
    limits: LimitTable


def make_standards(settings: SettlementSettings) -> Standards:
    """What the settings come to. Raises UnknownNetwork, MalformedAddress, LimitMeaningless."""
    tables = make_tables(settings)
    return Standards(tables, limits.make_table(settings, tables))


async def validate_due(database: Database, standards: Standards, now: datetime) -> int:
    """Validate or refuse those that were received; how many there were. Raises DatabaseUnreachable."""
    async with database.write() as tx:
        dues = await due.find_received(tx, now, VALIDATED_AT_ONCE_MAX)
        resolved = [(one, _resolve(standards, one)) for one in dues]
        for one, terms in sorted(resolved, key=lambda pair: _order(pair[1])):
            await _validate(tx, standards, one, terms, now)
    return len(dues)


async def expire_due(database: Database, now: datetime) -> int:
    """Expire those whose time is over and of which the lanes have nothing; how many there were."""
    async with database.read() as tx:
        over = await due.find_over(tx, now, EXPIRED_AT_ONCE_MAX)
    for command_id in over:
        async with database.statement() as tx:  # each gives its limits back, and holds no other's
            await commands.expire(tx, command_id, now=now)
    return len(over)


def _resolve(standards: Standards, one: Due) -> Terms | CommandUnpayable:
    try:
        return resolve(
            standards.tables,
            chain_id=one.chain_id,
            asset_symbol=one.asset_symbol,
            asset=one.asset,
            payee=one.payee,
            amount=one.amount,
        )
    except CommandUnpayable as refusal:
        return refusal


def _order(terms: Terms | CommandUnpayable) -> tuple[str, str, str]:
    return limits.order(terms) if isinstance(terms, Terms) else ("", "", "")


async def _validate(
    tx: WriteTx, standards: Standards, one: Due, terms: Terms | CommandUnpayable, now: datetime
) -> None:
    if one.is_over(now):
        await commands.expire(tx, one.command_id, now=now)
        return
    if isinstance(terms, CommandUnpayable):
        await commands.refuse(tx, one.command_id, terms.sentence, now=now)
        return
    try:
        counted = await limits.take(tx, standards.limits.get((terms.network, terms.asset)), terms, now=now)
    except LimitReached as refusal:
        await commands.refuse(tx, one.command_id, refusal.sentence, now=now)
        return
    await commands.validate(
        tx,
        one.command_id,
        network=terms.network,
        asset=terms.asset,
        decimals=terms.decimals,
        amount_minor=terms.amount_minor,
        counted=counted,
        now=now,
    )
