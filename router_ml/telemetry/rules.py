"""The rules of alerts: each follows one signal through the events and says whether it is wrong, and what to do.

What comes naturally with other prompts is no alarm: failures are compared with what was predicted for each request,
latencies with what their tokens explain. Changes are found by CUSUM (Page 1954): sums of log likelihood ratios whose
mean run between false alarms is at least exp(threshold) events (Lorden 1971).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from router_ml.telemetry.event import AttemptEvent, DecisionEvent, Event, OutcomeEvent
from router_ml.telemetry.summary import RIGHT

ALL = "all"


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


def failed(event: OutcomeEvent) -> bool | None:
    """Whether a request went wrong; None where nobody knows. A missing answer is always wrong."""
    if not event.ok:
        return True
    return None if event.success is None else event.success < RIGHT


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
class _Expectation:
    """What failure rate is usual: a slow correction, in log odds, of what is predicted."""

    offset: float = 0.0
    seen: int = 0

    def rate(self, predicted: float) -> float:
        odds = math.log(predicted / (1 - predicted)) + self.offset
        return min(max(1 / (1 + math.exp(-odds)), 0.01), 0.6)

    def learn(self, wrong: bool, rate: float) -> None:
        self.seen += 1
        step = max(0.004, 1 / (20 + self.seen))  # quick at first, then with a memory of some hundred failures
        self.offset += step * (wrong - rate) / (rate * (1 - rate) + 0.05)
        self.offset = min(max(self.offset, -3.0), 3.0)


@dataclass(slots=True)
class _FailureState:
    expectation: _Expectation = field(default_factory=_Expectation)
    shares: Shares = field(default_factory=lambda: Shares(40, 150))
    expected: Shares = field(default_factory=lambda: Shares(40, 150))
    total: float = 0.0
    firing: bool = False


class FailureRate:
    """More failures than predicted: a CUSUM against much higher odds, confirmed by a short window.

    It clears when a short and a long window are both back near what is expected."""

    name = "failure_rate"
    advice = (
        "Look at the errors with 'router-ml events export'; if one model fails, check its host with 'ollama ps' and "
        "take it out of the catalogue until it is well. Roll back what was changed last."
    )

    def __init__(self, *, threshold: float = 10.5, odds_ratio: float = 2.5, minimum: int = 60) -> None:
        self._threshold, self._log_ratio, self._minimum = threshold, math.log(odds_ratio), minimum
        self._states: dict[str, _FailureState] = {}

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an outcome."""
        if not isinstance(event, OutcomeEvent) or event.cache_hit:
            return
        wrong = failed(event)
        if wrong is None:
            return
        predicted = 0.1 if event.p_success is None else min(max(1 - event.p_success, 0.02), 0.6)
        for subject in (ALL, event.model):
            yield self._follow(subject, wrong, predicted)

    def _follow(self, subject: str, wrong: bool, predicted: float) -> Signal:
        state = self._states.setdefault(subject, _FailureState())
        usual = state.expectation.rate(predicted)
        state.shares.add(wrong)
        raised = 1 / (1 + math.exp(-(math.log(usual / (1 - usual)) + self._log_ratio)))
        gain = math.log(raised / usual) if wrong else math.log((1 - raised) / (1 - usual))
        if state.expectation.seen >= self._minimum:
            state.total = min(max(0.0, state.total + gain), 2 * self._threshold)
        if not state.firing:
            state.expectation.learn(wrong, usual)
        state.expected.add(usual)
        (short, long), (near, far) = ([w.share(0), w.share(1)] for w in (state.shares, state.expected))
        if state.firing:
            state.firing = not (short <= near * 1.5 + 0.03 and long <= far * 2 + 0.05)
            if not state.firing:
                state.total = 0.0
        else:
            state.firing = state.total >= self._threshold and short >= near + 0.08
        words = f"{short:.0%} of the last {state.shares.seen(0)} requests failed; {near:.0%} is usual for such requests"
        return Signal(subject, state.firing, short, near, words)


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
    """A model's circuit breaker is open: its calls fail and it is left alone for a while."""

    name = "breaker_open"
    advice = "Check the model's host ('ollama ps', its log); requests go to the next model of the chain meanwhile."

    def __init__(self) -> None:
        self._open: dict[str, bool] = {}

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an attempt."""
        if not isinstance(event, AttemptEvent) or event.breaker == "half_open":
            return
        is_open = event.breaker == "open"
        if is_open or self._open.get(event.model):
            self._open[event.model] = is_open
            words = f"the circuit breaker of {event.model} is {event.breaker}"
            yield Signal(event.model, is_open, float(is_open), 1.0, words)


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
        wrong = failed(event)
        if wrong is None:
            return
        success = event.success if event.success is not None else 0.0
        if len(self._pairs) == self._window:
            difference, variance = self._pairs[0]
            self._sum, self._variance = self._sum - difference, self._variance - variance
        pair = (success - event.p_success, event.p_success * (1 - event.p_success))
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
