"""Ids: made by the process that needs them, rising, and read back as they are shown."""

import itertools
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from tollbook.core import ids


def test_ids_of_a_process_rise_and_are_never_the_same() -> None:
    made = [ids.make() for _ in range(20_000)]  # of 21 random bits a millisecond some would be twins
    assert all(one < after for one, after in itertools.pairwise(made))


def test_threads_make_no_twins() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: ids.make(), range(20_000)))
    assert len(set(made)) == len(made)


@given(st.integers(0, (1 << 63) - 1))
def test_an_id_is_read_as_it_is_shown(number: int) -> None:
    assert ids.read("pay", ids.show("pay", number)) == number
    assert ids.read("tok", ids.show("pay", number)) is None
