"""Marks: what a refund's transfer carries on its chain, so that books that forgot it know it again.

A mark is 32 bytes: 24 of the hash of the payment's own identity, which is the chain's and outlives any
database, and the 8 of the refund's id. EVM transfers carry it behind their call data, where no contract
reads it; Solana's as a memo.
"""

import hashlib
from dataclasses import dataclass

from tollbook.books.payments.payments import Payment

MARK_BYTES = 32
IDENTITY_BYTES = 24
PREFIX = "tollbook refund"


@dataclass(frozen=True, slots=True)
class MarkedTransfer:
    """A transfer with a mark as its chain shows it. `amount` in minor units, `position` a block or a slot."""

    network: str
    asset: str
    from_address: str
    to_address: str
    amount: int
    tx_hash: str
    position: int
    mark: bytes

    @property
    def identity(self) -> bytes:
        """Which payment it goes back for: see `identify`."""
        return self.mark[:IDENTITY_BYTES]

    @property
    def refund_id(self) -> int:
        """Which refund it pays."""
        return int.from_bytes(self.mark[IDENTITY_BYTES:])


def identify(payment: Payment) -> bytes:
    """What a payment is on its chain; `forgotten_refunds` has the same in SQL."""
    once = payment.nonce or payment.tx_hash
    named = f"{PREFIX} {payment.network} {payment.asset} {payment.from_address} {once}"
    return hashlib.sha256(named.encode()).digest()[:IDENTITY_BYTES]


def make(payment: Payment, refund_id: int) -> bytes:
    """The mark of one refund of a payment."""
    return identify(payment) + refund_id.to_bytes(MARK_BYTES - IDENTITY_BYTES)
