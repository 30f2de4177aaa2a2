"""The time, in one place, so that rules take it as an argument."""

from datetime import UTC, datetime


def now() -> datetime:
    """The present instant, timezone-aware, UTC."""
    return datetime.now(UTC)
