"""The facilitator on Solana: it pays the fee, broadcasts a message once, and believes the chain alone.

A message can land once, ever, and its id is known before it is sent: so the intent on disk, and not the
node's answer, is what a later question starts from. No transaction is kept: with the payer's signature it
could be sent by whoever reads it. Who presents a payment again brings its bytes, and only then is it sent
again; the truth about one that nobody presents again is found by its signature.
"""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import cycle
from types import TracebackType
from typing import Self

import psycopg
from psycopg_pool import PoolTimeout
from solders.transaction import VersionedTransaction
from x402.mechanisms.svm.constants import (
    ERR_DUPLICATE_SETTLEMENT,
    ERR_FEE_PAYER_NOT_MANAGED,
    ERR_SETTLEMENT_PENDING,
    ERR_SIMULATION_FAILED,
    ERR_TRANSACTION_FAILED,
)
from x402.mechanisms.svm.exact.facilitator import ExactSvmScheme
from x402.mechanisms.svm.signers import FacilitatorKeypairSigner
from x402.schemas import (
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedKind,
    SupportedResponse,
    VerifyResponse,
)

from tollbook.books.payments.facilitator.errors import (
    FacilitatorUnreachable,
    OperatorOutOfGas,
    SettlementUnknown,
)
from tollbook.books.payments.facilitator.faults import (
    ERR_INVALID_NETWORK,
    ERR_RECIPIENT_NOT_SERVED,
    X402_VERSION,
    Fault,
)
from tollbook.books.payments.solana import settlements as solana_settlements
from tollbook.books.payments.solana.node import ERR_EXPIRED, Commitment, SolanaNode
from tollbook.books.payments.solana.payment import SolanaPayment, find_fault, read_payment
from tollbook.books.payments.solana.settlements import End, Intent, SolanaSettlement
from tollbook.core import clock
from tollbook.core.chains import SOLANA_FAMILY, ChainRefused, ChainUnreachable, normalize_address_on
from tollbook.core.database import Database
from tollbook.core.errors import DatabaseUnreachable
from tollbook.core.operator_keys import read_keypair

APPLICATION = "tollbook solana facilitator"
ERR_AMOUNT_DIFFERS = "transferred_amount_differs"

SETTLE_SECONDS_MAX = 30.0
POLL_SECONDS = 0.4  # a slot
QUIET = timedelta(seconds=2)  # then it is sent again: leaders drop what they have no room for
SETTLEMENTS_MAX = 1024  # under way at once in one process
RESOLVE_SECONDS = 30.0

# With these a simulation ends where the fee payer's account cannot pay.
_NO_GAS = ("AccountNotFound", "InsufficientFundsForFee", "InvalidAccountForFee")
_NO_RENT = {"InsufficientFundsForRent": {"account_index": 0}}
_LANDED = "AlreadyProcessed"
_NODE_FAILURES = (ChainUnreachable, ChainRefused)
_DATABASE_FAILURES = (DatabaseUnreachable, psycopg.Error, PoolTimeout)

logger = logging.getLogger(__name__)


class SolanaFacilitator:
    """A facilitator in this process for the exact scheme on Solana, x402 version 2.

    `rpc_urls` maps CAIP-2 networks to JSON-RPC addresses; `private_keys` are the fee payers' (base 58 of 64
    bytes, or the JSON array of Solana's own tools). `database` remembers what was signed: a URL, or a
    Database that somebody else opens and closes. A settlement is believed at `commitment`: "confirmed" (two
    thirds of the stake have voted for it, about a second) or "finalized" (no fork can take it back, about
    thirteen). With `recipients`, fees are paid for nobody else. Outcomes as in Facilitator.
    """

    def __init__(
        self,
        rpc_urls: Mapping[str, str],
        private_keys: str | Sequence[str],
        database: Database | str,
        *,
        commitment: Commitment = "confirmed",
        settle_seconds_max: float = SETTLE_SECONDS_MAX,
        recipients: Sequence[str] = (),
    ) -> None:
        keys = [private_keys] if isinstance(private_keys, str) else private_keys
        self._signer = FacilitatorKeypairSigner([read_keypair(key) for key in keys])
        self._nodes = {network: SolanaNode(network, url) for network, url in rpc_urls.items()}
        self._recipients = {normalize_address_on(SOLANA_FAMILY, recipient) for recipient in recipients}
        self._database = database
        self._own_database: Database | None = None
        self._opening = asyncio.Lock()
        self._commitment: Commitment = commitment
        self._settle_seconds_max = settle_seconds_max
        self._fee_payers = cycle(self._signer.get_addresses())
        self._running: dict[tuple[str, bytes], asyncio.Task[SolanaSettlement | SettleResponse]] = {}
        self._closing = asyncio.Event()
        self._resolving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the database, and begin to look, now and then, for the ends that any process left unknown.

        It opens by itself when it is first used. Raises DatabaseUnreachable.
        """
        await self._books()

    async def check_ready(self) -> None:
        """Return if settlements can be made now. Raises FacilitatorUnreachable."""
        try:
            async with (await self._books()).read() as tx:
                await solana_settlements.find_open(tx, [])
            for node in self._nodes.values():
                await node.check_network()
                await node.get_head()
        except (*_NODE_FAILURES, *_DATABASE_FAILURES) as error:
            raise _unreachable(error) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop waiting for blocks, close the connections. What still waited ends as SettlementUnknown."""
        self._closing.set()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        if self._resolving is not None:
            await self._resolving
        for node in self._nodes.values():
            await node.aclose()
        if self._own_database is not None:
            await self._own_database.__aexit__()

    async def supported(self) -> SupportedResponse:
        """See Facilitator. Each kind names a fee payer, which the payer signs; several take turns."""
        return SupportedResponse(
            kinds=[
                SupportedKind(
                    x402_version=X402_VERSION,
                    scheme=ExactSvmScheme.scheme,
                    network=network,
                    extra={"feePayer": next(self._fee_payers)},
                )
                for network in self._nodes
            ],
            signers={ExactSvmScheme.caip_family: self._signer.get_addresses()},
        )

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        """See Facilitator. A payment that was settled buys nothing more, though settling it says so again."""
        fault = self._find_fault(payload, requirements)
        if fault is not None:
            reason, message = fault
            return VerifyResponse(is_valid=False, invalid_reason=reason, invalid_message=message)
        payment = read_payment(payload)
        known = await self._find(requirements.network, payment)
        if known is None:
            fault = await self._simulate(requirements.network, payment)
        elif known.status != "signed":
            fault = ERR_DUPLICATE_SETTLEMENT, f"It was presented before, and {known.status}."
        reason, message = fault or (None, None)
        return VerifyResponse(
            is_valid=fault is None, invalid_reason=reason, invalid_message=message, payer=payment.payer
        )

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        """See Facilitator. However often and wherever it is presented: one broadcast, one answer."""
        fault = self._find_fault(payload, requirements)
        if fault is not None:
            return _refuse(requirements.network, *fault)
        payment = read_payment(payload)
        key = (requirements.network, bytes.fromhex(payment.message_hash))
        task = self._running.get(key)
        if task is None:
            if self._closing.is_set() or len(self._running) >= SETTLEMENTS_MAX:
                raise FacilitatorUnreachable(
                    "The facilitator is busy or stopping. Nothing was sent now; try again."
                )
            # A task, because a caller who goes away must not cut a settlement in two.
            task = asyncio.create_task(self._settle(payment, requirements))
            self._running[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        end = await asyncio.shield(task)
        return end if isinstance(end, SettleResponse) else _answer(end)

    def _forget(
        self, key: tuple[str, bytes], done: "asyncio.Task[SolanaSettlement | SettleResponse]"
    ) -> None:
        self._running.pop(key, None)
        if not done.cancelled():
            done.exception()  # read by nobody where every caller has gone away

    async def resolve(self) -> list[SolanaSettlement]:
        """Ask the chain what became of the messages whose end is not known; those that it knows by now.

        At most solana_settlements.OPEN_MAX a call. Raises DatabaseUnreachable.
        """
        async with (await self._books()).read() as tx:
            found = await solana_settlements.find_open(tx, list(self._nodes))
        ended: list[SolanaSettlement] = []
        for settlement in found:
            try:
                looked = await self._look(settlement, thoroughly=True)
            except _NODE_FAILURES as failure:  # of one network; the others' nodes may answer
                logger.warning("looking for %s: %s", settlement.signature, failure.sentence)
            else:
                ended += [looked] if looked.status != "signed" else []
        return ended

    async def _resolve_on(self) -> None:
        while not await self._pause(RESOLVE_SECONDS):
            try:
                await self.resolve()
            except _DATABASE_FAILURES as error:
                logger.warning("what became of messages cannot be looked up now: %s", type(error).__name__)
            except Exception:
                logger.exception("looking up what became of messages broke off; trying again")

    async def find(self, network: str, message_hash: str) -> SolanaSettlement | None:
        """What is known of a message (SHA-256, hex), asking the chain where its end is not known yet.

        None where it was never signed here. Raises DatabaseUnreachable, ChainUnreachable, ChainRefused.
        """
        async with (await self._books()).read() as tx:
            known = await solana_settlements.find(tx, network, bytes.fromhex(message_hash))
        if known is None or known.status != "signed" or network not in self._nodes:
            return known
        return await self._look(known, thoroughly=True)

    def _find_fault(self, payload: PaymentPayload, requirements: PaymentRequirements) -> Fault | None:
        if requirements.network not in self._nodes:
            served = ", ".join(self._nodes)
            return ERR_INVALID_NETWORK, f"This facilitator does not serve this network. It serves: {served}."
        fault = find_fault(payload, requirements)
        if fault is None and requirements.extra["feePayer"] not in self._signer.get_addresses():
            return (
                ERR_FEE_PAYER_NOT_MANAGED,
                "The fee payer is another facilitator's. See /supported for ours.",
            )
        if fault is None and self._recipients and requirements.pay_to not in self._recipients:
            return ERR_RECIPIENT_NOT_SERVED, "This facilitator pays fees for other recipients."
        return fault

    async def _settle(
        self, payment: SolanaPayment, requirements: PaymentRequirements
    ) -> SolanaSettlement | SettleResponse:
        network = requirements.network
        signed = self._sign(network, payment)
        known, is_ours = await self._find(network, payment), False
        if known is None:
            refusal = await self._simulate(network, payment)
            known = await self._find(network, payment)  # settled meanwhile, it would not simulate
            if known is None:
                if refusal is not None and not await self._has_landed(network, signed, refusal):
                    return _refuse(network, *refusal, payer=payment.payer)
                known, is_new = await self._begin(payment, requirements, str(signed.signatures[0]))
                is_ours = is_new and refusal is None
        try:
            return await self._follow(known, base64.b64encode(bytes(signed)).decode(), is_ours=is_ours)
        except _DATABASE_FAILURES as error:
            why = f"what became of it could not be written down ({type(error).__name__})"
            raise SettlementUnknown(network, known.signature, ERR_SETTLEMENT_PENDING, why) from error

    async def _begin(
        self, payment: SolanaPayment, requirements: PaymentRequirements, signature: str
    ) -> tuple[SolanaSettlement, bool]:
        """The row of a message, and whether it is new: then it is durable before anything is sent."""
        network = requirements.network
        try:
            head = await self._nodes[network].get_head()
        except _NODE_FAILURES as failure:
            raise _unreachable(failure) from failure
        intent = Intent(
            network=network,
            message_hash=bytes.fromhex(payment.message_hash),
            signed_slot=head.slot,
            # The payer's block hash is one that the node knew when it simulated: no newer than its newest.
            last_valid_height=head.last_valid_height,
            amount=payment.amount,
            signature=signature,
            fee_payer=payment.fee_payer,
            payer=payment.payer,
            asset=payment.asset,
            pay_to=requirements.pay_to,
            destination=payment.destination,
        )
        try:
            async with (await self._books()).write() as tx:
                is_new = await solana_settlements.begin(tx, intent, now=clock.now())
            known = await self._find(network, payment)
        except _DATABASE_FAILURES as error:
            raise _unreachable(error) from error
        assert known is not None
        return known, is_new

    async def _follow(self, settlement: SolanaSettlement, text: str, *, is_ours: bool) -> SolanaSettlement:
        """Send the message where it is our turn, and look until its end is known.

        Raises SettlementUnknown when that takes too long.
        """
        deadline = time.monotonic() + self._settle_seconds_max
        why = "no block that the cluster agrees on holds it yet"
        if is_ours:
            await self._send(settlement, text)
        thoroughly = not is_ours
        while settlement.status == "signed":
            try:
                settlement = await self._look(settlement, thoroughly=thoroughly)
            except _NODE_FAILURES as failure:
                why = failure.sentence
            if settlement.status != "signed":
                break
            if self._closing.is_set() or time.monotonic() >= deadline:
                raise SettlementUnknown(settlement.network, settlement.signature, ERR_SETTLEMENT_PENDING, why)
            thoroughly = await self._claim_send(settlement)
            if thoroughly:
                await self._send(settlement, text)
            await self._pause(POLL_SECONDS)
        return settlement

    async def _claim_send(self, settlement: SolanaSettlement) -> bool:
        async with (await self._books()).write() as tx:
            return await solana_settlements.claim_send(tx, settlement, quiet=QUIET, now=clock.now())

    async def _pause(self, seconds: float) -> bool:
        """Wait; whether it is closing by then."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)
        return self._closing.is_set()

    async def _send(self, settlement: SolanaSettlement, text: str) -> None:
        """Whatever the node answers, or does not, says nothing of what the cluster will do."""
        try:
            await self._nodes[settlement.network].send(text)
        except _NODE_FAILURES as failure:
            logger.warning("sending %s: %s", settlement.signature, failure.sentence)

    async def _look(self, settlement: SolanaSettlement, *, thoroughly: bool) -> SolanaSettlement:
        """Ask the chain for the message's end, and enter it. `thoroughly`: also whether its time is over."""
        node = self._nodes[settlement.network]
        status, _ = await node.find_status(settlement.signature, history=thoroughly)
        if status is None:
            end = await self._find_expiry(settlement) if thoroughly else None
        elif not status.reaches(self._commitment):
            end = None
        elif status.error is not None:
            end = End("failed", status.slot, None, None, _say_error(status.error))
        else:
            end = await self._find_end(settlement)
        if end is None:
            return settlement
        async with (await self._books()).write() as tx:
            return await solana_settlements.end(tx, settlement, end, now=clock.now())

    async def _find_end(self, settlement: SolanaSettlement) -> End | None:
        """What a message did that landed without an error: only its balances say whether it paid."""
        landing = await self._nodes[settlement.network].find_landing(settlement.signature, self._commitment)
        if landing is None or landing.message_hash != settlement.message_hash.hex():
            return None
        if landing.error is not None:
            return End("failed", landing.slot, landing.fee_lamports, None, _say_error(landing.error))
        moved = landing.moved.get((settlement.destination, settlement.asset), 0)
        if moved == settlement.amount:
            return End("settled", landing.slot, landing.fee_lamports, moved, None)
        return End("differs", landing.slot, landing.fee_lamports, moved, ERR_AMOUNT_DIFFERS)

    async def _find_expiry(self, settlement: SolanaSettlement) -> End | None:
        node = self._nodes[settlement.network]
        is_over = await node.is_over(
            settlement.signature, settlement.last_valid_height, settlement.signed_slot
        )
        return End("failed", None, None, None, ERR_EXPIRED) if is_over else None

    async def _simulate(self, network: str, payment: SolanaPayment) -> Fault | None:
        """Why the payment would not land now; None where it would.

        Raises FacilitatorUnreachable, OperatorOutOfGas. It is the payer's bytes that are simulated: what the
        fee payer has signed could land, and leaves this process only when it is written down.
        """
        node = self._nodes[network]
        try:
            await node.check_network()
            error = await node.simulate(base64.b64encode(bytes(payment.transaction)).decode())
        except _NODE_FAILURES as failure:
            raise _unreachable(failure) from failure
        if error is None:
            return None
        if error == _LANDED:
            return ERR_DUPLICATE_SETTLEMENT, "The transaction has landed before."
        if error in _NO_GAS or error == _NO_RENT:
            raise OperatorOutOfGas(
                f"The fee payer {payment.fee_payer} cannot pay. Send it SOL. Nothing was sent."
            )
        return ERR_SIMULATION_FAILED, f"The transaction would fail: {_say_error(error)}."

    async def _has_landed(self, network: str, signed: VersionedTransaction, refusal: Fault) -> bool:
        """Whether it would not land because it has: sent by one with our key and another database, or by us
        before this one was lost."""
        if refusal[0] == ERR_DUPLICATE_SETTLEMENT:
            return True
        try:
            status, _ = await self._nodes[network].find_status(str(signed.signatures[0]), history=True)
        except _NODE_FAILURES as failure:
            raise _unreachable(failure) from failure
        return status is not None

    async def _find(self, network: str, payment: SolanaPayment) -> SolanaSettlement | None:
        try:
            async with (await self._books()).read() as tx:
                return await solana_settlements.find(tx, network, bytes.fromhex(payment.message_hash))
        except _DATABASE_FAILURES as error:
            raise _unreachable(error) from error

    def _sign(self, network: str, payment: SolanaPayment) -> VersionedTransaction:
        """The payer's transaction with the fee payer's signature, always the same one (RFC 8032)."""
        text = base64.b64encode(bytes(payment.transaction)).decode()
        signed = self._signer.sign_transaction(text, payment.fee_payer, network)
        return VersionedTransaction.from_bytes(base64.b64decode(signed))

    async def _books(self) -> Database:
        async with self._opening:
            if isinstance(self._database, str):
                own = Database(self._database, application=APPLICATION)
                self._database = self._own_database = await own.__aenter__()
            self._resolving = self._resolving or asyncio.create_task(self._resolve_on())
            return self._database


def _answer(settlement: SolanaSettlement) -> SettleResponse:
    """The same answer each time. Raises SettlementUnknown for a message that moved another amount."""
    if settlement.status == "differs":
        why = f"the recipient got {settlement.amount_moved} of {settlement.amount} minor units"
        raise SettlementUnknown(settlement.network, settlement.signature, ERR_AMOUNT_DIFFERS, why)
    settled = settlement.status == "settled"
    return SettleResponse(
        success=settled,
        error_reason=None if settled else ERR_TRANSACTION_FAILED,
        error_message=None if settled else f"No money moved: {settlement.reason}.",
        transaction=settlement.signature,
        network=settlement.network,
        payer=settlement.payer,
    )


def _refuse(network: str, reason: str, message: str, payer: str | None = None) -> SettleResponse:
    return SettleResponse(
        success=False,
        error_reason=reason,
        error_message=message,
        transaction="",
        network=network,
        payer=payer,
    )


def _unreachable(error: Exception) -> FacilitatorUnreachable:
    why = error.sentence if isinstance(error, _NODE_FAILURES) else type(error).__name__
    return FacilitatorUnreachable(f"Nothing was sent now; present the same payment again. {why}")


def _say_error(error: object) -> str:
    return json.dumps(error, separators=(",", ":"))
