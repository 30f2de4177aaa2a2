"""What the refund desk needs of a family of networks: who pays, what was sent, and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from tollbook.books.payments.forgotten_refunds import Reader
from tollbook.books.payments.refunds import Refund
from tollbook.core.database import WriteTx
from tollbook.core.errors import Refusal


class RefundUnpayable(Refusal):
    """The transfer would not go through. Nothing was sent, and the sum is free again."""

    reason: ClassVar[str] = "refund-unpayable"
    status: ClassVar[int] = 409


class RefundPurseEmpty(RefundUnpayable):
    """The operator's account would not send the tokens. Nothing was sent, and the sum is free again."""

    reason: ClassVar[str] = "refund-purse-empty"


class RefundMustWait(Refusal):
    """It cannot be sent just now without the risk of paying twice. The worker goes on with it."""

    reason: ClassVar[str] = "refund-must-wait"
    status: ClassVar[int] = 503


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of a refund's transaction: the tokens `arrived`, or it failed and moved nothing."""

    arrived: bool
    tx_hash: str
    from_address: str
    position: int


class Purse(Protocol):
    """The operator's accounts on one family of networks. All of it raises ChainUnreachable."""

    @property
    def senders(self) -> Sequence[str]:
        """The accounts' addresses."""
        ...

    def open_reader(self, network: str) -> Reader:
        """Return who reads transfers with marks there."""
        ...

    async def has_begun(self, refund: Refund) -> bool:
        """Whether a transaction of it is written down, which may be on its way or done."""
        ...

    async def bar(self, tx: WriteTx, refund: Refund) -> bool:
        """See that none is made of it any more, by whoever stood still meanwhile; False where there is one.

        To be asked after the refund's end was entered, in the same transaction.
        """
        ...

    async def check_pending(self, network: str) -> None:
        """See that no transaction waits that these books do not know: it may be a refund.

        Raises RefundMustWait.
        """
        ...

    async def find_sender(self, refund: Refund, mark: bytes) -> str:
        """Return an account from which the transfer would go through now.

        Raises RefundUnpayable, RefundMustWait.
        """
        ...

    async def send(self, refund: Refund, mark: bytes, *, anew: bool) -> Ending | None:
        """Have it paid, once however often it is asked for, and wait a while; None where it has not ended.

        Where nothing of it is under way it is made `anew`: to be said only after a look at the chain.
        Raises where nothing is sent now, and another time may be.
        """
        ...

    async def mend(self) -> None:
        """Look after what was sent and lost on its way."""
        ...
