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
        accounts = [each for asset in assets for owner in recipients for each in find_accounts(owner, asset)]
        seen: dict[str, None] = {}
        for account in accounts:
            history = await node.read_history(account, first, as_of=last)
            seen |= dict.fromkeys(each.signature for each in history if each.succeeded and each.slot <= last)
        found = [movement for signature in seen for movement in await _read(node, signature)]
        return [each for each in found if each.asset in assets and each.pay_to in recipients]

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


async def _read(node: SolanaNode, signature: str) -> list[Movement]:
    """What a transaction moved that the node lists; where it cannot show it, nothing may be passed over."""
    landing = await node.find_landing(signature, "confirmed")
    if landing is None:
        node.complain("getTransaction", ValueError("what it lists it does not have"))
    return _list_movements(node.network, signature, landing)


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
