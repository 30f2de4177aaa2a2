"""What a chain itself says of a settlement: did the money move, will it never, or may it still.

Nothing here is a guess. "not settled" needs a block, as deep as the network asks for, after which the
authorization cannot be used any more; what was used is looked for until its transaction is found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from eth_abi.abi import encode
from eth_utils.abi import function_signature_to_4byte_selector
from x402.mechanisms.evm.constants import (
    PERMIT2_ADDRESS,
    X402_EXACT_PERMIT2_PROXY_ADDRESS,
    X402_UPTO_PERMIT2_PROXY_ADDRESS,
)

from tollbook.books.payments.ledger import Settlement, Truth, Verdict
from tollbook.core.chain_logs import Event, find_block_before, find_events, pad
from tollbook.core.chains import (
    AUTHORIZATION_CANCELED_TOPIC,
    AUTHORIZATION_USED_TOPIC,
    CONFIRMATIONS_DEFAULT,
    NETWORKS,
    TRANSFER_TOPIC,
    Block,
    Chain,
    ChainRefused,
    Log,
    MalformedHash,
    Receipt,
    decode_authorization_used,
    decode_transfer,
    normalize_hash,
)

PERMIT2_PREFIX = "permit2:"
BATCH_SCHEME = "batch-settlement"
# An authorization may have been used before we were asked for it, by somebody who had it earlier.
SEARCH_BEFORE = timedelta(hours=1)
CANDIDATES_MAX = 200  # transfers of one payer to one recipient that are looked into for one Permit2 nonce

_2612, _PERMIT = "(uint256,uint256,bytes32,bytes32,uint8)", "((address,uint256),uint256,uint256)"
_EXACT, _UPTO = "address,(address,uint256),bytes", "uint256,address,(address,address,uint256),bytes"
# The calls of x402's proxies that use a permit; and where in each, in words, the permit and its owner are.
PERMIT_USES = {
    (proxy.lower(), "0x" + function_signature_to_4byte_selector(f"{name}({first}{_PERMIT},{rest})").hex()): (
        5 * bool(first),
        5 * bool(first) + 4 + (rest == _UPTO),
    )
    for proxy, rest in ((X402_EXACT_PERMIT2_PROXY_ADDRESS, _EXACT), (X402_UPTO_PERMIT2_PROXY_ADDRESS, _UPTO))
    for name, first in (("settle", ""), ("settleWithPermit", f"{_2612},"))
}
SELECTOR_CHARS, WORD_CHARS = 10, 64

SPENT_ELSEWHERE = "authorization cancelled or spent elsewhere"
RAN_OUT = "the authorization ran out unused"


def count_confirmations(network: str) -> int:
    """How deep a block of the network must be to be final; a transaction's own block is the first."""
    known = NETWORKS.get(network)
    return CONFIRMATIONS_DEFAULT if known is None else known.confirmations


@dataclass(frozen=True, slots=True)
class ChainTruth:
    """The verdicts of EVM networks, each asked at its node, by CAIP-2 network.

    `elsewhere` are those who judge other families, by the first part of the network's id: {"solana": …}.
    """

    chains: Mapping[str, Chain]
    elsewhere: Mapping[str, Truth] = field(default_factory=dict[str, Truth])

    async def find(self, settlement: Settlement) -> Verdict | None:
        """See ledger.Truth. None also where it cannot be judged: a channel, or a nonce of another kind.

        "settled" may be shallow: `block_number` says how deep it is.
        """
        other = self.elsewhere.get(settlement.network.partition(":")[0])
        if other is not None:
            return await other.find(settlement)
        chain = self.chains.get(settlement.network)
        if chain is None or settlement.scheme == BATCH_SCHEME:
            return None
        try:
            return await _judge(chain, settlement)
        except ChainRefused:  # no such contract, or blocks that the node does not have: no verdict
            return None


async def _judge(chain: Chain, row: Settlement) -> Verdict | None:
    used = await _read_known(chain, row)
    if used is not None:
        return used
    newest = await chain.get_block()
    if newest is None:
        return None
    if not await _is_used(chain, row, newest.number):
        return await _judge_unused(chain, row, newest)
    if row.nonce.startswith(PERMIT2_PREFIX):
        return await _find_permit(chain, row, newest)
    return await _find_authorization(chain, row, newest)


async def _read_known(chain: Chain, row: Settlement) -> Verdict | None:
    """The verdict of the transaction that the books name, where that transaction is this payment."""
    try:
        tx_hash = normalize_hash(row.tx_hash or "")
    except MalformedHash:
        return None  # none, or what a facilitator took for one: no node would answer
    receipt = await chain.get_transaction_receipt(tx_hash)
    if receipt is None or not receipt.succeeded or not await _carries(chain, row, receipt):
        return None
    moved = measure(row, receipt.logs)
    return _settled(row, receipt, moved) if moved else None


async def _carries(chain: Chain, row: Settlement, receipt: Receipt) -> bool:
    """Whether a transaction is this very payment. Permit2 logs no nonces: there it is in the call data."""
    if row.nonce.startswith(PERMIT2_PREFIX):
        return await _names_permit(chain, row, receipt.transaction_hash)
    return any(_is_use_of(row, log) for log in receipt.logs)


def measure(row: Settlement, logs: Sequence[Log]) -> int:
    """How much a transaction with these logs moved for this settlement, in minor units.

    An authorization's transfers follow its AuthorizationUsed, up to the next one: a transaction may settle
    several. Where it is the only one, tokens may have written their transfers before it.
    """
    logs = sorted(logs, key=lambda log: log.index)
    uses = [log for log in logs if (log.address, log.topics[:1]) == (row.asset, (AUTHORIZATION_USED_TOPIC,))]
    first, last = 0, len(logs) and logs[-1].index
    if len(uses) > 1:
        own = next((log.index for log in uses if _is_use_of(row, log)), last)
        first, last = own, next((log.index for log in uses if log.index > own), last)
    transfers = [decode_transfer(log) for log in logs if first <= log.index <= last]
    return sum(
        transfer.amount
        for transfer in transfers
        if transfer is not None
        and (transfer.token, transfer.sender, transfer.receiver) == (row.asset, row.payer, row.pay_to)
    )


async def _judge_unused(chain: Chain, row: Settlement, newest: Block) -> Verdict:
    """It is over when a block that is deep enough is past its end: no later block can use it."""
    deep = await chain.get_block(max(newest.number - count_confirmations(row.network) + 1, 0))
    if row.valid_before is not None and deep is not None and deep.time > row.valid_before:
        return Verdict("not settled", reason=RAN_OUT)
    return Verdict("open")


async def _find_authorization(chain: Chain, row: Settlement, newest: Block) -> Verdict | None:
    first = await find_block_before(chain, row.asked_at - SEARCH_BEFORE, newest.number)
    ends = [AUTHORIZATION_USED_TOPIC, AUTHORIZATION_CANCELED_TOPIC]
    topics = [ends, pad(row.payer), row.nonce]
    events = await find_events(chain, [row.asset], topics, first, newest.number)
    if not events:
        return await _judge_unfound(chain, row, first, newest)
    receipt = await chain.get_transaction_receipt(events[-1].transaction_hash)
    if receipt is None:
        return None
    moved = measure(row, receipt.logs)
    if moved and any(_is_use_of(row, log) for log in receipt.logs):
        return _settled(row, receipt, moved)
    return _spent_elsewhere(row, events[-1], newest)


async def _find_permit(chain: Chain, row: Settlement, newest: Block) -> Verdict | None:
    first = await find_block_before(chain, row.asked_at - SEARCH_BEFORE, newest.number)
    topics = [TRANSFER_TOPIC, pad(row.payer), pad(row.pay_to)]
    events = await find_events(chain, [row.asset], topics, first, newest.number)
    for event in reversed(events[-CANDIDATES_MAX:]):
        if await _names_permit(chain, row, event.transaction_hash):
            receipt = await chain.get_transaction_receipt(event.transaction_hash)
            return None if receipt is None else _settled(row, receipt, measure(row, receipt.logs))
    # Else cancelled, or paid to somebody else: Permit2's nonces leave no log that would prove it.
    return await _judge_unfound(chain, row, first, newest)


async def _judge_unfound(chain: Chain, row: Settlement, first: int, newest: Block) -> Verdict | None:
    """What was used, and not from block `first` on, was used before we were asked: it paid for nothing here.

    None where the node does not know that block's state any more, or is behind itself.
    """
    if newest.number - first + 1 < count_confirmations(row.network) or not await _is_used(chain, row, first):
        return None
    return Verdict("not settled", reason=f"{SPENT_ELSEWHERE} before it was presented here")


def _settled(row: Settlement, receipt: Receipt, moved: int) -> Verdict:
    return Verdict("settled", receipt.transaction_hash, receipt.block_number, moved)


def _spent_elsewhere(row: Settlement, event: Event, newest: Block) -> Verdict:
    """A cancellation that a reorganisation may still take back leaves it open."""
    depth = newest.number - event.block_number + 1
    if depth < count_confirmations(row.network):
        return Verdict("open")
    return Verdict("not settled", reason=f"{SPENT_ELSEWHERE} in {event.transaction_hash}")


def _is_use_of(row: Settlement, log: Log) -> bool:
    used = decode_authorization_used(log)
    return used is not None and (used.token, used.authorizer, used.nonce) == (row.asset, row.payer, row.nonce)


async def _is_used(chain: Chain, row: Settlement, block: int) -> bool:
    """Whether the nonce is used at the block, which is named so that a lagging node refuses to answer."""
    if row.nonce.startswith(PERMIT2_PREFIX):
        number = int(row.nonce.removeprefix(PERMIT2_PREFIX))
        data = function_signature_to_4byte_selector("nonceBitmap(address,uint256)")
        data += encode(["address", "uint256"], [row.payer, number >> 8])
        bits = int.from_bytes(await _call(chain, PERMIT2_ADDRESS, data, block))
        return bool(bits >> (number & 255) & 1)
    data = function_signature_to_4byte_selector("authorizationState(address,bytes32)")
    data += encode(["address", "bytes32"], [row.payer, bytes.fromhex(normalize_hash(row.nonce)[2:])])
    return bool(int.from_bytes(await _call(chain, row.asset, data, block)))


async def _call(chain: Chain, contract: str, data: bytes, block: int) -> bytes:
    """One word. Where nothing is deployed nodes answer with nothing, which is not a zero."""
    answer = await chain.call(contract.lower(), data, block=block)
    if len(answer) != 32:
        raise ChainRefused(chain.network, "eth_call", "no such contract")
    return answer


async def _names_permit(chain: Chain, row: Settlement, transaction_hash: str) -> bool:
    """Whether a transaction, which succeeded, is a call of x402's proxies that uses this very permit.

    Of other calls nothing is believed: a payer may write its nonce, or any others, wherever he likes.
    """
    transaction = await chain.ask("eth_getTransactionByHash", transaction_hash)
    if transaction is None:
        return False
    data = str(transaction.get("input")).lower()
    place = PERMIT_USES.get((str(transaction.get("to")).lower(), data[:SELECTOR_CHARS]))
    if place is None:
        return False
    permit, owner = place
    number = int(row.nonce.removeprefix(PERMIT2_PREFIX))
    wanted = {permit: int(row.asset, 16), permit + 2: number, owner: int(row.payer, 16)}
    return all(_word(data, at) == f"{word:064x}" for at, word in wanted.items())


def _word(data: str, number: int) -> str:
    start = SELECTOR_CHARS + number * WORD_CHARS
    return data[start : start + WORD_CHARS]
