"""What a seller does about his payment channels: see what they owe him, and fetch it.

A charge is earned when its request was answered. Claiming takes it out of the payer's reach, many channels
in one transaction, and a sweep pays a receiver all that was claimed for him. Both may always be tried again.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
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

from tollbook.books.payments.facilitator import Facilitator

CLAIMS_MAX = 50  # vouchers in one transaction


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


async def claim(storage: ChannelStorage, facilitator: Facilitator, network: str) -> list[Claim]:
    """Fetch what the channels of one network (a CAIP-2 id) owe: one Claim a receiver and token.

    What was claimed before and not swept is swept as well.
    """
    found = await asyncio.to_thread(storage.list)
    here = [stored for stored in found if _is_of(stored, network)]
    here.sort(key=_find_owner)
    return [
        await _Errand(storage, facilitator, network, *owner, list(owned)).run()
        for owner, owned in groupby(here, _find_owner)
    ]


@dataclass(frozen=True, slots=True)
class _Errand:
    storage: ChannelStorage
    facilitator: Facilitator
    network: str
    receiver: str
    token: str
    channels: Sequence[StoredChannel]

    async def run(self) -> Claim:
        config = BatchSettlementEvmSchemeServerConfig(storage=self.storage)
        manager = BatchSettlementChannelManager(
            ChannelManagerConfig(
                BatchSettlementEvmScheme(self.receiver, config),
                cast(FacilitatorClient, self.facilitator),
                self.receiver,
                self.token,
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
            receiver=self.receiver,
            token=self.token,
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


def _find_owner(stored: StoredChannel) -> tuple[str, str]:
    return stored.channel_config.receiver.lower(), stored.channel_config.token.lower()


def _is_of(stored: StoredChannel, network: str) -> bool:
    """A channel's id is a hash with the chain in it, and it is all that names the chain."""
    return compute_channel_id(stored.channel_config, network).lower() == stored.channel_id.lower()
