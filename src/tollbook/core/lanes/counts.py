"""How many transactions of an account a node counts: in blocks, with those that wait, by a former block."""

from collections.abc import Sequence

from tollbook.core.lanes.node import Ask, Node

METHOD = "eth_getTransactionCount"
LATEST, PENDING = "latest", "pending"


def ask(accounts: Sequence[str], *blocks: str) -> list[Ask]:
    """The questions, every block's for the first account first, for who asks more in the same request."""
    return [Ask(METHOD, (account, block)) for account in accounts for block in blocks]


async def count(node: Node, accounts: Sequence[str], block: str | int = LATEST) -> dict[str, int | None]:
    """By account, its transactions up to a block; None where the node cannot tell.

    Raises ChainUnreachable.
    """
    said = await node.ask_all(ask(accounts, hex(block) if isinstance(block, int) else block))
    return {
        account: None if answer.result is None else node.read_int(METHOD, answer.result)
        for account, answer in zip(accounts, said, strict=True)
    }
