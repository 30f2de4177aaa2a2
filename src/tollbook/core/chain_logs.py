"""Events of an EVM chain, looked up by contract, topics and blocks, in pieces that nodes will answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from tollbook.core.chains import (
    Chain,
    ChainRefused,
    Log,
    MalformedAddress,
    MalformedHash,
    normalize_address,
    normalize_hash,
    read_log,
)

BLOCKS_AT_ONCE_MAX = 2_000  # many providers refuse more
BLOCKS_AT_ONCE_MIN = 8
SEARCH_STEPS_MAX = 64

Topics = Sequence[str | Sequence[str] | None]


@dataclass(frozen=True, slots=True)
class Event:
    """A log with its place in the chain."""

    log: Log
    transaction_hash: str
    block_number: int
    block_hash: str


def pad(address: str) -> str:
    """An address as a topic has it."""
    return "0x" + "0" * 24 + normalize_address(address)[2:]


async def find_events(
    chain: Chain, contracts: Sequence[str], topics: Topics, first: int, last: int
) -> list[Event]:
    """Every event of the contracts in the blocks `first` to `last`, in the chain's order.

    A topic is one, a choice of several, or None for any. Raises ChainUnreachable; ChainRefused where the node
    answers not even for BLOCKS_AT_ONCE_MIN blocks.
    """
    found: list[Event] = []
    size = BLOCKS_AT_ONCE_MAX
    while first <= last:
        until = min(last, first + size - 1)
        try:
            found += await _ask(chain, contracts, topics, first, until)
        except ChainRefused:
            if size <= BLOCKS_AT_ONCE_MIN:
                raise
            size = max(size // 2, BLOCKS_AT_ONCE_MIN)
            continue
        first = until + 1
    return found


async def find_block_before(chain: Chain, moment: datetime, newest: int) -> int:
    """The number of the last block, of those up to `newest`, that is not after the moment; 0 where none is.

    Blocks that the node does not have any more count as older.
    """
    low, high = 0, newest
    for _ in range(SEARCH_STEPS_MAX):
        if low >= high:
            break
        middle = (low + high + 1) // 2
        block = await chain.get_block(middle)
        if block is None or block.time <= moment:
            low = middle
        else:
            high = middle - 1
    return low


async def _ask(chain: Chain, contracts: Sequence[str], topics: Topics, first: int, last: int) -> list[Event]:
    wanted = {
        "address": [normalize_address(contract) for contract in contracts],
        "topics": [list(topic) if isinstance(topic, Sequence) and not isinstance(topic, str) else topic
                   for topic in topics],
        "fromBlock": hex(first),
        "toBlock": hex(last),
    }  # fmt: skip
    answer = await chain.ask("eth_getLogs", wanted)
    try:
        return [_read(log) for log in answer if not log.get("removed")]
    except (KeyError, TypeError, ValueError, AttributeError, MalformedHash, MalformedAddress) as error:
        chain.complain("eth_getLogs", error)


def _read(log: Mapping[str, Any]) -> Event:
    return Event(
        log=read_log(cast("dict[str, Any]", log)),
        transaction_hash=normalize_hash(log["transactionHash"]),
        block_number=int(log["blockNumber"], 16),
        block_hash=normalize_hash(log["blockHash"]),
    )
