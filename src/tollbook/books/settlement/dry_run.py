"""Dry runs: what would become of commands, had they been received: checked, simulated, and nothing kept."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

from psycopg import Rollback

from tollbook.books.settlement import due, limits, validation
from tollbook.books.settlement.commands import MinorUnits
from tollbook.books.settlement.limits import LimitReached, LimitsUntold
from tollbook.books.settlement.purse import Choice, Purse, TransferReverts
from tollbook.books.settlement.requests import Order
from tollbook.books.settlement.rules import CommandUnpayable, Terms, resolve
from tollbook.books.settlement.settings import SettlementSettings
from tollbook.books.settlement.transfers import Transfer
from tollbook.books.settlement.validation import Standards
from tollbook.core import clock
from tollbook.core.chains import ChainUnreachable, find_network, is_solana
from tollbook.core.database import Database
from tollbook.core.errors import Refusal
from tollbook.core.lanes.keys import Key
from tollbook.core.lanes.node import Node
from tollbook.core.operator_keys import KEY_VARIABLE, is_solana_key, read_operator_keys

SIMULATED_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Forecast:
    """What would become of a command: it would be `sent` from `sender`, `wait`, or be `refused`; and why.

    `limits` are those that the network's worker has told, or, where none has, those of this environment.
    """

    command_id: str
    would: Literal["be sent", "wait", "be refused"]
    reason: str | None = None
    network: str | None = None
    asset: str | None = None
    payee: str | None = None
    amount_minor: MinorUnits | None = None
    sender: str | None = None
    limits: Literal["the worker's", "this environment's"] | None = None


def read_keys(settings: SettlementSettings) -> list[str]:
    """The operator's keys for EVM networks, as payments has them. Raises OperatorKeyUnusable."""
    files = [settings.facilitator_key_file] if settings.facilitator_key_file else []
    return [key for key in read_operator_keys(files, os.environ) if not is_solana_key(key)]


def list_nodes(settings: SettlementSettings) -> dict[str, str]:
    """The URLs of the EVM networks' nodes, by CAIP-2 id. Raises UnknownNetwork."""
    urls = {find_network(name).id: url for name, url in settings.rpc_urls.items()}
    return {network: url for network, url in urls.items() if not is_solana(network)}


async def simulate(
    database: Database, settings: SettlementSettings, orders: Sequence[Order]
) -> list[Forecast]:
    """What would become of each of these commands, were they all received now; at most SIMULATED_MAX.

    Nothing is written and nothing is sent. Raises UnknownNetwork, LimitMeaningless, OperatorKeyUnusable,
    DatabaseUnreachable.
    """
    if len(orders) > SIMULATED_MAX:
        raise ValueError(f"{len(orders)} commands at once, {SIMULATED_MAX} at most")
    standards, now = validation.make_standards(settings), clock.now()
    refused: dict[int, Refusal] = {}
    terms: dict[int, Terms] = {}
    for place, order in enumerate(orders):
        try:
            terms[place] = _resolve(standards, order)
        except CommandUnpayable as refusal:
            refused[place] = refusal
        if order.expires_at is not None and order.expires_at <= now:
            refused[place] = CommandUnpayable("Its time is over: it would expire.")
    told, beyond = await _take_limits(
        database, standards, {place: one for place, one in terms.items() if place not in refused}, now
    )
    refused |= beyond
    choices = await _choose(
        database,
        settings,
        {place: _transfer(orders[place], one) for place, one in terms.items() if place not in refused},
    )
    return [
        _tell(order, terms.get(place), refused.get(place) or choices.get(place), told)
        for place, order in enumerate(orders)
    ]


def _resolve(standards: Standards, order: Order) -> Terms:
    return resolve(
        standards.tables,
        chain_id=order.chain_id,
        asset_symbol=order.asset_symbol,
        asset=order.asset,
        payee=order.payee,
        amount=Decimal(order.amount),
    )


async def _take_limits(
    database: Database, standards: Standards, terms: Mapping[int, Terms], now: datetime
) -> tuple[set[str], dict[int, Refusal]]:
    """Take them as a validation would, roll it back: where the worker told his; who is refused."""
    told: set[str] = set()
    refused: dict[int, Refusal] = {}
    async with database.write() as tx:
        for place, one in sorted(terms.items(), key=lambda pair: limits.order(pair[1])):
            limit = standards.limits.get((one.network, one.asset))
            with suppress(LimitsUntold):
                limit = await limits.read_told(tx, one.network, one.asset)
                told.add(one.network)
            try:
                await limits.take(tx, limit, one, now=now)
            except LimitReached as refusal:
                refused[place] = refusal
        raise Rollback
    return told, refused


async def _choose(
    database: Database, settings: SettlementSettings, transfers: Mapping[int, Transfer]
) -> dict[int, Choice | Refusal]:
    keys, urls = read_keys(settings), list_nodes(settings)
    if not keys:
        why = Refusal(f"There is no operator's key. Set {KEY_VARIABLE}, or name a key file.")
        return dict.fromkeys(transfers, why)
    senders = [Key(key).address for key in keys]
    answers: dict[int, Choice | Refusal] = {}
    for network in dict.fromkeys(one.network for one in transfers.values()):
        there = {place: one for place, one in transfers.items() if one.network == network}
        async with database.read() as tx:
            bound = await due.find_bound(tx, network, senders)
        node = Node(network, urls[network])
        try:
            chosen = await Purse(node, senders).choose(list(there.values()), bound)
            answers |= dict(zip(there, chosen, strict=True))
        except ChainUnreachable as refusal:
            answers |= dict.fromkeys(there, refusal)
        finally:
            await node.aclose()
    return answers


def _transfer(order: Order, terms: Terms) -> Transfer:
    return Transfer(order.command_id, 0, terms.network, terms.asset, terms.payee, terms.amount_minor)


def _tell(order: Order, terms: Terms | None, answer: Choice | Refusal | None, told: set[str]) -> Forecast:
    refusal = answer.refusal if isinstance(answer, Choice) else answer
    is_final = isinstance(refusal, CommandUnpayable | LimitReached | TransferReverts)
    return Forecast(
        order.command_id,
        "be sent" if refusal is None else "be refused" if is_final else "wait",
        None if refusal is None else refusal.sentence,
        network=terms and terms.network,
        asset=terms and terms.asset,
        payee=terms and terms.payee,
        amount_minor=terms and terms.amount_minor,
        sender=answer.sender if isinstance(answer, Choice) and refusal is None else None,
        limits=terms and ("the worker's" if terms.network in told else "this environment's"),
    )
