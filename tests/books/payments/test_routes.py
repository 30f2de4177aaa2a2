"""The payments book over HTTP: what is paid is read, paged, revoked, and claimed with a transaction."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest
from eth_abi.abi import encode
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak

from fixtures.payments import buy, pay
from tollbook.books.payments.claims import claim_message
from tollbook.books.payments.errors import TokenRevoked
from tollbook.books.payments.payments import show
from tollbook.books.payments.rules import PaidRoute, Payee
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.books.payments.tokens import hash_secret
from tollbook.books.payments.usage import Meter
from tollbook.core import clock, keys
from tollbook.core.database import Database
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, LocalChain
from tollbook.entrypoints.api import create_api

ROUTE = "GET /weather"
PRICE = 10_000
NO_SALE = PaymentsSettings(routes={}, payees=[], rpc_urls={})


async def serve(database_url: str, settings: PaymentsSettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_api(database_url, settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async for opened in serve(database_url, NO_SALE):
        yield opened


@pytest.fixture
async def shop(
    database_url: str, chain: LocalChain, token: str, seller: LocalAccount
) -> AsyncIterator[httpx.AsyncClient]:
    """The API of a seller who is paid on the local chain."""
    assert token
    settings = PaymentsSettings(
        routes={ROUTE: PaidRoute("$0.01", requests=10)},
        payees=[Payee(NETWORK, seller.address)],
        rpc_urls={NETWORK: chain.url},
    )
    async for opened in serve(database_url, settings):
        yield opened


async def authorize(database: Database, *scopes: str) -> dict[str, str]:
    async with database.write() as tx:
        grant = await keys.create(tx, name="test", scopes=scopes, now=clock.now())
    return {"Authorization": f"Bearer {grant.secret}"}


def send_dollars(chain: LocalChain, token: str, payer: LocalAccount, receiver: str) -> str:
    chain.set_gas_money(payer.address, GAS_MONEY_WEI)
    chain.call("anvil_impersonateAccount", payer.address)
    data = keccak(text="transfer(address,uint256)")[:4] + encode(["address", "uint256"], [receiver, PRICE])
    return chain.send({"from": payer.address, "to": token, "data": "0x" + data.hex()})["transactionHash"]


def sign_claim(payer: LocalAccount, tx_hash: str) -> dict[str, str]:
    signed = payer.sign_message(encode_defunct(text=claim_message(NETWORK, tx_hash, ROUTE)))
    signature = "0x" + signed.signature.hex().removeprefix("0x")
    return {"network": NETWORK, "tx_hash": tx_hash, "signature": signature}


async def test_a_payment_is_read_by_its_shown_id(client: httpx.AsyncClient, database: Database) -> None:
    payment = await pay(database, amount=10**30)
    headers = await authorize(database, "payments:read")
    answer = await client.get(f"/v1/payments/{show(payment.payment_id)}", headers=headers)
    assert answer.status_code == 200
    read = answer.json()
    assert read["payment_id"] == show(payment.payment_id)
    assert (read["status"], read["settlement"], read["amount"]) == ("verified", "settled", str(10**30))


@pytest.mark.parametrize("wrong", ["5", "pay_5", "tok_0000000000005", "pay_0000000000005", "pay_i"])
async def test_a_payment_that_cannot_be_is_not_found(
    client: httpx.AsyncClient, database: Database, wrong: str
) -> None:
    answer = await client.get(f"/v1/payments/{wrong}", headers=await authorize(database, "*"))
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_payments_are_filtered(client: httpx.AsyncClient, database: Database) -> None:
    one = await pay(database)
    other = await pay(database, network="eip155:8453", chain="base")
    headers = await authorize(database, "payments:read")

    async def find(query: str) -> set[str]:
        answer = await client.get(f"/v1/payments?{query}", headers=headers)
        assert answer.status_code == 200, answer.text
        return {payment["payment_id"] for payment in answer.json()["items"]}

    both = {show(one.payment_id), show(other.payment_id)}
    assert await find("") == both
    assert await find("status=verified") == both
    assert await find("status=expired") == set()
    assert await find("network=eip155:8453") == {show(other.payment_id)}
    assert await find(f"from_address={one.from_address}") == {show(one.payment_id)}
    assert await find(f"from_address=0x{one.from_address[2:].upper()}") == {show(one.payment_id)}
    wrong = await client.get("/v1/payments?status=paid", headers=headers)
    assert wrong.status_code == 422


async def test_pages_give_each_payment_once_while_others_are_made(
    client: httpx.AsyncClient, database: Database
) -> None:
    made = {show((await pay(database)).payment_id) for _ in range(7)}
    headers, seen, cursor = await authorize(database, "payments:read"), [], None
    while True:
        params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/v1/payments", params=params, headers=headers)).json()
        seen += [payment["payment_id"] for payment in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        await pay(database)
    assert sorted(seen) == sorted(made)
    assert seen == sorted(seen, reverse=True)


async def test_a_token_is_listed_without_its_secret_and_revoked_once(
    client: httpx.AsyncClient, database: Database, database_url: str
) -> None:
    grant = await buy(database)
    await buy(database)
    headers = await authorize(database, "payments:read", "payments:write")
    shown = show(grant.token.payment_id)
    listed = await client.get(f"/v1/payments/tokens?payment={shown}", headers=headers)
    [token] = listed.json()["items"]
    assert token["payment_id"] == shown
    assert grant.secret not in listed.text
    assert len((await client.get("/v1/payments/tokens", headers=headers)).json()["items"]) == 2
    revoked = await client.post(f"/v1/payments/tokens/{token['token_id']}/revoke", headers=headers)
    assert revoked.json()["revoked_at"] is not None
    again = await client.post(f"/v1/payments/tokens/{token['token_id']}/revoke", headers=headers)
    assert (again.status_code, again.json()["title"]) == (409, "token already revoked")
    async with Meter(database_url) as meter:
        with pytest.raises(TokenRevoked):
            await meter.admit(hash_secret(grant.secret), "GET /weather/*")


async def test_who_may_read_may_not_write(client: httpx.AsyncClient, database: Database) -> None:
    grant = await buy(database)
    headers = await authorize(database, "payments:read")
    path = f"/v1/payments/tokens/tok_{'0' * 13}/revoke"
    for post in (path, "/v1/payments/cleanup", "/v1/payments/analytics"):
        assert (await client.post(post, headers=headers)).status_code == 403
    async with database.read() as tx:
        assert await tx.value("SELECT count(*) FROM payments.x402_tokens WHERE revoked_at IS NULL") == 1
    assert grant


async def test_the_reports_are_the_views(client: httpx.AsyncClient, database: Database) -> None:
    payment = await pay(database, amount=1_250_000)
    headers = await authorize(database, "payments:read")
    [stats] = (await client.get("/v1/payments/stats", headers=headers)).json()
    assert (stats["chain"], stats["total_payments"]) == ("base-sepolia", 1)
    assert float(stats["total_amount_usdc"]) == 1.25
    [payer] = (await client.get("/v1/payments/top-payers", headers=headers)).json()
    assert payer["from_address"] == payment.from_address
    assert (await client.get("/v1/payments/endpoints", headers=headers)).json() == []


async def test_clean_up_and_analytics_run_by_hand(client: httpx.AsyncClient, database: Database) -> None:
    payment = await pay(database, lifetime=timedelta(microseconds=1))
    headers = await authorize(database, "payments:read", "payments:write")
    assert (await client.post("/v1/payments/cleanup", headers=headers)).json() == {"count": 1}
    assert (await client.post("/v1/payments/cleanup", headers=headers)).json() == {"count": 0}
    read = await client.get(f"/v1/payments/{show(payment.payment_id)}", headers=headers)
    assert read.json()["status"] == "expired"
    assert (await client.post("/v1/payments/analytics", headers=headers)).status_code == 200
    async with database.read() as tx:
        assert await tx.value("SELECT sum(total_payments) FROM payments.x402_analytics") == 1


async def test_a_payer_claims_his_transaction_without_any_key(
    shop: httpx.AsyncClient, chain: LocalChain, token: str, payer: LocalAccount, seller: LocalAccount
) -> None:
    wanted = sign_claim(payer, send_dollars(chain, token, payer, seller.address))
    claimed = await shop.post("/v1/payments", json=wanted)
    assert claimed.status_code == 201, claimed.text
    assert claimed.json()["access_token"].startswith("tbk_")
    assert claimed.json()["requests_remaining"] == 10


async def test_a_claim_sent_again_with_its_key_gets_the_same_token_which_is_sealed_at_rest(
    shop: httpx.AsyncClient,
    database: Database,
    chain: LocalChain,
    token: str,
    payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    wanted = sign_claim(payer, send_dollars(chain, token, payer, seller.address))
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    first = await shop.post("/v1/payments", json=wanted, headers=headers)
    again = await shop.post("/v1/payments", json=wanted, headers=headers)
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    assert again.headers["idempotency-replayed"] == "true"
    async with database.read() as tx:
        kept = bytes(await tx.value("SELECT sealed_response FROM core.idempotency_keys"))
    assert first.json()["access_token"].encode() not in kept


async def test_a_stranger_is_told_to_sign_and_an_operator_may_vouch(
    shop: httpx.AsyncClient,
    database: Database,
    chain: LocalChain,
    token: str,
    payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    wanted = {"network": NETWORK, "tx_hash": send_dollars(chain, token, payer, seller.address)}
    stranger = await shop.post("/v1/payments", json=wanted)
    assert stranger.json()["title"] == "payer unproven"
    reader = await shop.post("/v1/payments", json=wanted, headers=await authorize(database, "payments:read"))
    assert reader.json()["title"] == "payer unproven"
    operator = await shop.post(
        "/v1/payments", json=wanted, headers=await authorize(database, "payments:write")
    )
    assert operator.status_code == 201


async def test_claims_at_once_make_one_payment(
    shop: httpx.AsyncClient,
    database: Database,
    chain: LocalChain,
    token: str,
    payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    wanted = sign_claim(payer, send_dollars(chain, token, payer, seller.address))
    answers = await asyncio.gather(*(shop.post("/v1/payments", json=wanted) for _ in range(6)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["payment"]["payment_id"] for answer in answers}) == 1
    async with database.read() as tx:
        assert await tx.value("SELECT count(*) FROM payments.x402_payments") == 1


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"network": "eip155:1"},
        {"network": "eip155:1", "tx_hash": "0x" + "a" * 500},
        {"network": "eip155:1", "tx_hash": "0x12", "colour": "red"},
        {"network": NETWORK, "tx_hash": "0x12"},
        {"network": "eip155:999999", "tx_hash": "0x" + secrets.token_hex(32)},
        {"network": NETWORK, "tx_hash": "0x" + "ab" * 32, "endpoint": "GET /nothing"},
    ],
)
async def test_a_claim_that_cannot_be_is_a_problem_and_nothing_is_booked(
    shop: httpx.AsyncClient, database: Database, wanted: dict[str, str]
) -> None:
    answer = await shop.post("/v1/payments", json=wanted)
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"
    async with database.read() as tx:
        assert await tx.value("SELECT count(*) FROM payments.x402_payments") == 0


async def test_where_nothing_is_sold_a_claim_is_told_so(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/payments", json={"network": NETWORK, "tx_hash": "0x" + "ab" * 32})
    assert (answer.status_code, answer.json()["title"]) == (501, "nothing to claim")
