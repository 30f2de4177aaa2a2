"""The paywall on Solana: real programs, the official clients, real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from solders.keypair import Keypair
from x402.http.utils import (
    decode_payment_required_header,
    decode_payment_response_header,
    encode_payment_signature_header,
)
from x402.schemas import PaymentRequirements, SettleResponse

from clients.pay import paying_client as paying_evm_client
from clients.pay_solana import paying_client, sign
from fixtures.pay_mjs import pay_with
from fixtures.serve import serve
from fixtures.solana import MINT, NETWORK
from fixtures.solana_desk import AMOUNT, EXPIRY_BLOCKS, Desk
from tollbook.books.payments.facilitator.families import FamilyFacilitator
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.books.payments.rules import WrongPaywall, compile_tolls
from tollbook.books.payments.solana.facilitator import SolanaFacilitator
from tollbook.core import local_chain
from tollbook.core.chains import Token
from tollbook.core.local_chain import LocalChain

pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")

REQUESTS = 5
HAS_NODE_CLIENT = (Path(__file__).parents[4] / "node_modules" / "@x402" / "svm").exists()


@dataclass
class Shop:
    """A paid app that is being served, and what its handler saw."""

    url: str
    desk: Desk
    runs: list[str] = field(default_factory=list[str])

    async def ask(self, path: str, **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(timeout=60) as client:
            return await client.get(self.url + path, headers=headers)

    async def present(self, path: str, header: str) -> httpx.Response:
        return await self.ask(path, **{"PAYMENT-SIGNATURE": header})

    async def sign(self, path: str, **accepted: str) -> str:
        """A PAYMENT-SIGNATURE for what the path costs on Solana; `accepted`: what it pretends."""
        refused = await self.ask(path)
        required = decode_payment_required_header(refused.headers["PAYMENT-REQUIRED"])
        asked = next(terms for terms in required.accepts if terms.network == NETWORK)
        payment = await sign(self.desk.payer, self.desk.chain.url, asked)
        told = asked.model_copy(update=accepted)
        return encode_payment_signature_header(
            payment.model_copy(update={"accepted": told, "extensions": required.extensions})
        )

    async def read_terms(self, path: str) -> list[PaymentRequirements]:
        refused = await self.ask(path)
        return decode_payment_required_header(refused.headers["PAYMENT-REQUIRED"]).accepts


def make_app(shop: Shop) -> FastAPI:
    app = FastAPI()

    @app.get("/weather/{city}")
    async def weather(city: str) -> dict[str, str]:
        shop.runs.append(city)
        return {"city": city}

    @app.get("/upfront")
    async def upfront() -> str:
        shop.runs.append("upfront")
        return "dear"

    return app


@pytest.fixture
async def shop(
    desk: Desk, chain: LocalChain, token: str, operator: LocalAccount, seller: LocalAccount
) -> AsyncIterator[Shop]:
    evm = InProcessFacilitator({local_chain.NETWORK: chain.url}, "0x" + operator.key.hex(), desk.database_url)
    facilitator = FamilyFacilitator({"eip155": evm, "solana": desk.open()})
    shop = Shop("", desk)
    app = make_app(shop)
    dollars = Token(token, "TUSD", 6, local_chain.TOKEN_NAME, local_chain.TOKEN_VERSION)
    app.add_middleware(
        Paywall,  # pyright: ignore[reportArgumentType]
        payees=[
            Payee("solana-devnet", str(desk.seller.pubkey())),
            Payee(local_chain.NETWORK, seller.address, dollars),
        ],
        routes={
            "GET /weather/{city}": PaidRoute("$0.01", requests=REQUESTS),
            "GET /upfront": PaidRoute("$0.01", requests=REQUESTS, settle="before"),
        },
        facilitator=facilitator,
        database_url=desk.database_url,
        rpc_urls={NETWORK: desk.chain.url, local_chain.NETWORK: chain.url},
    )
    async with serve(app) as url:
        shop.url = url
        yield shop
    await facilitator.aclose()


@pytest.mark.parametrize("path", ["/weather/oslo", "/upfront"])
async def test_the_python_client_pays_on_solana_and_gets_its_token(shop: Shop, path: str) -> None:
    async with paying_client(shop.desk.payer, shop.desk.chain.url) as client:
        answer = await client.get(shop.url + path)
    assert answer.status_code == 200
    assert shop.desk.earned() == AMOUNT
    receipt = decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"])
    assert receipt.success
    assert receipt.transaction == shop.desk.chain.sent[0]
    assert shop.desk.query(
        "SELECT status, settlement, network, chain, asset, amount, from_address, to_address, tx_hash"
        " FROM payments.x402_payments"
    ) == [
        ("verified", "settled", NETWORK, "solana-devnet", MINT, AMOUNT, str(shop.desk.payer.pubkey()),
         str(shop.desk.seller.pubkey()), receipt.transaction)
    ]  # fmt: skip
    assert shop.desk.query("SELECT status, amount_moved, tx_hash FROM payments.x402_settlements") == [
        ("settled", AMOUNT, receipt.transaction)
    ]
    again = await shop.ask(path, authorization=f"Bearer {answer.headers['PAYMENT-TOKEN']}")
    assert again.status_code == 200
    assert again.headers["PAYMENT-REQUESTS-REMAINING"] == str(REQUESTS - 2)
    assert len(shop.desk.chain.sent) == 1


@pytest.mark.skipif(not HAS_NODE_CLIENT, reason="@x402/svm is not installed: npm ci")
async def test_the_typescript_client_pays_on_solana(shop: Shop) -> None:
    answer = await pay_with(
        "pay_solana.mjs", PAY_URL=shop.url + "/weather/oslo", PAY_KEY=str(shop.desk.payer),
        PAY_NETWORK=NETWORK, PAY_ASSET=MINT, PAY_RPC_URL=shop.desk.chain.url,
    )  # fmt: skip
    assert answer["status"] == 200
    assert answer["settled"]["transaction"] == shop.desk.chain.sent[0]
    assert shop.desk.earned() == AMOUNT


async def test_the_same_route_is_paid_on_evm_as_well(shop: Shop, payer: LocalAccount, token: str) -> None:
    async with paying_evm_client(payer, token) as client:
        answer = await client.get(shop.url + "/weather/oslo")
    assert answer.status_code == 200
    assert shop.desk.query("SELECT network FROM payments.x402_payments") == [(local_chain.NETWORK,)]
    assert shop.desk.chain.sent == []


async def test_what_is_asked_for_on_solana_is_what_its_clients_need(shop: Shop) -> None:
    asked = (await shop.read_terms("/weather/oslo"))[0]
    assert asked.extra == {"feePayer": str(shop.desk.operator.pubkey())}
    assert (asked.asset, asked.pay_to) == (MINT, str(shop.desk.seller.pubkey()))


def test_usage_is_not_sold_on_solana_which_knows_the_exact_scheme_alone() -> None:
    routes = {"GET /by-usage": PaidRoute("$0.01", scheme="upto")}
    solana = Payee("solana", str(Keypair().pubkey()))
    tolls = compile_tolls(routes, [solana, Payee("base", "0x" + "1" * 40)])
    assert [option.network.name for option in tolls.all[0].options] == ["base"]
    with pytest.raises(WrongPaywall, match="Solana"):
        compile_tolls(routes, [solana])


async def test_ten_copies_of_a_solana_payment_run_the_handler_once(shop: Shop) -> None:
    header = await shop.sign("/weather/oslo")
    answers = await asyncio.gather(*(shop.present("/weather/oslo", header) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["PAYMENT-RESPONSE"] for answer in answers}) == 1
    assert shop.runs == ["oslo"]
    assert len(shop.desk.chain.sent) == 1
    assert shop.desk.earned() == AMOUNT


async def test_row_n_a_buyer_whose_transaction_landed_with_an_error_gets_nothing(shop: Shop) -> None:
    header = await shop.sign("/weather/oslo")
    shop.desk.chain.behaviour.before_landing.append(shop.desk.drain)
    answer = await shop.present("/weather/oslo", header)
    assert answer.status_code == 402
    assert "PAYMENT-TOKEN" not in answer.headers
    assert shop.desk.query("SELECT status, settlement FROM payments.x402_payments") == [("failed", "failed")]
    assert shop.desk.earned() == 0


async def test_an_unconfirmed_payment_is_unknown_until_the_same_one_comes_again(shop: Shop) -> None:
    header = await shop.sign("/upfront")
    shop.desk.chain.behaviour.held = True
    first = await shop.present("/upfront", header)
    assert first.status_code == 503
    assert first.json()["transaction"] == shop.desk.chain.sent[0]
    assert shop.runs == []
    shop.desk.chain.confirm()
    again = await shop.present("/upfront", header)
    assert again.status_code == 200
    assert shop.runs == ["upfront"]
    assert len(shop.desk.chain.sent) == 1
    assert shop.desk.earned() == AMOUNT


async def test_a_payment_that_never_landed_ends_as_a_failure_and_a_new_one_is_good(shop: Shop) -> None:
    header = await shop.sign("/upfront")
    shop.desk.chain.behaviour.dropped = True
    assert (await shop.present("/upfront", header)).status_code == 503
    shop.desk.chain.behaviour.dropped = False
    shop.desk.chain.advance(EXPIRY_BLOCKS)
    assert (await shop.present("/upfront", header)).status_code == 402
    assert shop.desk.query("SELECT settlement FROM payments.x402_payments") == [("failed",)]
    paid = await shop.present("/upfront", await shop.sign("/upfront"))
    assert paid.status_code == 200
    assert shop.desk.earned() == AMOUNT


async def test_a_recipient_spelt_in_another_case_is_another_recipient(shop: Shop) -> None:
    header = await shop.sign("/weather/oslo", pay_to=str(shop.desk.seller.pubkey()).swapcase())
    answer = await shop.present("/weather/oslo", header)
    assert answer.status_code == 402
    assert "recipient" in answer.json()["detail"]


async def test_what_a_facilitator_names_instead_of_a_signature_is_not_kept(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The payer has paid, however a facilitator calls that; and the reconciler must be able to ask for it."""
    settle = SolanaFacilitator.settle

    async def name_nonsense(self: SolanaFacilitator, *asked: Any) -> SettleResponse:
        return (await settle(self, *asked)).model_copy(update={"transaction": "0x" + "ab" * 32})

    monkeypatch.setattr(SolanaFacilitator, "settle", name_nonsense)
    answer = await shop.present("/weather/oslo", await shop.sign("/weather/oslo"))
    assert answer.status_code == 200
    assert shop.desk.query("SELECT settlement, tx_hash FROM payments.x402_payments") == [("settled", None)]
