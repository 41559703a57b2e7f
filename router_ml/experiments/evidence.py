"""Everything that was learned about an experiment so far, in a fixed number of figures; it grows one unit at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from router_ml.experiments.experiment import ARMS, Arm, Limits
from router_ml.experiments.statistics import BETS, Floats, harm_growth, log_growth
from router_ml.experiments.unit import Observation

METRICS = ("failure", "slo_miss", "log_latency", "log_service", "cost_usd")
SHARES = ("failure", "slo_miss")

# One row of wealth for each one-sided question.
ROWS = (
    "first.harm", "failure.harm", "failure.better", "failure.fair",
    "slo_miss.harm", "slo_miss.better", "slo_miss.fair",
    "system.failure", "system.slow",
)  # fmt: skip
_INDEX = {name: index for index, name in enumerate(ROWS)}

# The middle of a share is taken from the past and kept for this many observations, so that it is known beforehand.
BLOCK = 50
_FIRST_MIDDLE = 0.25


@dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared deviations, by Welford's recurrence (Technometrics 1962)."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def add(self, value: float) -> None:
        """Take one value."""
        self.n += 1
        step = value - self.mean
        self.mean += step / self.n
        self.m2 += step * (value - self.mean)

    @property
    def variance(self) -> float:
        """The sample variance; 0 with fewer than two values."""
        return self.m2 / (self.n - 1) if self.n > 1 else 0.0


class Evidence:
    """Sufficient statistics of an experiment. Equal observations in equal order give equal figures."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.units: dict[Arm, int] = dict.fromkeys(ARMS, 0)
        self.first: dict[Arm, Moments] = {arm: Moments() for arm in ARMS}  # failures of units' first requests
        self.requests: dict[Arm, int] = dict.fromkeys(ARMS, 0)
        self.moments: dict[str, dict[Arm, Moments]] = {m: {arm: Moments() for arm in ARMS} for m in METRICS}
        self.wealth: Floats = np.zeros((len(ROWS), len(BETS)))
        self.middle: dict[str, float] = dict.fromkeys((*SHARES, "first"), _FIRST_MIDDLE)
        self.last_s: float | None = None
        self._null, self._lowest = self._bounds()

    @property
    def n(self) -> int:
        """Units of both arms."""
        return self.units["control"] + self.units["challenger"]

    def row(self, name: str) -> Floats:
        """The wealth of one question."""
        wealth: Floats = self.wealth[_INDEX[name]]
        return wealth

    def add_first(self, arm: Arm, failure: float) -> None:
        """Take the first request of a unit, at once: whole units may take long, and a disaster must not."""
        sign, middle = (1.0 if arm == "challenger" else -1.0), self.middle["first"]
        growth = harm_growth(np.array(failure), np.array(sign), middle, self._limits.failure_tolerance)
        self.wealth[_INDEX["first.harm"]] += growth
        self.first[arm].add(failure)
        if sum(m.n for m in self.first.values()) % BLOCK == 0:
            self.middle["first"] = _common_mean(self.first)

    def add(self, seen: Observation) -> None:
        """Take the observation of one unit."""
        self._wager(seen)
        self.units[seen.arm] += 1
        self.requests[seen.arm] += seen.requests
        self.last_s = seen.at_s if self.last_s is None else max(self.last_s, seen.at_s)
        for metric in METRICS:
            value = getattr(seen, metric)
            if value is not None:
                self.moments[metric][seen.arm].add(value)
        if self.n % BLOCK == 0:
            self._move_middle()

    def _wager(self, seen: Observation) -> None:
        sign = 1.0 if seen.arm == "challenger" else -1.0
        value = self._null.copy()  # a value equal to its null wins and loses nothing
        for metric in SHARES:
            x = getattr(seen, metric)
            if x is not None:
                tilt = sign * (x - self.middle[metric])
                first = _INDEX[f"{metric}.harm"]
                value[first : first + 3] = (tilt, -tilt, -tilt)
        value[_INDEX["system.failure"]], value[_INDEX["system.slow"]] = seen.failure, seen.slow
        self.wealth += log_growth(value, self._null, self._lowest)

    def _bounds(self) -> tuple[Floats, Floats]:
        """For each question the mean of its null and the least value that can be seen."""
        limits = self._limits
        null, lowest = np.zeros(len(ROWS)), -np.ones(len(ROWS))
        for metric, tolerance, margin in (
            ("failure", limits.failure_tolerance, limits.failure_margin),
            ("slo_miss", limits.slo_tolerance, limits.slo_margin),
        ):
            first = _INDEX[f"{metric}.harm"]
            null[first : first + 3] = (tolerance / 2, 0.0, -margin / 2)
            lowest[first : first + 3] = -max(self.middle[metric], 1 - self.middle[metric])
        for name, ceiling in (
            ("system.failure", limits.system_failure_ceiling),
            ("system.slow", limits.system_slow_ceiling),
        ):
            null[_INDEX[name]], lowest[_INDEX[name]] = ceiling, 0.0
        return null, lowest

    def _move_middle(self) -> None:
        for metric in SHARES:
            if any(m.n for m in self.moments[metric].values()):
                self.middle[metric] = _common_mean(self.moments[metric])
        self._null, self._lowest = self._bounds()

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form that `evidence_from` turns into an equal one."""
        return {
            "units": dict(self.units),
            "requests": dict(self.requests),
            "first": _moments_row(self.first),
            "moments": {metric: _moments_row(arms) for metric, arms in self.moments.items()},
            "wealth": {name: [float(w) for w in self.row(name)] for name in ROWS},
            "middle": dict(self.middle),
            "last_s": self.last_s,
        }


def _common_mean(arms: Mapping[Arm, Moments]) -> float:
    """Mean over both arms."""
    return sum(m.n * m.mean for m in arms.values()) / sum(m.n for m in arms.values())


def _moments_row(arms: Mapping[Arm, Moments]) -> dict[str, list[float]]:
    return {arm: [m.n, m.mean, m.m2] for arm, m in arms.items()}


def _moments(row: Sequence[float]) -> Moments:
    n, mean, m2 = row
    return Moments(int(n), float(mean), float(m2))


def evidence_from(row: Mapping[str, Any], limits: Limits) -> Evidence:
    """The evidence of its JSON form."""
    evidence = Evidence(limits)
    for arm in ARMS:
        evidence.units[arm] = int(row["units"][arm])
        evidence.requests[arm] = int(row["requests"][arm])
        evidence.first[arm] = _moments(row["first"][arm])
        for metric in METRICS:
            evidence.moments[metric][arm] = _moments(row["moments"][metric][arm])
    for name in ROWS:
        evidence.wealth[_INDEX[name]] = row["wealth"][name]
    evidence.middle = {name: float(row["middle"][name]) for name in (*SHARES, "first")}
    evidence.last_s = row["last_s"]
    evidence._null, evidence._lowest = evidence._bounds()
    return evidence


def standard_error(control: Moments, challenger: Moments, *, share: bool = False) -> float:
    """Standard error of the difference of two means.

    Of shares no arm counts as surer than if half an event had been seen: without it an arm that has not failed yet
    would seem unable to."""
    if control.n < 2 or challenger.n < 2:
        return math.inf
    return math.sqrt(sum(max(m.variance, _least_variance(m.n) if share else 0.0) / m.n for m in (control, challenger)))


def _least_variance(n: int) -> float:
    least = 0.5 / (n + 1)
    return least * (1 - least)
