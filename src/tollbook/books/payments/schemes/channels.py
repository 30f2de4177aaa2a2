"""What a seller does about his payment channels: see what they owe him, and fetch it.

A charge is earned when its request was answered. Claiming takes it out of the payer's reach, many channels
in one transaction, and a sweep pays a receiver all that was claimed for him. Both may always be tried again.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from x402.mechanisms.evm.batch_settlement.errors import ERR_NOTHING_TO_SETTLE
from x402.mechanisms.evm.batch_settlement.server.channel_manager import BatchSettlementChannelManager
from x402.mechanisms.evm.batch_settlement.server.channel_manager_common import (
    ChannelManagerConfig,
    ClaimOptions,
)
from x402.mechanisms.evm.batch_settlement.server.scheme import (
    BatchSettlementEvmScheme,
    BatchSettlementEvmSchemeServerConfig,
)
from x402.mechanisms.evm.batch_settlement.server.storage import Channel as StoredChannel
from x402.mechanisms.evm.batch_settlement.server.storage import ChannelStorage
from x402.mechanisms.evm.batch_settlement.utils import compute_channel_id
from x402.server_base import FacilitatorClient

from tollbook.books.payments.facilitator.in_process import Facilitator, InProcessFacilitator
from tollbook.books.payments.schemes.batch import find_storage
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.core.database import Database, ReadTx
from tollbook.core.operator_keys import KEY_VARIABLE, read_operator_key

CLAIMS_MAX = 50  # vouchers in one transaction
OWNERS_MAX = 1_000
EVM = "eip155:"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel as its seller sees it; amounts in minor units.

    `charged` is what it earned so far, of which `claimed` cannot be taken back any more; `balance` is what
    the payer deposited and did not take back. `withdrawing_since` says that he wants the rest: claim before
    his delay is over.
    """

    channel_id: str
    payer: str
    receiver: str
    token: str
    balance: int
    charged: int
    claimed: int
    unclaimed: int
    last_request_at: datetime
    withdrawing_since: datetime | None


@dataclass(frozen=True, slots=True)
class Owner:
    """Who is paid, in which token; addresses in lower case."""

    receiver: str
    token: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What was fetched for one receiver in one token. `problem` says what did not work, if anything."""

    network: str
    receiver: str
    token: str
    vouchers: int
    amount: int
    claim_transactions: list[str]
    sweep_transaction: str | None
    problem: str | None


def list_channels(storage: ChannelStorage) -> list[Channel]:
    """Return every channel, those that owe most first."""
    return sorted(map(_show, storage.list()), key=lambda channel: -channel.unclaimed)


async def find_owners(tx: ReadTx, network: str) -> list[Owner]:
    """Return who earned by channels of a network: what is claimed for them may wait for its sweep.

    A payer's refund claims what he owes as well, and then his channel is forgotten.
    """
    return await tx.all(
        """
        SELECT to_address AS receiver, asset AS token FROM payments.x402_payments
        WHERE network = %(network)s AND scheme = 'batch-settlement' AND status <> 'failed'
        GROUP BY to_address, asset ORDER BY to_address, asset LIMIT %(owners_max)s
        """,
        {"network": network, "owners_max": OWNERS_MAX},
        into=Owner,
    )


async def claim(
    storage: ChannelStorage, facilitator: Facilitator, network: str, owners: Sequence[Owner] = ()
) -> list[Claim]:
    """Fetch what the channels of one network (a CAIP-2 id) owe: one Claim a receiver and token.

    What was claimed before and not swept is swept as well, also for `owners` who have no channel any more.
    """
    found = await asyncio.to_thread(storage.list)
    by_owner: dict[Owner, list[StoredChannel]] = {owner: [] for owner in owners}
    for stored in found:
        if _is_of(stored, network):
            by_owner.setdefault(_find_owner(stored), []).append(stored)
    return [
        await _Errand(storage, facilitator, network, owner, channels).run()
        for owner, channels in by_owner.items()
    ]


async def claim_network(database: Database, facilitator: Facilitator, network: str) -> list[Claim]:
    """Fetch what everybody earned by the channels of one network, as the books know them."""
    async with database.read() as tx:
        owners = await find_owners(tx, network)
    return await claim(find_storage(database.url), facilitator, network, owners)


async def claim_all(database: Database) -> int:
    """Fetch what the channels owe, by the operator's key of this machine; how many vouchers.

    Nothing is done where there is no key or no node: then it is somebody else's to claim.
    """
    settings = PaymentsSettings()
    nodes = {network: url for network, url in settings.rpc_urls.items() if network.startswith(EVM)}
    if not nodes or not (settings.facilitator_key_file or KEY_VARIABLE in os.environ):
        return 0
    key = read_operator_key(settings.facilitator_key_file, os.environ)
    async with aclosing(InProcessFacilitator(nodes, key, database)) as facilitator:
        done = [one for network in nodes for one in await claim_network(database, facilitator, network)]
    for one in done:
        if one.problem is not None:
            logger.warning("channels of %s on %s: %s", one.receiver, one.network, one.problem)
    return sum(one.vouchers for one in done)


@dataclass(frozen=True, slots=True)
class _Errand:
    storage: ChannelStorage
    facilitator: Facilitator
    network: str
    owner: Owner
    channels: Sequence[StoredChannel]

    async def run(self) -> Claim:
        config = BatchSettlementEvmSchemeServerConfig(storage=self.storage)
        manager = BatchSettlementChannelManager(
            ChannelManagerConfig(
                BatchSettlementEvmScheme(self.owner.receiver, config),
                cast(FacilitatorClient, self.facilitator),
                self.owner.receiver,
                self.owner.token,
                self.network,
            )
        )
        owing = [stored for stored in self.channels if _show(stored).unclaimed]
        options = ClaimOptions(CLAIMS_MAX, select_claim_channels=lambda _all, _context: owing)
        transactions: list[str] = []
        try:
            transactions = [done.transaction for done in await manager.claim(options)]
            sweep = (await manager.settle()).transaction
        except Exception as error:  # the SDK raises RuntimeError with the facilitator's reason in its text
            nothing = ERR_NOTHING_TO_SETTLE in str(error)
            return await self._report(transactions, None, None if nothing else str(error))
        return await self._report(transactions, sweep, None)

    async def _report(self, transactions: list[str], sweep: str | None, problem: str | None) -> Claim:
        """What the books say was claimed: of several batches the last may have failed."""
        now = {stored.channel_id: stored for stored in await asyncio.to_thread(self.storage.list)}
        fetched = [
            int(now[stored.channel_id].total_claimed) - int(stored.total_claimed)
            for stored in self.channels
            if stored.channel_id in now
        ]
        return Claim(
            network=self.network,
            receiver=self.owner.receiver,
            token=self.owner.token,
            vouchers=sum(amount > 0 for amount in fetched),
            amount=sum(fetched),
            claim_transactions=transactions,
            sweep_transaction=sweep,
            problem=problem,
        )


def _show(stored: StoredChannel) -> Channel:
    charged, claimed = int(stored.charged_cumulative_amount), int(stored.total_claimed)
    since = stored.withdraw_requested_at
    return Channel(
        channel_id=stored.channel_id,
        payer=stored.channel_config.payer.lower(),
        receiver=stored.channel_config.receiver.lower(),
        token=stored.channel_config.token.lower(),
        balance=int(stored.balance),
        charged=charged,
        claimed=claimed,
        unclaimed=max(charged - claimed, 0),
        last_request_at=datetime.fromtimestamp(stored.last_request_timestamp / 1000, UTC),
        withdrawing_since=datetime.fromtimestamp(since, UTC) if since else None,
    )


def _find_owner(stored: StoredChannel) -> Owner:
    return Owner(stored.channel_config.receiver.lower(), stored.channel_config.token.lower())


def _is_of(stored: StoredChannel, network: str) -> bool:
    """A channel's id is a hash with the chain in it, and it is all that names the chain."""
    known = network.startswith(EVM)
    return known and compute_channel_id(stored.channel_config, network).lower() == stored.channel_id.lower()
