"""Facilitators: who checks a signed payment and moves the money; here, the one inside this process.

The one promise: a settlement is reported as failed only where it is sure that no money moved. Everything
that cannot be known is an exception, SettlementUnknown, and the book records it as such.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from eth_account import Account
from eth_account.signers.local import LocalAccount
from x402.mechanisms.evm.batch_settlement.authorizer_signer import LocalAuthorizerSigner
from x402.mechanisms.evm.constants import SCHEME_EXACT
from x402.mechanisms.evm.types import is_permit2_payload
from x402.schemas import (
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedResponse,
    VerifyResponse,
)

from tollbook.books.payments.facilitator import faults as facilitator_faults
from tollbook.books.payments.facilitator.broadcast import CLOSED, Broadcast
from tollbook.books.payments.facilitator.errors import (
    FacilitatorUnreachable,
    OperatorOutOfGas,
    SettlementUnknown,
)
from tollbook.books.payments.facilitator.exact import Eip3009, Payment
from tollbook.books.payments.facilitator.faults import (
    ERR_INVALID_NETWORK,
    ERR_RECIPIENT_NOT_SERVED,
    ERR_UNEXPECTED_SETTLE,
    SURE_REASONS,
    Fault,
    find_receivers,
)
from tollbook.books.payments.facilitator.node import Node, NodeFailed
from tollbook.books.payments.facilitator.purposes import identify
from tollbook.books.payments.facilitator.schemes import Schemes, Threads
from tollbook.books.payments.facilitator.sdk import Reader
from tollbook.books.payments.solana import payment as solana_payment
from tollbook.core.chains import is_solana, normalize_address
from tollbook.core.database import Database
from tollbook.core.errors import DatabaseUnreachable, Refusal
from tollbook.core.lanes import Lanes
from tollbook.core.operator_keys import check_operator_key

__all__ = [
    "ERR_UNEXPECTED_SETTLE",
    "SURE_REASONS",
    "Facilitator",
    "FacilitatorUnreachable",
    "InProcessFacilitator",
    "OperatorOutOfGas",
    "SettlementUnknown",
    "find_fault",
]

APPLICATION = "tollbook-facilitator"
CAIP_FAMILY = "eip155:*"
WAITING_MAX = 1024  # verifications, and settlements, those at work included
VERIFY_THREADS_MAX = 8
SETTLE_THREADS_MAX = 64  # they wait for blocks
RECEIPT_SECONDS_MAX = 60.0
MEND_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Facilitator(Protocol):
    """What the paywall needs of a facilitator.

    `verify` and `settle` answer with what is sure; what is not is FacilitatorUnreachable (nothing was sent)
    or, from `settle` alone, SettlementUnknown. A cancelled `settle` may have settled: shield it.
    """

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        """Return whether the payment would settle now, with the x402 reason where it would not."""
        ...

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        """Move the money and return the transaction, or the x402 reason why none moved."""
        ...

    async def supported(self) -> SupportedResponse:
        """Return the schemes and networks that are served, and the operators' addresses."""
        ...

    async def aclose(self) -> None:
        """Let go of threads and connections."""
        ...


@runtime_checkable
class _Opens(Protocol):
    async def open(self) -> None:
        """Begin to finish what any process left unfinished."""
        ...


@dataclass(frozen=True, slots=True)
class _Road:
    """What a network's payments go by."""

    node: Node
    broadcast: Broadcast
    exact: Eip3009
    schemes: Schemes


class InProcessFacilitator:
    """A facilitator in this process, over nodes, the operators' keys, and a database for what it sent.

    `rpc_urls` maps CAIP-2 networks to JSON-RPC addresses. `database` is a URL, or a Database that somebody
    else opens and closes. Any number of processes may share keys and database: a payment is broadcast once,
    and settling it again gives the same answer. `confirmations` is the depth, by network, at which
    a settlement is answered (1: the block that includes it). With `recipients`, nobody else is paid.
    More than `fee_per_gas_max` wei, or else what is sane on a network, is not offered for a unit of gas.
    It opens by itself when it is first used; use it from one event loop, and close it.
    """

    def __init__(
        self,
        rpc_urls: Mapping[str, str],
        private_keys: str | Sequence[str],
        database: Database | str,
        *,
        receipt_seconds_max: float = RECEIPT_SECONDS_MAX,
        confirmations: Mapping[str, int] | None = None,
        recipients: Sequence[str] = (),
        fee_per_gas_max: int | None = None,
    ) -> None:
        keys = [private_keys] if isinstance(private_keys, str) else private_keys
        self._accounts: list[LocalAccount] = [Account.from_key(check_operator_key(key)) for key in keys]
        self._rpc_urls = dict(rpc_urls)
        self._database = database
        self._receipt_seconds_max = receipt_seconds_max
        self._confirmations = dict(confirmations or {})
        self._fee_per_gas_max = fee_per_gas_max
        self._recipients = {normalize_address(recipient) for recipient in recipients}
        self._roads: dict[str, _Road] = {}
        self._closing = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._under_way: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    async def open(self) -> None:
        """Open the database, and begin to finish what any process left unfinished. Once is enough.

        Raises DatabaseUnreachable.
        """
        async with self._opening:
            if self._roads or self._closed:
                return
            async with AsyncExitStack() as stack:
                database = self._database
                if isinstance(database, str):
                    database = await stack.enter_async_context(Database(database, application=APPLICATION))
                keys = ["0x" + account.key.hex() for account in self._accounts]
                lanes = Lanes(database, self._rpc_urls, keys, fee_per_gas_max=self._fee_per_gas_max)
                stack.push_async_callback(lanes.aclose)
                threads = Threads("verify", VERIFY_THREADS_MAX), Threads("settle", SETTLE_THREADS_MAX)
                roads = {network: self._pave(network, lanes, *threads) for network in self._rpc_urls}
                for road in roads.values():
                    stack.push_async_callback(road.node.aclose)
                stack.push_async_callback(_end, asyncio.create_task(_mend(lanes)))
                stack.push_async_callback(self._idle.wait)
                for pool in threads:
                    stack.push_async_callback(pool.aclose)
                self._roads, self._closing = roads, stack.pop_all()

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        """See Facilitator."""
        fault = self._find_fault(payload, requirements)
        if fault is not None:
            reason, message = fault
            return VerifyResponse(is_valid=False, invalid_reason=reason, invalid_message=message)
        async with self._entering("verify", requirements.network) as road:
            if _is_exact(payload):
                answer = await road.exact.verify(Payment.read(payload, requirements))
                if answer is not None:
                    return answer
            return await road.schemes.verify(payload, requirements)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        """See Facilitator. Settling again what is settled sends nothing, and gives the same answer."""
        fault = self._find_fault(payload, requirements)
        if fault is not None:
            reason, message = fault
            return SettleResponse(
                success=False,
                error_reason=reason,
                error_message=message,
                transaction="",
                network=requirements.network,
            )
        async with self._entering("settle", requirements.network) as road:
            try:
                if _is_exact(payload):
                    answer = await road.exact.settle(Payment.read(payload, requirements))
                    if answer is not None:
                        return answer
                return await road.schemes.settle(payload, requirements)
            except NodeFailed as failure:
                standing, _ = await road.broadcast.find(identify(payload, requirements))
                if standing is not None:  # an earlier request's: this one cannot say what became of it
                    raise road.broadcast.unknown(standing.hash, str(failure)) from None
                raise

    async def supported(self) -> SupportedResponse:
        """See Facilitator."""
        await self._open()
        kinds = [await road.schemes.list_supported() for road in self._roads.values()]
        return SupportedResponse(
            kinds=[kind for of_network in kinds for kind in of_network],
            signers={CAIP_FAMILY: [account.address for account in self._accounts]},
        )

    async def check_ready(self) -> None:
        """Return if settlements can be made now. Raises FacilitatorUnreachable, DatabaseUnreachable."""
        await self._open()
        for road in self._roads.values():
            with _saying_unreachable(road.node.network):
                await road.node.check_chain()
                await road.broadcast.check_books()

    async def aclose(self) -> None:
        """Stop waiting for blocks, end threads and connections.

        What was sent and not yet seen mined ends as SettlementUnknown; it is in the books, and any process
        goes on with it.
        """
        self._closed = True
        for road in self._roads.values():
            road.broadcast.close()
        await self._closing.aclose()

    async def _open(self) -> None:
        if self._closed:
            raise FacilitatorUnreachable(CLOSED)
        if not self._roads:
            try:
                await self.open()
            except DatabaseUnreachable as error:
                raise FacilitatorUnreachable(f"It sent nothing: {error}") from error

    @asynccontextmanager
    async def _entering(self, kind: str, network: str) -> AsyncGenerator[_Road]:
        """Count what is under way, and refuse what would be too much of it."""
        if self._under_way[kind] >= WAITING_MAX:
            raise FacilitatorUnreachable("The facilitator is busy. It sent nothing; try again in a second.")
        self._under_way[kind] += 1
        self._idle.clear()
        try:
            await self._open()
            road = self._roads[network]
            with _saying_unreachable(network):
                await road.node.check_chain()
                yield road
        finally:
            self._under_way[kind] -= 1
            if not any(self._under_way.values()):
                self._idle.set()

    def _find_fault(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Fault | None:
        if requirements.network not in self._rpc_urls:
            served = ", ".join(self._rpc_urls)
            return ERR_INVALID_NETWORK, f"This facilitator does not serve this network. It serves: {served}."
        fault = facilitator_faults.find_fault(payload, requirements)
        if fault is None and self._recipients and find_receivers(payload, requirements) - self._recipients:
            return ERR_RECIPIENT_NOT_SERVED, "This facilitator does not pay this recipient."
        return fault

    def _pave(self, network: str, lanes: Lanes, verifying: Threads, settling: Threads) -> _Road:
        node = Node(network, self._rpc_urls[network])
        broadcast = Broadcast(
            node,
            lanes,
            receipt_seconds_max=self._receipt_seconds_max,
            confirmations=self._confirmations.get(network, 1),
        )
        loop, addresses = asyncio.get_running_loop(), [account.address for account in self._accounts]
        readers = {
            account.address.lower(): Reader(node, loop, "0x" + account.key.hex(), addresses)
            for account in self._accounts
        }
        exact = Eip3009(node, broadcast, addresses[0])
        authorizer = LocalAuthorizerSigner(self._accounts[0])
        schemes = Schemes(node, broadcast, exact, readers, authorizer, verifying, settling)
        return _Road(node, broadcast, exact, schemes)


async def wake(facilitators: Sequence[object]) -> None:
    """Have those in this process finish what was left unfinished now, and not with their first payment."""
    for facilitator in facilitators:
        if isinstance(facilitator, _Opens):
            try:
                await facilitator.open()
            except Refusal as refusal:
                logger.warning("what was sent is looked after from the first payment on: %s", refusal)


def find_fault(payload: PaymentPayload, requirements: PaymentRequirements) -> Fault | None:
    """Return why a payment cannot be for these requirements: x402 reason and sentence; None where it can.

    It looks at the payment alone, and asks no chain.
    """
    if is_solana(requirements.network):
        return solana_payment.find_fault(payload, requirements)
    return facilitator_faults.find_fault(payload, requirements)


@contextmanager
def _saying_unreachable(network: str) -> Generator[None]:
    """Say of what went wrong before anything was sent that it did; of SDK faults, log what they were."""
    try:
        yield
    except NodeFailed as failure:
        raise FacilitatorUnreachable(
            f"The facilitator got no usable answer from the node of {network}: {failure}. "
            "It sent nothing; present the same payment again later."
        ) from None
    except Refusal:
        raise
    except Exception as error:
        logger.exception("unexpected, from the x402 SDK")
        raise FacilitatorUnreachable(
            f"The facilitator failed on {network} ({type(error).__name__}). It sent nothing."
        ) from None


async def _mend(lanes: Lanes) -> None:
    """Finish, every few seconds, what any process left unfinished. What keeps it from that is told once."""
    told = ""
    while True:
        try:
            await lanes.mend()
            told = ""
        except Refusal as refusal:
            if refusal.reason != told:
                logger.warning("what was sent cannot be looked after now: %s", refusal)
            told = refusal.reason
        except Exception:
            logger.exception("looking after what was sent broke off; trying again")
        await asyncio.sleep(MEND_SECONDS)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _is_exact(payload: PaymentPayload) -> bool:
    return payload.accepted.scheme == SCHEME_EXACT and not is_permit2_payload(payload.payload)
