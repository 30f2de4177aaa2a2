"""What became of a transaction that a node was given: read from its words, looked into on the chain."""

import re
from collections.abc import Sequence
from enum import Enum
from typing import Any, ClassVar, cast

from tollbook.core.chains import MalformedAddress, MalformedHash, read_receipt
from tollbook.core.errors import Refusal
from tollbook.core.lanes import counts
from tollbook.core.lanes.node import Ask, Node, Said
from tollbook.core.lanes.transactions import Mined, read_mined

LOOK_BACK_BLOCKS_MAX = 1 << 20

# What nodes say. What matches nothing here may mean anything, so it stays open.
_KNOWN = re.compile(r"already known|already imported|known transaction|AlreadyKnown", re.I)
_NONCE_TOO_LOW = re.compile(r"nonce (is )?too low|old ?nonce|nonce has already been used", re.I)
_OCCUPIED = re.compile(r"replacement transaction underpriced|could not replace|replacement fee too low", re.I)
_NO_GAS_MONEY = re.compile(r"insufficient (funds|balance)|not enough (funds|balance)", re.I)
_NOT_TAKEN = re.compile(
    r"underpriced|intrinsic gas|gas limit|block base fee|fee cap|gas price below|txpool is full|pool is full"
    r"|limit exceeded|rate limit|too many requests|tip (above|higher)|oversized data|not supported",
    re.I,
)


class NoGasMoney(Refusal):
    """The operator's account cannot pay for the gas. Nothing was sent."""

    reason: ClassVar[str] = "no-gas-money"
    status: ClassVar[int] = 503


class NodeRefusedTransaction(Refusal):
    """The node surely did not take the transaction. Nothing was sent."""

    reason: ClassVar[str] = "node-refused-transaction"
    status: ClassVar[int] = 503


class NonceAwaited(Refusal):
    """It could pay twice, and the nonce that it was signed under is not yet another's for good."""

    reason: ClassVar[str] = "nonce-awaited"
    status: ClassVar[int] = 503


class NonceContested(Refusal):
    """Every nonce that was tried had been taken by transactions from elsewhere. Nothing was sent."""

    reason: ClassVar[str] = "nonce-contested"
    status: ClassVar[int] = 503


class Outcome(Enum):
    """What a node's answer to a transaction means."""

    TAKEN = "taken"
    KNOWN = "known"
    NONCE_TOO_LOW = "nonce too low"
    OCCUPIED = "another transaction waits under its nonce"
    NO_GAS_MONEY = "no gas money"
    NOT_TAKEN = "not taken"
    UNCLEAR = "unclear"


def read_outcome(said: Said) -> Outcome:
    """What the answer to eth_sendRawTransaction means."""
    if said.error is None:
        return Outcome.TAKEN
    for pattern, outcome in (
        (_KNOWN, Outcome.KNOWN),
        (_NONCE_TOO_LOW, Outcome.NONCE_TOO_LOW),
        (_OCCUPIED, Outcome.OCCUPIED),
        (_NO_GAS_MONEY, Outcome.NO_GAS_MONEY),
        (_NOT_TAKEN, Outcome.NOT_TAKEN),
    ):
        if pattern.search(said.error):
            return outcome
    return Outcome.UNCLEAR


async def find_mined(node: Node, wanted: Sequence[tuple[int, Sequence[str]]]) -> dict[int, Mined]:
    """By id, those transactions that are in a block under one of their hashes. Raises ChainUnreachable."""
    asked = [(transaction_id, one) for transaction_id, hashes in wanted for one in hashes]
    said = await node.ask_all([Ask("eth_getTransactionReceipt", (one,)) for _, one in asked])
    found: dict[int, Mined] = {}
    for (transaction_id, one), answer in zip(asked, said, strict=True):
        if answer.result is not None:
            found[transaction_id] = _read(node, transaction_id, one, answer.result)
    return found


async def find_known(node: Node, hashes: Sequence[str]) -> set[str]:
    """Those hashes whose transactions the node has, in a block or waiting. Raises ChainUnreachable."""
    said = await node.ask_all([Ask("eth_getTransactionByHash", (one,)) for one in hashes])
    if any(answer.error for answer in said):
        raise node.complain("it does not say which transactions it has")
    return {one for one, answer in zip(hashes, said, strict=True) if answer.result is not None}


async def find_holder(node: Node, sender: str, nonce: int) -> tuple[str, int] | None:
    """The hash and the block of the transaction that used this nonce; None where the node cannot tell.

    The block is searched by the sender's count, so it asks for states that a node may have forgotten.
    Raises ChainUnreachable.
    """
    high = await node.ask_int("eth_blockNumber")
    low = high
    step = 1
    while step <= LOOK_BACK_BLOCKS_MAX:  # a block at whose end the nonce was not used yet
        low = max(high - step, -1)
        count = await _count(node, sender, low)
        if count is None:
            return None
        if count <= nonce:
            break
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        count = await _count(node, sender, middle)
        if count is None:
            return None
        low, high = (low, middle) if count > nonce else (middle, high)
    return await _find_in_block(node, high, sender, nonce)


async def find_block(node: Node, transaction_hash: str) -> int | None:
    """The number of the block that a transaction is in; None where the node knows none."""
    receipt = await node.ask("eth_getTransactionReceipt", transaction_hash)
    return None if receipt is None else _read(node, 0, transaction_hash, receipt).receipt.block_number


async def find_call(node: Node, transaction_hash: str) -> tuple[str, int, bytes]:
    """Receiver, value and call data of a transaction in a block. Raises ChainUnreachable."""
    answer = await node.ask("eth_getTransactionByHash", transaction_hash)
    try:
        data = bytes.fromhex(str(answer["input"]).removeprefix("0x"))
        return str(answer["to"]).lower(), int(answer["value"], 16), data
    except (TypeError, KeyError, ValueError):
        raise node.complain("a transaction was nonsense") from None


async def _count(node: Node, sender: str, block: int) -> int | None:
    if block < 0:
        return 0
    return (await counts.count(node, [sender], block))[sender]


async def _find_in_block(node: Node, number: int, sender: str, nonce: int) -> tuple[str, int] | None:
    block = await node.ask("eth_getBlockByNumber", hex(number), True)  # noqa: FBT003 - with transactions
    try:
        for transaction in cast(list[dict[str, Any]], block["transactions"]):
            if transaction["from"].lower() == sender and int(transaction["nonce"], 16) == nonce:
                return str(transaction["hash"]).lower(), number
    except (TypeError, KeyError, ValueError, AttributeError):
        raise node.complain("a block was nonsense") from None
    return None


def _read(node: Node, transaction_id: int, wanted: str, answer: dict[str, Any]) -> Mined:
    try:
        receipt = read_receipt(answer)
        mined = read_mined(transaction_id, receipt, answer)
    except (KeyError, TypeError, ValueError, AttributeError, MalformedHash, MalformedAddress):
        raise node.complain("a receipt was nonsense") from None
    if receipt.transaction_hash != wanted:
        raise node.complain("another transaction's receipt came")
    return mined
