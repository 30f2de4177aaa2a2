"""Transfers on EVM networks: what a command's transaction says, and what its receipt proves.

An ERC-20 transfer carries the command's mark behind its call data, where no contract reads it: so that books
which forgot that they paid it know it again. The network's own coin moves as a transaction's value.
"""

import hashlib
from dataclasses import dataclass

from eth_abi.abi import encode
from eth_utils.abi import function_signature_to_4byte_selector

from tollbook.core.chains import Receipt, decode_transfer
from tollbook.core.lanes import Call

GAS_MAX = 200_000  # a transfer of USDC through its proxy takes less than a third of it
PURPOSE = "command:"  # one of the lanes' LOOK_FIRST
MARK_BYTES = 32
MARK_PREFIX = "tollbook command "
SELECTOR = function_signature_to_4byte_selector("transfer(address,uint256)")
BALANCE_SELECTOR = function_signature_to_4byte_selector("balanceOf(address)")


@dataclass(frozen=True, slots=True)
class Transfer:
    """What is to be paid. `asset` is a token's address, None the network's own coin; `amount` minor units.

    `round` counts how often it was tried again after it had surely failed.
    """

    command_id: str
    round: int
    network: str
    asset: str | None
    payee: str
    amount: int

    @property
    def purpose(self) -> str:
        """Its identity for the lanes: the same is the same transaction, for ever."""
        return name_purpose(self.command_id, self.round)

    @property
    def mark(self) -> bytes:
        """The same in every round: whichever one paid, it is paid."""
        return hashlib.sha256((MARK_PREFIX + self.command_id).encode()).digest()

    @property
    def to(self) -> str:
        """Whom the transaction is sent to."""
        return self.asset or self.payee

    @property
    def value(self) -> int:
        """How much of the network's coin it carries, in wei."""
        return 0 if self.asset else self.amount

    @property
    def data(self) -> bytes:
        """Its call data."""
        if self.asset is None:
            return b""
        return SELECTOR + encode(["address", "uint256"], [self.payee, self.amount]) + self.mark

    def make_call(self, sender: str) -> Call:
        """The call for the lanes."""
        return Call(self.network, self.purpose, self.to, self.data, GAS_MAX, value=self.value, sender=sender)

    def is_shown(self, receipt: Receipt, sender: str) -> bool:
        """Whether a receipt shows that exactly this moved. Of a coin's movement success is all there is."""
        if not receipt.succeeded or self.asset is None:
            return receipt.succeeded
        wanted = (self.asset, sender, self.payee, self.amount)
        moved = [decode_transfer(log) for log in receipt.logs]
        return any(one and (one.token, one.sender, one.receiver, one.amount) == wanted for one in moved)


def name_purpose(command_id: str, round_: int) -> str:
    """What the lanes know a command's transaction by, in one of its rounds."""
    return f"{PURPOSE}{round_}:{command_id}"


def encode_balance_of(address: str) -> bytes:
    """Call data that ask a token for somebody's balance."""
    return BALANCE_SELECTOR + encode(["address"], [address])
