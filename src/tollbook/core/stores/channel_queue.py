"""Parallel requests on one payment channel wait for each other, where the SDK refuses all but one.

A voucher is signed for everything charged so far and this request. So of eight requests sent at once, all
signed for the same sum, only one can be served as it is; the SDK refuses the others as `channel_busy`, which
its buyer does not try again. Here they wait for their turn. By then they are out of date, so one at a time is
let through to be refused with the channel's state, which the SDK's buyer answers by signing again, once.
Until that one is back, or CORRECTION_SECONDS are over, the next is not told the same state: it would be out
of date again.

A request that is signed on the newest state, because its buyer has just had an answer, overtakes one that is
on its way back, which then is refused after all: the two cannot be told apart. So after each answer there are
ANSWER_SECONDS for such requests before the next correction.

The queue stands before the SDK's own hooks and changes none of their decisions. It waits outside of
transactions and holds no connection meanwhile.
"""

import asyncio
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from x402 import x402ResourceServer, x402ResourceServerSync
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
from x402.schemas import PaymentAbortedError, PaymentPayload
from x402.schemas.hooks import VerifyContext, VerifyResultContext

from tollbook.core.errors import Refusal
from tollbook.core.stores.connections import Connections

QUEUE_SECONDS_MAX = 30.0
TURN_SECONDS = 5.0  # from the turn to the SDK's reservation: no network between, only a database
CORRECTION_SECONDS = 2.0  # a buyer's way back with a new signature
ANSWER_SECONDS = 0.15  # in which who learned the state from an answer comes before who must be told it
PAUSE_SECONDS = (0.01, 0.1)  # between looks: the first, and the longest

Step = Callable[["_Request"], bool]


@dataclass(frozen=True, slots=True)
class _Request:
    channel_id: str
    signed_max: int
    amount: int
    signature: str
    network: str
    payload: PaymentPayload

    def is_stale(self, channel: Channel | None) -> bool:
        """Whether the voucher is signed on another state than the channel's."""
        if channel is None:
            return False
        return int(channel.charged_cumulative_amount) + self.amount != self.signed_max

    def is_signed_by(self, channel: Channel) -> bool:
        """Whether the channel's payer signed the voucher: nobody else may make others wait."""
        config = channel.channel_config
        if int(config.payer_authorizer, 16) == 0:
            return False  # a contract's signature, which only the chain can check
        return verify_batch_settlement_voucher_typed_data(
            signer=None,  # pyright: ignore[reportArgumentType]  # asked for contracts' signatures only
            channel_id=self.channel_id,
            max_claimable_amount=str(self.signed_max),
            payer_authorizer=config.payer_authorizer,
            payer=config.payer,
            signature=self.signature,
            chain_id=get_evm_chain_id(self.network),
        )


class ChannelQueue:
    """The queue before every channel of a database."""

    def __init__(
        self, connections: Connections, scheme: BatchSettlementEvmScheme, seconds_max: float
    ) -> None:
        self._connections = connections
        self._scheme = scheme
        self._read = scheme.get_storage().get
        self._seconds_max = seconds_max

    def join(self, server: x402ResourceServer | x402ResourceServerSync) -> None:
        """Let the server's requests wait, before the SDK looks at a channel and before it reserves it."""
        if isinstance(server, x402ResourceServerSync):
            server.on_before_verify(lambda context: self._wait(context, self._may_be_corrected))
            server.on_after_verify(lambda context: self._wait(context, self._may_reserve))
            return

        async def before(context: VerifyContext) -> None:
            await self._wait_aside(context, self._may_be_corrected)

        async def after(context: VerifyResultContext) -> None:
            await self._wait_aside(context, self._may_reserve)

        server.on_before_verify(before)
        server.on_after_verify(after)

    def _wait(self, context: VerifyContext | VerifyResultContext, step: Step) -> None:
        if (request := _read_request(context)) is not None:
            for pause in _pauses(self._seconds_max):
                if self._look(step, request):
                    return
                time.sleep(pause)

    async def _wait_aside(self, context: VerifyContext | VerifyResultContext, step: Step) -> None:
        if (request := _read_request(context)) is not None:
            for pause in _pauses(self._seconds_max):
                if await asyncio.to_thread(self._look, step, request):
                    return
                await asyncio.sleep(pause)

    def _look(self, step: Step, request: _Request) -> bool:
        try:
            return step(request)
        except Refusal:
            return True  # the SDK finds the same, and has its own answer to it

    def _may_be_corrected(self, request: _Request) -> bool:
        """Before the SDK compares: who is in step goes on; who is not waits to be told the state."""
        channel = self._read(request.channel_id)
        if channel is None or not request.is_stale(channel) or not request.is_signed_by(channel):
            return True
        return self._take_turn(request, corrects=True)

    def _may_reserve(self, request: _Request) -> bool:
        """Before the SDK reserves, the voucher being verified: one at a time. Raises PaymentAbortedError."""
        stale = request.is_stale(self._read(request.channel_id))
        if not self._take_turn(request, corrects=stale):
            return False
        if not stale and request.is_stale(self._read(request.channel_id)):
            self._await_correction(request)  # another was served between the look and the turn
            stale = True
        if stale:
            # The SDK refuses this as well, but after a verification it leaves the channel's state out of the
            # answer, and its buyer then signs on what the chain knows: less than it has signed before.
            self._scheme.take_request_context(request.payload)
            raise PaymentAbortedError(ERR_CUMULATIVE_AMOUNT_MISMATCH)
        return True

    def _take_turn(self, request: _Request, *, corrects: bool) -> bool:
        """Whether the channel is free, and so this request's from now on.

        Who is in step need not wait for the one who was corrected: he may be that one.
        """
        taken = self._connections.execute(
            """
            INSERT INTO stores.channel_turns AS t (channel_id, corrects, ends_at)
            VALUES (%(channel_id)s, %(corrects)s, clock_timestamp() + %(lasts)s::interval)
            ON CONFLICT (channel_id) DO UPDATE SET corrects = excluded.corrects, ends_at = excluded.ends_at
            WHERE t.ends_at < clock_timestamp() OR (t.corrects AND NOT excluded.corrects)
            """,
            {
                "channel_id": request.channel_id,
                "corrects": corrects,
                "lasts": timedelta(seconds=CORRECTION_SECONDS if corrects else TURN_SECONDS),
            },
        )
        return taken == 1

    def _await_correction(self, request: _Request) -> None:
        self._connections.execute(
            """
            UPDATE stores.channel_turns SET corrects = true, ends_at = clock_timestamp() + %(lasts)s::interval
            WHERE channel_id = %(channel_id)s AND NOT corrects
            """,
            {"channel_id": request.channel_id, "lasts": timedelta(seconds=CORRECTION_SECONDS)},
        )


def _pauses(seconds_max: float) -> Generator[float]:
    """Growing pauses, no two requests' alike, until the time is over."""
    deadline = time.monotonic() + seconds_max
    pause, longest = PAUSE_SECONDS
    while time.monotonic() < deadline:
        yield pause * random.uniform(0.5, 1)  # noqa: S311 - no secret
        pause = min(longest, pause * 1.5)


def _read_request(context: VerifyContext | VerifyResultContext) -> _Request | None:
    """What a payment asks of which channel; None where it is for no channel, or none the SDK would accept."""
    requirements: Any = context.requirements
    if requirements.scheme != SCHEME_BATCH_SETTLEMENT:
        return None
    if not isinstance(context.payment_payload, PaymentPayload):
        return None  # version 1 has no channels
    payload = context.payment_payload.payload
    try:
        voucher = payload["voucher"]
        return _Request(
            channel_id=normalize_channel_id(voucher["channelId"]),
            signed_max=int(voucher["maxClaimableAmount"]),
            amount=0 if is_refund_payload(payload) else int(requirements.amount),
            signature=str(voucher["signature"]),
            network=str(requirements.network),
            payload=context.payment_payload,
        )
    except (KeyError, TypeError, ValueError):
        return None
