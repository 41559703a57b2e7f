"""The evidence of an experiment in a bounded number of statistics, updated step by step."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from router_ml.experiments.experiment import ARMS, Arm, Limits
from router_ml.experiments.statistics import BETS, Floats, benefit_growth, harm_growth, log_growth
from router_ml.experiments.unit import Begun, FirstJudgement, Judged, Observation, Step

SHARES = ("failure", "no_answer", "clarified", "slo_miss")
METRICS = (*SHARES, "log_latency", "log_service", "cost_usd")
EARLY = ("failure", "no_answer")  # also tested on each unit's first judgement and first request
COUNTS = ("begun", "units", "requests", "sealed", "judged", "changed_arm")

SYSTEM = ("system.failure", "system.no_answer", "system.slow")
QUESTIONS = ("harm", "better", "fair")
# One row of log e-values for each one-sided question.
ROWS = (*(f"{m}.{q}" for m in SHARES for q in QUESTIONS), *(f"early.{m}.harm" for m in EARLY), *SYSTEM)
_INDEX = {name: index for index, name in enumerate(ROWS)}

_WAITING = 1000  # values of one arm that wait for a partner in the other; more would be of another time


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
        """Return the sample variance; 0 with fewer than two values."""
        return self.m2 / (self.n - 1) if self.n > 1 else 0.0


class Evidence:
    """Sufficient statistics of an experiment. Equal steps in equal order give equal figures.

    Shares are compared in pairs: a value joins the latest waiting one of the other arm. So the test stays exact where
    one arm is observed more often than the other, and pairs are of about one time while the common level drifts."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.counts: dict[str, dict[Arm, int]] = {name: dict.fromkeys(ARMS, 0) for name in COUNTS}
        self.moments: dict[str, dict[Arm, Moments]] = {name: _no_moments() for name in METRICS}
        self.early: dict[str, dict[Arm, Moments]] = {name: _no_moments() for name in EARLY}
        self.log_e: Floats = np.zeros((len(ROWS), len(BETS)))
        self.waiting: dict[str, dict[Arm, list[float]]] = {
            name: {arm: [] for arm in ARMS} for name in (*SHARES, *(f"early.{name}" for name in EARLY))
        }
        self.last_s: float | None = None

    @property
    def units(self) -> dict[Arm, int]:
        """Return the number of complete units per arm."""
        return self.counts["units"]

    @property
    def n(self) -> int:
        """Return the number of complete units of both arms."""
        return self.total("units")

    def total(self, name: str) -> int:
        """Return a count over both arms."""
        return sum(self.counts[name].values())

    def row(self, name: str) -> Floats:
        """Return the log e-values of one question, one per bet."""
        values: Floats = self.log_e[_INDEX[name]]
        return values

    def copy(self) -> Evidence:
        """Return a copy that grows by itself."""
        twin = copy.copy(self)
        twin.log_e = self.log_e.copy()
        twin.counts = {name: dict(arms) for name, arms in self.counts.items()}
        twin.moments = {name: _copied(arms) for name, arms in self.moments.items()}
        twin.early = {name: _copied(arms) for name, arms in self.early.items()}
        twin.waiting = {name: {arm: list(w) for arm, w in arms.items()} for name, arms in self.waiting.items()}
        return twin

    def add(self, step: Step) -> None:
        """Take one step of a unit."""
        what = step.what
        self.last_s = step.at_s
        if isinstance(what, Observation):
            self._complete(what)
        elif isinstance(what, Judged):
            self._judged(what)
        elif isinstance(what, Begun):
            self.counts["begun"][what.arm] += 1
            self._early("no_answer", what.arm, what.no_answer)
        elif isinstance(what, FirstJudgement):
            self._early("failure", what.arm, what.failure)

    def _complete(self, seen: Observation) -> None:
        self.counts["units"][seen.arm] += 1
        self.counts["requests"][seen.arm] += seen.requests
        self.counts["changed_arm"][seen.arm] += seen.changed_arm
        for metric in METRICS[1:]:
            self._value(metric, seen.arm, getattr(seen, metric))
        self._system("no_answer", seen.no_answer, self._limits.system_failure_ceiling)
        self._system("slow", seen.slow, self._limits.system_slow_ceiling)

    def _judged(self, seen: Judged) -> None:
        self.counts["sealed"][seen.arm] += 1
        if seen.failure is None:
            return
        self.counts["judged"][seen.arm] += 1
        self._value("failure", seen.arm, seen.failure)
        self._system("failure", seen.failure, self._limits.system_failure_ceiling)

    def _value(self, metric: str, arm: Arm, value: float | None) -> None:
        if value is None:
            return
        self.moments[metric][arm].add(value)
        if metric not in SHARES:
            return
        difference = self._pair(metric, arm, value)
        if difference is None:
            return
        row = _INDEX[f"{metric}.harm"]
        self.log_e[row : row + 3] += _share_growth(difference, *share_limits(self._limits, metric))

    def _early(self, metric: str, arm: Arm, value: float) -> None:
        self.early[metric][arm].add(value)
        difference = self._pair(f"early.{metric}", arm, value)
        if difference is not None:
            tolerance, margin = share_limits(self._limits, metric)
            self.log_e[_INDEX[f"early.{metric}.harm"]] += _share_growth(difference, tolerance, margin)[0]

    def _system(self, name: str, value: float, ceiling: float) -> None:
        self.log_e[_INDEX[f"system.{name}"]] += log_growth(np.array(value), ceiling, 0.0)

    def _pair(self, name: str, arm: Arm, value: float) -> float | None:
        """Return challenger minus control with the latest waiting value of the other arm, or wait for one."""
        waiting = self.waiting[name]
        other = waiting["control" if arm == "challenger" else "challenger"]
        if other:
            partner = other.pop()
            return value - partner if arm == "challenger" else partner - value
        waiting[arm].append(value)
        del waiting[arm][:-_WAITING]
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form that `evidence_from` turns into an equal one."""
        return {
            **{name: dict(arms) for name, arms in self.counts.items()},
            "moments": {metric: _moments_row(arms) for metric, arms in self.moments.items()},
            "early": {metric: _moments_row(arms) for metric, arms in self.early.items()},
            "log_e": {name: [float(value) for value in self.row(name)] for name in ROWS},
            "waiting": {name: {arm: list(w) for arm, w in arms.items()} for name, arms in self.waiting.items()},
            "last_s": self.last_s,
        }


@functools.lru_cache(maxsize=4096)
def _share_growth(difference: float, tolerance: float, margin: float) -> Floats:
    """Return the log growth of the bets of harm, better and fair; cached, as most differences are -1, 0 or 1."""
    x = np.array(difference)
    return np.stack([harm_growth(x, tolerance), benefit_growth(x, 0.0), benefit_growth(x, margin)])


def share_limits(limits: Limits, metric: str) -> tuple[float, float]:
    """Return the tolerance and the margin of a share."""
    name = metric.removesuffix("_miss")
    return getattr(limits, f"{name}_tolerance"), getattr(limits, f"{name}_margin")


def _no_moments() -> dict[Arm, Moments]:
    return {arm: Moments() for arm in ARMS}


def _copied(arms: Mapping[Arm, Moments]) -> dict[Arm, Moments]:
    return {arm: copy.copy(moments) for arm, moments in arms.items()}


def _moments_row(arms: Mapping[Arm, Moments]) -> dict[str, list[float]]:
    return {arm: [m.n, m.mean, m.m2] for arm, m in arms.items()}


def _moments(row: Mapping[str, Sequence[float]]) -> dict[Arm, Moments]:
    return {arm: Moments(int(row[arm][0]), float(row[arm][1]), float(row[arm][2])) for arm in ARMS}


def evidence_from(row: Mapping[str, Any], limits: Limits) -> Evidence:
    """Return the evidence of a JSON form, also of records of format 1.

    There every unit counted as judged, first requests stood for first judgements, and log e-values were "wealth"."""
    evidence = Evidence(limits)
    if "wealth" in row:
        row = {
            **row, "log_e": {**row["wealth"], "early.failure.harm": row["wealth"].get("first.harm", 0.0)},
            "early": {"failure": row["first"]}, "begun": row["units"], "sealed": row["units"], "judged": row["units"],
        }  # fmt: skip
    for name in COUNTS:
        evidence.counts[name] |= {arm: int(row.get(name, {}).get(arm, 0)) for arm in ARMS}
    evidence.moments |= {metric: _moments(arms) for metric, arms in row["moments"].items() if metric in METRICS}
    evidence.early |= {metric: _moments(arms) for metric, arms in row["early"].items() if metric in EARLY}
    for name in ROWS:
        evidence.log_e[_INDEX[name]] = row["log_e"].get(name, 0.0)
    for name, arms in row.get("waiting", {}).items():
        evidence.waiting[name] = {arm: [float(value) for value in arms[arm]] for arm in ARMS}
    evidence.last_s = row["last_s"]
    return evidence


def standard_error(control: Moments, challenger: Moments, *, share: bool = False) -> float:
    """Return the standard error of the difference of two means; infinite with fewer than two values in an arm.

    Of shares no arm counts as more certain than if half an event had been seen: without it an arm that has not failed
    yet would seem unable to."""
    if control.n < 2 or challenger.n < 2:
        return math.inf
    return math.sqrt(sum(max(m.variance, _least_variance(m.n) if share else 0.0) / m.n for m in (control, challenger)))


def _least_variance(n: int) -> float:
    least = 0.5 / (n + 1)
    return least * (1 - least)
