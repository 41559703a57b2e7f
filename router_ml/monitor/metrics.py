"""Live figures: what the last minutes amounted to, how each model did lately, and counters since the start."""

from __future__ import annotations

import bisect
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from router_ml.events.event import DecisionEvent, Event, FeedbackEvent, OutcomeEvent
from router_ml.monitor.summary import Snapshot, summarise

KEPT = 100_000  # events in memory; older ones leave the windows
RECENT_CALLS = 200
RECENT_S = 900.0

# Boundaries that the OpenTelemetry conventions for generative AI advise.
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)


@dataclass(frozen=True, slots=True)
class RecentRate:
    """How a model did in its recent calls."""

    success: float | None  # None where nobody knows of any
    calls: int  # calls that figure rests on


@dataclass(slots=True)
class Histogram:
    """Counts below growing bounds, with the sum of all values."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        assert all(low < high for low, high in pairwise(self.bounds))
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Take one value; a bound belongs to the bucket below it."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value


Labels = tuple[str, str, str]  # model, variant, kind of error ("" where it went well)


@dataclass(slots=True)
class Counters:
    """Totals since the process began."""

    requests: dict[Labels, int] = field(default_factory=dict)
    duration_s: dict[Labels, Histogram] = field(default_factory=dict)
    first_token_s: dict[Labels, Histogram] = field(default_factory=dict)
    tokens: dict[tuple[str, str, str], Histogram] = field(default_factory=dict)  # model, variant, "input" or "output"
    events: dict[str, int] = field(default_factory=dict)  # cache_hit, clarification, fallback, escalation
    decisions: dict[tuple[str, str], int] = field(default_factory=dict)  # model, complexity


class LiveMetrics:
    """A `Recorder` that sums up. Thread-safe; recording takes a few microseconds."""

    def __init__(self, *, kept: int = KEPT, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._events: deque[Event] = deque(maxlen=kept)
        self._recent: dict[str, deque[tuple[float, float, str]]] = {}
        self.counters = Counters()

    def record(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, OutcomeEvent):
            with self._lock:
                self._events.append(event)
                if event.clarified:
                    self.counters.events["clarification"] = self.counters.events.get("clarification", 0) + 1
                else:
                    self._count(event)
        elif isinstance(event, DecisionEvent):
            if event.shadow:
                return
            with self._lock:
                self._events.append(event)
                key = (event.model, event.complexity)
                self.counters.decisions[key] = self.counters.decisions.get(key, 0) + 1
        elif isinstance(event, FeedbackEvent):
            with self._lock:
                self._events.append(event)
                self._correct(event)

    def snapshot(self, window_s: float = 3600.0) -> Snapshot:
        """The figures of the last `window_s` seconds."""
        until_s = self._clock() + 1e-6  # an event of this very moment belongs to it
        with self._lock:
            events = list(self._events)
        return summarise(events, until_s - window_s, until_s)

    def recent(self, model: str) -> RecentRate:
        """How a model did in its last calls of the last quarter of an hour; cheap enough for every request."""
        with self._lock:
            return self._rate(self._recent.get(model))

    def model_rates(self) -> Mapping[str, RecentRate]:
        """`recent` of every model seen."""
        with self._lock:
            return {model: self._rate(calls) for model, calls in self._recent.items()}

    def _rate(self, calls: deque[tuple[float, float, str]] | None) -> RecentRate:
        if not calls:
            return RecentRate(None, 0)
        oldest_s = self._clock() - RECENT_S
        while calls and calls[0][0] < oldest_s:
            calls.popleft()
        if not calls:
            return RecentRate(None, 0)
        return RecentRate(sum(success for _, success, _ in calls) / len(calls), len(calls))

    def _count(self, event: OutcomeEvent) -> None:
        counters, variant = self.counters, event.variant or ""
        labels = (event.model, variant, "" if event.ok else event.error or "error")
        counters.requests[labels] = counters.requests.get(labels, 0) + 1
        for flag, name in (
            (event.cache_hit, "cache_hit"),
            (event.fallback, "fallback"),
            (event.escalated, "escalation"),
        ):
            if flag:
                counters.events[name] = counters.events.get(name, 0) + 1
        if event.latency_s is not None:
            _histogram(counters.duration_s, labels, DURATION_S).add(event.latency_s)
        if event.first_token_s is not None:
            _histogram(counters.first_token_s, labels, DURATION_S).add(event.first_token_s)
        for kind, tokens in (("input", event.prompt_tokens), ("output", event.output_tokens)):
            if tokens is not None:
                _histogram(counters.tokens, (event.model, variant, kind), TOKENS).add(tokens)
        success = event.success if event.success is not None else (None if event.ok else 0.0)
        if success is not None and not event.cache_hit:
            calls = self._recent.setdefault(event.model, deque(maxlen=RECENT_CALLS))
            calls.append((event.at_s, success, event.decision_id))

    def _correct(self, event: FeedbackEvent) -> None:
        """What a person says replaces what was thought, or is the first that is known."""
        for calls in self._recent.values():
            for index in range(len(calls) - 1, -1, -1):
                at_s, _, decision_id = calls[index]
                if decision_id == event.decision_id:
                    if event.explicit:
                        calls[index] = (at_s, event.score, decision_id)
                    return
        for known in reversed(self._events):
            if isinstance(known, OutcomeEvent) and known.decision_id == event.decision_id:
                if not known.cache_hit and not known.clarified:
                    calls = self._recent.setdefault(known.model, deque(maxlen=RECENT_CALLS))
                    calls.append((known.at_s, event.score, known.decision_id))
                return


def _histogram(table: dict[Labels, Histogram], labels: Labels, bounds: tuple[float, ...]) -> Histogram:
    found = table.get(labels)
    if found is None:
        found = table[labels] = Histogram(bounds)
    return found
