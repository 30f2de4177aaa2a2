"""Thousands of replays of one payment give one grant; thousands of lost answers charge nobody twice."""

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
from eth_account.signers.local import LocalAccount
from x402.schemas import (
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedResponse,
    VerifyResponse,
)

from clients import pay
from faults.paid_shop import COUNTED
from fixtures.chain import PURSE
from fixtures.paid_shop import Shop, sign
from fixtures.walks import WHOLE
from tollbook.books.payments.facilitator.in_process import Facilitator, SettlementUnknown
from tollbook.books.payments.facilitator.ledgered import LedgeredFacilitator
from tollbook.books.payments.ledger import Settlement, Verdict
from tollbook.books.payments.truth import ChainTruth
from tollbook.core.chains import ADDRESS_PADDING, TRANSFER_TOPIC, Chain, ChainUnreachable
from tollbook.core.database import Database
from tollbook.core.local_chain import NETWORK, LocalChain

PRICE = 10_000
MANY = 10_000 if WHOLE else 2_000
CONNECTIONS_EACH = 8
AT_ONCE = 24
ASKED_MAX = 100
LOST_ON_CHAIN = 100
SEED = 402

Payment = tuple[PaymentPayload, PaymentRequirements]
Sign = Callable[[], Awaitable[Payment]]


async def test_thousands_of_replays_of_one_payment_over_eight_processes_are_one_grant(
    paid_shop: Shop, chain: LocalChain, token: str, payer: LocalAccount
) -> None:
    shop, path = paid_shop, "/after/replayed"
    earned = chain.read_balance(shop.seller.address)
    shop.told.clear()
    shop.live(processes=len(shop.urls))
    header = await asyncio.to_thread(sign, shop, path, payer, token)
    left = iter(range(MANY))
    answers: Counter[tuple[int, str]] = Counter()

    async def replay(session: aiohttp.ClientSession, url: str) -> None:
        for _ in left:
            async with session.get(url + path, headers={"PAYMENT-SIGNATURE": header, COUNTED: "1"}) as answer:
                body = await answer.text()
                kind = body if answer.status == 200 else (await answer.json(content_type=None))["type"]
                answers[answer.status, kind] += 1

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(replay(session, url) for url in shop.urls * CONNECTIONS_EACH))
    shop.end()
    in_progress = (503, "urn:tollbook:problem:payment-in-progress")
    assert set(answers) - {in_progress} == {(200, '{"what":"replayed"}')}
    assert answers.total() == MANY
    assert answers[in_progress] < MANY // 2, "most were told to come again, and never were answered"
    assert sum(told.get("what") == "handler" for told in shop.told) == 1
    assert sum(told.get("what") == "before broadcast" for told in shop.told) == 1
    assert chain.read_balance(payer.address) == PURSE - PRICE
    assert chain.read_balance(shop.seller.address) == earned + PRICE
    books = shop.query(
        """
        SELECT p.status, p.requests_used, s.status, s.asks,
               (SELECT count(*) FROM payments.x402_usage u WHERE u.payment_id = p.payment_id)
        FROM payments.x402_payments p JOIN payments.x402_settlements s ON s.nonce = p.nonce
        WHERE p.from_address = %s
        """,
        payer.address.lower(),
    )
    assert books == [("verified", 1, "settled", 1, 1)]


@dataclass
class Till:
    """A chain and its facilitator in one: an authorization moves money once, and answers get lost."""

    chance: random.Random
    lost: int = 0
    moved: dict[str, str] = field(default_factory=dict)  # the transaction, by nonce
    sent: int = 0

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        return VerifyResponse(is_valid=True)

    async def supported(self) -> SupportedResponse:
        return SupportedResponse(kinds=[], signers={})

    async def aclose(self) -> None:
        pass

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        nonce = payload.payload["authorization"]["nonce"]
        before, after = self.chance.random() < 0.4, self.chance.random() < 0.7
        await asyncio.sleep(0)
        if before:
            raise self._lose()
        again = nonce in self.moved
        self.moved.setdefault(nonce, "0x" + secrets.token_hex(32))
        self.sent += 1
        if after:
            raise self._lose()
        if again and self.chance.random() < 0.5:  # as the SDK's own facilitator answers the second time
            return SettleResponse(
                success=False, transaction="", network=NETWORK, error_reason="transaction_failed"
            )
        return SettleResponse(success=True, transaction=self.moved[nonce], network=NETWORK)

    async def find(self, settlement: Settlement) -> Verdict | None:
        """The chain's truth, which cannot always be asked."""
        if self.chance.random() < 0.7:
            raise ChainUnreachable(NETWORK, "http://127.0.0.1:9", "away")
        hash_ = self.moved.get(settlement.nonce)
        return Verdict("settled", hash_, 1, settlement.amount) if hash_ else Verdict("open")

    def _lose(self) -> SettlementUnknown:
        self.lost += 1
        return SettlementUnknown(NETWORK, "", "settlement_pending", "its answer is lost")


async def make_payment() -> Payment:
    """A payment as it is after its check; nobody looks at its signature any more."""
    pay_to = "0x" + "43" * 20
    terms = pay.require("0x" + "42" * 20, pay_to)
    authorization = {
        "from": "0x" + secrets.token_hex(20), "to": pay_to, "value": terms.amount,
        "validAfter": "0", "validBefore": "4102444800", "nonce": "0x" + secrets.token_hex(32),
    }  # fmt: skip
    body = {"authorization": authorization, "signature": "0x" + "11" * 65}
    return PaymentPayload(x402_version=2, payload=body, accepted=terms), terms


async def buy(books: LedgeredFacilitator, make: Sign) -> list[str]:
    """The nonces a buyer signs for one purchase: a new one whenever he is told that nothing moved."""
    signed: list[str] = []
    payment = None
    for _ in range(ASKED_MAX):
        payment = payment or await make()
        nonce = payment[0].payload["authorization"]["nonce"]
        if nonce not in signed:
            signed.append(nonce)
        try:
            answer = await books.settle(*payment)
        except SettlementUnknown:
            continue
        if answer.success:
            return signed
        payment = None
    raise AssertionError("never answered")


async def test_thousands_of_lost_answers_charge_nobody_twice_and_forget_nobody(database: Database) -> None:
    till = Till(random.Random(SEED))
    purchases: list[list[str]] = []

    async def shop_on() -> None:
        books = LedgeredFacilitator(database, {"till": till}, till)
        while till.lost < MANY:
            purchases.append(await buy(books, make_payment))

    await asyncio.gather(*(shop_on() for _ in range(AT_ONCE)))
    assert till.lost >= MANY
    assert till.sent > len(till.moved), "nobody was asked again for what had moved"
    assert len(till.moved) == len(purchases)
    for nonces in purchases:
        assert sum(nonce in till.moved for nonce in nonces) == 1
    async with database.read() as tx:
        rows = await tx.dicts("SELECT nonce, status, tx_hash, amount_moved FROM payments.x402_settlements")
    assert {row["nonce"]: row["tx_hash"] for row in rows if row["status"] == "settled"} == till.moved
    assert {row["amount_moved"] for row in rows if row["status"] == "settled"} == {PRICE}
    assert not {row["status"] for row in rows} - {"settled", "failed"}


@dataclass
class Losing:
    """The real facilitator, whose answers get lost, and the requests to it."""

    real: Facilitator
    chance: random.Random
    lost: int = 0

    def __post_init__(self) -> None:
        self.verify, self.supported, self.aclose = self.real.verify, self.real.supported, self.real.aclose

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        if self.chance.random() < 0.3:
            raise self._lose()
        answer = await self.real.settle(payload, requirements)
        if self.chance.random() < 0.5:
            raise self._lose()
        return answer

    def _lose(self) -> SettlementUnknown:
        self.lost += 1
        return SettlementUnknown(NETWORK, "", "settlement_pending", "its answer is lost")


async def test_a_hundred_lost_answers_on_a_real_chain_charge_nobody_twice(
    database: Database,
    chain: LocalChain,
    token: str,
    payer: LocalAccount,
    seller: LocalAccount,
    in_process: Facilitator,
) -> None:
    losing = Losing(in_process, random.Random(SEED))
    terms = pay.require(token, seller.address)
    purchases: list[list[str]] = []

    async def make() -> Payment:
        return await pay.sign(payer, terms), terms

    async with Chain(NETWORK, chain.url) as node:

        async def shop_on() -> None:
            books = LedgeredFacilitator(database, {"in process": losing}, ChainTruth({NETWORK: node}))
            while losing.lost < LOST_ON_CHAIN:
                purchases.append(await buy(books, make))

        await asyncio.gather(*(shop_on() for _ in range(4)))
    assert purchases
    assert [len(nonces) for nonces in purchases] == [1] * len(purchases)
    assert chain.read_balance(seller.address) == PRICE * len(purchases)
    assert chain.read_balance(payer.address) == PURSE - PRICE * len(purchases)
    async with database.read() as tx:
        rows = await tx.dicts("SELECT status, tx_hash, nonce FROM payments.x402_settlements")
    topics = [TRANSFER_TOPIC, ADDRESS_PADDING + payer.address[2:].lower()]
    logs = chain.call("eth_getLogs", {"fromBlock": "earliest", "address": token, "topics": topics})
    settled = {row["tx_hash"]: row["status"] for row in rows}
    assert settled == {log["transactionHash"]: "settled" for log in logs}
    assert {row["nonce"] for row in rows} == {nonces[0] for nonces in purchases}
