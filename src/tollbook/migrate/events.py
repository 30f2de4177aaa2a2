"""What happens during a run, told while it happens: for progress lines, logs and tests."""

import threading
from collections import deque
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


class Teller:
    """Tells events in their order; those that can wait are told while the server is at its next work."""

    def __init__(self, listen: Listener) -> None:
        self.listen = listen
        self._waiting: deque[Event] = deque()
        self._lock = threading.Lock()  # of two threads the one that guards locks tells too

    def put(self, event: Event) -> None:
        """Keep an event for the next who tells."""
        self._waiting.append(event)

    def tell(self) -> None:
        """Tell what has waited."""
        with self._lock:
            while self._waiting:
                self.listen(self._waiting.popleft())

    def __call__(self, event: Event) -> None:
        """Tell an event now, after what has waited."""
        self.put(event)
        self.tell()

    def __enter__(self) -> "Teller":
        return self

    def __exit__(self, *_: object) -> None:
        self.tell()
