"""Sealing: what was sealed opens with the same secret, purpose, salt and binding, and with nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollbook.core.sealing import SealBroken, open_sealed, seal


@given(plain=st.binary(max_size=1000), secret=st.binary(min_size=1), salt=st.binary(), bound=st.binary())
def test_what_was_sealed_opens_again(plain: bytes, secret: bytes, salt: bytes, bound: bytes) -> None:
    sealed = seal(plain, secret=secret, purpose="a", salt=salt, bound_to=bound)
    assert open_sealed(sealed, secret=secret, purpose="a", salt=salt, bound_to=bound) == plain
    assert seal(plain, secret=secret, purpose="a", salt=salt, bound_to=bound) != sealed


@pytest.mark.parametrize(
    "other", [{"secret": b"t"}, {"purpose": "b"}, {"salt": b"2"}, {"bound_to": b"other"}]
)
def test_it_opens_with_nothing_else(other: dict[str, object]) -> None:
    how = {"secret": b"s", "purpose": "a", "salt": b"1", "bound_to": b"this"}
    sealed = seal(b"plain", **how)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SealBroken):
        open_sealed(sealed, **(how | other))  # pyright: ignore[reportArgumentType]


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, change: int) -> None:
    sealed = bytearray(seal(b"plain", secret=b"s", purpose="a"))
    sealed[place % len(sealed)] ^= change
    with pytest.raises(SealBroken):
        open_sealed(bytes(sealed), secret=b"s", purpose="a")
