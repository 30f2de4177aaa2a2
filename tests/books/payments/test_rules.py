"""Prices, routes and what fits them."""

import base64
import json
from datetime import UTC, timedelta
from decimal import Decimal

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st
from x402.http.utils import encode_payment_signature_header

from clients.pay import require, sign
from tollbook.books.payments.rules import (
    SIGNATURE_HEADER_BYTES_MAX,
    MalformedPayment,
    Option,
    PaidRoute,
    Payee,
    WrongPaywall,
    compile_tolls,
    decode_payment,
    match_option,
    read_price,
    read_proof,
)
from tollbook.core.chains import Token
from tollbook.core.local_chain import NETWORK, TOKEN_NAME, TOKEN_VERSION

ASSET = "0x" + "11" * 20
SELLER = "0x" + "22" * 20
TOKEN = Token(ASSET, "TUSD", 6, TOKEN_NAME, TOKEN_VERSION)
PAYEES = [Payee(NETWORK, SELLER, TOKEN)]
CENT = PaidRoute("$0.01", requests=3)


@given(minor=st.integers(1, 10**24), decimals=st.integers(0, 18))
def test_a_price_comes_out_as_the_minor_units_it_says(minor: int, decimals: int) -> None:
    price = f"{Decimal(minor).scaleb(-decimals):f}"
    if len(price.partition(".")[0]) <= 20:
        assert read_price("$" + price, decimals) == minor


@pytest.mark.parametrize(
    "price", ["", "0", "$0", "-1", "1e3", "NaN", "0.0000001", "1 USD", "٣", "1_000", "Infinity"]
)
def test_a_price_without_exact_minor_units_is_refused(price: str) -> None:
    with pytest.raises(WrongPaywall):
        read_price(price, 6)


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [
        ("GET", "/weather", "GET /weather"),
        ("GET", "/weather/", "GET /weather"),
        ("HEAD", "/weather", "GET /weather"),
        ("POST", "/weather", None),
        ("GET", "/weather/rome", None),
        ("GET", "/items/7", "GET /items/{id}"),
        ("GET", "/items/7/", "GET /items/{id}"),
        ("GET", "/items/7/parts", None),
        ("GET", "/items/", None),
        ("DELETE", "/files/a/b/c", "/files/*"),
        ("GET", "/files/", "/files/*"),
        ("OPTIONS", "/files/a", "/files/*"),
        ("QUERY", "/files/a", "/files/*"),
        ("get", "/weather", "GET /weather"),
        ("GET", "/weather\n", "GET /weather"),
        ("GET", "/numbers/7", "GET /numbers/{id:int}"),
        ("GET", "/docs/a/b", "GET /docs/{rest:path}"),
        ("GET", "/items/a\nb", "GET /items/{id}"),
    ],
)
def test_a_request_finds_its_toll(method: str, path: str, key: str | None) -> None:
    routes = ["GET /weather", "GET /items/{id}", "/files/*", "GET /docs/{rest:path}", "GET /numbers/{id:int}"]
    toll = compile_tolls(dict.fromkeys(routes, CENT), PAYEES).find(method, path)
    assert (toll and toll.key) == key


@pytest.mark.parametrize(
    ("routes", "payees"),
    [
        ({}, PAYEES),
        ({"GET /a": CENT}, []),
        ({"weather": CENT}, PAYEES),
        ({"FETCH /a": CENT}, PAYEES),
        ({"GET /n/{id:integer}": CENT}, PAYEES),
        ({"GET /n/{id": CENT}, PAYEES),
        ({"GET /a": PaidRoute("free")}, PAYEES),
        ({"GET /a": PaidRoute("$1", requests=0)}, PAYEES),
        ({"GET /a": PaidRoute("$1", lifetime=timedelta(0))}, PAYEES),
    ],
)
def test_a_paywall_that_cannot_work_is_refused_at_the_start(
    routes: dict[str, PaidRoute], payees: list[Payee]
) -> None:
    with pytest.raises(WrongPaywall):
        compile_tolls(routes, payees)


async def test_a_payment_as_the_official_client_makes_it_is_read() -> None:
    account = Account.create()
    payment = await sign(account, require(ASSET, SELLER, 10_000))
    read = decode_payment(encode_payment_signature_header(payment).encode())
    toll = compile_tolls({"GET /a": CENT}, PAYEES).all[0]
    assert isinstance(match_option(toll, read), Option)
    proof = read_proof(read, toll.options[0].requirements)
    assert proof.payer == account.address.lower()
    assert proof.amount == 10_000
    assert proof.valid_before.tzinfo is UTC


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"network": "eip155:1"}, "network"),
        ({"asset": "0x" + "33" * 20}, "asset"),
        ({"amount": "9999"}, "amount"),
        ({"pay_to": "0x" + "33" * 20}, "recipient"),
        ({"scheme": "upto"}, "scheme"),
    ],
)
async def test_a_payment_for_something_else_is_told_what_differs(change: dict[str, str], word: str) -> None:
    payment = await sign(Account.create(), require(ASSET, SELLER, 10_000))
    other = payment.model_copy(update={"accepted": payment.accepted.model_copy(update=change)})
    toll = compile_tolls({"GET /a": CENT}, PAYEES).all[0]
    sentence = match_option(toll, other)
    assert isinstance(sentence, str)
    assert word in sentence


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"%%%",
        base64.b64encode(b"{"),
        base64.b64encode(b"[]"),
        base64.b64encode(json.dumps({"x402Version": 1, "scheme": "exact"}).encode()),
        base64.b64encode(b"\xff\xfe"),
        b"A" * (SIGNATURE_HEADER_BYTES_MAX + 1),
    ],
)
def test_a_header_without_a_payment_is_malformed(header: bytes) -> None:
    with pytest.raises(MalformedPayment):
        decode_payment(header)


@given(header=st.binary(max_size=300))
def test_no_header_does_anything_but_be_read_or_refused(header: bytes) -> None:
    for candidate in (header, base64.b64encode(header)):
        with pytest.raises(MalformedPayment):
            decode_payment(candidate)
