"""Killed at any boundary of a payment: who paid once has what he bought, and the books equal the chain."""

import asyncio
import random
from dataclasses import dataclass

import pytest

from faults.paid_shop import COUNTED, REQUESTS, move_clock
from faults.walker import (
    AFTER,
    BEFORE,
    PERMIT2,
    UPTO,
    WAYS,
    Boundary,
    Buyer,
    Case,
    Way,
    ask_patiently,
    choose_two,
    die_at_each,
    find_boundaries,
    leave_some,
    list_boundaries,
    sample,
    walk,
)
from fixtures.chain import PURSE
from fixtures.lanes import key_of
from fixtures.paid_shop import Shop, open_shop
from fixtures.schemes import put_contracts
from fixtures.walks import WHOLE
from tollbook.books.payments.reconciler.movements import ChainWatcher
from tollbook.books.payments.reconciler.reconcile import Reconciler
from tollbook.books.payments.rules import Payee
from tollbook.books.payments.truth import ChainTruth
from tollbook.core import clock
from tollbook.core.chains import Chain
from tollbook.core.database import Database
from tollbook.core.lanes import Lanes
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, LocalChain

RUNS_MAX = 3
DEATHS_TWICE = 40 if WHOLE else 12
SEED = 9
# What the books may say: of the payment, of its settlement, and whether they name the same transaction.
PAID = {("settled", "settled", True)}
UNPAID = {("failed", "failed", None), ("failed", None, None)}
VALID_SECONDS = 120  # after which no authorization of before can be used any more
BLOCKS = 12  # that make this final


@pytest.mark.parametrize(
    ("way", "victims"),
    [
        (BEFORE, ("process",)),
        (AFTER, ("process",)),
        (BEFORE, ("postgres",)),
        (AFTER, ("postgres",)),
        (AFTER, ("postgres", "process")),
    ],
    ids=lambda part: str(part) if isinstance(part, Way) else " and ".join(part),
)
def test_a_kill_at_any_boundary_of_a_payment_costs_nobody_anything(
    paid_shop: Shop, way: Way, victims: tuple[str, ...]
) -> None:
    walk(paid_shop, way, victims)


def test_who_goes_on_after_a_kill_may_be_killed_as_well(paid_shop: Shop, schemes_chain: LocalChain) -> None:
    assert schemes_chain
    chance = random.Random(SEED)
    boundaries = {way: find_boundaries(paid_shop, way) for way in WAYS}
    died = 0
    for _ in range(DEATHS_TWICE):
        way = chance.choice(WAYS)
        first, second = choose_two(boundaries[way], chance)
        Case(paid_shop, way, first, dies_again_at=second).run()
        died += sum(told["event"] == "killed" for told in paid_shop.told)
    assert died > DEATHS_TWICE + DEATHS_TWICE // 4, "most never died again"


@dataclass
class Gone:
    """A buyer who presents his payment once, to a shop that dies over it, and goes."""

    buyer: Buyer
    header: str
    paid: bool = False


def leave(shop: Shop, way: Way, dies_at: Boundary) -> Gone:
    buyer = Buyer(shop, way)
    operator = shop.chain.make_account(wei=GAS_MONEY_WEI)  # of its own: nobody may close its gaps but the end
    shop.forget_labels()
    shop.live(dies_at=dies_at, operator_key=key_of(operator), transfer=way.transfer)
    shop.keys.append(key_of(operator))
    header = buyer.sign()
    shop.ask(buyer.path, **{"PAYMENT-SIGNATURE": header, COUNTED: "1"})
    return Gone(buyer, header)


async def bring_to_truth(shop: Shop) -> int:
    """What a worker and a facilitator do minutes later, with nobody there. How many differences stay open."""
    url = shop.server.url()
    async with (
        Database(url) as database,
        Lanes(database, {NETWORK: shop.chain.url}, shop.keys) as lanes,
        Chain(NETWORK, shop.chain.url) as node,
    ):
        move_clock()
        for _ in range(RUNS_MAX):
            await lanes.mend()
        shop.chain.call("evm_increaseTime", VALID_SECONDS)
        shop.chain.call("anvil_mine", hex(BLOCKS))
        watchers = {NETWORK: ChainWatcher({NETWORK: node})}
        payees = [Payee(NETWORK, shop.seller.address)]
        reconciler = Reconciler(database, ChainTruth({NETWORK: node}), watchers, payees)
        for _ in range(RUNS_MAX):
            move_clock()
            report = await reconciler.run()
        return report.open_count


@pytest.mark.parametrize("way", [BEFORE, AFTER, PERMIT2, UPTO], ids=str)
def test_where_no_client_comes_back_the_reconciler_brings_the_books_to_the_truth(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalChain.start() as own:
        own.ensure_token()
        put_contracts(own)
        with open_shop(own) as shop:
            boundaries = leave_some(find_boundaries(shop, way))
            gone = [leave(shop, way, boundary) for boundary in boundaries]
            shop.end()
            monkeypatch.setattr(clock, "now", clock.now)  # and back again
            assert asyncio.run(bring_to_truth(shop)) == 0
            rows = shop.query(
                """
                SELECT p.from_address, p.settlement, s.status, s.tx_hash = p.tx_hash
                FROM payments.x402_payments p LEFT JOIN payments.x402_settlements s ON s.nonce = p.nonce
                """
            )
            books = {payer: tuple(ends) for payer, *ends in rows}
            for boundary, one in zip(boundaries, gone, strict=True):
                payer = one.buyer.account.address
                one.paid = own.read_balance(payer) < PURSE
                ends = books.get(payer.lower(), ("failed", None, None))
                assert ends in (PAID if one.paid else UNPAID), boundary
            assert {one.paid for one in gone} == {True, False}
            shop.live(late=1, transfer=way.transfer)
            for one in gone:
                answer = ask_patiently(shop, one.buyer.path, **{"PAYMENT-SIGNATURE": one.header})
                assert answer.status_code == (200 if one.paid else 402), answer.text
                assert own.read_balance(one.buyer.account.address) in (PURSE, PURSE - way.price)


def buy(shop: Shop, buyer: Buyer) -> dict[str, str]:
    """Buy something on a day like any other; the header with the token, and what makes it count."""
    answer = shop.ask(buyer.path, **{"PAYMENT-SIGNATURE": buyer.sign()})
    assert answer is not None
    assert answer.status_code == 200
    return {"Authorization": f"Bearer {answer.headers['PAYMENT-TOKEN']}", COUNTED: "1"}


def spend_and_die(shop: Shop, boundary: Boundary, victims: tuple[str, ...]) -> bool:
    """Whether it died there. What was bought is two requests: one with the payment, one on the token."""
    buyer = Buyer(shop, AFTER)
    path = buyer.path
    shop.told.clear()
    shop.live(dies_at=boundary, victims=victims)
    bearer = buy(shop, buyer)
    answers = [shop.ask(path, **bearer)]
    if "process" in victims:
        shop.live(late=1)
    else:
        shop.disarm()
    answers += [ask_patiently(shop, path, **bearer) for _ in range(REQUESTS)]
    answered = 1 + sum(answer is not None and answer.status_code == 200 for answer in answers)
    [(used, rows)] = shop.query(
        """
        SELECT p.requests_used, (SELECT count(*) FROM payments.x402_usage u WHERE u.payment_id = p.payment_id)
        FROM payments.x402_payments p WHERE p.from_address = %s
        """,
        buyer.account.address.lower(),
    )
    assert answered <= min(used, rows)
    assert used == REQUESTS, "it is spent: what was asked last was refused"
    assert answers[-1] is not None
    assert answers[-1].status_code == 402
    return shop.was_killed()


@pytest.mark.parametrize("victims", [("process",), ("postgres",)], ids=" and ".join)
def test_a_kill_at_any_boundary_of_a_request_on_a_token_sells_none_too_many(
    paid_shop: Shop, victims: tuple[str, ...]
) -> None:
    def find() -> list[Boundary]:
        buyer = Buyer(paid_shop, AFTER)
        paid_shop.told.clear()
        paid_shop.live()
        answer = paid_shop.ask(buyer.path, **buy(paid_shop, buyer))
        assert answer is not None
        assert answer.status_code == 200
        paid_shop.end()
        # What the purchase lets go of after its answer has left is walked with the purchase.
        boundaries = [each for each in list_boundaries(paid_shop) if "x402_answers" not in each[0]]
        assert any("INSERT payments.x402_usage" in what for what, _ in boundaries)
        return boundaries

    die_at_each(sample(find()), lambda at: spend_and_die(paid_shop, at, victims), again=find)
