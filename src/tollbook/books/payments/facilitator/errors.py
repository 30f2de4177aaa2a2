"""How a facilitator says that it is not sure: nothing was sent, or it is not known what became of it."""

from typing import ClassVar

from tollbook.core.errors import Refusal


class FacilitatorUnreachable(Refusal):
    """The facilitator could not do it now. It sent nothing; the same payment may be presented again."""

    reason: ClassVar[str] = "facilitator-unreachable"
    status: ClassVar[int] = 503


class OperatorOutOfGas(FacilitatorUnreachable):
    """The facilitator's account cannot pay for transactions. It sent nothing."""

    reason: ClassVar[str] = "operator-out-of-gas"


class SettlementUnknown(Refusal):
    """Money may have moved, or may still move: neither settled nor failed. Never settle it anew blindly.

    `transaction` is the hash to look for, empty where none is known. `error_reason` is the x402 code:
    settlement_pending, or the one for a nonce that is already used.
    """

    reason: ClassVar[str] = "settlement-unknown"
    status: ClassVar[int] = 502

    def __init__(self, network: str, transaction: str, error_reason: str, why: str) -> None:
        self.network = network
        self.transaction = transaction
        self.error_reason = error_reason
        super().__init__(
            f"It is not known whether this payment on {network} was settled: {why}. "
            f"Look for {transaction or 'its authorization nonce'} on the chain before paying again."
        )
