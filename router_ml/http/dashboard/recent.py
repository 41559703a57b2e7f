"""The latest requests, as the page lists them. No text is held."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from router_ml.events.event import Event, OutcomeEvent

HELD = 200


@dataclass(frozen=True, slots=True)
class RecentRequest:
    """One answered or failed request."""

    decision_id: str
    at_s: float  # Unix time
    model: str
    complexity: str
    latency_s: float | None
    predicted_latency_s: float | None
    ok: bool
    error: str | None
    cached: bool
    clarified: bool
    fallback: bool
    variant: str | None
    escalated: bool = False

    @property
    def state(self) -> str:
        """Return one word for how it ended."""
        if not self.ok:
            return self.error or "failed"
        flags = (("cached", self.cached), ("asked the user", self.clarified), ("fallback", self.fallback),
                 ("escalated", self.escalated))  # fmt: skip
        return next((word for word, is_set in flags if is_set), "answered")


class RecentRequests:
    """A `Recorder` that keeps the latest requests. Thread-safe."""

    def __init__(self, held: int = HELD) -> None:
        self._lock = threading.Lock()
        self._rows: deque[RecentRequest] = deque(maxlen=held)
        self.version = 0  # grows with every request, so that a reader knows whether anything changed

    def record(self, event: Event) -> None:
        """Take one event; others than outcomes are ignored."""
        if isinstance(event, OutcomeEvent):
            with self._lock:
                self._rows.append(_row(event))
                self.version += 1

    def latest(self, count: int = 25) -> tuple[RecentRequest, ...]:
        """Return the latest requests, the newest first."""
        with self._lock:
            rows = list(self._rows)
        return tuple(rows[-count:][::-1])


def _row(event: OutcomeEvent) -> RecentRequest:
    return RecentRequest(
        decision_id=event.decision_id,
        at_s=event.at_s,
        model=event.model,
        complexity=event.complexity or "",
        latency_s=event.latency_s,
        predicted_latency_s=event.predicted_latency_s,
        ok=event.ok,
        error=event.error,
        cached=event.cache_hit,
        clarified=event.clarified,
        fallback=event.fallback,
        variant=event.variant,
        escalated=event.escalated_from is not None,
    )
