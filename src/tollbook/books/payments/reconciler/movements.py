"""Money as a chain saw it move to our recipients, whatever the books say: read from Transfer logs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from tollbook.books.payments.truth import count_confirmations
from tollbook.core.chain_logs import find_block_before, find_events, pad
from tollbook.core.chains import (
    TRANSFER_TOPIC,
    Chain,
    Log,
    Receipt,
    decode_authorization_used,
    decode_transfer,
)

RECIPIENTS_AT_ONCE_MAX = 50


@dataclass(frozen=True, slots=True)
class Movement:
    """All that one transaction moved of a token from one payer to one recipient, in minor units."""

    network: str
    asset: str
    payer: str
    pay_to: str
    tx_hash: str
    block_number: int
    amount: int


class Watcher(Protocol):
    """Who can see the money move on a network. Positions are blocks' numbers, or slots'.

    All of it raises ChainUnreachable, and ChainRefused where the node does not have what is asked for.
    """

    async def find_final(self, network: str) -> int:
        """Return the last position that no reorganisation reaches."""
        ...

    async def find_position(self, network: str, moment: datetime) -> int:
        """Return the last position that is not after the moment."""
        ...

    async def find_movements(
        self, network: str, assets: Sequence[str], recipients: Sequence[str], first: int, last: int
    ) -> list[Movement]:
        """Return what the tokens' transfers moved to the recipients from position `first` to `last`."""
        ...

    async def read_transaction(self, network: str, tx_hash: str) -> list[Movement] | None:
        """Return all that a transaction moved; None where it is not on the chain, or failed."""
        ...

    async def find_nonces(self, movement: Movement) -> list[str]:
        """Return the nonces of the payer's authorizations that its transaction used."""
        ...


@dataclass(frozen=True, slots=True)
class ChainWatcher:
    """The watcher of EVM networks, by CAIP-2 network."""

    chains: Mapping[str, Chain]

    async def find_final(self, network: str) -> int:
        """See Watcher."""
        newest = await self.chains[network].get_block_number()
        return max(newest - count_confirmations(network) + 1, 0)

    async def find_position(self, network: str, moment: datetime) -> int:
        """See Watcher."""
        chain = self.chains[network]
        return await find_block_before(chain, moment, await chain.get_block_number())

    async def find_movements(
        self, network: str, assets: Sequence[str], recipients: Sequence[str], first: int, last: int
    ) -> list[Movement]:
        """See Watcher."""
        found: list[Movement] = []
        for start in range(0, len(recipients), RECIPIENTS_AT_ONCE_MAX):
            some = [pad(address) for address in recipients[start : start + RECIPIENTS_AT_ONCE_MAX]]
            events = await find_events(
                self.chains[network], assets, [TRANSFER_TOPIC, None, some], first, last
            )
            found += _add_up(
                network, ((event.transaction_hash, event.block_number, event.log) for event in events)
            )
        return found

    async def read_transaction(self, network: str, tx_hash: str) -> list[Movement] | None:
        """See Watcher."""
        receipt = await self.chains[network].get_transaction_receipt(tx_hash)
        if receipt is None or not receipt.succeeded:
            return None
        return _add_up(network, _spread(receipt))

    async def find_nonces(self, movement: Movement) -> list[str]:
        """See Watcher."""
        receipt = await self.chains[movement.network].get_transaction_receipt(movement.tx_hash)
        uses = [decode_authorization_used(log) for log in receipt.logs] if receipt is not None else []
        return [
            use.nonce
            for use in uses
            if use is not None and (use.token, use.authorizer) == (movement.asset, movement.payer)
        ]


def _spread(receipt: Receipt) -> Iterable[tuple[str, int, Log]]:
    return ((receipt.transaction_hash, receipt.block_number, log) for log in receipt.logs)


def _add_up(network: str, logs: Iterable[tuple[str, int, Log]]) -> list[Movement]:
    """One movement a transaction, token, payer and recipient. Transfers of nothing are none."""
    sums: dict[tuple[str, str, str, str], tuple[int, int]] = {}
    for tx_hash, block_number, log in logs:
        transfer = decode_transfer(log)
        if transfer is not None and transfer.amount:
            key = (tx_hash, transfer.token, transfer.sender, transfer.receiver)
            sums[key] = (block_number, sums.get(key, (0, 0))[1] + transfer.amount)
    return [
        Movement(network, asset, payer, pay_to, tx_hash, block_number, amount)
        for (tx_hash, asset, payer, pay_to), (block_number, amount) in sums.items()
    ]
