"""What to offer for gas: EIP-1559 fees from the newest block, a legacy price where there is no base fee."""

import asyncio
import time
from contextlib import suppress
from typing import Any, ClassVar, cast

from tollbook.core.errors import Refusal
from tollbook.core.lanes.keys import Fees
from tollbook.core.lanes.node import Ask, Node

GWEI = 10**9
KEEP_SECONDS = 2.0  # about a block of the networks x402 is paid in
TIP_MIN = 1_000_000  # wei: a thousandth of a gwei, which rollups take
BASE_FEE_HEADROOM = 2  # the base fee rises by an eighth a block at most: five full blocks' worth
BUMP_NUMERATOR, BUMP_DENOMINATOR = 9, 8  # +12.5 %, more than any node asks for a replacement
BUMPED_MAX = 10  # times what is asked now: where that moves nothing, it is not the fee that holds it up


class FeesAboveCap(Refusal):
    """The network asks more for gas than the operator is willing to pay."""

    reason: ClassVar[str] = "fees-above-cap"
    status: ClassVar[int] = 503


class FeePolicy:
    """The fees to offer on one network, remembered for about a block."""

    def __init__(self, node: Node, fee_per_gas_max: int, tip_per_gas_max: int) -> None:
        self._node = node
        self._cap = fee_per_gas_max
        self._tip_cap = tip_per_gas_max
        self._lock = asyncio.Lock()
        self._fees: Fees | None = None
        self._base_fee = 0
        self._read_at = float("-inf")

    async def choose(self) -> Fees:
        """The fees to offer now. Raises ChainUnreachable, FeesAboveCap."""
        async with self._lock:
            if self._fees is None or time.monotonic() - self._read_at > KEEP_SECONDS:
                self._fees = await self._read()
                self._read_at = time.monotonic()
            return self._fees

    def forget(self) -> None:
        """Ask anew next time: the node found the last ones too low."""
        self._fees = None

    async def find_base_fee(self) -> int:
        """What a unit of gas costs at least in the newest block, in wei, even above the cap."""
        with suppress(FeesAboveCap):
            await self.choose()
        return self._base_fee

    def bump(self, old: Fees, wanted: Fees) -> Fees | None:
        """Fees that replace the old ones in every node's eyes.

        None where that is above the cap, or far above what is asked: a chain that stands still for an hour
        takes what it was offered by then.
        """
        fee_max = max(_raise(old.fee_max), wanted.fee_max)
        tip_suffices = (old.tip_max or 0) >= (wanted.tip_max or 0)
        if fee_max > self._cap or (tip_suffices and fee_max > wanted.fee_max * BUMPED_MAX):
            return None
        if old.tip_max is None:
            return Fees(fee_max, None)
        return Fees(fee_max, min(max(_raise(old.tip_max), wanted.tip_max or 0), fee_max))

    async def _read(self) -> Fees:
        block, tip, price = await self._node.ask_all(
            [
                Ask("eth_getBlockByNumber", ("latest", False)),
                Ask("eth_maxPriorityFeePerGas"),
                Ask("eth_gasPrice"),
            ]
        )
        if not isinstance(block.result, dict):
            raise self._node.complain("it tells no newest block")
        base_fee = cast(dict[str, Any], block.result).get("baseFeePerGas")
        if base_fee is None:
            self._base_fee = self._node.read_int("eth_gasPrice", price.result)
            return self._cap_fees(self._base_fee, None)
        self._base_fee = self._node.read_int("eth_getBlockByNumber", base_fee)
        asked = TIP_MIN if tip.error else max(self._node.read_int("a tip", tip.result), TIP_MIN)
        tip_max = min(asked, self._tip_cap)
        return self._cap_fees(self._base_fee * BASE_FEE_HEADROOM + tip_max, tip_max)

    def _cap_fees(self, fee_max: int, tip_max: int | None) -> Fees:
        if self._base_fee > self._cap:
            raise FeesAboveCap(
                f"{self._node.network} asks {self._base_fee} wei a unit of gas; {self._cap} is the most "
                "that may be offered. Nothing was sent. Try again later, or raise the cap."
            )
        fee_max = min(fee_max, self._cap)
        return Fees(fee_max, None if tip_max is None else min(tip_max, fee_max))


def _raise(fee: int) -> int:
    return -(-fee * BUMP_NUMERATOR // BUMP_DENOMINATOR)
