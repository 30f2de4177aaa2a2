"""The walk from death to death: one purchase is killed at each of its boundaries, and must be whole again."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from eth_account.signers.local import LocalAccount
from x402 import x402Client
from x402.http.clients.httpx import x402AsyncTransport

from clients.bare_sdk import make_buyer
from faults.paid_shop import ANY, COUNTED, REQUESTS
from fixtures.chain import PURSE
from fixtures.paid_shop import Shop, sign_by
from fixtures.schemes import approve_permit2
from fixtures.walks import STEP
from tollbook.core.chains import ADDRESS_PADDING, TRANSFER_TOPIC
from tollbook.core.local_chain import TOKEN_ADDRESS

PRICE = 10_000
USED = 4_000  # of the price, where usage is charged
TRIES_MAX = 3  # to meet a boundary that is not passed each time
ASKED_MAX = 600
PAUSE_SECONDS = 0.05  # instead of the Retry-After of seconds: its clock has been moved

Boundary = tuple[str, int]  # what it is, and the how manieth of its kind


@dataclass(frozen=True)
class Way:
    """A way to buy: what a shop on the local chain is paid by it, and what a purchase must pass."""

    name: str
    route: str
    transfer: str = "eip3009"
    price: int = PRICE
    requests: int = REQUESTS
    opened: bool = False  # the channel, before the purchase that is looked at
    road: tuple[str, ...] = ()

    @property
    def is_channel(self) -> bool:
        return self.route == "channel"

    def __str__(self) -> str:
        return self.name


PURCHASE = (
    "INSERT payments.x402_payments",
    "INSERT payments.x402_tokens",
    "INSERT payments.x402_usage",
    "UPDATE payments.x402_answers",
    "http.response.body",
)
SETTLEMENT = (
    *PURCHASE,
    "INSERT payments.x402_settlements",
    "core.take_nonces",
    "UPDATE core.transactions",
    "broadcast",
    "UPDATE payments.x402_settlements",
)
CHARGE = (*PURCHASE, "stores.channels")
BEFORE = Way("before", "before", road=SETTLEMENT)
AFTER = Way("after", "after", road=SETTLEMENT)
PERMIT2 = Way("permit2", "after", "permit2", road=SETTLEMENT)
UPTO = Way("upto", "upto", "permit2", USED, 1, road=SETTLEMENT)
DEPOSIT = Way("deposit", "channel", price=USED, requests=1, road=(*SETTLEMENT, *CHARGE))
VOUCHER = Way("voucher", "channel", price=USED, requests=1, opened=True, road=CHARGE)
WAYS = (BEFORE, AFTER, PERMIT2, UPTO, DEPOSIT, VOUCHER)


class Listening(httpx.AsyncHTTPTransport):
    """Remembers the payment that went by: the SDK's client signs it inside."""

    payment = ""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.payment = request.headers.get("PAYMENT-SIGNATURE", self.payment)
        return await super().handle_async_request(request)


@dataclass
class Buyer:
    """A payer with the SDK's client, which remembers its channels."""

    shop: Shop
    way: Way
    account: LocalAccount = field(init=False)
    client: x402Client = field(init=False)

    def __post_init__(self) -> None:
        chain = self.shop.chain
        self.account = chain.make_account(amount=PURSE)
        self.client = make_buyer(self.account, chain.url)
        if self.way.transfer == "permit2":
            approve_permit2(chain, self.account.address)

    @property
    def path(self) -> str:
        return f"/{self.way.route}/{self.account.address}"

    def sign(self) -> str:
        return sign_by(self.shop, self.path, self.client)

    def prepare(self) -> None:
        """What is bought before the purchase that is looked at."""
        if self.way.opened:
            assert self.buy().status_code == 200

    def buy(self) -> httpx.Response:
        """A purchase on a day like any other, by the client alone; told to ask again, he does."""

        async def buy(line: Listening) -> httpx.Response:
            transport = x402AsyncTransport(self.client, line)
            async with httpx.AsyncClient(transport=transport, timeout=60) as client:
                return await client.get(self.shop.urls[0] + self.path)

        for _ in range(ASKED_MAX):
            line = Listening()
            answer = asyncio.run(buy(line))
            if answer.status_code == 503 and line.payment:
                return ask_patiently(self.shop, self.path, **{"PAYMENT-SIGNATURE": line.payment})
            if answer.status_code != 503:
                return answer
            time.sleep(PAUSE_SECONDS)
        raise AssertionError("never asked to pay")


def ask_patiently(shop: Shop, path: str, **headers: str) -> httpx.Response:
    """Ask as a patient client does, until it is answered with anything but "again"."""
    said = ""
    for _ in range(ASKED_MAX):
        answer = shop.ask(path, **headers)
        assert answer is not None, "it died although nobody killed it"
        if answer.status_code != 503:
            return answer
        said = answer.text
        time.sleep(PAUSE_SECONDS)
    raise AssertionError(f"never answered: {said}")


@dataclass
class Case:
    """One payment that meets one death."""

    shop: Shop
    way: Way
    dies_at: Boundary
    victims: tuple[str, ...] = ("process",)
    dies_again_at: int = 0  # the how manieth boundary of the life that goes on

    def run(self) -> bool:
        """Live through it. Whether it did die there."""
        shop, buyer = self.shop, Buyer(self.shop, self.way)
        earned = shop.chain.read_balance(shop.seller.address)
        shop.forget_labels()
        shop.told.clear()
        shop.live(dies_at=self.dies_at, victims=self.victims, transfer=self.way.transfer)
        buyer.prepare()
        shop.forget_labels()
        payment = {"PAYMENT-SIGNATURE": buyer.sign()}
        first = shop.ask(buyer.path, **payment, **{COUNTED: "1"})
        if first is not None and first.status_code == 200:
            shop.calm_down()
        if self.dies_again_at:
            shop.let_time_pass()
            shop.live(late=1, dies_at=(ANY, self.dies_again_at), transfer=self.way.transfer)
            shop.ask(buyer.path, **payment, **{COUNTED: "1"})
        if "process" in self.victims:
            shop.live(late=2, transfer=self.way.transfer)
        else:
            shop.disarm()
        shop.let_time_pass()
        answer = ask_patiently(shop, buyer.path, **payment)
        assert (answer.status_code, answer.json()) == (200, {"what": buyer.account.address}), answer.text
        if first is not None and first.status_code == 200:
            assert first.json() == answer.json()
        self.check_chain(buyer, earned)
        self.check_books(buyer)
        self.spend(buyer, answer)
        return shop.was_killed()

    def check_chain(self, buyer: Buyer, earned: int) -> None:
        """What left the payer is what the ledger says, and went where it says."""
        chain, payer = self.shop.chain, buyer.account.address
        topics = [TRANSFER_TOPIC, ADDRESS_PADDING + payer[2:].lower()]
        logs = chain.call(
            "eth_getLogs", {"fromBlock": "earliest", "address": TOKEN_ADDRESS, "topics": topics}
        )
        assert len(logs) == 1
        gone = PURSE - chain.read_balance(payer)
        settlements = self.shop.query(
            "SELECT status, tx_hash, amount_moved FROM payments.x402_settlements WHERE payer = %s",
            payer.lower(),
        )
        assert settlements == [("settled", logs[0]["transactionHash"], gone)]
        if self.way.is_channel:
            assert self.read_channel(payer) == (gone, self.way.price * (1 + self.way.opened))
        else:
            assert gone == self.way.price
            assert chain.read_balance(self.shop.seller.address) == earned + gone

    def read_channel(self, payer: str) -> tuple[int, int]:
        """What is in it, and what of that is earned."""
        [(balance, charged)] = self.shop.query(
            """
            SELECT balance::bigint, charged_cumulative_amount::bigint FROM stores.channels
            WHERE lower(channel_config->>'payer') = %s
            """,
            payer.lower(),
        )
        return balance, charged

    def check_books(self, buyer: Buyer) -> None:
        rows = self.shop.query(
            """
            SELECT p.status, p.settlement, p.requests_used, p.amount::int,
                   s.tx_hash IS NOT DISTINCT FROM p.tx_hash,
                   (SELECT count(*) = 1 FROM payments.x402_usage u WHERE u.payment_id = p.payment_id),
                   (SELECT count(*) FROM payments.x402_tokens t
                    WHERE t.payment_id = p.payment_id AND t.revoked_at IS NULL)
            FROM payments.x402_payments p LEFT JOIN payments.x402_settlements s ON s.nonce = p.nonce
            WHERE p.from_address = %s AND p.status <> 'failed'
            """,
            buyer.account.address.lower(),
        )
        bought = 1 + self.way.opened
        status = "used" if self.way.requests == 1 else "verified"
        assert rows == [(status, "settled", 1, self.way.price, True, True, 1)] * bought

    def spend(self, buyer: Buyer, answer: httpx.Response) -> None:
        """The rest of what was bought, and not one request more; a channel goes on."""
        assert ("PAYMENT-TOKEN" in answer.headers) == (self.way.requests > 1)
        if self.way.requests > 1:
            bearer = {"Authorization": f"Bearer {answer.headers['PAYMENT-TOKEN']}"}
            answers = [ask_patiently(self.shop, buyer.path, **bearer) for _ in range(self.way.requests)]
            assert [one.status_code for one in answers] == [200] * (self.way.requests - 1) + [402]
        if self.way.is_channel:
            more = buyer.buy()
            assert more.status_code == 200, more.text
            balance, charged = self.read_channel(buyer.account.address)
            assert charged == self.way.price * (2 + self.way.opened)
            assert balance == PURSE - self.shop.chain.read_balance(buyer.account.address)


def find_boundaries(shop: Shop, way: Way) -> list[Boundary]:
    """What a payment passes when nothing happens to it."""
    buyer = Buyer(shop, way)
    shop.told.clear()
    shop.live(transfer=way.transfer)
    buyer.prepare()
    shop.forget_labels()
    answer = shop.ask(buyer.path, **{"PAYMENT-SIGNATURE": buyer.sign(), COUNTED: "1"})
    assert answer is not None
    assert answer.status_code == 200, answer.text
    shop.calm_down()
    shop.end()
    boundaries = list_boundaries(shop)
    check_road(boundaries, way.road)
    return boundaries


def check_road(boundaries: list[Boundary], road: tuple[str, ...]) -> None:
    """Or else the program does not count any more what it should."""
    for place in road:
        assert {what.split()[0] for what, _ in boundaries if place in what} == {"before", "after"}, place


def list_boundaries(shop: Shop) -> list[Boundary]:
    passed = [(told["what"], told["time"]) for told in shop.told if told["event"] == "boundary"]
    return list(dict.fromkeys(passed))  # where several lives pass the same


def sample(boundaries: list[Boundary]) -> list[Boundary]:
    """Some of them, others each time, so that runs add up to all."""
    return boundaries[random.randrange(STEP) :: STEP]


def thin_out(boundaries: list[Boundary]) -> list[Boundary]:
    """A sample of those between which something is written, sent or answered."""
    return sample([*(each for each in boundaries if not each[0].startswith("after ")), boundaries[-1]])


def leave_some(boundaries: list[Boundary]) -> list[Boundary]:
    """A sample too, with one where nothing was paid yet and one where it was: both ends are always met."""
    unpaid = next(each for each in boundaries if "INSERT payments.x402_payments" in each[0])
    return list(dict.fromkeys([unpaid, ("after broadcast", 1), *thin_out(boundaries)]))


def walk(shop: Shop, way: Way, victims: tuple[str, ...], *, thin: bool = False) -> None:
    """Die once at each of a sample; one in ten, at most, is passed by chance and was not met again."""
    boundaries = find_boundaries(shop, way)
    chosen = thin_out(boundaries) if thin else sample(boundaries)
    die_at_each(
        chosen, lambda at: Case(shop, way, at, victims).run(), again=lambda: find_boundaries(shop, way)
    )


def die_at_each(
    chosen: list[Boundary], run: Callable[[Boundary], bool], again: Callable[[], list[Boundary]]
) -> None:
    """Die at each. One in ten, at most, of those that are always passed is not met in so many lives.

    What was passed the first time by chance alone, as a look more where the machine was slow, is `again` not
    passed: there nobody need die.
    """
    missed = [at for at in chosen if not any(run(at) for _ in range(TRIES_MAX))]
    if missed:
        passed = set(again())
        missed = [at for at in missed if at in passed]
    assert len(missed) <= 1 + len(chosen) // 10, missed


def choose_two(boundaries: list[Boundary], chance: random.Random) -> tuple[Boundary, int]:
    """Where to die, and where whoever goes on dies again: he has at least as far as was left."""
    first = chance.randrange(len(boundaries))
    return boundaries[first], chance.randint(1, len(boundaries) - first)
