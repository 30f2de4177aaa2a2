"""The desk where refunds are paid out, on whatever network the payment came by.

A refund waits until its payment is final. Then it is `sent` in the book before its transaction is made, and
that has the refund for its purpose and carries its mark: however often, by how many processes, and with
whatever the database has forgotten, it is paid once.
"""

import logging
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar

from psycopg import Rollback

from tollbook.books.payments import forgotten_refunds, payments, refund_marks, refunds
from tollbook.books.payments.evm_refunds import EvmPurse
from tollbook.books.payments.payments import Payment
from tollbook.books.payments.reconciler.movements import ChainWatcher, Watcher
from tollbook.books.payments.refund_purse import Ending, Purse, RefundUnpayable
from tollbook.books.payments.refunds import Refund
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.books.payments.solana.movements import SolanaWatcher
from tollbook.books.payments.solana.node import SolanaNode
from tollbook.books.payments.solana.refunds import SolanaPurse
from tollbook.books.payments.truth import BATCH_SCHEME
from tollbook.core import clock
from tollbook.core.chains import Chain, MalformedHash, UnknownNetwork, is_solana
from tollbook.core.database import Database, ReadTx
from tollbook.core.errors import Refusal
from tollbook.core.lanes import Lanes
from tollbook.core.operator_keys import (
    KEY_VARIABLE,
    SOLANA_KEY_VARIABLE,
    OperatorKeyUnusable,
    is_solana_key,
    read_keypair,
    read_operator_keys,
)

WAIT_SECONDS_MAX = 30.0
ORPHANED_AFTER = timedelta(minutes=10)  # no node lags that far behind
PAGES_MAX = 1_000

logger = logging.getLogger(__name__)


class RefundReverted(Refusal):
    """The refund's transaction was mined and moved nothing. The sum is free again."""

    reason: ClassVar[str] = "refund-reverted"
    status: ClassVar[int] = 409


@dataclass(frozen=True, slots=True)
class RefundDesk:
    """Pays refunds out. `purses` and `watchers` by CAIP-2 network."""

    database: Database
    purses: Mapping[str, Purse]
    watchers: Mapping[str, Watcher]

    async def refund(self, payment_id: int, *, amount: int | None, reason: str | None) -> Refund:
        """Send `amount` minor units of a payment back, or all that is left.

        `requested` while the payment is not final, `sent` where its transaction is not in a block yet: the
        worker goes on with it. Raises PaymentNotInState, RefundTooLarge, RefundUnpayable, RefundReverted,
        UnknownNetwork, PaymentUnknown; and where the worker tries again, RefundMustWait, what Lanes.submit
        raises, ChainUnreachable, DatabaseUnreachable.
        """
        async with self.database.write() as tx:
            payment = await payments.get(tx, payment_id)
            self._get_purse(payment.network)
            asked = await refunds.request(tx, payment_id, amount=amount, reason=reason, now=clock.now())
        return await self.carry_out(asked.refund_id)

    async def carry_out(self, refund_id: int) -> Refund:
        """Go on with a refund from wherever it is. Raises as `refund` does."""
        refund, payment = await self._read(refund_id)
        purse, mark = self._get_purse(refund.network), refund_marks.make(payment, refund_id)
        is_begun = await purse.has_begun(refund)
        if refund.status in ("requested", "sent") and not is_begun:
            position = await self._find_final(refund)
            if position is None:
                return (await self._read(refund_id))[0]
            await self._recall(purse, payment, position)
            refund, _ = await self._read(refund_id)
            if refund.status == "requested":
                await self._begin(purse, refund, mark)
                refund, _ = await self._read(refund_id)  # somebody else may have ended it meanwhile
        if refund.status == "sent":
            try:
                ending = await purse.send(refund, mark, anew=not is_begun)
            except RefundUnpayable as refusal:
                await self._give_up(refund, refusal.reason)
                raise
            await self._end(refund, ending)
        return (await self._read(refund_id))[0]

    async def _read(self, refund_id: int) -> tuple[Refund, Payment]:
        async with self.database.read() as tx:
            refund = await refunds.get(tx, refund_id)
            return refund, await payments.get(tx, refund.payment_id)

    async def _find_final(self, refund: Refund) -> int | None:
        """Where the chain has the payment, once it is final; None until then.

        Where the chain took it back, nothing is sent back: such a refund fails.
        """
        async with self.database.read() as tx:
            paid = await _read_paid(tx, refund.payment_id)
        if paid.settlement != "settled":
            await self._give_up(refund, f"the payment is {paid.settlement}: there is nothing to send back")
            return None
        if paid.ledger == "settled" and paid.confirmed_at is not None and paid.block_number is not None:
            return paid.block_number
        position = await self._find_position(refund, paid)
        if position is None:
            if refund.requested_at <= clock.now() - ORPHANED_AFTER:
                why = f"the chain does not have the payment's transaction {paid.tx_hash}"
                await self._give_up(refund, why)
            return None
        return (
            position if position <= await self.watchers[refund.network].find_final(refund.network) else None
        )

    async def _find_position(self, refund: Refund, paid: "_Paid") -> int | None:
        """Where the chain has it. What a channel paid is as final as the block in which it was accepted."""
        watcher = self.watchers[refund.network]
        if paid.tx_hash is None or paid.scheme == BATCH_SCHEME:
            return await watcher.find_position(refund.network, paid.settled_at)
        try:
            moved = await watcher.read_transaction(refund.network, paid.tx_hash)
        except MalformedHash:  # a facilitator's word
            return None
        wanted = (refund.asset, refund.to_address, paid.pay_to)
        found = [each for each in moved or [] if (each.asset, each.payer, each.pay_to) == wanted]
        return found[0].block_number if found else None

    async def _give_up(self, refund: Refund, why: str) -> None:
        """End a refund of which no transaction exists; not while somebody may just be making one."""
        now = clock.now()
        is_young = refund.status == "sent" and (refund.sent_at or now) > now - ORPHANED_AFTER
        purse = self._get_purse(refund.network)
        if is_young or await purse.has_begun(refund):
            return
        was = "sent" if refund.status == "sent" else "requested"
        async with self.database.write() as tx:
            failed = await refunds.fail(tx, refund.refund_id, why, was=was, now=now)
            if failed and not await purse.bar(tx, refund):
                raise Rollback  # somebody made one just now

    async def _recall(self, purse: Purse, payment: Payment, position: int) -> None:
        """Have what was sent back of this payment in the books, before more is sent."""
        reader = purse.open_reader(payment.network)
        await purse.check_pending(payment.network)  # what waits could have its block after it was looked for
        async with self.database.read() as tx:
            read = await forgotten_refunds.find_cursors(tx)
        here = (payment.network, payment.asset)
        former = [one.sender for one in read if (one.network, one.asset) == here]  # keys may be changed
        for sender in dict.fromkeys([*purse.senders, *former]):
            await forgotten_refunds.catch_up(self.database, reader, payment.asset, sender, position)
        await forgotten_refunds.look_again(self.database, reader, refund_marks.identify(payment))

    async def _begin(self, purse: Purse, refund: Refund, mark: bytes) -> None:
        """See that somebody here can pay it; from the commit on, its transaction may exist."""
        try:
            await purse.find_sender(refund, mark)
        except RefundUnpayable as refusal:
            async with self.database.write() as tx:
                failed = await refunds.fail(
                    tx, refund.refund_id, refusal.reason, was="requested", now=clock.now()
                )
            if failed:
                raise
            return
        async with self.database.write() as tx:
            await refunds.mark_sent(tx, refund.refund_id, now=clock.now())

    async def _end(self, refund: Refund, ending: Ending | None) -> None:
        if ending is None:
            return
        async with self.database.write() as tx:
            if ending.arrived:
                await refunds.complete(
                    tx,
                    refund.refund_id,
                    from_address=ending.from_address,
                    tx_hash=ending.tx_hash,
                    block_number=ending.position,
                    now=clock.now(),
                )
                return
            why = f"{ending.tx_hash} was reverted"
            await refunds.fail(tx, refund.refund_id, why, was="sent", now=clock.now())
        raise RefundReverted(f"{why}: nothing was sent back. See why, and ask again.")

    def _get_purse(self, network: str) -> Purse:
        purse = self.purses.get(network)
        if purse is None:
            raise UnknownNetwork(
                f"Nothing can be sent on {network} from here: give its node in TOLLBOOK_RPC_URLS and the "
                f"operator's key ({SOLANA_KEY_VARIABLE if is_solana(network) else KEY_VARIABLE})."
            )
        return purse


async def carry_out_open(database: Database) -> int:
    """Go on with every refund that is on its way; how many there were. Needs the operator's key."""
    async with database.read() as tx:
        waiting = await refunds.find_open(tx)
    if not waiting:
        return 0
    failures: list[Exception] = []
    done = 0
    async with open_desk(database, PaymentsSettings()) as desk:
        for purse in {id(purse): purse for purse in desk.purses.values()}.values():
            try:
                await purse.mend()  # what was lost on its way, or waits with too low a fee
            except Refusal as refusal:
                failures.append(refusal)
        for _ in range(PAGES_MAX):
            for refund in waiting:
                failures += await _try(desk, refund)
            done += len(waiting)
            async with database.read() as tx:
                waiting = await refunds.find_open(tx, after=waiting[-1].refund_id)
            if not waiting:
                break
    if failures:
        raise failures[0]
    return done


async def _try(desk: RefundDesk, refund: Refund) -> list[Exception]:
    """Go on with one of many. What is the matter with it must not keep the others."""
    try:
        await desk.carry_out(refund.refund_id)
    except (RefundUnpayable, RefundReverted):
        pass  # the refund says so itself
    except Exception as error:  # the others may be possible
        logger.warning("%s: %s", refunds.show(refund.refund_id), type(error).__name__)
        return [error]
    return []


@asynccontextmanager
async def open_desk(database: Database, settings: PaymentsSettings) -> AsyncGenerator[RefundDesk]:
    """Yield the desk with the nodes and the operator's keys of the settings. Raises OperatorKeyUnusable."""
    keys = read_operator_keys([file for file in _list_key_files(settings) if file is not None], os.environ)
    if not keys:
        raise OperatorKeyUnusable(
            f"There is no operator's key. Set {KEY_VARIABLE}, {SOLANA_KEY_VARIABLE}, or name a key file."
        )
    evm_keys = [key for key in keys if not is_solana_key(key)]
    solana_keys = [read_keypair(key) for key in keys if is_solana_key(key)]
    async with AsyncExitStack() as stack:
        chains: dict[str, Chain] = {}
        nodes: dict[str, SolanaNode] = {}
        for network, url in settings.rpc_urls.items():
            if is_solana(network) and solana_keys:
                nodes[network] = await stack.enter_async_context(SolanaNode(network, url))
            elif not is_solana(network) and evm_keys:
                chains[network] = await stack.enter_async_context(Chain(network, url))
        purses: dict[str, Purse] = {}
        if chains:
            urls = {network: settings.rpc_urls[network] for network in chains}
            lanes = await stack.enter_async_context(Lanes(database, urls, evm_keys))
            purses |= dict.fromkeys(chains, EvmPurse(lanes, chains, WAIT_SECONDS_MAX))
        if nodes:
            purses |= dict.fromkeys(nodes, SolanaPurse(database, nodes, solana_keys[0], WAIT_SECONDS_MAX))
        watchers = dict.fromkeys(chains, ChainWatcher(chains)) | dict.fromkeys(nodes, SolanaWatcher(nodes))
        yield RefundDesk(database, purses, watchers)


def _list_key_files(settings: PaymentsSettings) -> tuple[Path | None, Path | None]:
    return settings.facilitator_key_file, settings.solana_key_file


@dataclass(frozen=True, slots=True)
class _Paid:
    """How far a payment's own money came. `ledger` is its settlement's status, where it has one."""

    settlement: str
    scheme: str
    tx_hash: str | None
    pay_to: str
    settled_at: datetime
    ledger: str | None
    confirmed_at: datetime | None
    block_number: int | None


async def _read_paid(tx: ReadTx, payment_id: int) -> _Paid:
    return await tx.one(
        """
        SELECT p.settlement, p.scheme, p.tx_hash, p.to_address AS pay_to, p.settled_at, s.status AS ledger,
               s.confirmed_at, s.block_number
        FROM payments.x402_payments AS p
        LEFT JOIN payments.x402_settlements AS s
          ON s.network = p.network AND s.asset = p.asset AND s.payer = p.from_address AND s.nonce = p.nonce
        WHERE p.payment_id = %(payment_id)s
        """,
        {"payment_id": payment_id},
        into=_Paid,
    )
