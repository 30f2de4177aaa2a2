"""Strangers: transactions of the operators' accounts that wait for blocks, and that these books do not know.

Somebody else has the key too, or the books were restored from a backup. Whatever comes after such a one in
its lane waits for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tollbook.core.database import Database, ReadTx
from tollbook.core.lanes.node import Node
from tollbook.core.lanes.outcomes import find_known

SPAN_MAX = 10_000  # nonces that are looked through for the lowest of theirs

Counts = Mapping[str, tuple[int, int]]  # by account, the transactions in blocks, and with those that wait


@dataclass(frozen=True, slots=True)
class Strangers:
    """How many of an account wait, from which nonce on.

    `dropped` are the hashes of those that were ours, and that the node took although it said it did not.
    """

    sender: str
    count: int
    nonce: int
    dropped: list[str]

    @property
    def unknown(self) -> int:
        """How many these books do not know at all."""
        return self.count - len(self.dropped)


async def find_waiting(database: Database, node: Node, counts: Counts) -> list[Strangers]:
    """The accounts of which strangers wait in the node. Raises ChainUnreachable, DatabaseUnreachable."""
    if all(used >= pending for used, pending in counts.values()):
        return []
    async with database.read() as tx:
        found = await _find(tx, node.network, counts)
    known = await find_known(node, [one for each in found for one in each.dropped])
    return [replace(each, dropped=[one for one in each.dropped if one in known]) for each in found]


async def _find(tx: ReadTx, network: str, counts: Counts) -> list[Strangers]:
    return await tx.all(
        """
        SELECT w.sender, w.pending - w.used - known.count AS count, (
            SELECT coalesce(min(n), w.used)
            FROM generate_series(w.used, least(w.pending, w.used + %(span)s) - 1) AS n
            WHERE NOT EXISTS (
                SELECT FROM core.transactions h
                WHERE h.network = %(network)s AND h.sender = w.sender AND h.nonce = n
                  AND h.status NOT IN ('lost', 'dropped'))) AS nonce, ARRAY(
            SELECT d.hash FROM core.transactions d
            WHERE d.network = %(network)s AND d.sender = w.sender AND d.status = 'dropped'
              AND d.nonce >= w.used AND d.nonce < w.pending AND d.hash IS NOT NULL) AS dropped
        FROM unnest(%(senders)s::text[], %(used)s::bigint[], %(pending)s::bigint[])
             AS w (sender, used, pending)
        CROSS JOIN LATERAL (
            SELECT count(*) FROM (  -- each by an index of its own
                SELECT t.nonce FROM core.transactions t
                WHERE t.network = %(network)s AND t.sender = w.sender AND t.status NOT IN ('lost', 'dropped')
                  AND t.nonce >= w.used AND t.nonce < w.pending
                UNION
                SELECT l.nonce FROM core.transactions l
                WHERE l.network = %(network)s AND l.sender = w.sender AND l.status = 'lost'
                  AND l.confirmed_at IS NULL AND l.nonce >= w.used AND l.nonce < w.pending) AS nonces
        ) AS known
        WHERE w.pending - w.used > known.count
        """,
        {
            "network": network,
            "senders": list(counts),
            "used": [used for used, _ in counts.values()],
            "pending": [pending for _, pending in counts.values()],
            "span": SPAN_MAX,
        },
        into=Strangers,
    )
