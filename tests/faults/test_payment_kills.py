"""Killed at any boundary of a payment: who paid once has what he bought, and the books equal the chain."""

import asyncio
import random
import time
from dataclasses import dataclass

import httpx
import pytest
from eth_account.signers.local import LocalAccount

from faults.paid_shop import ANY, REQUESTS, move_clock
from fixtures.chain import PURSE
from fixtures.lanes import key_of
from fixtures.paid_shop import ORDER_SECONDS_MAX, Shop, open_shop, sign
from tollbook.books.payments.reconciler.movements import ChainWatcher
from tollbook.books.payments.reconciler.reconcile import Reconciler
from tollbook.books.payments.rules import Payee
from tollbook.books.payments.truth import ChainTruth
from tollbook.core import clock
from tollbook.core.chains import ADDRESS_PADDING, TRANSFER_TOPIC, Chain
from tollbook.core.database import Database
from tollbook.core.lanes import Lanes
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, LocalChain

PRICE = 10_000
TRIES_MAX = 3  # to meet a boundary that is not passed each time
ASKED_MAX = 60
RUNS_MAX = 3
DEATHS_TWICE = 24
SEED = 9
# What the books may say: of the payment, of its settlement, and whether they name the same transaction.
PAID = {("settled", "settled", True)}
UNPAID = {("failed", "failed", None), ("failed", None, None)}
VALID_SECONDS = 120  # after which no authorization of before can be used any more
BLOCKS = 12  # that make this final
PAUSE_SECONDS = 0.05  # instead of the Retry-After of seconds: its clock has been moved

Boundary = tuple[str, int]  # what it is, and the how manieth of its kind

ROAD = (
    "INSERT payments.x402_payments",
    "INSERT payments.x402_settlements",
    "core.take_nonces",
    "UPDATE core.transactions",
    "broadcast",
    "UPDATE payments.x402_settlements",
    "INSERT payments.x402_tokens",
    "INSERT payments.x402_usage",
    "UPDATE payments.x402_answers",
    "http.response.body",
)


def ask_patiently(shop: Shop, path: str, **headers: str) -> httpx.Response:
    """Ask as a patient client does, until it is answered with anything but "again"."""
    for _ in range(ASKED_MAX):
        answer = shop.ask(path, **headers)
        assert answer is not None, "it died although nobody killed it"
        if answer.status_code != 503:
            return answer
        time.sleep(PAUSE_SECONDS)
    raise AssertionError(f"never answered: {answer.text}")


@dataclass
class Case:
    """One payment that meets one death."""

    shop: Shop
    token: str
    route: str
    dies_at: Boundary
    victims: tuple[str, ...] = ("process",)
    dies_again_at: int = 0  # the how manieth boundary of the life that goes on

    def run(self) -> bool:
        """Live through it. Whether it did die there."""
        shop = self.shop
        payer = shop.chain.make_account(amount=PURSE)
        earned = shop.chain.read_balance(shop.seller.address)
        path = f"/{self.route}/{payer.address}"
        shop.forget_labels()
        shop.told.clear()
        shop.live(dies_at=self.dies_at, victims=self.victims)
        header = sign(shop, path, payer, self.token)
        first = shop.ask(path, **{"PAYMENT-SIGNATURE": header})
        if self.dies_again_at:
            shop.live(late=1, dies_at=(ANY, self.dies_again_at))
            shop.ask(path, **{"PAYMENT-SIGNATURE": header})
        if "process" in self.victims:
            shop.live(late=2)
        assert shop.database_up.wait(ORDER_SECONDS_MAX)
        answer = ask_patiently(shop, path, **{"PAYMENT-SIGNATURE": header})
        assert (answer.status_code, answer.json()) == (200, {"what": payer.address}), answer.text
        if first is not None and first.status_code == 200:
            assert first.json() == answer.json()
        self.check_chain(payer, earned)
        self.check_books(payer)
        self.spend(path, answer)
        return shop.was_killed()

    def check_chain(self, payer: LocalAccount, earned: int) -> None:
        chain = self.shop.chain
        assert chain.read_balance(payer.address) == PURSE - PRICE
        assert chain.read_balance(self.shop.seller.address) == earned + PRICE
        topics = [TRANSFER_TOPIC, ADDRESS_PADDING + payer.address[2:].lower()]
        logs = chain.call("eth_getLogs", {"fromBlock": "earliest", "address": self.token, "topics": topics})
        settlements = self.shop.query(
            "SELECT status, tx_hash, amount FROM payments.x402_settlements WHERE payer = %s",
            payer.address.lower(),
        )
        assert settlements == [("settled", log["transactionHash"], PRICE) for log in logs]

    def check_books(self, payer: LocalAccount) -> None:
        rows = self.shop.query(
            """
            SELECT p.status, p.settlement, p.requests_used, s.tx_hash = p.tx_hash,
                   (SELECT count(*) > 0 FROM payments.x402_usage u WHERE u.payment_id = p.payment_id),
                   (SELECT count(*) FROM payments.x402_tokens t
                    WHERE t.payment_id = p.payment_id AND t.revoked_at IS NULL)
            FROM payments.x402_payments p JOIN payments.x402_settlements s ON s.nonce = p.nonce
            WHERE p.from_address = %s AND p.status <> 'failed'
            """,
            payer.address.lower(),
        )
        assert rows == [("verified", "settled", 1, True, True, 1)]

    def spend(self, path: str, answer: httpx.Response) -> None:
        """The rest of what was bought, and not one request more."""
        bearer = {"Authorization": f"Bearer {answer.headers['PAYMENT-TOKEN']}"}
        answers = [ask_patiently(self.shop, path, **bearer) for _ in range(REQUESTS)]
        assert [one.status_code for one in answers] == [200, 402]


def find_boundaries(shop: Shop, token: str, payer: LocalAccount, route: str) -> list[Boundary]:
    """What a payment passes when nothing happens to it."""
    shop.forget_labels()
    shop.told.clear()
    shop.live()
    buy(shop, token, payer, f"/{route}/dry")
    shop.end()
    return list_boundaries(shop)


def list_boundaries(shop: Shop) -> list[Boundary]:
    return [(told["what"], told["time"]) for told in shop.told if told["event"] == "boundary"]


def buy(shop: Shop, token: str, payer: LocalAccount, path: str) -> dict[str, str]:
    """Buy something on a day like any other; the header with the token."""
    answer = shop.ask(path, **{"PAYMENT-SIGNATURE": sign(shop, path, payer, token)})
    assert answer is not None
    assert answer.status_code == 200
    return {"Authorization": f"Bearer {answer.headers['PAYMENT-TOKEN']}"}


@pytest.mark.parametrize(
    ("route", "victims"),
    [
        ("before", ("process",)),
        ("after", ("process",)),
        ("before", ("postgres",)),
        ("after", ("postgres",)),
        ("after", ("postgres", "process")),
    ],
    ids=lambda part: part if isinstance(part, str) else " and ".join(part),
)
def test_a_kill_at_any_boundary_of_a_payment_costs_nobody_anything(
    paid_shop: Shop, token: str, payer: LocalAccount, route: str, victims: tuple[str, ...]
) -> None:
    boundaries = find_boundaries(paid_shop, token, payer, route)
    for place in ROAD:  # or else the program does not count any more what it should
        assert {what.split()[0] for what, _ in boundaries if place in what} == {"before", "after"}, place
    for boundary in boundaries:
        case = Case(paid_shop, token, route, boundary, victims)
        assert any(case.run() for _ in range(TRIES_MAX)), boundary


def test_who_goes_on_after_a_kill_may_be_killed_as_well(
    paid_shop: Shop, token: str, payer: LocalAccount
) -> None:
    chance = random.Random(SEED)
    boundaries = {route: find_boundaries(paid_shop, token, payer, route) for route in ("before", "after")}
    died = 0
    for _ in range(DEATHS_TWICE):
        route = chance.choice(["before", "after"])
        first, second = chance.choice(boundaries[route]), chance.randint(1, len(boundaries[route]))
        Case(paid_shop, token, route, first, dies_again_at=second).run()
        died += sum(told["event"] == "killed" for told in paid_shop.told)
    assert died > DEATHS_TWICE + DEATHS_TWICE // 4, "most never died again"


@dataclass
class Gone:
    """A buyer who presents his payment once, to a shop that dies over it, and goes."""

    payer: LocalAccount
    path: str
    header: str
    paid: bool = False


def leave(shop: Shop, token: str, route: str, dies_at: Boundary) -> Gone:
    payer = shop.chain.make_account(amount=PURSE)
    operator = shop.chain.make_account(wei=GAS_MONEY_WEI)  # of its own: nobody may close its gaps but the end
    path = f"/{route}/{payer.address}"
    shop.forget_labels()
    shop.live(dies_at=dies_at, operator_key=key_of(operator))
    shop.keys.append(key_of(operator))
    header = sign(shop, path, payer, token)
    shop.ask(path, **{"PAYMENT-SIGNATURE": header})
    return Gone(payer, path, header)


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


@pytest.mark.parametrize("route", ["before", "after"])
def test_where_no_client_comes_back_the_reconciler_brings_the_books_to_the_truth(
    token: str, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalChain.start() as own:
        own.ensure_token()
        with open_shop(own) as shop:
            boundaries = find_boundaries(shop, token, own.make_account(amount=PURSE), route)
            gone = [leave(shop, token, route, boundary) for boundary in boundaries]
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
                one.paid = own.read_balance(one.payer.address) < PURSE
                ends = books.get(one.payer.address.lower(), ("failed", None, None))
                assert ends in (PAID if one.paid else UNPAID), boundary
            assert {one.paid for one in gone} == {True, False}
            shop.live(late=1)
            for one in gone:
                answer = ask_patiently(shop, one.path, **{"PAYMENT-SIGNATURE": one.header})
                assert answer.status_code == (200 if one.paid else 402), answer.text
                assert own.read_balance(one.payer.address) in (PURSE, PURSE - PRICE)


def spend_and_die(shop: Shop, token: str, boundary: Boundary, victims: tuple[str, ...]) -> bool:
    """Whether it died there. What was bought is two requests: one with the payment, one on the token."""
    payer = shop.chain.make_account(amount=PURSE)
    path = f"/after/{payer.address}"
    shop.told.clear()
    shop.live(dies_at=boundary, victims=victims, counted="authorization")
    bearer = buy(shop, token, payer, path)
    answers = [shop.ask(path, **bearer)]
    if "process" in victims:
        shop.live(late=1)
    assert shop.database_up.wait(ORDER_SECONDS_MAX)
    answers += [ask_patiently(shop, path, **bearer) for _ in range(REQUESTS)]
    answered = 1 + sum(answer is not None and answer.status_code == 200 for answer in answers)
    [(used, rows)] = shop.query(
        """
        SELECT p.requests_used, (SELECT count(*) FROM payments.x402_usage u WHERE u.payment_id = p.payment_id)
        FROM payments.x402_payments p WHERE p.from_address = %s
        """,
        payer.address.lower(),
    )
    assert answered <= min(used, rows)
    assert used == REQUESTS, "it is spent: what was asked last was refused"
    assert answers[-1] is not None
    assert answers[-1].status_code == 402
    return shop.was_killed()


@pytest.mark.parametrize("victims", [("process",), ("postgres",)], ids=" and ".join)
def test_a_kill_at_any_boundary_of_a_request_on_a_token_sells_none_too_many(
    paid_shop: Shop, token: str, payer: LocalAccount, victims: tuple[str, ...]
) -> None:
    shop, path = paid_shop, "/after/dry"
    shop.told.clear()
    shop.live(counted="authorization")
    answer = shop.ask(path, **buy(shop, token, payer, path))
    assert answer is not None
    assert answer.status_code == 200
    shop.end()
    # What the purchase lets go of after its answer has left is walked with the purchase.
    boundaries = [each for each in list_boundaries(shop) if "x402_answers" not in each[0]]
    assert any("INSERT payments.x402_usage" in what for what, _ in boundaries)
    for boundary in boundaries:
        assert any(spend_and_die(shop, token, boundary, victims) for _ in range(TRIES_MAX)), boundary
