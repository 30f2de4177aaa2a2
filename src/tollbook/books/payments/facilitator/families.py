"""Facilitators of several families of networks as one: each payment goes to the one of its own."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import ClassVar

from x402.schemas import (
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedResponse,
    VerifyResponse,
)

from tollbook.books.payments.facilitator.faults import ERR_INVALID_NETWORK
from tollbook.books.payments.facilitator.in_process import Facilitator, InProcessFacilitator
from tollbook.books.payments.solana.facilitator import SolanaFacilitator
from tollbook.core.chains import SOLANA_FINAL, find_network, is_solana
from tollbook.core.database import Database
from tollbook.core.errors import Refusal
from tollbook.core.operator_keys import OperatorKeyUnusable, is_solana_key


class RecipientMissing(Refusal):
    """Recipients are named on one family of networks and not on another, which would be open to everybody."""

    reason: ClassVar[str] = "recipient-missing"
    exit_code: ClassVar[int] = 2


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

    async def open(self) -> None:
        """Open those that are in this process. Raises DatabaseUnreachable."""
        for facilitator in self._families.values():
            if isinstance(facilitator, InProcessFacilitator | SolanaFacilitator):
                await facilitator.open()

    async def check_ready(self) -> None:
        """Return if each of them can settle now. Raises FacilitatorUnreachable."""
        for facilitator in self._families.values():
            await getattr(facilitator, "check_ready", facilitator.supported)()

    async def aclose(self) -> None:
        """Close all of them."""
        await asyncio.gather(*(facilitator.aclose() for facilitator in self._families.values()))

    def _find(self, requirements: PaymentRequirements) -> Facilitator | None:
        return self._families.get(requirements.network.partition(":")[0])

    def _say_served(self) -> str:
        return f"This facilitator serves the families {', '.join(self._families)}."


def make_facilitator(
    rpc_urls: Mapping[str, str],
    private_keys: str | Sequence[str],
    database: Database | str,
    *,
    recipients: Sequence[str] = (),
    confirmations: Mapping[str, int] | None = None,
    fee_per_gas_max: int | None = None,
) -> FamilyFacilitator:
    """Return a facilitator in this process for EVM networks and Solana, by their CAIP-2 ids or names.

    `private_keys` are those of both families, each in its own spelling (see operator_keys); so
    are the `recipients`. On Solana `confirmations` of 32 and more wait for "finalized", else for "confirmed".
    See InProcessFacilitator and SolanaFacilitator for the rest.

    Raises UnknownNetwork, OperatorKeyUnusable, MalformedAddress; RecipientMissing where a family would be
    open to everybody although recipients are named on the other.
    """
    keys = [private_keys] if isinstance(private_keys, str) else private_keys
    depths = {find_network(name).id: depth for name, depth in (confirmations or {}).items()}
    families: dict[str, Facilitator] = {}
    for of_solana in (False, True):
        urls = {find_network(name).id: url for name, url in rpc_urls.items()}
        urls = {network: url for network, url in urls.items() if is_solana(network) is of_solana}
        own_keys = [key for key in keys if is_solana_key(key) is of_solana]
        own_recipients = [each for each in recipients if (each[:2] not in ("0x", "0X")) is of_solana]
        if not urls:
            continue
        _check_family(list(urls), own_keys, own_recipients, is_closed=bool(recipients))
        if of_solana:
            is_final = any(depths.get(network, 1) >= SOLANA_FINAL for network in urls)
            families["solana"] = SolanaFacilitator(
                urls, own_keys, database, commitment="finalized" if is_final else "confirmed",
                recipients=own_recipients,
            )  # fmt: skip
        else:
            families["eip155"] = InProcessFacilitator(
                urls, own_keys, database, confirmations=depths, recipients=own_recipients,
                fee_per_gas_max=fee_per_gas_max,
            )  # fmt: skip
    return FamilyFacilitator(families)


def _check_family(
    networks: Sequence[str], keys: Sequence[str], recipients: Sequence[str], *, is_closed: bool
) -> None:
    if not keys:
        raise OperatorKeyUnusable(
            f"There is no operator's key for {', '.join(networks)}: each family of networks needs its own."
        )
    if is_closed and not recipients:
        raise RecipientMissing(
            f"No recipient is named on {', '.join(networks)}, so that everybody's fees would be paid there. "
            "Name one (--recipient) there as well, or none at all."
        )
