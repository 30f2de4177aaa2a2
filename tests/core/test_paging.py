"""Pages: every row once, whatever is written meanwhile."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollbook.core import paging


@given(
    made=st.sets(st.integers(0, 2**63 - 1), max_size=40),
    limit=st.integers(1, 7),
    later=st.lists(st.integers(1, 1000), max_size=5),
)
def test_a_walk_gives_each_row_once_and_no_newer_one(made: set[int], limit: int, later: list[int]) -> None:
    rows, seen, cursor, new = set(made), [], None, list(later)
    while True:
        after = paging.read_cursor(cursor)
        found = sorted((r for r in rows if after is None or r < after), reverse=True)[: limit + 1]
        page = paging.cut(found, limit, lambda row: row)
        seen += page.items
        cursor = page.next_cursor
        if new:  # somebody writes a newer row between the pages
            rows.add(max(rows, default=0) + new.pop())
        if cursor is None:
            break
    assert seen == sorted(made, reverse=True)


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "A" * 64, "öööööööööööö", "__________8"])
def test_a_cursor_that_is_not_ours_is_refused(cursor: str) -> None:
    with pytest.raises(paging.CursorMalformed):
        paging.read_cursor(cursor)
