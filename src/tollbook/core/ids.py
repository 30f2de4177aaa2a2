"""Ids that sort by time, made by the process that needs them: 63 bits, shown as prefix_ and 13 letters."""

import secrets
import threading
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
LETTERS = 13
RANDOM_BITS = 21
EPOCH_MS = 1_704_067_200_000  # 2024-01-01: 42 bits of milliseconds last until 2163


_last = 0
_making = threading.Lock()


def make() -> int:
    """A new id: milliseconds since 2024, then 21 random bits; always higher within a process.

    Two processes may make a twin within a millisecond: the primary key catches it.
    """
    global _last
    milliseconds = time.time_ns() // 1_000_000 - EPOCH_MS
    new = milliseconds << RANDOM_BITS | secrets.randbits(RANDOM_BITS)
    with _making:
        _last = new if new > _last else _last + 1
        return _last


def show(prefix: str, number: int) -> str:
    """`show("pay", 5)` is `pay_0000000000005`."""
    letters = [ALPHABET[number >> shift & 31] for shift in range(5 * (LETTERS - 1), -1, -5)]
    return f"{prefix}_{''.join(letters)}"


def read(prefix: str, shown: str) -> int | None:
    """The number behind a shown id, or None where it is not one of this prefix."""
    start, _, letters = shown.partition("_")
    if start != prefix or len(letters) != LETTERS or not set(letters) <= set(ALPHABET):
        return None
    number = 0
    for letter in letters:
        number = number << 5 | ALPHABET.index(letter)
    return number if number < 1 << 63 else None
