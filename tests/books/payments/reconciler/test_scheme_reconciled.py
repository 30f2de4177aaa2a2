"""The reconciler over the other EVM schemes: what was sold by them agrees with the chain."""

from datetime import timedelta

import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI, Response
from x402.http.middleware.fastapi import set_settlement_overrides

from clients.bare_sdk import PRICE, make_buyer, shop_at
from fixtures.schemes import query, selling
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.books.payments.reconciler.movements import ChainWatcher
from tollbook.books.payments.reconciler.reconcile import Reconciler, Report
from tollbook.books.payments.rules import Payee
from tollbook.books.payments.schemes import channels
from tollbook.books.payments.truth import ChainTruth
from tollbook.core.chains import Chain
from tollbook.core.database import Database
from tollbook.core.local_chain import NETWORK, LocalChain

NO_GRACE = timedelta(minutes=-5)  # nothing is too young; blocks may be some seconds ahead of the clock


def make_app() -> FastAPI:
    app = FastAPI()

    @app.get("/words")
    async def words(response: Response, used: str = "100%") -> str:
        set_settlement_overrides(response, {"amount": used})
        return "words"

    return app


async def reconcile(database: Database, chain: LocalChain, seller: LocalAccount) -> Report:
    async with Chain(NETWORK, chain.url) as node:
        chains = {NETWORK: node}
        payees = [Payee(NETWORK, seller.address)]
        watchers = {NETWORK: ChainWatcher(chains)}
        return await Reconciler(database, ChainTruth(chains), watchers, payees, NO_GRACE).run()


@pytest.mark.parametrize(
    ("scheme", "transfer"),
    [
        ("exact", "permit2"),
        ("upto", "permit2"),
        ("batch-settlement", "eip3009"),
        ("batch-settlement", "permit2"),
    ],
)
async def test_books_of_every_scheme_agree_with_the_chain(
    scheme: str,
    transfer: str,
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
    database: Database,
    database_url: str,
) -> None:
    async with (
        selling(make_app(), seller, in_process, database_url, transfer, scheme=scheme) as paywall,
        shop_at(paywall, make_buyer(permit2_payer)) as client,
    ):
        for used in ("100%", "25%", "0"):
            assert (await client.get("/words", params={"used": used})).status_code == 200
    if scheme == "batch-settlement":
        await channels.claim_network(database, in_process, NETWORK)
    earned = 3 * PRICE if scheme == "exact" else PRICE + PRICE // 4
    assert schemes_chain.read_balance(seller.address) == earned
    assert query(database_url, "SELECT sum(amount)::int FROM payments.x402_payments") == [(earned,)]
    report = await reconcile(database, schemes_chain, seller)
    assert (report.differences, report.unreachable) == ([], {})


async def test_an_upto_payment_whose_booking_was_cut_off_is_booked_at_what_moved(
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
    database: Database,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def cut_off(*_: object, **__: object) -> None:
        raise RuntimeError("the database went away")

    with monkeypatch.context() as broken:
        broken.setattr("tollbook.books.payments.payments.settle", cut_off)
        async with (
            selling(make_app(), seller, in_process, database_url, scheme="upto") as paywall,
            shop_at(paywall, make_buyer(permit2_payer)) as client,
        ):
            assert (await client.get("/words", params={"used": "25%"})).status_code == 503
    await reconcile(database, schemes_chain, seller)
    booked = query(database_url, "SELECT amount::int, settlement FROM payments.x402_payments")
    assert booked == [(PRICE // 4, "settled")]
