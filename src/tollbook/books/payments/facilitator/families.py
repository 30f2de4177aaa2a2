"""Facilitators of several families of networks as one: each payment goes to the one of its own."""

import asyncio
from collections.abc import Mapping

from x402.schemas import (
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedResponse,
    VerifyResponse,
)

from tollbook.books.payments.facilitator.faults import ERR_INVALID_NETWORK
from tollbook.books.payments.facilitator.in_process import Facilitator


class FamilyFacilitator:
    """One facilitator for each family: `FamilyFacilitator({"eip155": evm, "solana": solana})`.

    A family is the first part of a network's CAIP-2 id. Not for failover: of each family there is one.
    """

    def __init__(self, families: Mapping[str, Facilitator]) -> None:
        self._families = dict(families)

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        """See Facilitator."""
        facilitator = self._find(requirements)
        if facilitator is None:
            return VerifyResponse(
                is_valid=False, invalid_reason=ERR_INVALID_NETWORK, invalid_message=self._say_served()
            )
        return await facilitator.verify(payload, requirements)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        """See Facilitator."""
        facilitator = self._find(requirements)
        if facilitator is None:
            return SettleResponse(
                success=False,
                error_reason=ERR_INVALID_NETWORK,
                error_message=self._say_served(),
                transaction="",
                network=requirements.network,
            )
        return await facilitator.settle(payload, requirements)

    async def supported(self) -> SupportedResponse:
        """See Facilitator: what all of them serve. Raises FacilitatorUnreachable where one cannot say."""
        answers = [await facilitator.supported() for facilitator in self._families.values()]
        return SupportedResponse(
            kinds=[kind for answer in answers for kind in answer.kinds],
            extensions=sorted({extension for answer in answers for extension in answer.extensions}),
            signers={family: signers for answer in answers for family, signers in answer.signers.items()},
        )

    async def aclose(self) -> None:
        """Close all of them."""
        await asyncio.gather(*(facilitator.aclose() for facilitator in self._families.values()))

    def _find(self, requirements: PaymentRequirements) -> Facilitator | None:
        return self._families.get(requirements.network.partition(":")[0])

    def _say_served(self) -> str:
        return f"This facilitator serves the families {', '.join(self._families)}."
