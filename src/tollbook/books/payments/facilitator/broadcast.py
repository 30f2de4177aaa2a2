"""One network's transactions: sent through the lanes once for each purpose, and waited for."""

import asyncio
import logging

from x402.mechanisms.evm.constants import ERR_SETTLEMENT_PENDING

from tollbook.books.payments.facilitator.errors import (
    FacilitatorUnreachable,
    OperatorOutOfGas,
    SettlementUnknown,
)
from tollbook.books.payments.facilitator.node import CallReverted, Node, NodeFailed, read_int
from tollbook.books.payments.facilitator.purposes import ATTEMPTS_MAX, number
from tollbook.core.chains import Receipt
from tollbook.core.errors import DatabaseUnreachable, Refusal
from tollbook.core.lanes import Call, Lanes, NoGasMoney, PurposeReused, SubmissionOpen, Transaction

GAS_LIMIT = 500_000
GAS_LIMIT_MAX = 15_000_000  # what a claim of many channels may come to
GAS_MARGIN_PERCENT = 30
POLL_SECONDS = 0.5  # for further confirmations
CLOSED = "The facilitator is stopping. It sent nothing; present the same payment to the next one."

logger = logging.getLogger(__name__)


class Broadcast:
    """A network as the facilitator writes to it. `confirmations` counts the including block as the first."""

    def __init__(
        self,
        node: Node,
        lanes: Lanes,
        *,
        receipt_seconds_max: float,
        confirmations: int,
    ) -> None:
        self.network = node.network
        self._node = node
        self._lanes = lanes
        self._receipt_seconds_max = receipt_seconds_max
        self._confirmations = confirmations
        self._waiting: set[asyncio.Future[Receipt]] = set()
        self._closed = False

    async def find(self, purpose: str) -> tuple[Transaction | None, int]:
        """Return the attempt that stands, sent and not reverted; and the number that the next one would have.

        Raises SettlementUnknown where the books cannot be read, or another process is about to send it.
        """
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                found = await self._lanes.find(number(purpose, attempt))
            except Exception as error:
                raise self.unknown("", _say(error)) from error
            if found is None or found.status == "dropped":
                return None, attempt
            if found.status == "reserved":
                raise self.unknown("", "another request for it is about to be sent")
            if not is_reverted(found):
                return found, attempt
        return None, ATTEMPTS_MAX + 1

    async def check_books(self) -> None:
        """Return if the books can be read. Raises DatabaseUnreachable."""
        await self._lanes.find("")

    async def estimate_gas(self, sender: str, to: str, data: bytes) -> int:
        """Return how much gas a call may use: the usual, or more where the node says that it needs more."""
        call = {"from": sender, "to": to, "data": "0x" + data.hex()}
        try:
            needed = read_int(await self._node.ask("eth_estimateGas", call))
        except (NodeFailed, CallReverted):
            return GAS_LIMIT  # who asked has simulated it, or wants to see it revert
        return min(max(GAS_LIMIT, needed * (100 + GAS_MARGIN_PERCENT) // 100), GAS_LIMIT_MAX)

    async def submit(self, call: Call) -> Transaction:
        """Have a call sent once for its purpose, by whichever process, and return its transaction.

        Raises FacilitatorUnreachable where it was surely not sent, OperatorOutOfGas, PurposeReused,
        SettlementUnknown.
        """
        if self._closed:
            raise FacilitatorUnreachable(CLOSED)
        try:
            return await self._lanes.submit(call)
        except PurposeReused:
            raise
        except (DatabaseUnreachable, SubmissionOpen) as error:  # what is written down, the lanes go on with
            raise self.unknown("", str(error)) from error
        except NoGasMoney as error:
            raise OperatorOutOfGas(f"{error} Present the same payment again then.") from None
        except Refusal as error:  # the sentence may name the node's host: it is for us alone
            logger.warning("could not send on %s: %s", self.network, error)
            raise FacilitatorUnreachable(
                f"The facilitator could not send on {self.network}: {error.reason}. "
                "It sent nothing; present the same payment again later."
            ) from None
        except Exception as error:  # a statement that was refused, perhaps after the node had it
            logger.exception("sending %s", call.purpose)
            raise self.unknown("", _say(error)) from error

    async def see(self, transaction: Transaction) -> Receipt:
        """Return the transaction's receipt, once it is mined as deep as is wanted.

        Raises SettlementUnknown when that takes longer than it may, or when we stop meanwhile.
        """
        if self._closed:
            raise self.unknown(transaction.hash, "the facilitator is stopping and does not wait for it")
        waiting = asyncio.ensure_future(self._see(transaction))
        self._waiting.add(waiting)
        try:
            return await asyncio.wait_for(waiting, self._receipt_seconds_max)
        except TimeoutError:
            raise self.unknown(transaction.hash, "it was not mined while we waited") from None
        except FacilitatorUnreachable:
            raise
        except Exception as error:  # whatever it is, the transaction is under way
            raise self.unknown(transaction.hash, _say(error)) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise self.unknown(transaction.hash, "the facilitator stopped while it waited") from None
        finally:
            self._waiting.discard(waiting)

    def close(self) -> None:
        """Send nothing more, and wait for nothing."""
        self._closed = True
        for waiting in self._waiting:
            waiting.cancel()

    def unknown(self, transaction: str, why: str, reason: str = ERR_SETTLEMENT_PENDING) -> SettlementUnknown:
        """Return the exception that says what is not known."""
        return SettlementUnknown(self.network, transaction, reason, why)

    async def _see(self, transaction: Transaction) -> Receipt:
        seen = await self._lanes.wait(transaction.transaction_id, seconds_max=self._receipt_seconds_max)
        if seen.status == "dropped":
            raise FacilitatorUnreachable(
                f"No block on {self.network} can take it any more: present it again."
            )
        receipt = seen.receipt
        if receipt is None:
            raise TimeoutError
        while receipt is None or not await self._is_deep(receipt):
            await asyncio.sleep(POLL_SECONDS)
            receipt = await self._node.get_receipt(seen.hash)
        return receipt

    async def _is_deep(self, receipt: Receipt) -> bool:
        if self._confirmations <= 1:
            return True
        newest = read_int(await self._node.ask("eth_blockNumber"))
        return newest - receipt.block_number + 1 >= self._confirmations


def _say(error: Exception) -> str:
    """What a caller may read of it."""
    return str(error) if isinstance(error, (NodeFailed, DatabaseUnreachable)) else type(error).__name__


def is_reverted(transaction: Transaction) -> bool:
    """Whether it was mined and moved nothing."""
    return transaction.status == "mined" and not transaction.succeeded
