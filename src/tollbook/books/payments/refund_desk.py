"""The desk where refunds are paid out: by an ERC-20 transfer from the operator, through the nonce lanes.

A refund is `sent` in the book before its transaction is made, and its transaction has the refund for its
purpose: however often, and by how many processes, it is carried out, one transaction pays it.
"""

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

from eth_abi.abi import encode
from eth_utils.abi import function_signature_to_4byte_selector

from tollbook.books.payments import payments, refunds
from tollbook.books.payments.facilitator.signer import read_operator_key
from tollbook.books.payments.refunds import Refund
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.core import clock
from tollbook.core.chains import Chain, ChainRefused, UnknownNetwork, decode_transfer, is_solana
from tollbook.core.database import Database, WriteTx
from tollbook.core.errors import Refusal
from tollbook.core.lanes import Call, Lanes, Transaction

GAS_MAX = 200_000  # a transfer of USDC through its proxy takes less than a third of it
WAIT_SECONDS_MAX = 30.0


class RefundPurseEmpty(Refusal):
    """The operator's account would not send the tokens. Nothing was sent, and the sum is free again."""

    reason: ClassVar[str] = "refund-purse-empty"
    status: ClassVar[int] = 409


class RefundReverted(Refusal):
    """The refund's transaction was mined and moved nothing. The sum is free again."""

    reason: ClassVar[str] = "refund-reverted"
    status: ClassVar[int] = 409


@dataclass(frozen=True, slots=True)
class RefundDesk:
    """Pays refunds out. `chains` by CAIP-2 network, the lanes' own networks."""

    database: Database
    lanes: Lanes
    chains: Mapping[str, Chain]
    wait_seconds_max: float = WAIT_SECONDS_MAX

    async def refund(self, payment_id: int, *, amount: int | None, reason: str | None) -> Refund:
        """Send `amount` minor units of a payment back, or all that is left.

        `sent` where its transaction is not mined yet: the worker goes on with it. Raises PaymentNotInState,
        RefundTooLarge, RefundPurseEmpty, RefundReverted, UnknownNetwork, PaymentUnknown, what Lanes.submit
        raises (then the worker tries again), ChainUnreachable, DatabaseUnreachable.
        """
        async with self.database.write() as tx:
            payment = await payments.get(tx, payment_id)
            self._check_network(payment.network)
            asked = await refunds.request(tx, payment_id, amount=amount, reason=reason, now=clock.now())
        return await self.carry_out(asked.refund_id)

    async def carry_out(self, refund_id: int) -> Refund:
        """Go on with a refund from wherever it is. Raises as `refund` does."""
        refund = await self._read(refund_id)
        self._check_network(refund.network)
        if refund.status == "requested":
            await self._begin(refund)
            refund = await self._read(refund_id)  # somebody else may have ended it meanwhile
        if refund.status == "sent":
            await self._send(refund)
        return await self._read(refund_id)

    async def _read(self, refund_id: int) -> Refund:
        async with self.database.read() as tx:
            return await refunds.get(tx, refund_id)

    async def _begin(self, refund: Refund) -> None:
        """See that somebody here can pay it; from the commit on, its transaction may exist."""
        purse = await self._find_purse(refund)
        async with self.database.write() as tx:
            if purse is not None:
                if not await refunds.mark_sent(tx, refund.refund_id, now=clock.now()):
                    await _drop_if_unpaid(tx, refund)
                return
            failed = await refunds.fail(
                tx, refund.refund_id, RefundPurseEmpty.reason, was="requested", now=clock.now()
            )
        if failed:
            raise RefundPurseEmpty(
                f"None of the operator's accounts ({', '.join(self.lanes.addresses)}) can send "
                f"{refund.amount} minor units of {refund.asset}. Nothing was sent: fill one and ask again."
            )

    async def _send(self, refund: Refund) -> None:
        purpose = f"refund:{refund.refund_id}"
        transaction = await self.lanes.find(purpose)
        if transaction is None or transaction.status == "dropped":
            transaction = await self.lanes.submit(
                Call(
                    network=refund.network,
                    purpose=purpose,
                    to=refund.asset,
                    data=_encode_transfer(refund),
                    gas=GAS_MAX,
                    sender=await self._find_purse(refund),
                )
            )
        mined = await self.lanes.wait(transaction.transaction_id, seconds_max=self.wait_seconds_max)
        if mined.succeeded is not None:
            await self._end(refund, mined)

    async def _end(self, refund: Refund, mined: Transaction) -> None:
        """Book what became of a mined transaction: the transfer that its logs show, and nothing else."""
        receipt = mined.receipt or await self.chains[refund.network].get_transaction_receipt(mined.hash)
        if receipt is None:
            return
        transfers = [decode_transfer(log) for log in receipt.logs]
        arrived = any(
            transfer is not None
            and (transfer.token, transfer.receiver, transfer.amount)
            == (refund.asset, refund.to_address, refund.amount)
            for transfer in transfers
        )
        async with self.database.write() as tx:
            if arrived:
                await refunds.complete(
                    tx,
                    refund.refund_id,
                    from_address=mined.sender,
                    tx_hash=mined.hash,
                    block_number=receipt.block_number,
                    now=clock.now(),
                )
                return
            if receipt.succeeded:
                return  # it ran and moved another sum: the reconciler keeps naming it, a person decides
            await refunds.fail(
                tx, refund.refund_id, f"{mined.hash} was reverted", was="sent", now=clock.now()
            )
        raise RefundReverted(f"{mined.hash} was reverted: nothing was sent back. See why, and ask again.")

    async def _find_purse(self, refund: Refund) -> str | None:
        """The first of the operator's accounts from which the transfer would go through, now."""
        chain = self.chains[refund.network]
        for address in self.lanes.addresses:
            try:
                answer = await chain.call(refund.asset, _encode_transfer(refund), sender=address)
            except ChainRefused:
                continue
            if not answer or int.from_bytes(answer) == 1:  # some tokens return nothing
                return address
        return None

    def _check_network(self, network: str) -> None:
        if network not in self.chains:
            raise UnknownNetwork(
                f"Nothing can be sent on {network} from here: give its node in TOLLBOOK_RPC_URLS; on Solana, "
                "send it back by hand."
            )


async def carry_out_open(database: Database) -> int:
    """Go on with every refund that is on its way; how many there were. Needs the operator's key."""
    async with database.read() as tx:
        waiting = await refunds.find_open(tx)
    if not waiting:
        return 0
    failures: list[Refusal] = []
    async with open_desk(database, PaymentsSettings()) as desk:
        await desk.lanes.mend()  # what was lost on its way, or waits with too low a fee
        for refund in waiting:
            try:
                await desk.carry_out(refund.refund_id)
            except (RefundPurseEmpty, RefundReverted):
                pass  # the refund says so itself
            except Refusal as refusal:
                failures.append(refusal)  # the others may be possible
    if failures:
        raise failures[0]
    return len(waiting)


@asynccontextmanager
async def open_desk(database: Database, settings: PaymentsSettings) -> AsyncGenerator[RefundDesk]:
    """Yield the desk with the nodes and the operator's key of the settings. Raises OperatorKeyUnusable."""
    key = read_operator_key(settings.facilitator_key_file, os.environ)
    urls = {network: url for network, url in settings.rpc_urls.items() if not is_solana(network)}
    async with AsyncExitStack() as stack:
        lanes = await stack.enter_async_context(Lanes(database, urls, [key]))
        chains = {
            network: await stack.enter_async_context(Chain(network, url)) for network, url in urls.items()
        }
        yield RefundDesk(database, lanes, chains)


async def _drop_if_unpaid(tx: WriteTx, refund: Refund) -> None:
    """Give up a refund whose payment the chain took back; not one that somebody else has begun to send."""
    payment = await payments.get(tx, refund.payment_id)
    if payment.settlement != "settled":
        why = f"the payment is {payment.settlement}: there is nothing to send back"
        await refunds.fail(tx, refund.refund_id, why, was="requested", now=clock.now())


def _encode_transfer(refund: Refund) -> bytes:
    selector = function_signature_to_4byte_selector("transfer(address,uint256)")
    return selector + encode(["address", "uint256"], [refund.to_address, refund.amount])
