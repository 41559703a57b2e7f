"""Running averages in the logarithm: how fast something is, and how sure that still is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

VALUE_LOG_SD = 0.25  # of one answer's rate around the mean of its model
_FORGOTTEN = 1e-4  # an average worth less than so many values is no longer used
_EVEN = 3  # the first values count evenly, whichever way they point


class Estimate(NamedTuple):
    """A positive quantity, as mean and variance of its logarithm."""

    log: float
    variance: float

    @property
    def value(self) -> float:
        """Return the median."""
        return math.exp(self.log)

    def scaled(self, factor: float, log_sd: float = 0.0) -> Estimate:
        """Return what it says of a quantity `factor` times as large, known with an error of `log_sd` in the log."""
        return Estimate(self.log + math.log(factor), self.variance + log_sd**2)


def combined(estimates: Iterable[Estimate | None]) -> Estimate | None:
    """Return the mean of independent estimates weighted by precision (inverse variance); None if there are none."""
    total = weighted = 0.0
    for estimate in estimates:
        if estimate is not None:
            precision = 1.0 / estimate.variance
            total += precision
            weighted += precision * estimate.log
    return Estimate(weighted / total, 1.0 / total) if total else None


class Average:
    """A running geometric mean that follows changes: exponential weights, exact over the first few values.

    With a clock, what it rests on is halved by every `half_life_s` without a value: the variance of its estimate
    doubles, and the next value counts the more."""

    def __init__(
        self,
        weight: float = 0.2,
        weight_up: float | None = None,
        clock: Callable[[], float] | None = None,
        half_life_s: float = math.inf,
        log_sd: float = VALUE_LOG_SD,
    ) -> None:
        self._weight = weight
        self._weight_up = weight if weight_up is None else weight_up
        self._clock = clock
        self._half_life_s = half_life_s
        self._variance = log_sd**2  # of one value
        self._log: float | None = None
        self._count = 0.0  # values that the mean rests on, at `_added_at`
        self._added_at = 0.0

    @property
    def count(self) -> float:
        """Return how many values it rests on now, at most as many as its weights let count."""
        return self._faded(self._half_life_s)

    @property
    def value(self) -> float | None:
        """Return the mean; None before the first value, and once it is forgotten."""
        return None if self._log is None or self.count < _FORGOTTEN else math.exp(self._log)

    def estimate(self, half_life_s: float | None = None) -> Estimate | None:
        """Return the mean with its variance now; None before the first value, and once it is forgotten.

        Another half-life says how long it counts for another purpose."""
        count = self._faded(half_life_s or self._half_life_s)
        return None if self._log is None or count < _FORGOTTEN else Estimate(self._log, self._variance / count)

    def _faded(self, half_life_s: float) -> float:
        if self._clock is None or not self._count:
            return self._count
        idle_s = max(0.0, self._clock() - self._added_at)
        return self._count * math.exp2(-min(idle_s / half_life_s, 500.0))

    def add(self, value: float) -> None:
        """Count a value above 0; others are ignored."""
        if not value > 0 or not math.isfinite(value):
            return
        log = math.log(value)
        count = self.count + 1.0
        mean = log if self._log is None else self._log
        weight = self._weight_up if log > mean else self._weight
        self._log = mean + max(weight, 1.0 / count if count <= _EVEN else 0.0) * (log - mean)
        self._count = min(count, 1.0 / self._weight)
        if self._clock is not None:
            self._added_at = self._clock()
