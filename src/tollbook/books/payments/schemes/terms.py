"""What a route's terms say besides the price, by its scheme: what only the facilitator knows is filled in."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from x402.mechanisms.evm.batch_settlement.constants import SCHEME_BATCH_SETTLEMENT
from x402.mechanisms.evm.constants import SCHEME_EXACT, SCHEME_UPTO
from x402.mechanisms.evm.upto.server import UptoEvmScheme
from x402.mechanisms.svm.exact.server import ExactSvmScheme
from x402.schemas import PaymentRequirements, SupportedKind

from tollbook.books.payments.facilitator.in_process import FacilitatorUnreachable
from tollbook.books.payments.facilitator.ledgered import LedgeredFacilitator
from tollbook.books.payments.purchases import Purchases
from tollbook.books.payments.rules import Option, Toll
from tollbook.books.payments.schemes.batch import Channels, find_kinds
from tollbook.books.payments.schemes.channel_purchases import ChannelPurchases
from tollbook.core.errors import Refusal

RETRY_AFTER_SECONDS = 30


class SchemeNotServed(Refusal):
    """No facilitator of this seller settles the route's scheme on any of its networks."""

    reason: ClassVar[str] = "scheme-not-served"
    status: ClassVar[int] = 503

    def __init__(self, toll: Toll) -> None:
        networks = ", ".join(option.network.id for option in toll.options)
        super().__init__(
            f"This route is sold by the scheme {toll.terms.scheme}, which its seller's facilitator does not "
            f"serve on {networks}. Nothing was paid.",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )


@dataclass(slots=True)
class Terms:
    """The terms of a seller's routes, over one facilitator; channels are in the database at `url`."""

    facilitator: LedgeredFacilitator
    url: str = field(repr=False)
    purchases: Purchases
    _by_channel: ChannelPurchases | None = field(default=None, init=False)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def complete(self, toll: Toll) -> Toll:
        """Return a route with terms that can be paid. Raises FacilitatorUnreachable, SchemeNotServed.

        What needs no word of the facilitator is sold while it gives none.
        """
        if not any(_is_open(option) for option in toll.options):
            return toll
        try:
            supported = (await self.facilitator.supported()).kinds
        except FacilitatorUnreachable:
            if all(_is_open(option) for option in toll.options):
                raise
            supported = []
        kinds = await self._find_kinds(toll, supported)
        options = [
            replace(option, requirements=await self._complete(option.requirements, kinds[option.network.id]))
            if _is_open(option)
            else option
            for option in toll.options
            if not _is_open(option) or option.network.id in kinds
        ]
        if not options:
            raise SchemeNotServed(toll)
        return replace(toll, options=tuple(options))

    async def _complete(self, terms: PaymentRequirements, kind: SupportedKind) -> PaymentRequirements:
        if terms.scheme == SCHEME_EXACT:
            return ExactSvmScheme().enhance_payment_requirements(terms.model_copy(deep=True), kind, [])
        if terms.scheme == SCHEME_UPTO:
            return UptoEvmScheme().enhance_payment_requirements(terms.model_copy(deep=True), kind, [])
        return (await self._find_channels()).channels.complete(terms)

    async def _find_kinds(self, toll: Toll, supported: Sequence[SupportedKind]) -> dict[str, SupportedKind]:
        """Who serves a route's scheme, by network. Channels stay with the one that they were opened with."""
        if toll.terms.scheme != SCHEME_BATCH_SETTLEMENT:
            return {kind.network: kind for kind in supported if kind.scheme == toll.terms.scheme}
        if self._by_channel is None and not find_kinds(supported):
            return {}
        return (await self._find_channels()).channels.kinds

    async def find_purchases(self, option: Option) -> Purchases:
        """Return the road of a purchase by this option. Raises FacilitatorUnreachable."""
        if option.requirements.scheme == SCHEME_BATCH_SETTLEMENT:
            return await self._find_channels()
        return self.purchases

    async def _find_channels(self) -> ChannelPurchases:
        """Channels are opened when they are first asked for: not every seller has any."""
        async with self._opening:
            if self._by_channel is None:
                supported = await self.facilitator.supported()
                channels = await asyncio.to_thread(Channels, self.url, self.facilitator, supported)
                road = self.purchases
                self._by_channel = ChannelPurchases(
                    road.database, road.facilitator, road.answers_kept, channels=channels
                )
            return self._by_channel


def _is_open(option: Option) -> bool:
    """Whether its terms lack what only the facilitator knows: on Solana, whose account pays the fee."""
    return option.network.is_solana or option.requirements.scheme != SCHEME_EXACT
