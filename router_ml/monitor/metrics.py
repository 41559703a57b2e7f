"""Live metrics: figures of the last minutes, and counters since the process began.

Recording appends to a queue and takes no lock, so that neither a scrape nor feedback nor a signal handler ever holds up
a request. Queued events are counted by the next reader, or by every 512th event. Of a request only a
`RequestRecord` is held: no text, no context.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from router_ml.arm import think_text
from router_ml.events.event import DecisionEvent, Event, FeedbackEvent, OutcomeEvent
from router_ml.events.judgement import Judgement, judgement_of
from router_ml.monitor.labels import Labels
from router_ml.monitor.summary import RequestRecord, Snapshot, request_record, summarise_requests
from router_ml.types import Candidate

KEPT = 50_000  # maximum number of requests in memory; older ones are dropped
_FOLD = 512  # queued events that are counted at once
_UNDER_WAY = 10_000  # decisions whose outcome has not come, and judgements whose request has not

# Boundaries that the OpenTelemetry conventions for generative AI advise.
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)


@dataclass(slots=True)
class Histogram:
    """Counts below growing bounds, with the sum of all values."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Take one value; a bound belongs to the bucket below it."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value


LabelSet = tuple[str, str, str]  # model, variant, kind of error ("" if it went well)


@dataclass(slots=True)
class Counters:
    """Totals since the process began."""

    requests: dict[LabelSet, int] = field(default_factory=dict)
    duration_s: dict[LabelSet, Histogram] = field(default_factory=dict)
    first_token_s: dict[LabelSet, Histogram] = field(default_factory=dict)
    tokens: dict[LabelSet, Histogram] = field(default_factory=dict)  # model, variant, "input" or "output"
    events: dict[str, int] = field(default_factory=dict)  # cache_hit, clarification, fallback
    decisions: dict[tuple[str, str], int] = field(default_factory=dict)  # model, complexity
    arms: dict[tuple[str, str], int] = field(default_factory=dict)  # requests by model and `think`


@dataclass(frozen=True, slots=True)
class _Decided:
    """The part of a decision that is held until its outcome arrives."""

    decision_id: str
    model: str
    complexity: str
    pinned: bool
    candidates: tuple[Candidate, ...]


class LiveMetrics:
    """A `Recorder` that computes live metrics. Thread-safe; recording takes a few microseconds and never waits."""

    def __init__(self, *, kept: int = KEPT, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept = kept
        self._queue: deque[_Decided | OutcomeEvent | FeedbackEvent] = deque()
        self._lock = threading.Lock()
        self._models, self._variants, self._errors, self._complexities = (
            Labels(), Labels(unserved=50), Labels(unserved=50), Labels(unserved=10)
        )  # fmt: skip
        self._requests: deque[RequestRecord] = deque()
        self._judged: dict[str, Judgement | None] = {}  # of the requests in memory
        self._decided: dict[str, tuple[Candidate, ...]] = {}  # the oldest first
        self._early: dict[str, Judgement] = {}  # feedback that came before its outcome, the oldest first
        self._counters = Counters()

    def record(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, DecisionEvent):
            if event.shadow:
                return
            self._queue.append(
                _Decided(event.decision_id, event.model, event.complexity, event.pinned, event.candidates)
            )
        elif isinstance(event, OutcomeEvent | FeedbackEvent):
            self._queue.append(event)
        if len(self._queue) >= _FOLD and self._lock.acquire(blocking=False):
            try:
                self._fold()
            finally:
                self._lock.release()

    def snapshot(self, window_s: float = 3600.0) -> Snapshot:
        """Return the figures of the last `window_s` seconds."""
        until_s = self._clock() + 1e-6  # an event of this very moment belongs to it
        with self._lock:
            self._fold()
            requests = list(self._requests)
            judged = {decision_id: j for decision_id, j in self._judged.items() if j is not None}
        return summarise_requests(requests, judged, until_s - window_s, until_s)

    @property
    def counters(self) -> Counters:
        """A copy of the totals since the process began."""
        with self._lock:
            self._fold()
            now = self._counters
            return Counters(
                requests=dict(now.requests),
                duration_s=_copied(now.duration_s),
                first_token_s=_copied(now.first_token_s),
                tokens=_copied(now.tokens),
                events=dict(now.events),
                decisions=dict(now.decisions),
                arms=dict(now.arms),
            )

    def _fold(self) -> None:
        for _ in range(len(self._queue)):  # not until it is empty: under load it never might be
            item = self._queue.popleft()
            if isinstance(item, _Decided):
                self._take_decision(item)
            elif isinstance(item, OutcomeEvent):
                self._take_outcome(item)
            else:
                self._take_feedback(item)

    def _take_feedback(self, event: FeedbackEvent) -> None:
        if event.decision_id in self._judged:
            self._judged[event.decision_id] = judgement_of(event, self._judged[event.decision_id])
        else:
            self._early[event.decision_id] = judgement_of(event, self._early.get(event.decision_id))
            _bound(self._early, _UNDER_WAY)

    def _take_decision(self, item: _Decided) -> None:
        label = (self._models.of(item.model, served=not item.pinned), self._complexities.of(item.complexity))
        _count(self._counters.decisions, label)
        self._decided[item.decision_id] = item.candidates
        _bound(self._decided, _UNDER_WAY)

    def _take_outcome(self, event: OutcomeEvent) -> None:
        candidates = self._decided.pop(event.decision_id, ())
        if event.clarified:
            _count(self._counters.events, "clarification")
            return
        model = self._models.of(event.model, served=event.ok)
        variant = self._variants.of(event.variant) if event.variant else ""
        self._count_outcome(event, model, variant)
        if (model, variant) != (event.model, event.variant or ""):
            event = replace(event, model=model, variant=variant)
        self._requests.append(request_record(event, candidates))
        self._judged.setdefault(event.decision_id, self._early.pop(event.decision_id, None))
        if len(self._requests) > self._kept:
            self._judged.pop(self._requests.popleft().outcome.decision_id, None)

    def _count_outcome(self, event: OutcomeEvent, model: str, variant: str) -> None:
        counters = self._counters
        labels = (model, variant, "" if event.ok else self._errors.of(event.error or "error"))
        _count(counters.requests, labels)
        if event.think is not None:
            _count(counters.arms, (model, think_text(event.think)))
        flags = (event.cache_hit, "cache_hit"), (event.fallback, "fallback"), (event.escalated_from, "escalation")
        for flag, name in flags:
            if flag:
                _count(counters.events, name)
        for table, value, bounds in (
            (counters.duration_s, event.latency_s, DURATION_S),
            (counters.first_token_s, event.first_token_s, DURATION_S),
        ):
            if value is not None:
                _histogram(table, labels, bounds).add(value)
        for kind, tokens in (("input", event.prompt_tokens), ("output", event.output_tokens)):
            if tokens is not None:
                _histogram(counters.tokens, (model, variant, kind), TOKENS).add(tokens)


def _count(table: dict[Any, int], key: Any) -> None:
    table[key] = table.get(key, 0) + 1


def _copied(table: Mapping[LabelSet, Histogram]) -> dict[LabelSet, Histogram]:
    return {labels: replace(histogram, counts=list(histogram.counts)) for labels, histogram in table.items()}


def _bound(table: dict[str, Any], size: int) -> None:
    if len(table) > size:
        del table[next(iter(table))]


def _histogram(table: dict[LabelSet, Histogram], labels: LabelSet, bounds: tuple[float, ...]) -> Histogram:
    found = table.get(labels)
    if found is None:
        found = table[labels] = Histogram(bounds)
    return found
