"""The reconciler: the books against the chains and the chains against the books, every difference named.

Runs may overlap and may be killed anywhere: each row is decided in one transaction that holds it, by what
the chain said of it, and what was not reached is reached by the next run. What could cost money is never
done: money is not sent, goods are not granted twice, and what a chain does not tell stays open.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tollbook.books.payments.ledger import Truth
from tollbook.books.payments.reconciler import differences
from tollbook.books.payments.reconciler.differences import Difference
from tollbook.books.payments.reconciler.movements import ChainWatcher, Watcher
from tollbook.books.payments.reconciler.payments import (
    look_at_granted,
    look_at_lone_settlements,
    look_at_waiting,
)
from tollbook.books.payments.reconciler.refunds import look_at_refunds
from tollbook.books.payments.reconciler.run import Run
from tollbook.books.payments.reconciler.settlements import look_at_ended, look_at_open, look_at_unconfirmed
from tollbook.books.payments.reconciler.transfers import look_at_movements
from tollbook.books.payments.rules import Payee
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.books.payments.solana.movements import SolanaWatcher
from tollbook.books.payments.solana.node import SolanaNode
from tollbook.books.payments.solana.truth import SolanaTruth
from tollbook.books.payments.truth import ChainTruth
from tollbook.core import clock
from tollbook.core.chains import Chain, is_solana
from tollbook.core.database import Database, WriteTx

GRACE = timedelta(minutes=2)  # longer than anybody holds a settlement, or a request, without a sign of life


@dataclass(frozen=True, slots=True)
class Report:
    """What a run saw. `differences` are those it saw, mended or not; `open_count` is all that is open.

    `networks` were to be compared; `unreachable` are those of them whose node did not answer, and why: they
    were not.
    """

    networks: list[str]
    looked_at: int
    differences: list[Difference]
    open_count: int
    unreachable: Mapping[str, str]
    ran_for: timedelta


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Compares one database with its chains. `watchers` by CAIP-2 network.

    Nothing younger than `grace` is looked at: it may be on its way through a process that lives.
    """

    database: Database
    truth: Truth
    watchers: Mapping[str, Watcher] = field(default_factory=dict[str, Watcher])
    payees: Sequence[Payee] = ()
    grace: timedelta = GRACE

    async def run(self, since: datetime | None = None) -> Report:
        """Compare everything that is open, recent or new; with `since`, all from then on.

        Raises DatabaseUnreachable. A node that does not answer is in the report.
        """
        run = self._begin(since)
        await look_at_open(run)
        await look_at_unconfirmed(run)
        if since is not None:
            await look_at_ended(run, since)
        await look_at_waiting(run)
        await look_at_movements(run, self.payees)
        await look_at_lone_settlements(run)
        await look_at_granted(run)
        await look_at_refunds(run)
        return await self._end(run)

    async def run_open(self) -> Report:
        """Decide what is open, and confirm what is settled: cheap enough for every minute."""
        run = self._begin(None)
        await look_at_open(run)
        await look_at_unconfirmed(run)
        await look_at_waiting(run)
        return await self._end(run)

    def _begin(self, since: datetime | None) -> Run:
        return Run(self.database, self.truth, self.watchers, clock.now(), self.grace, since)

    async def _end(self, run: Run) -> Report:
        async with self.database.write() as tx:
            await _close_mended(tx, run.now)
            open_count = await differences.count_open(tx)
        return Report(
            networks=sorted(self.watchers),
            looked_at=run.looked_at,
            differences=list(run.seen.values()),
            open_count=open_count,
            unreachable=run.unreachable,
            ran_for=clock.now() - run.now,
        )


@asynccontextmanager
async def open_reconciler(database: Database, settings: PaymentsSettings) -> AsyncGenerator[Reconciler]:
    """Yield the reconciler of a database with the nodes that the settings name."""
    async with AsyncExitStack() as stack:
        chains: dict[str, Chain] = {}
        nodes: dict[str, SolanaNode] = {}
        for network, url in settings.rpc_urls.items():
            if is_solana(network):
                nodes[network] = await stack.enter_async_context(SolanaNode(network, url))
            else:
                chains[network] = await stack.enter_async_context(Chain(network, url))
        truth = ChainTruth(chains, {"solana": SolanaTruth(database, nodes)})
        watchers = dict.fromkeys(chains, ChainWatcher(chains)) | dict.fromkeys(nodes, SolanaWatcher(nodes))
        yield Reconciler(database, truth, watchers, settings.payees)


@dataclass(frozen=True, slots=True)
class _Settled:
    difference_id: int
    how: str


async def _close_mended(tx: WriteTx, now: datetime) -> None:
    """Close what is right by now, whoever did it: settled since, claimed since, a token issued since."""
    settled = await tx.all(
        """
        SELECT d.difference_id,
               CASE WHEN r.status IN ('done', 'failed') THEN 'the refund is ' || r.status
                    WHEN s.status IN ('settled', 'failed') THEN 'the settlement is ' || s.status
                    WHEN p.settlement IN ('settled', 'failed') THEN 'the payment is ' || p.settlement
                    ELSE 'a row names it' END AS how
        FROM payments.x402_differences AS d
        LEFT JOIN payments.x402_settlements AS s ON s.settlement_id = d.settlement_id
        LEFT JOIN payments.x402_payments AS p ON p.payment_id = d.payment_id
        LEFT JOIN payments.x402_refunds AS r ON r.refund_id = d.refund_id
        WHERE d.status = 'open' AND CASE d.kind
            WHEN 'unknown' THEN coalesce(s.status, p.settlement) IN ('settled', 'failed')
            WHEN 'orphaned' THEN s.status IN ('settled', 'failed')
            WHEN 'refund_unknown' THEN r.status IN ('done', 'failed')
            WHEN 'token_missing' THEN p.status = 'expired' OR EXISTS (
                SELECT FROM payments.x402_tokens AS t WHERE t.payment_id = d.payment_id)
            WHEN 'foreign_transfer' THEN EXISTS (
                SELECT FROM payments.x402_payments AS claim
                WHERE claim.network = d.network AND claim.tx_hash = d.tx_hash AND claim.asset = d.asset
                  AND claim.amount = d.amount_moved AND claim.status NOT IN ('pending', 'failed'))
            WHEN 'paid_not_granted' THEN d.settlement_id IS NOT NULL AND EXISTS (
                SELECT FROM payments.x402_payments AS made
                WHERE made.network = s.network AND made.asset = s.asset AND made.from_address = s.payer
                  AND made.nonce = s.nonce AND made.status NOT IN ('pending', 'failed'))
            ELSE false END
        FOR NO KEY UPDATE OF d SKIP LOCKED
        """,
        into=_Settled,
    )
    for each in settled:
        await differences.mend(tx, each.difference_id, f"Right by now: {each.how}.", now=now)
