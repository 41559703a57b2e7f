"""The latest requests, as the page lists them. No text is held."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass

from router_ml.events.event import DecisionEvent, Event, OutcomeEvent

HELD = 200


@dataclass(frozen=True, slots=True)
class RecentRequest:
    """One answered or failed request."""

    decision_id: str
    at_s: float  # Unix time
    model: str
    complexity: str
    reason: str
    latency_s: float | None
    predicted_latency_s: float | None
    ok: bool
    error: str | None
    cached: bool
    clarified: bool
    fallback: bool
    variant: str | None

    @property
    def state(self) -> str:
        """Return one word for how it ended."""
        if not self.ok:
            return self.error or "failed"
        flags = (("cached", self.cached), ("asked the user", self.clarified), ("fallback", self.fallback))
        return next((word for word, is_set in flags if is_set), "answered")


class RecentRequests:
    """A `Recorder` that keeps the latest requests. Thread-safe."""

    def __init__(self, held: int = HELD) -> None:
        self._lock = threading.Lock()
        self._rows: deque[RecentRequest] = deque(maxlen=held)
        self._reasons: OrderedDict[str, str] = OrderedDict()
        self._held = held
        self.version = 0  # grows with every request, so that a reader knows whether anything changed

    def record(self, event: Event) -> None:
        """Take one event; others than decisions and outcomes are ignored."""
        if isinstance(event, DecisionEvent) and not event.shadow:
            with self._lock:
                self._reasons[event.decision_id] = getattr(event, "reason", "") or ""
                if len(self._reasons) > self._held:
                    self._reasons.popitem(last=False)
        elif isinstance(event, OutcomeEvent):
            with self._lock:
                self._rows.append(_row(event, self._reasons.pop(event.decision_id, "")))
                self.version += 1

    def latest(self, count: int = 25) -> tuple[RecentRequest, ...]:
        """Return the latest requests, the newest first."""
        with self._lock:
            rows = list(self._rows)
        return tuple(rows[-count:][::-1])


def _row(event: OutcomeEvent, reason: str) -> RecentRequest:
    return RecentRequest(
        decision_id=event.decision_id,
        at_s=event.at_s,
        model=event.model,
        complexity=event.complexity or "",
        reason=reason,
        latency_s=event.latency_s,
        predicted_latency_s=event.predicted_latency_s,
        ok=event.ok,
        error=event.error,
        cached=event.cache_hit,
        clarified=event.clarified,
        fallback=event.fallback,
        variant=event.variant,
    )
