"""Killed at any boundary of another scheme's payment, of a claim, of a refund: the books equal the chain."""

import asyncio
import secrets
from dataclasses import dataclass

import pytest

from faults.walker import (
    AFTER,
    DEPOSIT,
    PERMIT2,
    TRIES_MAX,
    UPTO,
    VOUCHER,
    Boundary,
    Buyer,
    Way,
    check_road,
    die_at_each,
    list_boundaries,
    thin_out,
    walk,
)
from fixtures.chain import PURSE
from fixtures.paid_shop import Shop
from tollbook.books.payments import payments
from tollbook.core import clock, keys
from tollbook.core.chains import ADDRESS_PADDING, TRANSFER_TOPIC
from tollbook.core.database import Database
from tollbook.core.local_chain import TOKEN_ADDRESS, LocalChain


@pytest.mark.parametrize("victims", [("process",), ("postgres",)], ids=" and ".join)
@pytest.mark.parametrize("way", [PERMIT2, UPTO, DEPOSIT, VOUCHER], ids=str)
def test_a_kill_at_any_boundary_of_a_purchase_by_another_scheme_costs_nobody_anything(
    paid_shop: Shop, schemes_chain: LocalChain, way: Way, victims: tuple[str, ...]
) -> None:
    assert schemes_chain
    walk(paid_shop, way, victims, thin=True)


@dataclass
class Claiming:
    """A channel whose seller fetches what it owes, and is killed over it."""

    shop: Shop
    buyer: Buyer

    def earn(self) -> None:
        self.shop.live()
        assert self.buyer.buy().status_code == 200

    def claim(self, **changes: object) -> None:
        self.shop.run_errand("claim", **changes)

    def find(self) -> list[Boundary]:
        """What a claim passes when nothing happens to it."""
        self.earn()
        self.shop.told.clear()
        self.claim()
        boundaries = list_boundaries(self.shop)
        road = ("core.take_nonces", "UPDATE core.transactions", "broadcast", "stores.channels")
        check_road(boundaries, road)
        assert ("after broadcast", 2) in boundaries, "a claim, and a sweep"
        return boundaries

    def run(self, dies_at: Boundary, victims: tuple[str, ...]) -> bool:
        """Live through it. Whether it did die there."""
        shop, seller = self.shop, self.shop.seller.address
        self.earn()
        earned = shop.chain.read_balance(seller)
        shop.told.clear()
        self.claim(dies_at=dies_at, victims=victims)
        for late in range(1, 1 + TRIES_MAX):  # a transaction that was under way may take one more look
            self.claim(late=late)
            if shop.chain.read_balance(seller) != earned:
                break
        assert shop.chain.read_balance(seller) == earned + DEPOSIT.price
        [(charged, claimed)] = shop.query(
            """
            SELECT charged_cumulative_amount, total_claimed FROM stores.channels
            WHERE lower(channel_config->>'payer') = %s
            """,
            self.buyer.account.address.lower(),
        )
        assert charged == claimed
        return shop.was_killed()


@pytest.mark.parametrize("victims", [("process",), ("postgres",)], ids=" and ".join)
def test_a_kill_at_any_boundary_of_a_claim_fetches_what_is_owed_and_no_more(
    paid_shop: Shop, schemes_chain: LocalChain, victims: tuple[str, ...]
) -> None:
    assert schemes_chain
    claiming = Claiming(paid_shop, Buyer(paid_shop, DEPOSIT))
    claiming.earn()
    claiming.claim()  # all that others left
    die_at_each(thin_out(claiming.find()), lambda at: claiming.run(at, victims), again=claiming.find)


REFUNDED = 3_000
REFUND_MADE = "after commit WITH payments.x402_payments INSERT payments.x402_refunds"


@dataclass
class Refunding:
    """A payment of which a part goes back, by an operator who is killed over it and asks again."""

    shop: Shop
    key: str
    looks: bool = True  # whether there is a refund already, before he asks again

    def run(self, dies_at: Boundary | None, victims: tuple[str, ...]) -> bool:
        """Live through it. Whether it did die there."""
        shop, buyer = self.shop, Buyer(self.shop, AFTER)
        shop.live()
        assert buyer.buy().status_code == 200
        [(payment_id,)] = shop.query(
            "SELECT payment_id FROM payments.x402_payments WHERE from_address = %s",
            buyer.account.address.lower(),
        )
        wanted = {
            "payment_id": payments.show(payment_id), "amount": str(REFUNDED), "key": self.key,
            "once": secrets.token_hex(16),
        } | ({"looks": "1"} if self.looks else {})  # fmt: skip
        shop.told.clear()
        shop.run_errand("refund", wanted, dies_at=dies_at, victims=victims)
        died = shop.was_killed()
        shop.run_errand("refund", wanted, late=1)
        self.check(buyer, payment_id)
        return died

    def find(self) -> list[Boundary]:
        """What a refund passes when nothing happens to it, and to who looks after it."""
        self.run(None, ())
        boundaries = list_boundaries(self.shop)
        made, sent = ("INSERT payments.x402_refunds", "UPDATE payments.x402_refunds"), "core.take_nonces"
        check_road(boundaries, (*made, sent, "broadcast"))
        return boundaries

    def check(self, buyer: Buyer, payment_id: int) -> None:
        shop, payer = self.shop, buyer.account.address
        topics = [TRANSFER_TOPIC, None, ADDRESS_PADDING + payer[2:].lower()]
        wanted = {"fromBlock": "earliest", "address": TOKEN_ADDRESS, "topics": topics}
        hashes = [log["transactionHash"] for log in shop.chain.call("eth_getLogs", wanted)]
        assert shop.chain.read_balance(payer) == PURSE - AFTER.price + REFUNDED
        refunds = shop.query(
            "SELECT status, amount::int, tx_hash FROM payments.x402_refunds WHERE payment_id = %s", payment_id
        )
        assert refunds == [("done", REFUNDED, hashes[-1])]  # the one before it filled his purse
        assert len(hashes) == 2
        books = shop.query(
            """
            SELECT settlement, refund_asked::int, refunded_amount::int FROM payments.x402_payments
            WHERE payment_id = %s
            """,
            payment_id,
        )
        assert books == [("settled", REFUNDED, REFUNDED)]


@pytest.mark.parametrize("victims", [("process",), ("postgres",)], ids=" and ".join)
def test_a_kill_at_any_boundary_of_a_refund_sends_it_once(paid_shop: Shop, victims: tuple[str, ...]) -> None:
    shop = paid_shop
    shop.chain.mint(shop.operator.address, PURSE)
    refunding = Refunding(shop, make_key(shop.server.url()))
    die_at_each(thin_out(refunding.find()), lambda at: refunding.run(at, victims), again=refunding.find)


def test_a_refund_that_is_asked_for_again_by_its_idempotency_key_is_sent_once(paid_shop: Shop) -> None:
    shop = paid_shop
    shop.chain.mint(shop.operator.address, PURSE)
    refunding = Refunding(shop, make_key(shop.server.url()), looks=False)
    refunding.run(None, ())
    [made] = [
        each
        for each in list_boundaries(shop)
        if each[0].startswith("after commit") and "INSERT payments.x402_refunds" in each[0]
    ]
    refunding.run(made, ("process",))


def make_key(database_url: str) -> str:
    async def make() -> str:
        async with Database(database_url) as database, database.write() as tx:
            grant = await keys.create(tx, name="test", scopes=["*"], expires_at=None, now=clock.now())
            return grant.secret

    return asyncio.run(make())
