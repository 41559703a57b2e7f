"""The registry of alert rules, with those that fit in a few lines."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator

from router_ml.events.event import AttemptEvent, DecisionEvent, Event, OutcomeEvent
from router_ml.monitor.failure_rate import FailureRate
from router_ml.monitor.latency_drift import LatencyDrift
from router_ml.monitor.rule import ALL, AlertRule, Shares, Signal
from router_ml.types import LABELS


class BudgetMisses:
    """The p95 latency is above the budget: over 5 % of requests exceed it, in a short and in a long window."""

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
        # Two and three times the allowed share: chance alone does not raise both windows so far.
        self._firing = short > 0.05 if self._firing else short >= 0.15 and long >= 0.10
        summary = f"{short:.0%} of the last {self._shares.seen(0)} requests exceeded their latency budget (5 % may)"
        yield Signal(ALL, self._firing, short, 0.05, summary)


class CacheHits:
    """Far fewer answers come from the cache than before."""

    name = "cache_hit_rate"
    advice = (
        "Check whether the cache was emptied, a prompt template changed, or a time stamp is now part of the prompts."
    )

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
        yield Signal(
            ALL, self._firing, short, long, f"{short:.0%} of answers come from the cache (baseline {long:.0%})"
        )


class BreakerOpen:
    """A model's circuit breaker is open: its calls fail, and it is not called for up to a minute.

    Resolves also where no call of the model was seen for `quiet_s` seconds."""

    name = "breaker_open"
    advice = "Check the model's host ('ollama ps', its log). Requests go to the next model of the chain meanwhile."

    def __init__(self, *, quiet_s: float = 300.0) -> None:
        self._quiet_s = quiet_s
        self._seen_s: dict[str, float] = {}  # of the models whose breaker is open: their latest attempt

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an attempt; any event advances the time."""
        if isinstance(event, AttemptEvent) and event.breaker != "half_open":
            is_open, was_open = event.breaker == "open", self._seen_s.pop(event.model, None) is not None
            if is_open:
                self._seen_s[event.model] = event.at_s
            if is_open or was_open:
                summary = f"the circuit breaker of {event.model} is {event.breaker}"
                yield Signal(event.model, is_open, float(is_open), 1.0, summary)
        for model in [model for model, at_s in self._seen_s.items() if event.at_s - at_s > self._quiet_s]:
            del self._seen_s[model]
            yield Signal(model, False, 0.0, 1.0, f"no call of {model} for {self._quiet_s:g} s")


class CalibrationDrift:
    """Predicted and measured success differ."""

    name = "calibration"
    advice = "A fit helps: 'python -m training.learn' takes the outcomes since the last one."

    def __init__(self, *, window: int = 500, gap: float = 0.10) -> None:
        self._window, self._gap = window, gap
        self._pairs: deque[tuple[float, float]] = deque(maxlen=window)
        self._sum = self._variance = 0.0
        self._firing = False

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an outcome with a prediction."""
        if not isinstance(event, OutcomeEvent) or event.cache_hit or event.p_success is None:
            return
        # Missing answers are the failure rate's: where few answers are judged, they would pass for wrong predictions.
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
        summary = f"success differs from its prediction by {mean * 100:+.0f} points over {n} requests"
        yield Signal(ALL, self._firing, mean, self._gap, summary)


class ComplexityShift:
    """The mix of complexities has changed: the last 400 queries against the 2,000 before them.

    Compared by the population stability index, sum of (p - q) log(p / q) over the four labels; .25 and more is the
    usual mark of a major change (Siddiqi, Credit Risk Scorecards, 2006)."""

    name = "complexity_shift"
    advice = (
        "Other people or tools ask now, or a prompt template changed: 'router-ml metrics' shows what. A fit helps if "
        "success is worse than predicted too (alert 'calibration'); else the choice follows the new mix by itself."
    )

    def __init__(self, *, recent: int = 400, before: int = 2000, level: float = 0.25) -> None:
        self._labels: deque[str] = deque(maxlen=recent + before)
        self._recent, self._level = recent, level
        self._counts = {"recent": Counter[str](), "before": Counter[str]()}
        self._firing = False

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take a decision."""
        if not isinstance(event, DecisionEvent) or event.shadow or event.complexity not in LABELS:
            return
        recent, before = self._counts["recent"], self._counts["before"]
        if len(self._labels) == self._labels.maxlen:
            before[self._labels[0]] -= 1
        self._labels.append(event.complexity)
        recent[event.complexity] += 1
        if len(self._labels) > self._recent:
            moved = self._labels[-self._recent - 1]
            recent[moved] -= 1
            before[moved] += 1
        if len(self._labels) < self._labels.maxlen:  # type: ignore[operator]
            return
        index = _stability(recent, before)
        self._firing = index >= self._level * (0.5 if self._firing else 1.0)
        grown = max(LABELS, key=lambda label: recent[label] / self._recent - before[label] / before.total())
        share, usual = recent[grown] / self._recent, before[grown] / before.total()
        summary = f"{share:.0%} of the last {self._recent} queries are {grown}, {usual:.0%} of those before"
        yield Signal(ALL, self._firing, index, self._level, summary)


def _stability(recent: Counter[str], before: Counter[str]) -> float:
    """Return the population stability index of two counts of labels, each raised by half a query."""
    total = 0.0
    for label in LABELS:
        p = (recent[label] + 0.5) / (recent.total() + 2.0)
        q = (before[label] + 0.5) / (before.total() + 2.0)
        total += (p - q) * math.log(p / q)
    return total


class Novelty:
    """Many queries are unlike the training queries of the bundle."""

    name = "novelty"
    advice = (
        "A fit helps once some of the new queries have outcomes or labels ('python -m training.learn' says how many "
        "are missing). Until then their predictions rely on priors."
    )

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
            ALL, self._firing, long, self._share, f"{long:.0%} of the last 400 queries are unlike the training queries"
        )


class SharedStateAway:
    """The state that replicas share cannot be reached; each goes on with its own."""

    name = "shared_state"
    advice = "Check the server that ROUTER_ML_REDIS names. Until it is back each replica uses the places that it holds."

    def __init__(self, problem: Callable[[], str] = str) -> None:
        self._problem = problem

    def observe(self, event: Event) -> Iterator[Signal]:
        """Look whether it is away, at any event."""
        problem = self._problem()
        yield Signal(ALL, bool(problem), float(bool(problem)), 1.0, problem or "state is shared again")


RULES: tuple[Callable[[], AlertRule], ...] = (
    FailureRate,
    LatencyDrift,
    BudgetMisses,
    CacheHits,
    BreakerOpen,
    CalibrationDrift,
    ComplexityShift,
    Novelty,
    SharedStateAway,
)


def default_rules(shared_problem: Callable[[], str] = str) -> tuple[AlertRule, ...]:
    """Return a new instance of every rule, with its usual settings. `shared_problem`: why nothing is shared, or ""."""
    return tuple(SharedStateAway(shared_problem) if rule is SharedStateAway else rule() for rule in RULES)
