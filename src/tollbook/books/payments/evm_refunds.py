"""Refunds on EVM networks: an ERC-20 transfer from the operator, through the lanes, with a mark behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_utils.abi import function_signature_to_4byte_selector

from tollbook.books.payments.refund_marks import MARK_BYTES, MarkedTransfer
from tollbook.books.payments.refund_purse import Ending, RefundMustWait, RefundPurseEmpty
from tollbook.books.payments.refunds import Refund
from tollbook.books.payments.truth import count_confirmations
from tollbook.core.chain_logs import find_events, pad
from tollbook.core.chains import TRANSFER_TOPIC, Chain, ChainRefused, decode_transfer
from tollbook.core.database import WriteTx
from tollbook.core.lanes import Call, Lanes, Transaction, endings

PURPOSE = "refund:"  # one of the lanes' LOOK_FIRST
GAS_MAX = 200_000  # a transfer of USDC through its proxy takes less than a third of it
BLOCKS_AT_ONCE = 50_000
SELECTOR = function_signature_to_4byte_selector("transfer(address,uint256)")
CALL_BYTES = len(SELECTOR) + 64


@dataclass(frozen=True, slots=True)
class EvmReader:
    """See forgotten_refunds.Reader. Positions are blocks."""

    chain: Chain

    @property
    def network(self) -> str:
        """See Reader."""
        return self.chain.network

    @property
    def span(self) -> int:
        """See Reader."""
        return BLOCKS_AT_ONCE

    async def find_ends(self) -> tuple[int, int]:
        """See Reader."""
        newest = await self.chain.get_block_number()
        return max(newest - count_confirmations(self.network) + 1, 0), newest

    async def find_marked(self, asset: str, sender: str, first: int, last: int) -> list[MarkedTransfer]:
        """See Reader."""
        events = await find_events(self.chain, [asset], [TRANSFER_TOPIC, pad(sender)], first, last)
        hashes = dict.fromkeys(event.transaction_hash for event in events)
        read = [await self.read_marked(asset, one) for one in hashes]
        return [moved for moved in read if moved is not None and moved.from_address == sender]

    async def read_marked(self, asset: str, tx_hash: str) -> MarkedTransfer | None:
        """See Reader."""
        receipt = await self.chain.get_transaction_receipt(tx_hash)
        if receipt is None or not receipt.succeeded:
            return None
        answer: Any = await self.chain.ask("eth_getTransactionByHash", tx_hash)
        try:
            data = bytes.fromhex(answer["input"].removeprefix("0x"))
            sender, to = str(answer["from"]).lower(), str(answer["to"]).lower()
            if to != asset or len(data) != CALL_BYTES + MARK_BYTES or not data.startswith(SELECTOR):
                return None
            receiver, amount = decode(["address", "uint256"], data[len(SELECTOR) : CALL_BYTES])
        except (DecodingError, KeyError, TypeError, ValueError, AttributeError) as error:
            self.chain.complain("eth_getTransactionByHash", error)
        return MarkedTransfer(
            self.network, asset, sender, receiver, amount, tx_hash, receipt.block_number, data[CALL_BYTES:]
        )


@dataclass(frozen=True, slots=True)
class EvmPurse:
    """See refund_purse.Purse. `chains` by CAIP-2 network, the lanes' own networks."""

    lanes: Lanes
    chains: Mapping[str, Chain]
    wait_seconds_max: float

    @property
    def senders(self) -> Sequence[str]:
        """See Purse."""
        return self.lanes.addresses

    def open_reader(self, network: str) -> EvmReader:
        """See Purse."""
        return EvmReader(self.chains[network])

    async def has_begun(self, refund: Refund) -> bool:
        """See Purse. One that was dropped never was in a block and never will be."""
        transaction = await self.lanes.find(_purpose(refund))
        return transaction is not None and transaction.status != "dropped"

    async def bar(self, tx: WriteTx, refund: Refund) -> bool:
        """See Purse."""
        return await endings.bar(tx, refund.network, _purpose(refund)) == []

    async def find_sender(self, refund: Refund, mark: bytes) -> str:
        """See Purse."""
        chain = self.chains[refund.network]
        await self.check_pending(refund.network)
        own = await self.lanes.find_account(_purpose(refund))
        for address in [one for one in self.senders if own in (None, one)]:
            try:
                answer = await chain.call(refund.asset, _encode(refund, mark), sender=address)
            except ChainRefused:
                continue
            if not answer or int.from_bytes(answer) == 1:  # some tokens return nothing
                return address
        if own is not None:
            raise RefundMustWait(
                f"A node refused the refund from {own}, and may have taken it all the same: it is sent from "
                "there, or when its nonce is another's for good. Fill that account, or configure its key "
                "again; or use that nonce from elsewhere."
            )
        raise RefundPurseEmpty(
            f"None of the operator's accounts ({', '.join(self.senders)}) can send {refund.amount} minor "
            f"units of {refund.asset}. Nothing was sent: fill one and ask again."
        )

    async def send(self, refund: Refund, mark: bytes, *, anew: bool) -> Ending | None:
        """See Purse. Raises what Lanes.submit raises."""
        transaction = await self.lanes.find(_purpose(refund))
        if transaction is None or transaction.status == "dropped":
            if not anew:
                return None
            transaction = await self.lanes.submit(
                Call(
                    network=refund.network,
                    purpose=_purpose(refund),
                    to=refund.asset,
                    data=_encode(refund, mark),
                    gas=GAS_MAX,
                    sender=await self.find_sender(refund, mark),
                )
            )
        mined = await self.lanes.wait(transaction.transaction_id, seconds_max=self.wait_seconds_max)
        return None if mined.succeeded is None else await self._judge(refund, mined)

    async def mend(self) -> None:
        """See Purse."""
        await self.lanes.mend()

    async def _judge(self, refund: Refund, mined: Transaction) -> Ending | None:
        """The transfer that a mined transaction's logs show, and nothing else.

        None also where it ran and moved another sum: the reconciler keeps naming it, a person decides.
        """
        receipt = mined.receipt or await self.chains[refund.network].get_transaction_receipt(mined.hash)
        if receipt is None:
            return None
        wanted = (refund.asset, mined.sender, refund.to_address, refund.amount)
        moved = [decode_transfer(log) for log in receipt.logs]
        arrived = any(one and (one.token, one.sender, one.receiver, one.amount) == wanted for one in moved)
        if receipt.succeeded and not arrived:
            return None
        return Ending(arrived, mined.hash, mined.sender, receipt.block_number)

    async def check_pending(self, network: str) -> None:
        """See Purse."""
        # What was dropped and taken all the same is known by its hash, and sent under its nonce alone.
        if unknown := [one for one in await self.lanes.find_strangers(network) if one.unknown]:
            raise RefundMustWait(
                f"A transaction of {unknown[0].sender} that these books do not know waits for its block on "
                f"{network}. The refund goes on when it has one."
            )


def _purpose(refund: Refund) -> str:
    return f"{PURPOSE}{refund.refund_id}"


def _encode(refund: Refund, mark: bytes) -> bytes:
    return SELECTOR + encode(["address", "uint256"], [refund.to_address, refund.amount]) + mark
