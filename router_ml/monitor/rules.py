"""The rules of alerts: each follows one signal through the events and says whether it is wrong, and what to do.

What comes naturally with other prompts is no alarm: wrong answers are compared with what was predicted for each
request, latencies with what their tokens explain. Changes are found by CUSUM (Page 1954): sums of log likelihood ratios
whose mean run between false alarms is at least exp(threshold) events (Lorden 1971).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from router_ml.events.event import AttemptEvent, DecisionEvent, Event, OutcomeEvent
from router_ml.events.judgement import RIGHT
from router_ml.monitor.expectation import CalibratedFailures, ErrorShare

ALL = "all"
_OPEN = 10_000  # decisions under way
_PRIOR = 0.1  # failures where nothing was predicted
# No fault of a model or its host: people who went away, calls that were never made, requests nobody could answer.
_NOBODYS = frozenset({"cancelled", "shed", "open", "absent", "invalid"})


class Signal(NamedTuple):
    """The state of one rule for one subject."""

    subject: str  # a model, or "all"
    firing: bool
    value: float
    threshold: float
    summary: str


class Rule(Protocol):
    """Follows events and tells its state."""

    name: str
    advice: str

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an event; the signals it may have changed."""


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
        """The share in a window; 0 where it is empty."""
        n = len(self._windows[index][1])
        return self._counts[index] / n if n else 0.0

    def seen(self, index: int) -> int:
        """Events in a window."""
        return len(self._windows[index][1])


@dataclass(slots=True)
class _Surge:
    """A CUSUM of one kind of failure: does more of them happen, on top of what is usual?"""

    shares: Shares = field(default_factory=lambda: Shares(40, 150))
    expected: Shares = field(default_factory=lambda: Shares(40, 150))
    total: float = 0.0
    firing: bool = False

    def take(self, bad: bool, usual: float, threshold: float, on_top: float, counts: bool) -> None:
        """Take one event; it moves the sum only where what is usual is known well enough (`counts`)."""
        self.shares.add(bad)
        self.expected.add(usual)
        if not counts:
            return
        raised = 1 - (1 - usual) * (1 - on_top)
        gain = math.log(raised / usual) if bad else math.log(1 - on_top)
        # The lid lets an alarm end soon after its fault; down at zero all evidence is used up.
        self.total = min(max(0.0, self.total + gain), 1.25 * threshold)
        if self.firing:
            self.firing = self.total > 0
        else:
            self.firing = self.total >= threshold and self._now(0) >= 0.08 and self._now(1) >= 0.02

    def _now(self, window: int) -> float:
        return self.shares.share(window) - self.expected.share(window)


@dataclass(slots=True)
class _Failures:
    """One subject's failures: calls without an answer, and answers that were wrong."""

    errors: _Surge = field(default_factory=_Surge)
    wrong: _Surge = field(default_factory=_Surge)

    @property
    def firing(self) -> bool:
        return self.errors.firing or self.wrong.firing


class FailureRate:
    """More failures than usual for such requests: a CUSUM each for errors and for wrong answers.

    A fault makes calls fail whatever was asked, so the sums weigh "a share `on_top` of what is usual" against "as
    usual": a failure where one was hardly expected says most. Errors (no answer) have no part in what prompts explain,
    and are counted by themselves against a slow mean; wrong answers against the calibrated prediction. An alarm needs
    the sum, a short and a long window; it ends when the sum is used up. Errors that a fallback hid count for their
    model by its attempts; answers that nobody judged count as answers only. Somebody who went away (`cancelled`) and,
    for a model, a call that was never made or a request that no model can take are no failures."""

    name = "failure_rate"
    advice = (
        "Look at the errors with 'router-ml events export'; if one model fails, check its host with 'ollama ps' and "
        "take it out of the catalogue until it is well. Roll back what was changed last."
    )

    def __init__(
        self, *, threshold: float = 10.5, on_top: float = 0.2, minimum: int = 100, minimum_calls: int = 20
    ) -> None:
        self._threshold, self._on_top = threshold, on_top
        self._minimum, self._minimum_calls = minimum, minimum_calls
        self._errors: dict[str, ErrorShare] = {}
        self._wrong: dict[tuple[str, str | None], CalibratedFailures] = {}  # another bundle predicts otherwise
        self._states: dict[str, _Failures] = {}
        self._attempted: dict[str, None] = {}  # decisions whose attempts were counted, the oldest first

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an attempt or an outcome."""
        if isinstance(event, AttemptEvent):
            yield from self._attempt(event)
        elif isinstance(event, OutcomeEvent) and not event.cache_hit and event.error not in _NOBODYS:
            yield from self._outcome(event)

    def _attempt(self, event: AttemptEvent) -> Iterator[Signal]:
        if event.error in _NOBODYS:
            return
        self._attempted[event.decision_id] = None
        if len(self._attempted) > _OPEN:
            del self._attempted[next(iter(self._attempted))]
        self._call(event.model, not event.ok)
        yield self._signal(event.model)

    def _outcome(self, event: OutcomeEvent) -> Iterator[Signal]:
        self._call(ALL, not event.ok)
        if event.decision_id in self._attempted:
            del self._attempted[event.decision_id]
        else:
            self._call(event.model, not event.ok)
        if event.ok and event.success is not None:
            self._judged(event, event.success < RIGHT)
        for subject in (ALL, event.model):
            yield self._signal(subject)

    def _call(self, subject: str, error: bool) -> None:
        share = self._errors.setdefault(subject, ErrorShare())
        surge = self._state(subject).errors
        known = share.seen >= self._minimum_calls
        surge.take(error, share.usual(), self._threshold, self._on_top, known)
        if not surge.firing:
            share.learn(error)

    def _judged(self, event: OutcomeEvent, wrong: bool) -> None:
        predicted = _PRIOR if event.p_success is None else 1 - event.p_success
        calibration = self._wrong.setdefault((event.model, event.bundle), CalibratedFailures())
        usual, known = calibration.usual(predicted), calibration.seen >= self._minimum
        surges = [self._state(subject).wrong for subject in (ALL, event.model)]
        for surge in surges:
            surge.take(wrong, usual, self._threshold, self._on_top, known)
        if not any(surge.firing for surge in surges):
            calibration.learn(predicted, wrong)

    def _state(self, subject: str) -> _Failures:
        return self._states.setdefault(subject, _Failures())

    def _signal(self, subject: str) -> Signal:
        state = self._state(subject)
        errors = state.errors.firing or not state.wrong.firing
        surge = state.errors if errors else state.wrong
        now, usual, seen = surge.shares.share(0), surge.expected.share(0), surge.shares.seen(0)
        if errors:
            words = f"{now:.0%} of the last {seen} calls brought no answer; {usual:.0%} is usual"
        else:
            words = f"{now:.0%} of the last {seen} judged answers were wrong; {usual:.0%} is usual for such requests"
        return Signal(subject, state.firing, now, usual, words)


_DOUBT = 50.0


class _Regression:
    """Log latency given tokens, learned as it goes: recursive least squares with slow forgetting."""

    def __init__(self, size: int, memory: float = 3000.0) -> None:
        self._weights = np.zeros(size)
        self._inverse = np.eye(size) * 10.0
        self._forget = 1 - 1 / memory
        self.variance = 0.25
        self.seen = 0

    def residual(self, x: np.ndarray, y: float) -> float:
        return y - float(self._weights @ x)

    def score(self, x: np.ndarray, y: float) -> float:
        """The residual in standard deviations; a request unlike those learned from counts for less, because a line
        need not hold where it was never seen."""
        strangeness = float(x @ self._inverse @ x)
        return self.residual(x, y) / math.sqrt(self.variance * (1 + _DOUBT * strangeness))

    def learn(self, x: np.ndarray, y: float) -> None:
        error = self.residual(x, y)
        gain = self._inverse @ x
        gain = gain / (self._forget + float(x @ gain))
        limit = 3 * math.sqrt(self.variance) if self.seen > 30 else math.inf
        error = min(max(error, -limit), limit)  # one stuck request must not bend the line
        self._weights = self._weights + gain * error
        self._inverse = (self._inverse - np.outer(gain, x @ self._inverse)) / self._forget
        self.seen += 1
        if self.seen > 10:
            self.variance += max(0.005, 1 / self.seen) * (error * error - self.variance)
            self.variance = max(self.variance, 0.01)


@dataclass(slots=True)
class _DriftState:
    total: float = 0.0
    firing: bool = False
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=40))


class LatencyDrift:
    """Slower than the tokens explain: a CUSUM on the residual of log latency given tokens and model.

    Raw latency would cry wolf whenever prompts change. Waiting and loading are taken off where they are known."""

    name = "latency_drift"
    advice = (
        "The same work takes longer: look for other load on the host, a model that moved from GPU to CPU "
        "('ollama ps', column PROCESSOR), or a driver update. Deciding goes on with live rates meanwhile."
    )

    def __init__(self, *, threshold: float = 52.0, slack: float = 0.6, warm_up: int = 100) -> None:
        self._threshold, self._slack, self._warm_up = threshold, slack, warm_up
        self._models: dict[str, _Regression] = {}
        self._states: dict[str, _DriftState] = {}

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an outcome."""
        if not isinstance(event, OutcomeEvent) or event.cache_hit or not event.ok or not event.latency_s:
            return
        worked_s = event.latency_s - (event.load_s or 0.0) - (event.queue_s or 0.0)
        if worked_s <= 0 or event.output_tokens is None:
            return
        x = np.array([1.0, math.log1p(event.output_tokens), math.log1p(event.prompt_tokens or 0)])
        y = math.log(worked_s)
        line = self._models.setdefault(event.model, _Regression(len(x)))
        score = line.score(x, y)
        warm = line.seen >= self._warm_up
        if not any(self._firing(subject) for subject in (ALL, event.model)):
            line.learn(x, y)
        if warm:
            for subject in (ALL, event.model):
                yield self._follow(subject, min(max(score, -3.0), 3.0), line.residual(x, y))

    def _firing(self, subject: str) -> bool:
        return subject in self._states and self._states[subject].firing

    def _follow(self, subject: str, score: float, residual: float) -> Signal:
        state = self._states.setdefault(subject, _DriftState())
        state.recent.append(residual)
        state.total = min(max(0.0, state.total + score - self._slack), 1.25 * self._threshold)
        state.firing = state.total > 0 if state.firing else state.total >= self._threshold
        times = math.exp(float(np.median(state.recent)))
        words = f"answers take {times:.1f} times what their tokens explain"
        return Signal(subject, state.firing, times, 1.0, words)


class BudgetMisses:
    """p95 above the budget: more than one request in twenty is over it, in a short and in a long window."""

    name = "latency_budget"
    advice = "Choose a faster policy, raise the budget, or let fewer requests run at once."

    def __init__(self, *, budget_s: float | None = None, minimum: int = 100) -> None:
        self._budget_s, self._minimum = budget_s, minimum
        self._shares = Shares(100, 400)
        self._firing = False

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an outcome that has a budget."""
        if not isinstance(event, OutcomeEvent) or event.latency_s is None:
            return
        budget_s = event.budget_s if event.budget_s is not None else self._budget_s
        if budget_s is None:
            return
        self._shares.add(event.latency_s > budget_s)
        if self._shares.seen(1) < self._minimum:
            return
        short, long = self._shares.share(0), self._shares.share(1)
        # Twice and three times the promised share: chance alone does not take both windows there.
        self._firing = short > 0.05 if self._firing else short >= 0.15 and long >= 0.10
        words = f"{short:.0%} of the last {self._shares.seen(0)} requests took longer than their budget (5 % may)"
        yield Signal(ALL, self._firing, short, 0.05, words)


class CacheHits:
    """Far fewer answers from the cache than is usual here."""

    name = "cache_hit_rate"
    advice = "See whether the cache was emptied, a prompt template changed, or a time stamp got into the prompts."

    def __init__(self, *, minimum: int = 1000) -> None:
        self._minimum = minimum
        self._shares = Shares(200, 4000)
        self._firing = False

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an outcome."""
        if not isinstance(event, OutcomeEvent):
            return
        self._shares.add(event.cache_hit)
        seen = self._shares.seen(1)
        if seen < self._minimum:
            return
        short, long = self._shares.share(0), self._shares.share(1)
        error = math.sqrt(max(long * (1 - long), 1e-9) / self._shares.seen(0))
        if self._firing:
            self._firing = short < long * 0.8
        else:
            self._firing = long >= 0.1 and short < long * 0.5 and long - short > 5 * error
        yield Signal(ALL, self._firing, short, long, f"{short:.0%} of answers come from the cache; {long:.0%} is usual")


class BreakerOpen:
    """A model's circuit breaker is open: its calls fail and it is left alone for a while.

    A breaker rests a minute at most; where no call of the model was seen for `quiet_s`, it is nobody's trouble."""

    name = "breaker_open"
    advice = "Check the model's host ('ollama ps', its log); requests go to the next model of the chain meanwhile."

    def __init__(self, *, quiet_s: float = 300.0) -> None:
        self._quiet_s = quiet_s
        self._seen_s: dict[str, float] = {}  # of the models whose breaker is open: their latest attempt

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an attempt; any event tells the time."""
        if isinstance(event, AttemptEvent) and event.breaker != "half_open":
            is_open, was_open = event.breaker == "open", self._seen_s.pop(event.model, None) is not None
            if is_open:
                self._seen_s[event.model] = event.at_s
            if is_open or was_open:
                words = f"the circuit breaker of {event.model} is {event.breaker}"
                yield Signal(event.model, is_open, float(is_open), 1.0, words)
        for model in [model for model, at_s in self._seen_s.items() if event.at_s - at_s > self._quiet_s]:
            del self._seen_s[model]
            yield Signal(model, False, 0.0, 1.0, f"nobody called {model} for {self._quiet_s:g} s")


class CalibrationDrift:
    """Predicted success and real success have come apart."""

    name = "calibration"
    advice = "Fit a new bundle with the outcomes since the last one ('router-ml events export', then training.fit)."

    def __init__(self, *, window: int = 500, gap: float = 0.10) -> None:
        self._window, self._gap = window, gap
        self._pairs: deque[tuple[float, float]] = deque(maxlen=window)
        self._sum = self._variance = 0.0
        self._firing = False

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an outcome with a prediction."""
        if not isinstance(event, OutcomeEvent) or event.cache_hit or event.p_success is None:
            return
        # A missing answer is counted elsewhere: where few answers are judged, it would pass for a wrong prediction.
        if not event.ok or event.success is None:
            return
        if len(self._pairs) == self._window:
            difference, variance = self._pairs[0]
            self._sum, self._variance = self._sum - difference, self._variance - variance
        pair = (event.success - event.p_success, event.p_success * (1 - event.p_success))
        self._pairs.append(pair)
        self._sum, self._variance = self._sum + pair[0], self._variance + pair[1]
        n = len(self._pairs)
        if n < self._window:
            return
        mean, error = self._sum / n, math.sqrt(max(self._variance, 1.0)) / n
        if self._firing:
            self._firing = abs(mean) > self._gap / 2
        else:
            self._firing = abs(mean) > self._gap and abs(mean) > 5 * error
        words = f"success is {mean * 100:+.0f} points off what was predicted, over {n} requests"
        yield Signal(ALL, self._firing, mean, self._gap, words)


class Novelty:
    """Many queries are unlike anything the bundle has learned from."""

    name = "novelty"
    advice = "Label some of the new queries and fit again; until then predictions lean on priors."

    def __init__(self, *, novel: float = 0.9, share: float = 0.3) -> None:
        self._novel, self._share = novel, share
        self._shares = Shares(100, 400)
        self._firing = False

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take a decision."""
        if not isinstance(event, DecisionEvent) or event.shadow:
            return
        self._shares.add(event.novelty >= self._novel)
        if self._shares.seen(1) < 400:
            return
        short, long = self._shares.share(0), self._shares.share(1)
        level = self._share * (0.5 if self._firing else 1.0)
        self._firing = short >= level and long >= level
        yield Signal(
            ALL, self._firing, long, self._share, f"{long:.0%} of the last 400 queries are unlike the training"
        )


def default_rules(*, budget_s: float | None = None) -> tuple[Rule, ...]:
    """Every rule, with its usual settings."""
    return (
        FailureRate(),
        LatencyDrift(),
        BudgetMisses(budget_s=budget_s),
        CacheHits(),
        BreakerOpen(),
        CalibrationDrift(),
        Novelty(),
    )
