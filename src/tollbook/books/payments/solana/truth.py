"""What Solana itself says of a settlement; to be given to ChainTruth as the one who judges "solana"."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from x402.mechanisms.svm.constants import TOKEN_2022_PROGRAM_ADDRESS, TOKEN_PROGRAM_ADDRESS
from x402.mechanisms.svm.utils import derive_ata

from tollbook.books.payments.ledger import Settlement, Verdict
from tollbook.books.payments.solana import settlements as solana_settlements
from tollbook.books.payments.solana.node import ERR_EXPIRED, Landing, SolanaNode
from tollbook.core.chains import ChainRefused
from tollbook.core.database import Database

SEARCH_BEFORE = timedelta(hours=1)  # the payer may have had it sent before we were asked
SKEW = timedelta(minutes=5)  # that the cluster's clock and ours may differ
CANDIDATES_MAX = 200  # transactions of one payer that are looked into for one message
PAGES_MAX = 10
LANDED_WITH_AN_ERROR = "its transaction landed with an error"


@dataclass(frozen=True, slots=True)
class SolanaTruth:
    """The verdicts of Solana's networks, each asked at its node, by CAIP-2 network.

    The database is asked for what our own facilitator signed: of those it is known when their time is over.
    """

    database: Database
    nodes: Mapping[str, SolanaNode]

    async def find(self, settlement: Settlement) -> Verdict | None:
        """See ledger.Truth; `block_number` is the slot. "settled" may be shallow, as there; two thirds
        of the stake have voted for it.
        """
        node = self.nodes.get(settlement.network)
        if node is None:
            return None
        try:
            await node.check_network()
            return await self._judge(node, settlement)
        except ChainRefused:
            return None

    async def _judge(self, node: SolanaNode, row: Settlement) -> Verdict:
        async with self.database.read() as tx:
            signed = await solana_settlements.find(tx, row.network, bytes.fromhex(row.nonce))
        for signature in (signed and signed.signature, row.tx_hash):
            landing = await _find_own(node, row, signature) if signature else None
            if signature and landing is not None:
                return await _judge_landing(node, row, signature, landing)
        if signed is None:
            return await _search(node, row)
        if await node.is_over(signed.signature, signed.last_valid_height, signed.signed_slot):
            return Verdict("not settled", reason=ERR_EXPIRED)
        return Verdict("open")


async def _search(node: SolanaNode, row: Settlement) -> Verdict:
    """Look for a message that another facilitator signed among what names its payer.

    "not settled" needs all of that to have been seen, after its time was over.
    """
    final, is_over = await node.get_final(), await node.has_outlived(row.asked_at + SKEW)
    first = await node.find_slot_before(row.asked_at - SEARCH_BEFORE)
    history = await node.read_history(row.payer, first, as_of=final.slot, pages_max=PAGES_MAX)
    asked = row.asked_at.timestamp()  # it was sent about then
    nearest = sorted(history, key=lambda each: abs((each.time or asked) - asked))[:CANDIDATES_MAX]
    for sighting in nearest:
        landing = await node.find_landing(sighting.signature, "confirmed")
        if landing is None:
            is_over = False  # the node does not know what it showed
        elif landing.message_hash == row.nonce:
            return await _judge_landing(node, row, sighting.signature, landing)
    if is_over and len(history) == len(nearest) and await node.get_first_slot() <= first:
        return Verdict("not settled", reason=ERR_EXPIRED)
    return Verdict("open")


async def _find_own(node: SolanaNode, row: Settlement, signature: str) -> Landing | None:
    """A transaction, where it is this very message: facilitators may name any."""
    landing = await node.find_landing(signature, "confirmed")
    return landing if landing is not None and landing.message_hash == row.nonce else None


async def _judge_landing(node: SolanaNode, row: Settlement, signature: str, landing: Landing) -> Verdict:
    moved = sum(
        landing.moved.get((account, row.asset), 0) for account in find_accounts(row.pay_to, row.asset)
    )
    if landing.error is None and moved > 0:
        return Verdict("settled", tx_hash=signature, block_number=landing.slot, amount_moved=moved)
    if (await node.get_final()).slot < landing.slot:  # on another fork it may yet succeed
        return Verdict("open")
    return Verdict("not settled", reason=LANDED_WITH_AN_ERROR)


def find_accounts(owner: str, mint: str) -> list[str]:
    """Return where an owner's tokens are, by the two programs of which one made the mint."""
    return [
        derive_ata(owner, mint, program) for program in (TOKEN_PROGRAM_ADDRESS, TOKEN_2022_PROGRAM_ADDRESS)
    ]
