"""Killed at any boundary of a Solana payment: who paid once has what he bought, the books equal the chain."""

import asyncio
from dataclasses import dataclass

import pytest

from faults.paid_shop import COUNTED, move_clock
from faults.walker import Boundary, Way, ask_patiently, find_boundaries, leave_some, walk
from fixtures.paid_shop import Shop
from fixtures.solana import NETWORK, PURSE
from fixtures.solana_desk import EXPIRY_BLOCKS, Desk
from fixtures.solana_walk import AFTER, BEFORE, SolanaBuyer
from tollbook.books.payments.reconciler.reconcile import open_reconciler
from tollbook.books.payments.rules import Payee
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.core import clock
from tollbook.core.database import Database

pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")

RUNS_MAX = 3
# What the books may say: of the payment, of its settlement, and whether they name the same transaction.
PAID = {("settled", "settled", True)}
UNPAID = {("failed", "failed", None), ("failed", None, None)}


@dataclass
class Gone:
    """A buyer who presented his payment once, and went."""

    buyer: SolanaBuyer
    header: str
    paid: bool = False


@pytest.mark.parametrize(
    ("way", "victims"),
    [
        (BEFORE, ("process",)),
        (AFTER, ("process",)),
        (BEFORE, ("postgres",)),
        (AFTER, ("postgres",)),
        (AFTER, ("postgres", "process")),
    ],
    ids=lambda part: part.route if isinstance(part, Way) else " and ".join(part),
)
def test_a_kill_at_any_boundary_of_a_solana_payment_costs_nobody_anything(
    solana_walk: Shop, way: Way, victims: tuple[str, ...]
) -> None:
    walk(solana_walk, way, victims, thin=True)


def leave(shop: Shop, way: Way, dies_at: Boundary) -> Gone:
    """A buyer who presents his payment once, to a shop that dies over it, and goes."""
    buyer = SolanaBuyer(shop, way)
    shop.forget_labels()
    shop.live(dies_at=dies_at)
    header = buyer.sign()
    shop.ask(buyer.path, **{"PAYMENT-SIGNATURE": header, COUNTED: "1"})
    return Gone(buyer, header)


async def bring_to_truth(shop: Shop, desk: Desk) -> int:
    """What a worker does when no message of before can land any more. How many differences stay open."""
    desk.chain.advance(EXPIRY_BLOCKS)
    with shop.connect() as connection:  # half an hour later
        connection.execute(
            "UPDATE payments.x402_payments SET created_at = created_at - interval '30 minutes'"
        )
        connection.execute("UPDATE payments.x402_settlements SET asked_at = asked_at - interval '30 minutes'")
    settings = PaymentsSettings(
        rpc_urls={NETWORK: desk.chain.url}, payees=[Payee(NETWORK, str(desk.seller.pubkey()))]
    )
    async with (
        Database(shop.server.url()) as database,
        open_reconciler(database, settings) as reconciler,
    ):
        for _ in range(RUNS_MAX):
            move_clock()
            report = await reconciler.run()
        return report.open_count


@pytest.mark.parametrize("way", [BEFORE, AFTER], ids=lambda way: way.route)
def test_where_no_solana_client_comes_back_the_reconciler_brings_the_books_to_the_truth(
    solana_walk: Shop, desk: Desk, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = solana_walk
    boundaries = leave_some(find_boundaries(shop, way))
    gone = [leave(shop, way, boundary) for boundary in boundaries]
    shop.end()
    monkeypatch.setattr(clock, "now", clock.now)  # and back again
    assert asyncio.run(bring_to_truth(shop, desk)) == 0
    rows = shop.query(
        """
        SELECT p.from_address, p.settlement, s.status, s.tx_hash = p.tx_hash
        FROM payments.x402_payments p LEFT JOIN payments.x402_settlements s ON s.nonce = p.nonce
        """
    )
    books = {payer: tuple(ends) for payer, *ends in rows}
    for boundary, one in zip(boundaries, gone, strict=True):
        payer = one.buyer.account.address
        one.paid = shop.chain.read_balance(payer) < PURSE
        ends = books.get(payer, ("failed", None, None))
        assert ends in (PAID if one.paid else UNPAID), (boundary, ends)
    assert {one.paid for one in gone} == {True, False}
    shop.live(late=1)
    for one in gone:
        answer = ask_patiently(shop, one.buyer.path, **{"PAYMENT-SIGNATURE": one.header})
        assert answer.status_code == (200 if one.paid else 402), answer.text
        assert shop.chain.read_balance(one.buyer.account.address) == PURSE - way.price * one.paid
