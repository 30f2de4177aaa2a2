"""Parallel requests on one payment channel wait for each other, where the SDK refuses all but one.

A voucher is signed for everything charged so far and this request. So of eight requests sent at once, all
signed for the same sum, only one can be served as it is; the SDK refuses the others as `channel_busy`, which
its buyer does not try again. Here they wait for their turn. By then they are out of date: the one whose turn
it is is refused with the channel's state, which the SDK's buyer answers by signing again, once.

Once: so until it is back, or CORRECTION_SECONDS are over, the turn stays its own. It is known by the
challenge in the extensions of the 402 it answers, which the SDK's buyers send back with both signatures. Of
those that send none, any may take the turn of another that is on its way back, and one is refused after all.

The queue stands before the SDK's own hooks and changes none of their decisions. It waits outside of
transactions and holds no connection meanwhile.
"""

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast
from weakref import WeakValueDictionary

from x402 import x402ResourceServer, x402ResourceServerSync
from x402.interfaces import SchemePaymentRequiredContext
from x402.mechanisms.evm.batch_settlement.constants import SCHEME_BATCH_SETTLEMENT
from x402.mechanisms.evm.batch_settlement.errors import ERR_CUMULATIVE_AMOUNT_MISMATCH
from x402.mechanisms.evm.batch_settlement.facilitator.utils import (
    verify_batch_settlement_voucher_typed_data,
)
from x402.mechanisms.evm.batch_settlement.server.scheme import BatchSettlementEvmScheme
from x402.mechanisms.evm.batch_settlement.server.storage import Channel
from x402.mechanisms.evm.batch_settlement.types import is_refund_payload
from x402.mechanisms.evm.batch_settlement.utils import normalize_channel_id
from x402.mechanisms.evm.utils import get_evm_chain_id
from x402.schemas import PaymentAbortedError, PaymentPayload, PaymentRequired, PaymentRequirements
from x402.schemas.hooks import VerifyContext, VerifyResultContext

from tollbook.core.errors import Refusal
from tollbook.core.stores.connections import Connections, hash_key

QUEUE_SECONDS_MAX = 30.0
TURN_SECONDS = 5.0  # from the turn to the SDK's reservation, which makes it last as long as that
CORRECTION_SECONDS = 5.0  # a buyer's way back with a new signature
PAUSE_SECONDS = (0.005, 0.05)  # between looks: the first, and the longest
EXTENSION = "tollbook"
CHALLENGE_BYTES = 24
ANYBODY = "anybody"  # who was told the state and sends no challenge

Step = Callable[["_Request"], bool]


@dataclass(frozen=True, slots=True)
class _Request:
    channel_id: str
    signed_max: int
    amount: int
    signature: str
    network: str
    payload: PaymentPayload
    name: str  # its own: the challenge that it sends back, or something that nobody else is called
    name_corrected: str  # whom the turn is kept for while he signs again

    def is_stale(self, channel: Channel | None) -> bool:
        """Whether the voucher is signed on another state than the channel's."""
        if channel is None:
            return False
        return int(channel.charged_cumulative_amount) + self.amount != self.signed_max

    def may_wait(self, channel: Channel) -> bool:
        """Whether the channel's payer signed the voucher, lately: nobody else may make others wait.

        A voucher from before the last claim may be on the chain, for everybody to read.
        """
        config = channel.channel_config
        if int(config.payer_authorizer, 16) == 0:
            return False  # a contract's signature, which only the chain can check
        if self.signed_max - self.amount < int(channel.total_claimed):
            return False
        return verify_batch_settlement_voucher_typed_data(
            signer=None,  # pyright: ignore[reportArgumentType]  # asked for contracts' signatures only
            channel_id=self.channel_id,
            max_claimable_amount=str(self.signed_max),
            payer_authorizer=config.payer_authorizer,
            payer=config.payer,
            signature=self.signature,
            chain_id=get_evm_chain_id(self.network),
        )


class _Challenges:
    """The extension that tells one buyer's request from another's: each 402 has another challenge."""

    key = EXTENSION
    dynamic_info_fields = ("challenge",)


class ChannelQueue:
    """The queue before every channel of a database."""

    def __init__(
        self, connections: Connections, scheme: BatchSettlementEvmScheme, seconds_max: float
    ) -> None:
        self._connections = connections
        self._scheme = scheme
        self._read = scheme.get_storage().get
        self._seconds_max = seconds_max
        self._name = secrets.token_hex(8)
        # One request a channel looks whether it is its turn; those of this process stand behind it, in order.
        self._lines: WeakValueDictionary[tuple[int, str], asyncio.Lock] = WeakValueDictionary()

    def join(self, server: x402ResourceServer | x402ResourceServerSync) -> None:
        """Let the server's requests wait, before the SDK looks at a channel and before it reserves it."""
        server.register_extension(cast(Any, _Challenges()))
        self._challenge()
        if isinstance(server, x402ResourceServerSync):
            server.on_before_verify(lambda context: self._wait(context, self._may_look))
            server.on_after_verify(lambda context: self._wait(context, self._may_reserve))
            return

        async def before(context: VerifyContext) -> None:
            await self._wait_aside(context, self._may_look)

        async def after(context: VerifyResultContext) -> None:
            await self._wait_aside(context, self._may_reserve)

        server.on_before_verify(before)
        server.on_after_verify(after)

    def _challenge(self) -> None:
        """Have each 402 of this scheme carry a challenge, unless it has one."""
        enrich = self._scheme.enrich_payment_required_response

        def challenge(context: SchemePaymentRequiredContext) -> list[PaymentRequirements] | None:
            response = cast(PaymentRequired | None, context.payment_required_response)
            if response is not None and EXTENSION not in (response.extensions or {}):
                info = {"challenge": secrets.token_urlsafe(CHALLENGE_BYTES)}
                response.extensions = {**(response.extensions or {}), EXTENSION: {"info": info}}
            return enrich(context)

        self._scheme.enrich_payment_required_response = challenge

    def _wait(self, context: VerifyContext | VerifyResultContext, step: Step) -> None:
        if (request := self._read_request(context)) is not None:
            for pause in _pauses(time.monotonic() + self._seconds_max):
                if self._look(step, request):
                    return
                time.sleep(pause)

    async def _wait_aside(self, context: VerifyContext | VerifyResultContext, step: Step) -> None:
        """Who is expected back need not stand behind those that wait for him: each looks once at first."""
        request = self._read_request(context)
        if request is None or await asyncio.to_thread(self._look, step, request):
            return
        loop = asyncio.get_running_loop()
        line = self._lines.setdefault((id(loop), request.channel_id), asyncio.Lock())
        try:
            async with asyncio.timeout(self._seconds_max) as limit:
                await line.acquire()
        except TimeoutError:
            return
        try:
            for pause in _pauses(limit.when() or 0):
                if await asyncio.to_thread(self._look, step, request):
                    return
                await asyncio.sleep(pause)
        finally:
            line.release()

    def _look(self, step: Step, request: _Request) -> bool:
        try:
            return step(request)
        except Refusal:
            return True  # the SDK finds the same, and has its own answer to it

    def _may_look(self, request: _Request) -> bool:
        """Before the SDK compares the voucher with the channel, and tells the state to who is out of date."""
        channel = self._read(request.channel_id)
        if channel is None or not request.may_wait(channel):
            return True
        stale = request.is_stale(channel)
        if not self._take_turn(request, corrects=stale):
            return False
        if not stale and request.is_stale(self._read(request.channel_id)):
            self._take_turn(request, corrects=True)  # another was served between the look and the turn
        return True

    def _may_reserve(self, request: _Request) -> bool:
        """Before the SDK reserves, the voucher being verified. Raises PaymentAbortedError.

        Most have had their turn since the first hook; deposits and contracts' vouchers come to it here.
        """
        stale = request.is_stale(self._read(request.channel_id))
        if not self._take_turn(request, corrects=stale):
            return False
        if stale or request.is_stale(self._read(request.channel_id)):
            self._take_turn(request, corrects=True)
            # The SDK refuses this as well, but after a verification it leaves the channel's state out of the
            # answer, and its buyer then signs on what the chain knows: less than it has signed before.
            self._scheme.take_request_context(request.payload)
            raise PaymentAbortedError(ERR_CUMULATIVE_AMOUNT_MISMATCH)
        return True

    def _take_turn(self, request: _Request, *, corrects: bool) -> bool:
        """Whether the turn is this request's, or kept for its buyer where it corrects him."""
        names = [request.name] if corrects else [request.name, request.name_corrected]
        taken = self._connections.execute(
            """
            INSERT INTO stores.channel_turns AS t (channel_id, holder, ends_at)
            VALUES (%(channel_id)s, %(holder)s, clock_timestamp() + %(lasts)s::interval)
            ON CONFLICT (channel_id) DO UPDATE SET holder = excluded.holder, ends_at = excluded.ends_at
            WHERE t.ends_at < clock_timestamp() OR t.holder = ANY (%(names)s)
            """,
            {
                "channel_id": request.channel_id,
                "holder": request.name_corrected if corrects else request.name,
                "names": names,
                "lasts": timedelta(seconds=CORRECTION_SECONDS if corrects else TURN_SECONDS),
            },
        )
        return taken == 1

    def _read_request(self, context: VerifyContext | VerifyResultContext) -> _Request | None:
        """What a payment asks of which channel; None where it is for none, or none the SDK would accept."""
        requirements: Any = context.requirements
        if requirements.scheme != SCHEME_BATCH_SETTLEMENT:
            return None
        if not isinstance(context.payment_payload, PaymentPayload):
            return None  # version 1 has no channels
        payload = context.payment_payload.payload
        challenge = read_challenge(context.payment_payload)
        try:
            voucher = payload["voucher"]
            return _Request(
                channel_id=normalize_channel_id(voucher["channelId"]),
                signed_max=int(voucher["maxClaimableAmount"]),
                amount=0 if is_refund_payload(payload) else int(requirements.amount),
                signature=str(voucher["signature"]),
                network=str(requirements.network),
                payload=context.payment_payload,
                name=challenge or f"{self._name} {id(context.payment_payload)}",
                name_corrected=challenge or ANYBODY,
            )
        except (KeyError, TypeError, ValueError):
            return None


def read_challenge(payment: PaymentPayload) -> str | None:
    """The name of who presents a payment: by it his turn is known. None where he sends no challenge back."""
    try:
        challenge = str((payment.extensions or {})[EXTENSION]["info"]["challenge"])
        return "challenge " + hash_key(challenge).hex()  # it is a secret: answers are given again for it
    except (KeyError, TypeError):
        return None


def _pauses(deadline: float) -> Generator[float]:
    """Growing pauses, no two requests' alike, until the time is over."""
    pause, longest = PAUSE_SECONDS
    while time.monotonic() < deadline:
        yield pause * random.uniform(0.5, 1)  # noqa: S311 - no secret
        pause = min(longest, pause * 1.5)
