"""Charging by usage (scheme upto): from what the handler says to what is booked and moved."""

import json

import pytest
from clients.pay import require
from hypothesis import given
from hypothesis import strategies as st

from tollbook.books.payments.scheme_upto import UsageUnreadable, read_usage, take_usage
from tollbook.core.local_chain import TOKEN_ADDRESS

MOST = require(TOKEN_ADDRESS, "0x" + "11" * 20, amount=5_000, scheme="upto")


@pytest.mark.parametrize(
    ("said", "charged"),
    [("2500", 2_500), (2500, 2_500), ("50%", 2_500), ("$0.002", 2_000), ("0", 0), ("5000", 5_000), ("0.01%", 0)],
)
def test_usage_is_minor_units_or_a_share_or_dollars(said: object, charged: int) -> None:
    assert read_usage(json.dumps({"amount": said}).encode(), MOST, 6) == charged


def test_a_handler_that_says_nothing_of_an_amount_charges_the_price() -> None:
    assert read_usage(b"{}", MOST, 6) == 5_000


@pytest.mark.parametrize("said", ["5001", "101%", "$0.006", "-1", "a lot", "", "1.5", "-50%", True, [1]])
def test_usage_beyond_the_price_or_of_no_amount_charges_nothing(said: object) -> None:
    with pytest.raises(UsageUnreadable):
        read_usage(json.dumps({"amount": said}).encode(), MOST, 6)


@given(st.binary(max_size=200))
def test_whatever_the_header_holds_no_more_than_the_price_is_charged(usage: bytes) -> None:
    try:
        assert 0 <= read_usage(usage, MOST, 6) <= 5_000
    except UsageUnreadable:
        pass


def test_the_usage_header_is_taken_out_of_the_answer() -> None:
    kept = [(b"content-type", b"text/plain"), (b"x-used", b"1")]
    assert take_usage([kept[0], (b"Settlement-Overrides", b"{}"), kept[1]]) == (kept, b"{}")
    assert take_usage(kept) == (kept, None)
