"""Reading commands: amounts are exact or refused, and a line is one command or none."""

import json
import string
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation, localcontext
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from tollbook.books.settlement.errors import CommandMalformed
from tollbook.books.settlement.requests import Order, read_lines

PAYEE = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
OTHER = b'{"command_id":"other","amount":"7"}'


def show_time(at: datetime, offset_minutes: int) -> str:
    return at.replace(tzinfo=timezone(timedelta(minutes=offset_minutes))).isoformat()


anything = st.text(st.characters(codec="utf-8"), max_size=45)
like_numbers = st.text("0123456789.+-eE_ ,\n٣xnaif", min_size=1, max_size=42)
ids = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._:@+=~-]{0,127}", fullmatch=True)
orders: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"command_id": ids, "amount": st.from_regex(r"[1-9][0-9]{0,19}(\.[0-9]{1,18})?", fullmatch=True)},
    optional={
        "workflow_id": st.text(string.ascii_letters + string.digits + "._:@+=~/#-", max_size=128),
        "asset_symbol": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
        "payee": st.sampled_from([PAYEE, PAYEE.lower(), "0x" + PAYEE[2:].upper(), ""]),
        "chain_id": st.integers(0, (1 << 63) - 1),
        "expires_at": st.builds(
            show_time,
            st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30)),  # noqa: DTZ001 - it is given one
            st.integers(-1439, 1439),
        ),
    },
)


def read_one(**fields: Any) -> Order | CommandMalformed:
    (read,) = read_lines([json.dumps({"command_id": "c", **fields}).encode()])
    return read


@given(st.one_of(like_numbers, anything))
@example("1" * 20 + "." + "1" * 18)
@example("1" * 21)
@example("0." + "0" * 17 + "1")
@example("0." + "0" * 18 + "1")
def test_an_amount_is_read_exactly_or_refused(text: str) -> None:
    """The oracle is Decimal: what is let in is that number, positive, and fits NUMERIC(38,18)."""
    read = read_one(amount=text)
    plain = text.isascii() and not set(text) - set("0123456789.")
    with localcontext() as context:
        context.prec = 60
        try:
            amount = Decimal(text) if plain else Decimal(0)
        except InvalidOperation:
            amount = Decimal(0)
        exponent = amount.as_tuple().exponent
        assert isinstance(exponent, int)
        whole, dot, rest = text.partition(".")
        fits = plain and 0 < amount < Decimal(10) ** 20 and exponent >= -18 and bool(whole)
        fits = fits and (not whole.startswith("0") or whole == "0") and bool(rest) == bool(dot)
        assert isinstance(read, Order) == fits
        if isinstance(read, Order):
            assert Decimal(read.amount) == amount
            assert not read.amount.endswith((".", ".0"))


@given(orders)
def test_what_is_let_in_holds_nothing_that_copy_or_json_would_take_for_its_own(
    fields: dict[str, Any],
) -> None:
    read = read_one(**fields)
    assert isinstance(read, Order)
    for text in read[:7]:
        assert not set(str(text)) & set("\t\n\r\\\"'\x00")


@given(orders, orders)
def test_two_contents_have_one_fingerprint_only_if_they_are_the_same(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    first, second = read_one(**one), read_one(**two)
    assert isinstance(first, Order)
    assert isinstance(second, Order)
    assert (first[:-1] == second[:-1]) == (first.fingerprint == second.fingerprint)
    spelled = {**one, "amount": one["amount"] + ("0" if "." in one["amount"] else ".0")}
    again = read_one(**{**spelled, "payee": spelled.get("payee", "").lower()})
    assert isinstance(again, CommandMalformed) or again.fingerprint == first.fingerprint


@given(st.lists(st.one_of(
    st.sampled_from([
        OTHER, OTHER + b"," + OTHER, OTHER + b"],[" + OTHER, b"[" + OTHER + b"]", OTHER + b" ", b" " + OTHER,
        b'{"command_id":"c"', b'"amount":"1"}', b'{"command_id":"', b'","amount":"1"}',
        b"[", b"]", b"[[", b"]]", b"null", b"{}", b"//", b",", b"\xff\xfe",
    ]),
    st.binary(max_size=40).filter(lambda line: b"\n" not in line),
), max_size=6))  # fmt: skip
def test_no_line_changes_how_another_is_read(lines: list[bytes]) -> None:
    """Lines are read together for speed; each must come out as it does alone."""
    lines = [line for line in lines if line.strip()]
    alone = [read_lines([line])[0] for line in lines]
    for together, one in zip(read_lines(lines), alone, strict=True):
        assert type(together) is type(one)
        assert together == one or isinstance(one, CommandMalformed)
        assert str(together) == str(one)


def test_a_refusal_names_the_field_and_never_repeats_what_was_sent() -> None:
    read = read_one(amount="s3cret")
    assert isinstance(read, CommandMalformed)
    assert "amount" in read.sentence
    assert "s3cret" not in read.sentence
    many = read_one(**{f"wrong{nth}": 1 for nth in range(500)}, amount="1")
    assert isinstance(many, CommandMalformed)
    assert len(many.sentence) <= 500
