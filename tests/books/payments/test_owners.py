"""One payment buys once, by whichever of the ways that one database sells: paywall, SDK client, claim."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from x402.http.utils import encode_payment_signature_header
from x402.schemas import PaymentPayload, PaymentRequirements

import tollbook
from clients.pay import sign
from fixtures.serve import serve
from tollbook.books.payments import ledger, payments, settlements
from tollbook.books.payments.claims import Claimed, ClaimRefused, ClaimRequest, claim, claim_message
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator, SettlementUnknown
from tollbook.books.payments.facilitator.ledgered import LedgeredFacilitator, SettlementConflict
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.books.payments.reconciler.movements import ChainWatcher
from tollbook.books.payments.reconciler.reconcile import Reconciler
from tollbook.books.payments.rules import compile_tolls
from tollbook.books.payments.sdk_client import LedgeredFacilitatorClient
from tollbook.books.payments.truth import ChainTruth
from tollbook.core import clock
from tollbook.core.chains import Chain
from tollbook.core.database import Database, WriteTx
from tollbook.core.local_chain import NETWORK, LocalChain

ROUTE = "GET /rain"
OLD_ENOUGH = timedelta(minutes=-5)  # blocks of the local chain may be some seconds ahead of the clock


@dataclass
class Market:
    """One database, and the three ways in which it sells."""

    database: Database
    node: Chain
    seller: LocalAccount
    requirements: PaymentRequirements
    sdk: LedgeredFacilitatorClient
    facilitator: InProcessFacilitator
    url: str = ""
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, payment: PaymentPayload) -> int:
        """What the paywall answers."""
        header = encode_payment_signature_header(payment)
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as client:
            return (await client.get("/rain", headers={"PAYMENT-SIGNATURE": header})).status_code

    async def verify(self, payment: PaymentPayload) -> str | None:
        """Why the SDK's middleware would not run its handler."""
        return (await self.sdk.verify(payment, self.requirements)).invalid_reason

    async def settle(self, payment: PaymentPayload) -> bool:
        """Whether the SDK's middleware would let the answer go."""
        return (await self.sdk.settle(payment, self.requirements)).success

    async def claim(self, payer: LocalAccount, tx_hash: str) -> Claimed:
        message = encode_defunct(text=claim_message(NETWORK, tx_hash, ROUTE))
        signature = "0x" + payer.sign_message(message).signature.hex().removeprefix("0x")
        request = ClaimRequest(network=NETWORK, tx_hash=tx_hash, signature=signature)
        tolls = compile_tolls({ROUTE: PaidRoute("$0.01")}, [Payee(NETWORK, self.seller.address)])
        chains = {NETWORK: self.node}
        return await claim(self.database, chains, tolls, request, vouched=False, now=clock.now())

    async def reconcile(self) -> list[tuple[str, str]]:
        chains = {NETWORK: self.node}
        watchers = {NETWORK: ChainWatcher(chains)}
        payees = [Payee(NETWORK, self.seller.address)]
        truth = ChainTruth(chains)
        report = await Reconciler(self.database, truth, watchers, payees, OLD_ENOUGH).run()
        return [(each.kind, each.status) for each in report.differences]

    async def count_payments(self) -> int:
        async with self.database.read() as tx:
            return sum(each.status != "failed" for each in await payments.page(tx))

    async def let_time_pass(self) -> None:
        """Whoever holds a settlement was not heard of again."""
        async with self.database.write() as tx:
            await tx.execute("UPDATE payments.x402_settlements SET held_until = now()")


@pytest.fixture
async def market(
    chain: LocalChain,
    token: str,
    seller: LocalAccount,
    database: Database,
    in_process: InProcessFacilitator,
    facilitator_url: str,
    requirements: PaymentRequirements,
) -> AsyncIterator[Market]:
    sdk = LedgeredFacilitatorClient(database.url, facilitator_url)
    app = FastAPI()
    async with Chain(NETWORK, chain.url) as node:
        market = Market(database, node, seller, requirements, sdk, in_process)

        @app.get("/rain")
        async def rain() -> str:
            market.entered.set()
            await market.release.wait()
            return "rain"

        app.add_middleware(
            Paywall,  # pyright: ignore[reportArgumentType]
            payees=[Payee(NETWORK, seller.address)],
            routes={ROUTE: PaidRoute("$0.01")},
            facilitator=in_process,
            database_url=database.url,
        )
        async with serve(app) as market.url:
            yield market
            market.release.set()
        await sdk.aclose()


async def test_what_the_sdk_client_sold_while_the_handler_ran_the_paywall_sells_no_second_time(
    market: Market, payer: LocalAccount
) -> None:
    payment = await sign(payer, market.requirements)
    asked = asyncio.create_task(market.ask(payment))
    await market.entered.wait()
    assert await market.verify(payment) is None
    assert await market.settle(payment)
    market.release.set()
    assert await asked == 409
    assert await market.count_payments() == 0


async def test_what_the_sdk_client_is_about_to_sell_the_paywall_does_not(
    market: Market, payer: LocalAccount
) -> None:
    market.release.set()
    payment = await sign(payer, market.requirements)
    assert await market.verify(payment) is None
    assert await market.ask(payment) == 409
    assert await market.settle(payment)
    assert await market.ask(payment) in (402, 409)


async def test_of_a_payment_presented_everywhere_at_once_one_is_sold(
    market: Market, payer: LocalAccount
) -> None:
    market.release.set()
    payment = await sign(payer, market.requirements)

    async def buy_by_the_sdk() -> bool:
        return await market.verify(payment) is None and await market.settle(payment)

    asks = [market.ask(payment), *(buy_by_the_sdk() for _ in range(3)), market.ask(payment)]
    first, *sdk, last = await asyncio.gather(*asks)
    assert sum(sdk) + (200 in (first, last)) == 1


async def test_what_bought_an_answer_by_the_sdk_client_cannot_be_claimed(
    market: Market, payer: LocalAccount
) -> None:
    payment = await sign(payer, market.requirements)
    assert await market.verify(payment) is None
    sold = await market.sdk.settle(payment, market.requirements)
    assert sold.success
    with pytest.raises(ClaimRefused):
        await market.claim(payer, sold.transaction)
    assert await market.count_payments() == 0


async def test_what_the_sdk_client_has_in_hand_cannot_be_claimed(market: Market, payer: LocalAccount) -> None:
    payment = await sign(payer, market.requirements)
    assert await market.verify(payment) is None
    sent = await market.facilitator.settle(payment, market.requirements)
    with pytest.raises(ClaimRefused):
        await market.claim(payer, sent.transaction)
    assert await market.settle(payment)


async def test_what_was_claimed_nobody_sells_any_more(market: Market, payer: LocalAccount) -> None:
    payment = await sign(payer, market.requirements)
    sent = await market.facilitator.settle(payment, market.requirements)
    await market.claim(payer, sent.transaction)
    for owner in ("paywall", "sdk"):
        ledgered = LedgeredFacilitator(market.database, {"here": market.facilitator}, owner=owner)
        with pytest.raises(SettlementConflict):
            await ledgered.settle(payment, market.requirements)
    assert await market.reconcile() == []


async def test_an_answer_that_was_sold_is_not_sold_again(market: Market, payer: LocalAccount) -> None:
    payment = await sign(payer, market.requirements)
    assert await market.verify(payment) is None
    assert [await market.settle(payment), await market.settle(payment)] == [True, False]
    assert await market.verify(payment) == "payment_already_settled"


@pytest.mark.parametrize("is_written", [True, False])
async def test_a_sale_whose_booking_was_not_heard_of_is_a_sale(
    market: Market, payer: LocalAccount, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    payment, real = await sign(payer, market.requirements), ledger.sell
    assert await market.verify(payment) is None

    async def go_away(tx: WriteTx, row: ledger.Settlement) -> bool:
        monkeypatch.undo()
        if is_written:
            async with market.database.write() as other:
                await real(other, row)
        raise psycopg.OperationalError("the server closed the connection unexpectedly")

    monkeypatch.setattr(ledger, "sell", go_away)
    assert await market.settle(payment)


async def test_of_two_whose_handlers_overlap_one_is_answered(market: Market, payer: LocalAccount) -> None:
    """The first one's handler took longer than a payment is held for it."""
    payment = await sign(payer, market.requirements)
    slow = LedgeredFacilitatorClient(market.database.url, market.sdk._facilitator_urls[0])
    assert (await slow.verify(payment, market.requirements)).is_valid
    await market.let_time_pass()
    assert await market.verify(payment) is None
    late = await slow.settle(payment, market.requirements)
    assert [late.success, await market.settle(payment)] == [False, True]
    await slow.aclose()


async def test_whose_handler_failed_may_present_the_payment_again(
    market: Market, payer: LocalAccount
) -> None:
    payment = await sign(payer, market.requirements)
    assert await market.verify(payment) is None
    assert await market.verify(payment) == "payment_in_progress"
    await market.let_time_pass()
    assert await market.verify(payment) is None
    assert await market.settle(payment)


async def test_an_unknown_end_is_served_to_nobody_who_proves_nothing_and_claimed_by_its_payer(
    market: Market, payer: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = await sign(payer, market.requirements)
    assert await market.verify(payment) is None
    real, sent = market.facilitator.settle, [""]

    async def lose(*args: Any) -> Any:
        sent[0] = (await real(*args)).transaction
        raise SettlementUnknown(NETWORK, "", "settlement_pending", "its answer is lost")

    monkeypatch.setattr(market.facilitator, "settle", lose)
    assert not await market.settle(payment)
    public = payment.model_copy(update={"extensions": None})
    assert await market.verify(public) == "settlement_pending"
    with pytest.raises(ClaimRefused):  # it is not known yet
        await market.claim(payer, sent[0])
    assert ("paid_not_granted", "open") in await market.reconcile()
    assert await market.verify(public) == "payment_already_settled"
    assert (await market.claim(payer, sent[0])).requests_remaining == 1
    assert ("paid_not_granted", "open") not in await market.reconcile()


async def test_the_reconciler_grants_nothing_for_what_the_sdk_client_sold(
    market: Market, payer: LocalAccount
) -> None:
    """The paywall's process died in its handler; meanwhile the same payment bought elsewhere."""
    payment = await sign(payer, market.requirements)
    asked = asyncio.create_task(market.ask(payment))
    await market.entered.wait()
    assert await market.verify(payment) is None
    assert await market.settle(payment)
    await market.reconcile()
    assert await market.count_payments() == 0
    async with market.database.read() as tx:
        (row,) = await settlements.find_by_nonces(
            tx, NETWORK, market.requirements.asset.lower(), payer.address.lower(),
            [payment.payload["authorization"]["nonce"]],
        )  # fmt: skip
    assert (row.status, row.owner) == ("settled", "sold")
    market.release.set()
    assert await asked != 200


async def test_a_way_back_that_would_forget_who_sold_is_refused(
    market: Market, payer: LocalAccount, database_url: str
) -> None:
    payment = await sign(payer, market.requirements)
    assert await market.verify(payment) is None
    assert await market.settle(payment)
    down = (Path(tollbook.__file__).parent / "books/payments/migrations/0006_books.down.sql").read_bytes()
    with psycopg.connect(database_url) as connection, pytest.raises(psycopg.errors.RaiseException):
        connection.execute(down)
