"""The operator's accounts on one network: which of them can pay what, asked before anything is begun."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tollbook.books.settlement.transfers import GAS_MAX, Transfer, encode_balance_of
from tollbook.core.errors import Refusal
from tollbook.core.lanes import NoGasMoney
from tollbook.core.lanes.node import Ask, Node, Said

REVERTED_CODE = 3  # JSON-RPC, as geth has it
WORD_BYTES = 32
LATEST = "latest"

Bound = Mapping[tuple[str, str | None], Sequence[int]]


class PurseEmpty(Refusal):
    """None of the operator's accounts has so much to send. Nothing was sent."""

    reason: ClassVar[str] = "purse-empty"
    status: ClassVar[int] = 503


class TransferReverts(Refusal):
    """The token would not carry the transfer out. Nothing was sent."""

    reason: ClassVar[str] = "transfer-reverts"
    status: ClassVar[int] = 409


class NodeCannotTell(Refusal):
    """The node does not say whether a transfer would go through. Nothing was sent."""

    reason: ClassVar[str] = "node-cannot-tell"
    status: ClassVar[int] = 503


@dataclass(frozen=True, slots=True)
class Choice:
    """The account from which a transfer would go through now, or why there is none."""

    transfer: Transfer
    sender: str = ""
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Purse:
    """The accounts `senders` (lower case) on the network of `node`."""

    node: Node
    senders: Sequence[str]

    async def choose(
        self, transfers: Sequence[Transfer], bound: Bound, own: Mapping[str, str] | None = None
    ) -> list[Choice]:
        """From which account each transfer would go through now, all of them together.

        `bound` is what is begun of each (account, asset), which its balance has not lost yet: first the sum
        of what is under way, then what waits; `own`, by purpose, the only account that it may come from.
        Raises ChainUnreachable.
        """
        if not transfers:
            return []
        assets = list(dict.fromkeys(one.asset for one in transfers if one.asset))
        left = await self._read_balances(assets)
        for key, (under_way, *waiting) in bound.items():
            left[key] = left.get(key, 0) - under_way
            for amount in waiting:  # what cannot be paid holds up nobody
                left[key] -= amount if amount <= left[key] else 0
        gas_cost = GAS_MAX * await self.node.ask_int("eth_gasPrice")
        choices = [
            self._among((own or {}).get(one.purpose))._choose_one(one, left, gas_cost) for one in transfers
        ]
        chosen = [one for one in choices if one.refusal is None]
        said = await self.node.ask_all([_simulate(one) for one in chosen])
        judged = {one.transfer.purpose: _judge(one, answer) for one, answer in zip(chosen, said, strict=True)}
        return [judged.get(one.transfer.purpose, one) for one in choices]

    async def _read_balances(self, assets: Sequence[str]) -> dict[tuple[str, str | None], int]:
        keys: list[tuple[str, str | None]] = [(sender, None) for sender in self.senders]
        keys += [(sender, asset) for sender in self.senders for asset in assets]
        said = await self.node.ask_all([_ask_balance(sender, asset) for sender, asset in keys])
        return {
            key: 0 if answer.result in (None, "0x") else self.node.read_int("a balance", answer.result)
            for key, answer in zip(keys, said, strict=True)
        }

    def _among(self, own: str | None) -> "Purse":
        """Of all accounts, this one alone, where its key is here."""
        return Purse(self.node, [own]) if own is not None and own in self.senders else self

    def _choose_one(
        self, transfer: Transfer, left: dict[tuple[str, str | None], int], gas_cost: int
    ) -> Choice:
        """The fullest account that can; what it sends is taken from what it has left."""
        solvent = [one for one in self.senders if left[one, None] >= gas_cost + transfer.value]
        if transfer.asset is not None and not solvent:
            return Choice(transfer, refusal=self._name_gasless())
        able = [one for one in solvent if left[one, transfer.asset] >= transfer.amount]
        if not able:
            return Choice(transfer, refusal=self._name_empty(transfer))
        sender = max(able, key=lambda one: left[one, transfer.asset])
        left[sender, transfer.asset] -= transfer.amount
        return Choice(transfer, sender)

    def _name_gasless(self) -> NoGasMoney:
        return NoGasMoney(
            f"None of the operator's accounts ({', '.join(self.senders)}) can pay for gas on "
            f"{self.node.network}. Nothing was sent. Send one some of its coin; it goes on by itself."
        )

    def _name_empty(self, transfer: Transfer) -> PurseEmpty:
        what = transfer.asset or "the network's coin"
        return PurseEmpty(
            f"None of the operator's accounts ({', '.join(self.senders)}) can send {transfer.amount} minor "
            f"units of {what} on {transfer.network}. Nothing was sent. Fill one; it goes on by itself."
        )


def _ask_balance(sender: str, asset: str | None) -> Ask:
    if asset is None:
        return Ask("eth_getBalance", (sender, LATEST))
    return Ask("eth_call", ({"to": asset, "data": "0x" + encode_balance_of(sender).hex()}, LATEST))


def _simulate(choice: Choice) -> Ask:
    transfer = choice.transfer
    call = {
        "from": choice.sender,
        "to": transfer.to,
        "value": hex(transfer.value),
        "data": "0x" + transfer.data.hex(),
        "gas": hex(GAS_MAX),
    }
    return Ask("eth_call", (call, LATEST))


def _judge(choice: Choice, said: Said) -> Choice:
    """What the node says to the very call. Some tokens answer nothing; others no, without reverting."""
    transfer = choice.transfer
    if said.error is not None:
        reverts = said.code == REVERTED_CODE or "revert" in said.error.lower()
        kind = TransferReverts if reverts else NodeCannotTell
        return Choice(
            transfer, refusal=kind(f"{transfer.network}'s node says: {said.error} Nothing was sent.")
        )
    answer = str(said.result or "0x").removeprefix("0x")
    if transfer.asset is not None and answer and int(answer, 16) != 1:
        why = f"{transfer.asset} answers that it does not carry the transfer out. Nothing was sent."
        return Choice(transfer, refusal=TransferReverts(why))
    return choice
