"""Alert rule: answers take longer than their tokens explain."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import numpy as np

from router_ml.events.event import Event, OutcomeEvent
from router_ml.monitor.cusum import Cusum
from router_ml.monitor.rule import ALL, Signal

_LEVERAGE_WEIGHT = 50.0


class _Regression:
    """Log latency given tokens: recursive least squares with exponential forgetting."""

    def __init__(self, size: int, memory: float = 3000.0) -> None:
        self._weights = np.zeros(size)
        self._inverse = np.eye(size) * 10.0
        self._forget = 1 - 1 / memory
        self.variance = 0.25
        self.seen = 0

    def residual(self, x: np.ndarray, y: float) -> float:
        return y - float(self._weights @ x)

    def score(self, x: np.ndarray, y: float) -> float:
        """Return the residual in standard deviations; requests unlike those seen (high leverage) count for less."""
        leverage = float(x @ self._inverse @ x)
        return self.residual(x, y) / math.sqrt(self.variance * (1 + _LEVERAGE_WEIGHT * leverage))

    def learn(self, x: np.ndarray, y: float) -> None:
        error = self.residual(x, y)
        gain = self._inverse @ x
        gain = gain / (self._forget + float(x @ gain))
        limit = 3 * math.sqrt(self.variance) if self.seen > 30 else math.inf
        error = min(max(error, -limit), limit)  # one stuck request must not move the fit much
        self._weights = self._weights + gain * error
        self._inverse = (self._inverse - np.outer(gain, x @ self._inverse)) / self._forget
        self.seen += 1
        if self.seen > 10:
            self.variance += max(0.005, 1 / self.seen) * (error * error - self.variance)
            self.variance = max(self.variance, 0.01)


class LatencyDrift:
    """Slower than the tokens explain: a CUSUM on the residual of log latency given tokens and model.

    Raw latency would raise false alarms whenever prompts change. Queueing and loading are subtracted where known."""

    name = "latency_drift"
    advice = (
        "The same work takes longer; a fit does not help. Check for other load on the host, a model that moved from "
        "GPU to CPU ('ollama ps', column PROCESSOR), or a driver update. Routing uses the measured rates meanwhile."
    )

    def __init__(self, *, threshold: float = 52.0, slack: float = 0.6, warm_up: int = 100) -> None:
        self._threshold, self._slack, self._warm_up = threshold, slack, warm_up
        self._models: dict[str, _Regression] = {}
        self._sums: dict[str, Cusum] = {}
        self._recent: dict[str, deque[float]] = {}

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an outcome."""
        if not isinstance(event, OutcomeEvent) or event.cache_hit or not event.ok or not event.latency_s:
            return
        worked_s = event.latency_s - (event.load_s or 0.0) - (event.queue_s or 0.0) - (event.unused_s or 0.0)
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
        return subject in self._sums and self._sums[subject].firing

    def _follow(self, subject: str, score: float, residual: float) -> Signal:
        recent = self._recent.setdefault(subject, deque(maxlen=40))
        recent.append(residual)
        firing = self._sums.setdefault(subject, Cusum(self._threshold)).add(score - self._slack)
        times = math.exp(float(np.median(recent)))
        return Signal(subject, firing, times, 1.0, f"answers take {times:.1f} times what their tokens explain")
