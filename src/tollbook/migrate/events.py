"""What happens during a run, told while it happens: for progress lines, logs and tests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: its kind, a sentence, and the figures that belong to it (never a secret)."""

    kind: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""
