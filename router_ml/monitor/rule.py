"""The `AlertRule` protocol, and what its implementations share.

To add a rule, write a class with `name`, `advice` and `observe`, and enter it in `RULES` of `router_ml.monitor.rules`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from router_ml.events.event import Event

ALL = "all"  # the subject of a rule that covers all models together


class Signal(NamedTuple):
    """State of one rule for one subject."""

    subject: str  # a model, or "all"
    firing: bool
    value: float
    threshold: float
    summary: str


class AlertRule(Protocol):
    """Follows the events and reports its state. Not thread-safe: one thread feeds it."""

    name: str
    advice: str  # what to do, as whole sentences

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an event; yield the signals it may have changed."""


class Shares:
    """Means of flags (or of probabilities) in several windows of the last so many events."""

    def __init__(self, *sizes: int) -> None:
        self._windows = [(size, deque[float](maxlen=size)) for size in sizes]
        self._counts = [0.0] * len(sizes)

    def add(self, value: float) -> None:
        """Take one event."""
        for index, (size, window) in enumerate(self._windows):
            if len(window) == size:
                self._counts[index] -= window[0]
            window.append(value)
            self._counts[index] += value

    def share(self, index: int) -> float:
        """Return the mean of a window; 0 if it is empty."""
        n = len(self._windows[index][1])
        return self._counts[index] / n if n else 0.0

    def seen(self, index: int) -> int:
        """Return the number of events in a window."""
        return len(self._windows[index][1])
