"""Pages by cursor: newest first, the same rows whatever is written meanwhile."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict

from tollbook.core.errors import Refusal

Item = TypeVar("Item")

LIMIT_MAX = 200
LIMIT_DEFAULT = 50
CURSOR_LENGTH_MAX = 64

Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="How many at most.")]
Cursor = Annotated[
    str | None, Query(max_length=CURSOR_LENGTH_MAX, description="next_cursor of the page before.")
]


class CursorMalformed(Refusal):
    """The cursor is not one that we gave."""

    reason = "cursor-malformed"
    status = 400
    exit_code = 2


class Page(BaseModel, Generic[Item]):
    """Some items, and the cursor of the next page; no cursor on the last."""

    model_config = ConfigDict(frozen=True)

    items: list[Item]
    next_cursor: str | None


def read_cursor(cursor: str | None) -> int | None:
    """The id to go on below, None for the first page. Raises CursorMalformed."""
    if cursor is None:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    number = int.from_bytes(raw, "big")
    if len(raw) != 8 or number >= 1 << 63:
        raise CursorMalformed("The cursor is not one of ours. Take next_cursor as it came, or start without.")
    return number


def make_cursor(number: int) -> str:
    """The opaque cursor after the item with this id."""
    return base64.urlsafe_b64encode(number.to_bytes(8, "big")).rstrip(b"=").decode()


def cut(rows: Sequence[Item], limit: int, number: Callable[[Item], int]) -> Page[Item]:
    """A page of `limit` out of rows asked for with a limit of one more, which tells if it is the last."""
    items = list(rows[:limit])
    more = len(rows) > limit
    return Page(items=items, next_cursor=make_cursor(number(items[-1])) if more else None)
