"""Money as Solana saw it move to our recipients, whatever the books say: read from token balances."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tollbook.books.payments.reconciler.movements import Movement
from tollbook.books.payments.solana.node import Landing, SolanaNode
from tollbook.books.payments.solana.truth import find_accounts


@dataclass(frozen=True, slots=True)
class SolanaWatcher:
    """The watcher of Solana's networks, by CAIP-2 network. Positions are slots; see movements.Watcher."""

    nodes: Mapping[str, SolanaNode]

    async def find_final(self, network: str) -> int:
        """See Watcher."""
        return (await self.nodes[network].get_final()).slot

    async def find_position(self, network: str, moment: datetime) -> int:
        """See Watcher: a slot that is surely not after the moment, if not the last of them."""
        return await self.nodes[network].find_slot_before(moment)

    async def find_movements(
        self, network: str, assets: Sequence[str], recipients: Sequence[str], first: int, last: int
    ) -> list[Movement]:
        """See Watcher."""
        node = self.nodes[network]
        found: dict[str, Movement] = {}
        for asset in assets:
            for recipient in recipients:
                for account in find_accounts(recipient, asset):
                    for sighting in await node.read_history(account, first, as_of=last):
                        if not sighting.succeeded or sighting.slot > last:
                            continue
                        for movement in await self._read(network, sighting.signature):
                            if (movement.asset, movement.pay_to) == (asset, recipient):
                                found[f"{sighting.signature}:{asset}:{recipient}:{movement.payer}"] = movement
        return list(found.values())

    async def read_transaction(self, network: str, tx_hash: str) -> list[Movement] | None:
        """See Watcher."""
        landing = await self.nodes[network].find_landing(tx_hash, "confirmed")
        if landing is None or landing.error is not None:
            return None
        return _list_movements(network, tx_hash, landing)

    async def find_nonces(self, movement: Movement) -> list[str]:
        """See Watcher: the message itself is what was authorized."""
        landing = await self.nodes[movement.network].find_landing(movement.tx_hash, "confirmed")
        return [] if landing is None else [landing.message_hash]

    async def _read(self, network: str, signature: str) -> list[Movement]:
        return await self.read_transaction(network, signature) or []


def _list_movements(network: str, tx_hash: str, landing: Landing) -> list[Movement]:
    """One movement a token and recipient. Its payer is who lost most of the token; a mint's own, nobody."""
    gains: Counter[tuple[str, str]] = Counter()
    for (account, mint), moved in landing.moved.items():
        gains[mint, landing.owners[account]] += moved
    movements: list[Movement] = []
    for (mint, owner), moved in gains.items():
        if moved > 0:
            losers = landing.find_losers(mint)
            payer = landing.name_payer(losers[0]) if losers else mint
            movements.append(Movement(network, mint, payer, owner, tx_hash, landing.slot, moved))
    return movements
