"""The rules of webhooks, for every input: which types match, when to try again, what is an event type."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollbook.core import ids
from tollbook.core.journal import Entry, Fact, Position
from tollbook.core.webhooks import rules
from tollbook.core.webhooks.errors import EventTypeMalformed
from tollbook.core.webhooks.sending import read_retry_after

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORD = st.text("abcxyz019_-", min_size=1, max_size=6)
TYPE = st.lists(WORD, min_size=1, max_size=4).map(".".join)


@given(TYPE)
def test_a_type_matches_itself_and_the_star_and_each_of_its_beginnings(event_type: str) -> None:
    words = event_type.split(".")
    assert rules.matches([event_type], event_type)
    assert rules.matches(["*"], event_type)
    for length in range(1, len(words)):
        assert rules.matches([".".join(words[:length]) + ".*"], event_type)


@given(TYPE, TYPE)
def test_a_beginning_matches_whole_words_alone(first: str, second: str) -> None:
    words, of_second = first.split("."), second.split(".")
    begins = of_second[: len(words)] == words and len(of_second) > len(words)
    assert rules.matches([f"{first}.*"], second) == begins
    assert rules.matches([first], second) == (first == second)


@given(st.lists(TYPE | TYPE.map(lambda one: f"{one}.*") | st.just("*"), min_size=1, max_size=50))
def test_event_types_are_kept_in_their_order_each_once(event_types: list[str]) -> None:
    assert rules.check_event_types(event_types) == list(dict.fromkeys(event_types))


@pytest.mark.parametrize(
    "wrong",
    [[], [""], ["**"], ["a.*.b"], ["*.a"], ["a*"], [".a"], ["a."], ["a..b"], ["A.b"], ["a b"], ["a\n"], ["ä"],
     ["x" * 129], ["a"] * 51],
)  # fmt: skip
def test_what_is_no_event_type_is_refused(wrong: list[str]) -> None:
    with pytest.raises(EventTypeMalformed):
        rules.check_event_types(wrong)


@given(st.integers(1, 200), st.floats(0, 1), st.timedeltas(timedelta(), timedelta(days=3)))
def test_there_is_always_a_next_try_until_three_days_are_over(
    tries: int, jitter: float, gone: timedelta
) -> None:
    since, now = NOW, NOW + gone
    found = rules.find_next_try(tries, since, now=now, jitter=jitter)
    if gone >= rules.RETRY_MAX:
        assert found is None
        return
    assert found is not None
    base = timedelta(seconds=rules.RETRY_SECONDS[min(tries, len(rules.RETRY_SECONDS)) - 1])
    assert (
        min(now + base, since + rules.RETRY_MAX) <= found <= min(now + base * 1.2001, since + rules.RETRY_MAX)
    )


@given(st.text(max_size=40) | st.integers().map(str))
@example("Fri, 01 Jan 99999999999 00:00:00 GMT")  # more than a C int holds
@example("Fri, 01 Jan 2026 00:00:00 +99999999999999")
def test_whatever_retry_after_says_it_is_bounded(text: str) -> None:
    found = read_retry_after(text, now=NOW)
    assert found is None or 0 <= found <= rules.RETRY_AFTER_SECONDS_MAX


def test_what_an_event_names_in_its_details_is_named_as_the_api_does() -> None:
    details = {"payment_id": "7", "refund_id": None, "tx_hash": "8", "key_id": "9", "n": 7}
    entry = Entry(Position(), NOW, Fact("payments", "token.issued", "6", details=details))
    data = rules.describe(entry, {"payments.payment.": "pay", "payments.token.": "tok"})
    assert (data["id"], data["subject"]) == (ids.show("tok", 6), "6")
    assert data["details"] == {**details, "payment_id": ids.show("pay", 7)}


def test_retry_after_may_be_a_date() -> None:
    assert read_retry_after("Thu, 01 Jan 2026 00:01:00 GMT", now=NOW) == 60
    assert read_retry_after("Wed, 31 Dec 2025 00:01:00 GMT", now=NOW) == 0
    assert read_retry_after(None, now=NOW) is None
